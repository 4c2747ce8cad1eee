"""`[denoise]` in a whole run: what it changes, what it logs and draws, and what it refuses."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import cli, sampling, training, transforms
from jaxdp.training import Interrupted, RunDirectory, UserError, load_config
from jaxdp.training.running._loop import phase_transformation

from .small import Quiet, head_only

SEED = 31
LAYER = "encoder/layers/1/"
MATRICES = {LAYER + f"{name}/kernel" for name in ("attention/output", "up")}
TRAINED = json.dumps([*sorted(MATRICES), "head/*"])


def config_text(table, tiny_model, denoise: str) -> str:
    """One phase that trains matrices, with little noise and nothing to calibrate."""
    text = head_only(table, tiny_model, privacy="noise_multiplier = 0.02").replace(
        'train = "head"', f"train = {TRAINED}"
    )
    return f"[denoise]\n{denoise}\n{text}"


@pytest.fixture(scope="module")
def config(tmp_path_factory, table, tiny_model):
    path = tmp_path_factory.mktemp("denoised") / "small.toml"
    path.write_text(config_text(table, tiny_model, "enabled = true\ngate = 1.0"))
    return load_config(path, [("privacy.accountant", "rdp")])


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("denoised run")
    return RunDirectory(training.train(config, folder / "run", Quiet(), SEED))


def lines_of(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_evaluations_tell_what_stood_out_and_the_singular_values_of_the_largest_matrix(finished):
    lines = lines_of(finished)
    assert [line["step"] for line in lines] == [2, 3, 4, 5]
    for line in lines:
        assert set(line["denoise"]) == MATRICES
        assert all(0 < ratio < 100 and 0 <= rank <= 16 for ratio, rank in line["denoise"].values())
        spectrum = line["spectrum"]
        ratio, rank = line["denoise"][spectrum["parameter"]]
        before, after = np.array(spectrum["before"]), np.array(spectrum["after"])
        assert len(before) == 16 and before[0] / spectrum["edge"] == pytest.approx(ratio, rel=1e-3)
        assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=1e-3)
        assert (rank == 0) == np.allclose(before, after, rtol=1e-3)
    # The head has learnt a little, and the encoder sees a direction in it.
    assert any(rank > 0 for line in lines for _, rank in line["denoise"].values())


def test_the_report_draws_it_and_the_spectrum_on_request(finished, capsys):
    cli.main(["report", str(finished.path)])
    assert "denoise.png" in capsys.readouterr().out and not (finished.path / "spectrum.png").exists()
    cli.main(["report", str(finished.path), "--spectrum"])
    assert str(finished.path / "spectrum.png") in capsys.readouterr().out
    page = (finished.path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "spectrum.png" in (finished.path / "report.md").read_text()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(config, finished, tmp_path):
    def stop(done):
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        training.train(config, tmp_path / "run", Quiet(stop), SEED)
    again = RunDirectory(training.resume(tmp_path / "run", Quiet()))
    assert lines_of(again) == lines_of(finished)


def updates_of(config, gradient):
    """The first update of a phase from per-example gradients that are all the same."""
    plan = training.make_plan(config, 900)
    tx = phase_transformation(plan, 0, sampling.key_from_seed(1))
    params = jax.tree.map(jnp.zeros_like, gradient)
    stacked = jax.tree.map(lambda g: jnp.broadcast_to(g, (900, *g.shape)), gradient)
    return jax.jit(lambda g: tx.update(g, tx.init(params), params)[0])(stacked)


def test_the_denoiser_stands_between_the_noise_and_the_update_rule(config, table, tiny_model, tmp_path):
    """With plain gradient descent the update is the denoised mean; without denoising it is not of low rank."""
    left, right = np.random.default_rng(0).normal(size=(2, 12))
    gradient = {"w": jnp.asarray(np.outer(left, right), jnp.float32) * 1e-3, "b": jnp.ones(3) * 1e-3}
    path = tmp_path / "a.toml"
    path.write_text(config_text(table, tiny_model, 'enabled = true\nmode = "shrink"\ngate = 1.0'))
    options = [("privacy.accountant", "rdp"), ("phase.momentum", "0.0")]
    found, raw = (
        updates_of(load_config(path, [*options, ("denoise.enabled", flag)]), gradient) for flag in ("true", "false")
    )
    values = np.linalg.svd(np.asarray(found["w"]), compute_uv=False)
    assert values[0] > 0 and values[1] < 1e-5 * values[0]
    assert np.linalg.norm(found["w"]) == pytest.approx(np.linalg.norm(raw["w"]), rel=1e-4)
    np.testing.assert_array_equal(found["b"], raw["b"])
    assert np.linalg.svd(np.asarray(raw["w"]), compute_uv=False)[1] > 1e-3 * values[0]


def test_corrected_adam_gets_the_std_of_the_noise(table, tiny_model, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(head_only(table, tiny_model, privacy="noise_multiplier = 0.5").replace("momentum = 0.9\n", ""))
    plan = training.make_plan(
        load_config(path, [("phase.optimizer", "adam_corrected"), ("privacy.accountant", "rdp")]), 900
    )
    tx = phase_transformation(plan, 0, sampling.key_from_seed(1))
    params = {"w": jnp.zeros((40, 40))}
    _, state = jax.jit(lambda: tx.update({"w": jnp.zeros((900, 40, 40))}, tx.init(params), params))()
    moments = next(
        s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, transforms.CorrectedAdamState))
        if isinstance(s, transforms.CorrectedAdamState)
    )  # fmt: skip
    net = np.mean(moments.nu["w"]) / 0.001
    assert abs(net) < 0.2 * (0.5 * 4.0 / 900) ** 2


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"phase.optimizer": "adam_corrected"}, 'phase.1.optimizer = "adam_corrected" needs the noise as it was drawn'),
        ({"privacy.enabled": "false"}, "denoise.enabled has no meaning with privacy.enabled = false"),
        ({"denoise.gate": "wide"}, 'denoise.gate is "wide": use "cosine" or "tracy_widom".'),
        ({"denoise.width": "0"}, "denoise.width is 0: it must be greater than or equal to 1."),
        ({"denoise.mode": "hard"}, 'denoise.mode is "hard": use "keep_bulk" or "shrink".'),
        ({"denoise.kappa": "1"}, "denoise.kappa is not a field"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(overrides, sentence, table, tiny_model, tmp_path):
    path = tmp_path / "a.toml"
    text = config_text(table, tiny_model, "enabled = true").replace("momentum = 0.9\n", "")
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path, list(overrides.items()))
    assert sentence in str(caught.value)


def test_corrected_adam_without_noise_is_refused(table, tiny_model, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(head_only(table, tiny_model, privacy="enabled = false").replace("momentum = 0.9\n", ""))
    with pytest.raises(UserError, match=r"adam_corrected.* has no meaning with privacy\.enabled = false"):
        load_config(path, [("phase.optimizer", "adam_corrected")])


def test_a_report_without_singular_values_says_why(config, finished, tmp_path):
    plain = config.model_copy(update={"denoise": config.denoise.model_copy(update={"spectrum": "no/such"})})
    for changed, sentence in (
        (plain, "no phase denoises denoise.spectrum = 'no/such'"),
        (config.model_copy(update={"denoise": type(config.denoise)()}), "train with denoise.enabled true"),
    ):
        run = RunDirectory(tmp_path / sentence.split()[0])
        run.path.mkdir()
        for file in (finished.plan, finished.statement_text, finished.result):
            (run.path / file.name).write_text(file.read_text())
        run.config.write_text(training.dump_config(changed))
        stripped = [{k: v for k, v in line.items() if k not in ("spectrum", "denoise")} for line in lines_of(finished)]
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in stripped))
        with pytest.raises(UserError, match=sentence):
            training.write_report(run, spectrum=True)


@pytest.mark.quick
def test_the_matrix_that_is_remembered_is_the_one_that_was_named():
    from jaxdp.training.chain._spectrum import denoising_metrics, watch

    draw = np.random.default_rng(0)
    tree = {name: jnp.asarray(draw.normal(size=(10, n)), jnp.float32) for name, n in (("a/w", 9), ("b/w", 12))}
    noisy = transforms.NoisyGradient(tree, {"a/w": jnp.float32(0.1), "b/w": jnp.float32(2.0)})
    for named, expected in ((None, "b/w"), ("a/w", "a/w"), ("c", None)):
        tx = watch(transforms.rmt_denoise(), named)
        _, state = jax.jit(lambda tx=tx: tx.update(noisy, tx.init(tree)))()
        metrics = denoising_metrics((state,))
        assert set(metrics["denoise"]) == {"a/w", "b/w"}
        assert metrics.get("spectrum", {}).get("parameter") == expected
    assert denoising_metrics(((), {"w": jnp.zeros(2)})) == {}
