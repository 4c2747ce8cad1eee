"""`jaxdp budget`: epsilon of a plan, or noise for a budget."""

import contextlib
import dataclasses
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
import rich.console
import rich.table

from jaxdp import accounting, sampling, training, transforms
from jaxdp._reading import reason
from jaxdp.training._errors import UserError
from jaxdp.training.chain._subspace import predictions
from jaxdp.training.config._fields import Count, Delta, Epsilon, Examples, Noise, Rows, Steps
from jaxdp.training.config._io import number_sentence
from jaxdp.training.reporting._plots import is_ours, plot_epsilon
from jaxdp.training.running._console import epsilon_text
from jaxdp.training.running._plan import price_of_norms
from jaxdp.training.tasks._load import count_examples

_POINTS = 8
_MOST_STEPS = 1_000_000_000
# The same bounds as in a configuration.
_RANGES: dict[str, pydantic.TypeAdapter] = {
    name: pydantic.TypeAdapter(kind)
    for name, kind in {
        "examples": Rows,
        "batch_size": Examples,
        "sampling_probability": Annotated[float, pydantic.Field(ge=2.0**-32, le=1, allow_inf_nan=False)],
        "steps": Steps,
        "epochs": Annotated[float, pydantic.Field(gt=0, le=1e9, allow_inf_nan=False)],
        "noise_multiplier": Noise,
        "epsilon": Epsilon,
        "delta": Delta,
        "probes": Annotated[int, pydantic.Field(ge=8, le=65_536)],
        "groups": Count,
    }.items()
}
_COSTLY = ".* probes for a single clipping group"


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A plan of one phase, as typed."""

    examples: int | None
    batch_size: float | None
    sampling_probability: float | None
    steps: int | None
    epochs: float | None
    noise_multiplier: float | None
    epsilon: float | None
    delta: float
    accountant: str
    probes: int | None = None
    groups: int = 1


def from_config(path: Path, overrides: Sequence[tuple[str, str]], given: Sequence[Any], plot: Path) -> None:
    """The budget of a configuration file."""
    if any(value is not None for value in given):
        raise UserError(
            "--config already says what is planned: change single fields as --section.field value, such as "
            "--privacy.epsilon 3, or leave --config out."
        )
    config = training.load_config(path, overrides)
    if config.privacy.enabled:
        check_plot(plot)
    with working("reading the data, and looking for the noise multiplier"):
        plan = training.make_plan(config, count_examples(config))
    for sentence in plan.warnings:
        print(f"warning: {sentence}")
    table = _table("phase", "steps", "expected batch", "noise multiplier", "epsilon after it")
    for phase in plan.phases:
        noise = "none" if phase.noise_multiplier is None else f"{phase.noise_multiplier:.4g}"
        if phase.noise_multiplier is not None and config.clipping.adaptive:
            noise += f" ({phase.sum_noise_multiplier(config):.4g} on the sum)"
        spent = epsilon_text(plan.epsilon_after(phase.last_step))
        batch = f"{phase.sampler.expected_batch_size:,.6g}"
        table.add_row(phase.config.name, f"{phase.config.steps:,}", batch, noise, spent)
    _show(table, f"{plan.num_examples:,} training examples, delta {config.privacy.delta:g}{_bound(plan)}")
    _show_price_of_norms(plan)
    if config.privacy.enabled and config.subspace.method == "grape":
        _show_predictions(plan)
    if config.privacy.enabled:
        ends = [(phase.config.name, phase.last_step) for phase in plan.phases]
        _draw(plan.curve, plot, config.privacy.delta, config.privacy.epsilon, ends)


def _bound(plan: training.Plan) -> str:
    """Which accountant's bound the epsilon of the whole run is."""
    privacy = plan.config.privacy
    if not privacy.enabled:
        return ""
    found = accounting.guarantee(plan.event, delta=privacy.delta, accountant=privacy.accountant)
    return f", accountant {privacy.accountant} (the last epsilon is the bound by {found.accountant})"


def _show_price_of_norms(plan: training.Plan) -> None:
    """The same plan with exact and with estimated norms."""
    try:
        with warnings.catch_warnings():
            # The table is the price that the warning is about.
            warnings.filterwarnings("ignore", message=_COSTLY)
            found = price_of_norms(plan)
    except UserError as error:
        print(f"exact and estimated norms are not compared: {error}")
        return
    if found is None:
        return
    exact, estimated = found
    clipping = estimated.config.clipping
    kind = f"{clipping.norm}, {clipping.probes} probes"
    table = _table("phase", "clipping groups", "noise multiplier, exact norms", f"noise multiplier, {kind}", "of exact")
    for one, other in zip(exact.phases, estimated.phases, strict=True):
        before, after = one.noise_multiplier or 0.0, other.noise_multiplier or 0.0
        count = 1 if other.groups is None else len(set(other.groups.values()))
        table.add_row(one.config.name, str(count), f"{before:.4g}", f"{after:.4g}", f"{after / before:.3f}")
    shared = "shared by the batch" if clipping.sharing == "batch" else "of each example's own"
    spent = (
        f"epsilon {epsilon_text(exact.epsilon)} with exact and {epsilon_text(estimated.epsilon)} with estimated norms"
    )
    _show(table, f"{spent}; probes {shared}")


