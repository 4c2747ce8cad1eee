"""The commands: what each takes, and how what goes wrong is told."""

from jaxdp.cli._stop import quiet_imports, saying, stopped_quietly

with quiet_imports():
    import contextlib
    import functools
    import io
    import re
    import sys
    import warnings
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Annotated, Any, Literal, NoReturn

    import tyro

    from jaxdp import __version__
    from jaxdp.cli._arguments import ArgumentError, checked

_DESCRIPTION = """Differentially private training.

In use:
  jaxdp train configs/tweets.toml
  jaxdp train configs/tweets.toml --privacy.epsilon 3 --phase.1.steps 200
  jaxdp resume runs/tweets-20250102-030405-678901
  jaxdp report runs/tweets-20250102-030405-678901
  jaxdp budget --config configs/tweets.toml
  jaxdp budget --examples 33000 --batch-size 512 --steps 500 --epsilon 8

`jaxdp COMMAND --help` says more about each, `jaxdp --version` which version this is."""

# The --section.field options of a call: they belong to the configuration, not to the command.
Overrides = list[tuple[str, str]]
Work = Callable[[Overrides], None]

_ConfigFile = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
_RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


_Address = Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")]
_Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
_File = Annotated[Path | None, tyro.conf.arg(metavar="CONFIG", help_behavior_hint="")]
_Count = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
_DELTA = 1e-5
_Number = Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="")]


def train(
    config: _ConfigFile,
    run_dir: _Folder = None,
    seed: _Count = None,
    coordinator: _Address = None,
    processes: _Count = None,
    process: _Count = None,
) -> Work:
    """Train what a configuration file describes.

    Args:
      config: the TOML file.
      run_dir: a new directory for everything that the run writes; runs/NAME-DATE-TIME if not given.
      seed: for reproducible experiments only, as whoever knows it can take the noise off; without it the randomness
        comes from the operating system.
      coordinator: of a run of several processes, each started with this command: host and port of process 0, or "auto"
        on a cluster that says so.
      processes: how many there are.
      process: which one this is, from 0; the first one writes and prints.
    """

    def work(overrides: Overrides) -> None:
        from jaxdp import training

        training.join_processes(coordinator, processes, process)
        loaded = training.load_config(config, overrides)
        if run_dir is None and coordinator is not None:
            _fail("several processes need one directory: give --run-dir, the same for all.")
        directory = training.default_run_dir(config) if run_dir is None else run_dir
        _attended(directory, lambda display: training.train(loaded, directory, display, seed))

    return work


def resume(run: _RunFolder, coordinator: _Address = None, processes: _Count = None, process: _Count = None) -> Work:
    """Go on with a run that was stopped (Ctrl-C) or killed.

    It ends with exactly the model that it would have had without the stop: all randomness is a function of the saved
    key and the step. It is refused if the data, the model, the configuration, the software, its settings or the kind of
    machine changed. Damaged files are mended from the last good checkpoint where they can be. A run that was stopped by
    Ctrl-C may go on over other devices (--mesh.data 4 and the like), with the same model up to rounding.

    In use:
      jaxdp resume runs/tweets-20250102-030405-678901
      jaxdp resume runs/tweets-20250102-030405-678901 --mesh.data 4

    Args:
      run: the run's directory.
      coordinator: of a run of several processes, as for `jaxdp train`.
      processes: how many there are.
      process: which one this is, from 0.
    """

    def work(overrides: Overrides) -> None:
        from jaxdp import training

        training.join_processes(coordinator, processes, process)
        _attended(run, lambda display: training.resume(run, display, overrides))

    return work


def report(run: _RunFolder, spectrum: bool = False) -> Work:
    """Draw the plots of a run and write its report.md and report.html again.

    Works on runs that are not finished, too.

    In use: jaxdp report runs/tweets-20250102-030405-678901

    Args:
      run: the run's directory.
      spectrum: also draw the singular values of one layer's noisy gradient before and after denoising.
    """

    def work(overrides: Overrides) -> None:
        from jaxdp import training

        _refuse(overrides, "report")
        for path in training.write_report(training.RunDirectory(run), spectrum=spectrum):
            print(path)

    return work


