"""The command line: help that teaches, one sentence and exit code 2 for mistakes, and the budget."""

import json
import re
import subprocess
import sys

import pytest

import jaxdp
from jaxdp import accounting, training, transforms
from jaxdp.cli import main
from jaxdp.training.config._config import Config
from jaxdp.training.config._phase import PhaseConfig
from tests.training.small import head_only

PLAN = ["budget", "--sampling-probability", "0.01", "--steps", "9"]


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    code = 0
    try:
        main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.quick
def test_help_names_the_commands_and_gives_examples(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for text in ("train", "resume", "report", "budget", "jaxdp train configs/tweets.toml", "--privacy.epsilon 3"):
        assert text in out


@pytest.mark.quick
def test_help_of_train_explains_every_field(capsys):
    code, out, _ = call(capsys, "train", "--help")
    assert code == 0
    for name, info in Config.model_fields.items():
        model = PhaseConfig if name == "phase" else info.annotation
        for field in model.model_fields:
            assert re.search(rf"^\s+{field}\*?: ", out, re.MULTILINE), f"{name}.{field}"
    assert "--phase.NUMBER.field" in out and "--seed" in out


@pytest.mark.parametrize("command", ["resume", "report", "budget"])
def test_help_of_each_command_has_an_example(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and f"jaxdp {command} " in out.replace("usage: ", "", 1).split("In use:")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "trian is not understood: did you mean train?"),
        (["resume"], "resume needs RUN, the run's directory: see `jaxdp resume --help`."),
        (["train"], "train needs CONFIG, the TOML file: see `jaxdp train --help`."),
        (["train", "nowhere/a.toml"], "nowhere/a.toml does not exist: give the path of a TOML file."),
        (["train", "a.toml", "--privacy.epsilon"], "--privacy.epsilon has no value: write --privacy.epsilon VALUE."),
        (["train", "a.toml", "--seed", "x"], "--seed is 'x', which is not of the right kind: see its --help."),
        (["resume", "a", "--privacy.epsilon", "3"], "resume takes no --privacy.epsilon: that is for `jaxdp train`."),
        (["report", "nowhere"], "nowhere holds no run: give the directory that `jaxdp train` made."),
        (["budget"], "give --examples and --batch-size, or --sampling-probability, or --config FILE."),
        (["budget", "--examples", "10", "--batch-size", "20", "--steps", "1"], "--batch-size is 20 with 10 examples"),
        (
            ["budget", "--sampling-probability", "2"],
            "--sampling-probability is 2.0: it must be less than or equal to 1.",
        ),
        (["budget", "--sampling-probability", "0.1"], "--steps must be a whole number of at least 1"),
        (["budget", "--sampling-probability", "0.1", "--steps", "9"], "give either --noise-multiplier"),
        (
            ["budget", "--sampling-probability", "0.1", "--steps", "9", "--epsilon", "0"],
            "--epsilon is 0.0: it must be greater than 0.",
        ),
        (["budget", "--config", "a.toml", "--steps", "3"], "--config already says what is planned"),
        ([], "no command is given: use one of train, resume, report, budget"),
        (["--hepl"], "--hepl is not understood: did you mean --help?"),
        (["train", "a.toml", "--sede", "3"], "--sede is no option of train: did you mean --seed?"),
        (["resume", "a", "b"], "b is too much: resume takes 1 argument."),
        (["budget", "--steps"], "--steps has no value: write --steps VALUE."),
        ([*PLAN, "--noise-multiplier", "0"], "--noise-multiplier is 0.0: it must be greater than 0."),
        ([*PLAN, "--noise-multiplier", "-1"], "--noise-multiplier is -1.0: it must be greater than 0."),
        ([*PLAN, "--noise-multiplier", "nan"], "--noise-multiplier is NaN: it must be finite."),
        ([*PLAN, "--epsilon", "inf"], "--epsilon is Infinity: it must be finite."),
        ([*PLAN, "--epsilon", "3", "--delta", "0"], "--delta is 0.0: it must be greater than 0."),
        ([*PLAN, "--epsilon", "3", "--epochs", "2"], "--steps and --epochs are both given"),
        ([*PLAN, "--epsilon", "3", "--groups", "2"], "--groups has no meaning without --probes"),
        ([*PLAN, "--epsilon", "3", "--plot", "a.pdf"], "--plot a.pdf cannot be written: give the path of a PNG file."),
        ([*PLAN, "--epsilon", "3", "--plot", "nowhere/a.png"], "as nowhere is no directory"),
        (
            ["budget", "--examples", "-5", "--batch-size", "2"],
            "--examples is -5: it must be greater than or equal to 1.",
        ),
        (["budget", "--sampling-probability", "1e-12"], "--sampling-probability is 1e-12: it must be greater than"),
        (["budget", "--accountant", "foo"], "invalid choice 'foo' for argument '--accountant'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(capsys, arguments, sentence):
    code, out, err = call(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("jaxdp: ") and sentence in err
    assert err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("--privacy.epslon", "3", 'privacy.epslon is not a field: did you mean "epsilon"?'),
        ("--model.path", "/nowhere", "model.path: /nowhere does not exist"),
        ("--data.source", "/nowhere.csv", "data: /nowhere.csv does not exist"),
        ("--data.label-column", "stars", "data: "),
        ("--phase.2.batch_size", "99999", "phase.2.batch_size is 99999 with"),
        ("--phase.top.train", "last:7", "phase.2.train: train = 'last:7', but the model has 2 layers"),
    ],
)
def test_a_wrong_field_on_the_command_line_is_one_sentence(capsys, config_file, tmp_path, field, value, sentence):
    code, _, err = call(capsys, "train", str(config_file), field, value, "--run-dir", str(tmp_path / "run"))
    assert code == 2 and sentence in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_budget_of_a_configuration_is_that_of_the_run(capsys, config_file, tmp_path):
    plot = tmp_path / "plot.png"
    code, out, _ = call(capsys, "budget", "--config", str(config_file), "--privacy.epsilon", "3", "--plot", str(plot))
    assert code == 0 and plot.read_bytes().startswith(b"\x89PNG")
    rows = int(re.search(r"([\d,]+) training examples", out)[1].replace(",", ""))
    plan = training.make_plan(training.load_config(config_file, [("privacy.epsilon", "3")]), rows)
    for phase in plan.phases:
        assert re.search(rf"{phase.config.name} .*{phase.noise_multiplier:.4g}", out)
    assert re.search(r"top .*│ +3\.00 │", out)


def test_the_budget_of_a_configuration_compares_exact_and_estimated_norms(capsys, config_file, tmp_path):
    few = [("privacy.epsilon", "3"), ("phase.1.steps", "2"), ("phase.2.steps", "3"), ("clipping.groups", "layer")]
    arguments = [text for name, value in few for text in (f"--{name}", value)]
    code, out, _ = call(
        capsys, "budget", "--config", str(config_file), *arguments, "--clipping.norm", "hutchinson", "--plot",
        str(tmp_path / "a.png"),
    )  # fmt: skip
    rows = int(re.search(r"([\d,]+) training examples", out)[1].replace(",", ""))
    plans = [
        training.make_plan(training.load_config(config_file, [*few, ("clipping.norm", norm)]), rows)
        for norm in ("exact", "hutchinson")
    ]
    assert code == 0 and plans[1].phases[1].noise_multiplier > 1.01 * plans[0].phases[1].noise_multiplier
    for number, groups in enumerate((1, 2)):
        name, noises = plans[0].phases[number].config.name, [plan.phases[number].noise_multiplier for plan in plans]
        numbers = (groups, f"{noises[0]:.4g}", f"{noises[1]:.4g}", f"{noises[1] / noises[0]:.3f}")
        assert re.search(rf"│ {name} +│ +" + " │ +".join(map(str, numbers)) + " │", out)
    assert "epsilon 3.00 with exact and 3.00 with estimated norms" in " ".join(out.split())


def test_the_budget_shows_estimated_norms_beside_exact_ones(capsys, tmp_path):
    numbers = ["budget", "--sampling-probability", "0.01", "--steps", "200", "--plot", str(tmp_path / "a.png")]
    code, out, _ = call(capsys, *numbers, "--epsilon", "3", "--probes", "64")
    lines = [line.split() for line in out.splitlines()]
    ratios = [float(line[-4]) for line in lines if "probes," in line and "64" in line]
    assert code == 0 and len(ratios) == 2
    assert 1.02 < ratios[1] < ratios[0] < 1.15
    code, out, _ = call(capsys, *numbers, "--noise-multiplier", "0.9", "--probes", "12")
    spent = [float(value) for value in re.findall(r"(?:exact|shared|own) .*│ +([\d.]+) │", out)]
    assert code == 0 and len(spent) == 3 and spent[0] < spent[2] < spent[1]
    for wrong, sentence in (
        (["--probes", "4"], "--probes is 4: it must be greater than or equal to 8."),
        (["--probes", "64", "--groups", "0"], "--groups is 0: it must be greater than or equal to 1."),
        (["--probes", "64", "--accountant", "rdp"], "infinite at every order"),
    ):
        code, _, error = call(capsys, *numbers, "--noise-multiplier", "0.9", *wrong)
        assert code == 2 and sentence in " ".join(error.split())


def test_the_budget_of_numbers_goes_both_ways(capsys, tmp_path):
    numbers = ["budget", "--sampling-probability", "0.01", "--steps", "200", "--plot", str(tmp_path / "a.png")]
    code, out, _ = call(capsys, *numbers, "--epsilon", "2")
    noise = float(re.search(r"noise multiplier ([\d.]+)", out)[1])
    expected = accounting.calibrate_noise_multiplier(
        clip=transforms.clip(1.0), target_epsilon=2.0, delta=1e-5, sampling_probability=0.01, num_steps=200
    )
    assert code == 0 and noise == pytest.approx(expected, rel=1e-4)
    code, out, _ = call(capsys, *numbers, "--noise-multiplier", str(noise))
    assert code == 0 and re.search(r"200 │ +2\.0[01] │", out)
    spent = [float(value) for value in re.findall(r"│ +[\d,]+ │ +([\d.]+) │", out)]
    assert len(spent) == 9 and spent == sorted(spent)


def test_a_plot_is_drawn_over_only_if_it_is_one_and_before_anything_is_computed(capsys, tmp_path, monkeypatch):
    plot = tmp_path / "a.png"
    arguments = [*PLAN, "--noise-multiplier", "2", "--plot", str(plot)]
    assert "in place of" not in call(capsys, *arguments)[1]
    assert "in place of the plot that was there" in call(capsys, *arguments)[1]
    plot.write_bytes(b"\x89PNG of somebody else")
    monkeypatch.setattr(accounting, "epsilon_curve", lambda *_: pytest.fail("it was computed"))
    code, _, error = call(capsys, *arguments)
    assert code == 2 and "exists and is no plot of this command" in error
    assert plot.read_bytes() == b"\x89PNG of somebody else"


def test_epochs_are_steps(capsys, tmp_path):
    numbers = ["budget", "--examples", "900", "--batch-size", "90", "--noise-multiplier", "3"]
    numbers += ["--plot", str(tmp_path / "a.png")]
    table = lambda *more: [line for line in call(capsys, *numbers, *more)[1].splitlines() if "\u2502" in line]
    assert table("--epochs", "3") == table("--steps", "30") != table("--epochs", "2.9")


def test_help_waits_for_no_model_library():
    """A fresh process, in which nothing is imported yet."""
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        program = (
            "import sys\nfrom jaxdp.cli import main\n"
            f"try: main({arguments})\nexcept SystemExit as stop: assert not stop.code\n"
            "print('loaded', sorted({'jax', 'numpy', 'flax', 'dp_accounting', 'matplotlib'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("loaded []\n"), done.stdout
    done = subprocess.run([sys.executable, "-m", "jaxdp", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"jaxdp {jaxdp.__version__}\n"


@pytest.mark.parametrize("columns", [60, 100])
def test_help_fits_the_terminal_and_states_bounds_and_choices(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = call(capsys, "train", "--help")
    body = out.split("[task]")[1].split("In use:")[0]
    assert max(map(len, body.splitlines())) < columns
    words = " ".join(out.split())
    assert "steps*: number of updates; from 1 to 1,000,000,000" in words
    assert "center: a PUBLIC corpus" in words and 'one of "tweets", "movie_sentences"' in words
    assert 'only with optimizer = "sgd"' in words


def test_the_budget_says_whose_bound_it_is_and_answers_extremes(capsys, tmp_path):
    plan = ["budget", "--plot", str(tmp_path / "a.png"), "--sampling-probability", "1e-9", "--steps", "1000000000"]
    code, out, _ = call(capsys, *plan, "--noise-multiplier", "1")
    assert code == 0 and "(the last epsilon is the bound by pld)" in " ".join(out.split())
    # What no run can have is a sentence here; jaxdp.accounting answers it.
    for field, value in (("sampling-probability", "1e-12"), ("noise-multiplier", "1e-200"), ("steps", str(10**20))):
        code, _, err = call(capsys, *plan, "--noise-multiplier", "1", f"--{field}", value)
        assert code == 2 and f"--{field} is" in err and "it must be" in err and "Traceback" not in err


def test_train_and_report_from_the_command_line(capsys, table, tiny_model, tmp_path):
    run, config = tmp_path / "run", tmp_path / "head.toml"
    config.write_text(head_only(table, tiny_model))
    code, out, err = call(capsys, "train", str(config), "--run-dir", str(run), "--phase.steps=7")
    assert code == 0 and out == "" and f"see {run / 'report.md'}" in err
    assert re.search(r"step 7/7  phase head  epsilon 6\.00  held-out accuracy 0\.\d{4}", err)
    assert json.loads((run / "result.json").read_text())["steps"] == 7
    assert "seed" not in (run / "statement.txt").read_text().lower()
    (run / "report.html").unlink()
    code, out, _ = call(capsys, "report", str(run))
    assert code == 0 and (run / "report.html").exists() and str(run / "report.html") in out
    assert call(capsys, "resume", str(run))[0] == 0