def _show_predictions(plan: training.Plan) -> None:
    """What the rank costs, for a user to choose it by."""
    table = _table("phase", "mean gradient / clipping norm", "cosine, projected", "cosine, full space", "lost")
    for phase in plan.phases:
        size = phase.sampler.expected_batch_size
        for mean, found in predictions(plan.config, phase.noise_multiplier or 0.0, phase.config, size):
            cosines = f"{found.projected:.4f}", f"{found.full:.4f}", f"{found.loss:.1%}"
            table.add_row(phase.config.name, f"{mean:g}", *cosines)
    if table.row_count:
        caption = (
            f"predicted for rank {plan.config.subspace.rank}: the cosine between one update and the gradient, for "
            "assumed lengths of the mean clipped gradient"
        )
        _show(table, caption)


def from_numbers(given: Numbers, plot: Path) -> None:
    """The budget of one phase of Poisson batches."""
    numbers = _checked(given)
    sampler = _sampler(numbers)
    steps = _steps(numbers)
    if (numbers.epsilon is None) == (numbers.noise_multiplier is None):
        raise UserError(
            "give either --noise-multiplier (to learn epsilon) or --epsilon (to learn the noise multiplier)."
        )
    check_plot(plot)
    clip = transforms.clip(1.0)
    budget = (numbers.delta, numbers.accountant)
    try:
        with working("looking for the noise multiplier") as say:
            noise = numbers.noise_multiplier
            if noise is None:
                assert numbers.epsilon is not None
                make = lambda noise: sampler(clip.dp_event(noise), steps)
                noise = accounting.calibrate(make, numbers.epsilon, *budget)
            event = clip.dp_event(float(noise))
            points = sorted({-(-i * steps // _POINTS) for i in range(_POINTS + 1)})
            spent = []
            for count in points:
                say(f"epsilon after {count:,} of {steps:,} steps")
                spent += accounting.epsilon_curve(lambda n: sampler(event, n), [count], *budget)
            last = accounting.guarantee(sampler(event, steps), delta=numbers.delta, accountant=numbers.accountant)
    except ValueError as error:
        raise UserError(f"budget: {error}") from error
    if not all(map(math.isfinite, spent)):
        raise UserError(
            f"budget: a noise multiplier of {noise:g} gives no finite epsilon over {steps:,} steps: raise it, or give "
            "fewer steps."
        )
    table = _table("steps", "epsilon")
    for count, value in zip(points, spent, strict=True):
        table.add_row(f"{count:,}", epsilon_text(value))
    bound = f"accountant {numbers.accountant} (the last epsilon is the bound by {last.accountant})"
    _show(table, f"noise multiplier {noise:.5g}, delta {numbers.delta:g}, {bound}")
    if numbers.probes is not None:
        _compare_estimated_norms(numbers, sampler, steps, float(noise), spent[-1])
    _draw(list(zip(points, spent, strict=True)), plot, numbers.delta, numbers.epsilon, [("", steps)])


def _checked(numbers: Numbers) -> Numbers:
    """Refuse numbers out of range, each by the name that it was typed under."""
    for field, value in dataclasses.asdict(numbers).items():
        if field in _RANGES and value is not None:
            try:
                _RANGES[field].validate_python(value)
            except pydantic.ValidationError as error:
                raise UserError(number_sentence(f"--{field.replace('_', '-')}", error.errors()[0])) from None
    if numbers.groups != 1 and numbers.probes is None:
        raise UserError("--groups has no meaning without --probes: give that as well, or remove --groups.")
    return numbers


def _steps(numbers: Numbers) -> int:
    """The number of updates, given or by epochs."""
    if numbers.steps is not None and numbers.epochs is not None:
        raise UserError("--steps and --epochs are both given, and each one determines the other: remove one of them.")
    if numbers.epochs is None:
        if numbers.steps is None:
            raise UserError(
                "--steps must be a whole number of at least 1: say how many updates are planned, or --epochs."
            )
        return numbers.steps
    if numbers.sampling_probability is not None:
        probability = numbers.sampling_probability
    else:
        assert numbers.batch_size is not None and numbers.examples is not None
        probability = numbers.batch_size / numbers.examples
    # Up, but not for what rounding puts above a whole number.
    steps = math.ceil(numbers.epochs / probability * (1 - 1e-12))
    if not 1 <= steps <= _MOST_STEPS:
        raise UserError(
            f"--epochs is {numbers.epochs:g}, which is {steps:,} steps: they must be from 1 to {_MOST_STEPS:,}."
        )
    return steps


def _compare_estimated_norms(numbers: Numbers, sampler: Any, steps: int, noise: float, spent: float) -> None:
    """What the same plan needs, or spends, when the norms are estimated."""
    table = _table("norms", "noise multiplier", "of exact", "epsilon")
    table.add_row("exact", f"{noise:.4g}", "1", epsilon_text(spent))
    kinds = ("batch", "example") if numbers.groups == 1 else ("batch",)
    for sharing in kinds:

        def event(sigma: float, sharing: Any = sharing) -> Any:
            shares = (1 / numbers.groups,) * numbers.groups
            step = accounting.RandomizedGaussianDpEvent(sigma, numbers.probes or 0, shares, sharing)
            return sampler(step, steps)

        budget = (numbers.delta, numbers.accountant)
        try:
            with warnings.catch_warnings():
                # The table is the price that the warning is about.
                warnings.filterwarnings("ignore", message=_COSTLY)
                sigma = accounting.calibrate(event, numbers.epsilon, *budget) if numbers.epsilon else noise
                epsilon = accounting.epsilon_of(event(sigma), *budget)
        except ValueError as error:
            raise UserError(f"budget: {error}") from error
        name = f"{numbers.probes} probes, {'shared' if sharing == 'batch' else 'own'}"
        table.add_row(name, f"{sigma:.4g}", f"{sigma / noise:.3f}", epsilon_text(epsilon))
    groups = "one clipping group" if numbers.groups == 1 else f"{numbers.groups} equal clipping groups"
    _show(table, f"after {steps:,} steps, {groups}; probes shared by the batch or of each example's own")


def _sampler(numbers: Numbers) -> Any:
    """A function (event of one release, steps) -> event."""
    if numbers.sampling_probability is not None:
        if numbers.batch_size is not None or numbers.examples is not None:
            raise UserError("give either --sampling-probability, or --examples and --batch-size.")
        probability = numbers.sampling_probability
        # The plain event: without the number of examples there is no padded batch that could overflow.
        import dp_accounting

        return lambda event, count: dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(probability, event), count
        )
    if numbers.examples is None or numbers.batch_size is None:
        raise UserError("give --examples and --batch-size, or --sampling-probability, or --config FILE.")
    if numbers.batch_size > numbers.examples:
        raise UserError(
            f"--batch-size is {numbers.batch_size:g} with {numbers.examples} examples: it must be above 0 and at most "
            "that."
        )
    try:
        return sampling.PoissonSampling.from_expected_batch_size(numbers.examples, numbers.batch_size).event
    except ValueError as error:
        raise UserError(f"--batch-size is {numbers.batch_size:g} with {numbers.examples} examples: {error}") from error


def _table(*columns: str) -> rich.table.Table:
    table = rich.table.Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 and column == "phase" else "right")
    return table


def _show(table: rich.table.Table, caption: str) -> None:
    console = rich.console.Console()
    console.print(table)
    console.print(caption, highlight=False)


def check_plot(path: Path) -> None:
    """Refuse a plot that cannot be written, or that would replace what is none of ours."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--plot {path} cannot be written: give the path of a PNG file.")
    try:
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise UserError(f"--plot {path} is no file: give the path of a PNG file.")
        if path.exists() and not is_ours(path):
            raise UserError(f"--plot {path} exists and is no plot of this command: remove it, or give another path.")
        if not path.parent.is_dir():
            raise UserError(
                f"--plot {path} cannot be written, as {path.parent} is no directory: make it, or give another."
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UserError(f"--plot {path} cannot be written, as it is read-only: give another path.")
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {path} cannot be written ({reason(error)}): give the path of a PNG file.") from None


def _draw(curve: Any, path: Path, delta: float, target: float | None, ends: list[tuple[str, int]]) -> None:
    check_plot(path)
    again = " (in place of the plot that was there)" if path.exists() else ""
    try:
        plot_epsilon(curve, path, delta=delta, target=target, ends=ends)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {path} cannot be written ({reason(error)}): give the path of a PNG file.") from None
    print(f"plot: {path}{again}")


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Say what takes its time: on a terminal in place, elsewhere a line every ten seconds."""
    console = rich.console.Console(stderr=True)
    if console.is_terminal:
        with console.status(what) as status:
            yield status.update
        return
    last = time.monotonic()

    def say(text: str) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            print(text, file=sys.stderr, flush=True)
            last = time.monotonic()

    yield say