def budget(
    config: _File = None,
    examples: _Count = None,
    batch_size: _Number = None,
    sampling_probability: _Number = None,
    steps: _Count = None,
    epochs: _Number = None,
    noise_multiplier: _Number = None,
    epsilon: _Number = None,
    delta: float = _DELTA,
    accountant: Literal["pld", "rdp"] = "pld",
    probes: _Count = None,
    groups: int = 1,
    plot: Path = Path("budget.png"),
) -> Work:
    """Say what a plan costs, or how much noise a budget needs; nothing is trained.

    Prints a table and draws epsilon over steps. A plot that this command drew before is drawn over, and said to be; no
    other file is.

    In use:
      jaxdp budget --config configs/tweets.toml --privacy.epsilon 3
      jaxdp budget --examples 33000 --batch-size 512 --epochs 8 --noise-multiplier 0.8
      jaxdp budget --sampling-probability 0.01 --steps 500 --epsilon 8 --delta 1e-6
      jaxdp budget --sampling-probability 0.01 --steps 500 --epsilon 8 --probes 64

    Args:
      config: a configuration file whose phases, noise and delta are used (with any --section.field given).
      examples: number of training examples, from 1 to 2,000,000,000.
      batch_size: expected number of examples in a Poisson batch.
      sampling_probability: instead of --examples and --batch-size.
      steps: number of updates, from 1 to 1,000,000,000.
      epochs: instead of --steps: how often the data are gone through, on average; rounded up to whole steps.
      noise_multiplier: std of the noise over the sensitivity, from 0.0001; gives epsilon.
      epsilon: the budget, up to 10,000; gives the noise multiplier.
      delta: of the guarantee; best below one over the number of examples.
      accountant: pld is the tight one.
      probes: also show the same plan with norms that so many random probes (from 8) estimate.
      groups: number of equal clipping groups whose norms are estimated; with --probes.
      plot: the PNG file to write.
    """

    def work(overrides: Overrides) -> None:
        from jaxdp.cli import _budget as commands
        from jaxdp.training import UserError

        given = (examples, batch_size, sampling_probability, steps, epochs, noise_multiplier, epsilon)
        if config is not None:
            if delta != _DELTA or accountant != "pld":
                raise UserError(
                    "--delta and --accountant go with a plan of numbers: write --privacy.delta with --config."
                )
            if probes is not None or groups != 1:
                raise UserError("--probes and --groups go with a plan of numbers: leave them out with --config.")
            commands.from_config(config, overrides, given, plot)
        else:
            _refuse(overrides, "budget without --config")
            commands.from_numbers(commands.Numbers(*given, delta, accountant, probes, groups), plot)

    return work


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: exit code 0, 2 for what the user can put right, 130 after Ctrl-C."""
    with stopped_quietly():
        rest, overrides = _split_overrides(list(sys.argv[1:] if argv is None else argv))
        if rest[:1] == ["--version"]:
            print(f"jaxdp {__version__}")
            return
        work = _parse(rest)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = functools.partial(_warn, warnings.showwarning)
                work(overrides)
        except Exception as error:
            from jaxdp.training import UserError

            if not isinstance(error, UserError):
                raise
            _fail(str(error))


def _parse(arguments: list[str]) -> Work:
    """The command to run; a mistake in its arguments is one sentence, not a box."""
    commands = {"train": train, "resume": resume, "report": report, "budget": budget}
    try:
        arguments = checked(arguments, commands)
    except ArgumentError as error:
        _fail(str(error))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                {name: _explained(function, arguments) for name, function in commands.items()},
                prog="jaxdp",
                description=_DESCRIPTION,
                args=arguments,
            )
    except SystemExit as stop:
        if stop.code:
            _fail(_sentence(said.getvalue()))
        raise


def _explained(function: Callable, arguments: list[str]) -> Callable:
    """The function with a docstring that the parser shows as it is."""
    if not {"-h", "--help"} & set(arguments):
        return function
    from jaxdp.cli._help import described, fields

    @functools.wraps(function)
    def same(*args: Any, **kwargs: Any) -> Work:
        return function(*args, **kwargs)

    same.__doc__ = described(function.__doc__, fields() if function is train and arguments[:1] == ["train"] else "")
    return same


def _warn(usual: Callable[..., None], message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning to the user is a sentence; one to the programmer says where it came from."""
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        usual(message, category, *where, **more)


def _sentence(box: str) -> str:
    """The text inside the box that the parser draws, put into words."""
    lines = [re.sub(r"[│╭╮╰╯─]+|-{4,}|^[|+]|[|+]$", " ", line).strip() for line in box.splitlines()]
    words = " ".join(line for line in lines if line and not line.startswith("For full helptext"))
    if found := re.search(r"Error parsing (--[\w-]+): .*?(?:from|to parse) \[?'(.*?)'\]?[;. ]", words):
        return f"{found[1]} is {found[2]!r}, which is not of the right kind: see its --help."
    if found := re.search(r"Missing from jaxdp (\w+): (\w+) (.*?)\.? \(required\)", words):
        return f"{found[1]} needs {found[2]}, {found[3]}: see `jaxdp {found[1]} --help`."
    return f"{words.rstrip('.')}: see `jaxdp --help`."


def _split_overrides(arguments: list[str]) -> tuple[list[str], Overrides]:
    """Take the --section.field options out of the arguments."""
    rest: list[str] = []
    overrides: Overrides = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if not (name.startswith("--") and "." in name):
            rest.append(argument)
            continue
        if not equals:
            value = next(remaining, None)
            if value is None:
                _fail(f"{name} has no value: write {name} VALUE.")
        overrides.append((name.removeprefix("--").replace("-", "_"), value))
    return rest, overrides


def _refuse(overrides: Overrides, command: str) -> None:
    if overrides:
        _fail(f"{command} takes no --{overrides[0][0]}: that is for `jaxdp train`.")


def _fail(sentence: str) -> NoReturn:
    print(f"jaxdp: {sentence}", file=sys.stderr)
    sys.exit(2)


def _attended(directory: Path, work: Callable[[Any], Any]) -> None:
    """Run with a display; after Ctrl-C say how to go on."""
    from jaxdp import training

    def stopped() -> str:
        saved = training.RunDirectory(directory).manifest.exists()
        return f"stopped; {f'go on with: jaxdp resume {directory}' if saved else 'nothing was saved yet.'}"

    display = training.make_display() if training.is_first() else training.Silent()
    with saying(stopped):
        try:
            work(display)
        except training.Interrupted:
            display.close()
            if training.is_first():
                print(f"\n{stopped()}", file=sys.stderr)
            sys.exit(130)
        finally:
            display.close()
