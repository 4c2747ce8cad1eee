"""What ways of training inside an encoder reach at the same epsilon: in full or random subspaces, denoised, and so on.

python benchmarks/inside_encoder.py --help
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    # Run by its path, Python would look for modules beside this file, where `tables` and `flops` are not its own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import jax.numpy as jnp
import tyro

from benchmarks import machine, tables
from jaxdp import sampling, training
from jaxdp.training.running._loop import phase_transformation
from jaxdp.training.running._plan import plan_from_saved, saved_plan
from jaxdp.training.tasks._classifier import load_classifier
from jaxdp.training.tasks._data import load_dataset, model_directory
from jaxdp.training.tasks._phase_data import make_evaluation, make_phase_data

RESULTS = "inside_encoder"
DENOISED = ("denoise.enabled", "true")
GRAPE = (("subspace.method", "grape"), ("subspace.rank", "64"))
# What is changed of the configuration; the privacy event is the same for all.
VARIANTS: dict[str, tuple[tuple[str, str], ...]] = {
    "DP-Adam": (),
    "DP-GRAPE, r = 64": GRAPE,
    "DPZero": (("subspace.method", "zeroth_order"),),
    "DP-Adam, denoised (published)": (DENOISED, ("denoise.mode", "shrink"), ("denoise.gate", "tracy_widom")),
    "DP-Adam, denoised (keep_bulk)": (DENOISED,),
    "DP-GRAPE, r = 64, denoised (keep_bulk)": (*GRAPE, DENOISED),
    "DP-AdamBC": (("phase.1.optimizer", "adam_corrected"),),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train a configuration of one phase in several ways, at the same epsilon and on the same stored features.

    Each run is what `jaxdp train CONFIG` does with the variant's fields, without a run directory; its keys come from
    the operating system. Prints a table and writes inside_encoder.json after every run; what is in it already is not
    run again.
    """

    config: Path = Path("configs/tweets_layer.toml")
    """A configuration of one phase."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """By name, as in the table."""
    runs: int = 3
    """Runs of each variant."""
    learning_rates: tuple[float, ...] = ()
    """Each a row of its own; that of the configuration if none is given."""
    overrides: tuple[tuple[str, str], ...] = ()
    """Other fields of the configuration and their values, such as `data.train_limit 500`."""
    cache: Path = Path("runs/features")
    """Directory for the outputs of frozen layers; private if the texts are."""
    output: Path = Path("runs/inside_encoder")
    """Directory of inside_encoder.json."""
    docs: Path | None = None
    """A Markdown document whose place `<!-- results inside_encoder -->` receives the table."""
    from_json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Measure nothing: print, and fill the document, from this file."""

    def __post_init__(self) -> None:
        for name in self.variants:
            if name not in VARIANTS:
                raise ValueError(f"variants has {name!r}: use {', '.join(map(repr, VARIANTS))}.")


class Frame:
    """Data, model and plan of all runs; the program of each variant is compiled once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        config = self.config(())
        if len(config.phase) != 1:
            raise ValueError(f"{settings.config} has {len(config.phase)} phases: give a configuration of one.")
        self.dataset = load_dataset(config)
        self.classifier = load_classifier(config.model, model_directory(config), self.dataset.train.label_names)
        self.plan = training.make_plan(config, len(self.dataset.train))
        self.params = self.classifier.params
        quiet = lambda done, total: None
        phase = config.phase[0]
        self.data = make_phase_data(self.classifier, self.params, self.dataset, phase, "phase.1", settings.cache, quiet)
        self.evaluate = make_evaluation(self.classifier, self.data.start)
        self.names = self.classifier.trained_paths(phase.train, "phase.1.train")
        self.steps: dict[Any, Any] = {}

    def config(self, changes: tuple[tuple[str, str], ...]) -> training.Config:
        given = (("data.cache", str(self.settings.cache)), *self.settings.overrides)
        return training.load_config(self.settings.config, [*given, *changes])

    def run(self, changes: tuple[tuple[str, str], ...]) -> dict[str, float]:
        """Train from the pretrained encoder: the scores that it ends with."""
        # The noise is that of the one plan: nothing that differs between variants has a part in it.
        plan = plan_from_saved(self.config(changes), len(self.dataset.train), saved_plan(self.plan))
        assert plan.event == self.plan.event
        phase, key = plan.phases[0], sampling.key_from_entropy()
        transformation = phase_transformation(plan, 0, key)
        if changes not in self.steps:
            self.steps[changes] = training.make_step(
                lambda trained, frozen, example: self.classifier.loss(frozen | trained, example, self.data.start),
                sampler=phase.sampler,
                transformation=transformation,
                trained=self.names,
                microbatch_size=phase.config.microbatch_size,
            )
        trained = {name: jnp.array(self.params[name], copy=True) for name in self.names}
        frozen = {name: x for name, x in self.params.items() if name not in trained}
        # The key of the noise is in the state, so that one program serves all runs.
        state = training.TrainState(
            trained, transformation.init(trained), jax.random.clone(key), jnp.zeros((), jnp.int32)
        )
        for _ in range(phase.config.steps):
            state, _ = self.steps[changes].run(state, frozen, self.data.train)
        return self.evaluate(frozen | state.params, self.data)


def measure(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """All runs that are not in the file yet."""
    path = settings.output / f"{RESULTS}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    frame = Frame(settings)
    phase = frame.plan.phases[0]
    found |= {
        "machine": machine.facts("float32"),
        "epsilon": frame.plan.epsilon,
        "delta": frame.plan.config.privacy.delta,
        "noise_multiplier": phase.noise_multiplier,
        "steps": phase.config.steps,
        "batch_size": phase.sampler.expected_batch_size,
        "trained": sum(frame.params[name].size for name in frame.names),
        "train": len(frame.dataset.train),
        "held_out": len(frame.dataset.held_out),
    }
    for run in range(settings.runs):
        for name in settings.variants:
            for rate in settings.learning_rates or (phase.config.learning_rate,):
                what = {"variant": name, "rate": rate, "run": run}
                if any(what.items() <= row.items() for row in found["rows"]):
                    continue
                began, worked = time.monotonic(), time.process_time()
                scores = frame.run((*VARIANTS[name], ("phase.1.learning_rate", repr(rate))))
                seconds = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - worked}
                found["rows"].append(what | scores | seconds)
                _write(path, found)
                say(f"run {run}: {name}, {rate:g}: {scores['held_out_accuracy']:.4f}, {seconds['cpu_seconds']:.0f} s")
    return found


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(found: dict[str, Any]) -> str:
    """One line for each variant and rate."""
    rows: dict[Any, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        rows.setdefault((row["variant"], row["rate"]), []).append(row)
    lines = ["| | learning rate | held-out accuracy (each run) | spread (sd) | loss |", "|---|---:|---|---:|---:|"]
    for (name, rate), own in sorted(rows.items(), key=lambda item: (list(VARIANTS).index(item[0][0]), item[0][1])):
        finals = [row["held_out_accuracy"] for row in own]
        loss = statistics.mean(row["held_out_loss"] for row in own)
        lines.append(f"| {name} | {rate:g} | {_each(finals)} | {_spread(finals)} | {loss:.3f} |")
    about = (
        f"Epsilon {found['epsilon']:.2f} at delta {found['delta']:g}: {found['steps']} steps of "
        f"{found['batch_size']:,.0f} expected examples of {found['train']:,}, noise multiplier "
        f"{found['noise_multiplier']:.3f}; {found['trained']:,} parameters; {found['held_out']:,} held-out texts."
    )
    return "\n".join([*lines, "", about, "", tables.machine_line(found["machine"])])


def _each(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ({', '.join(f'{x:.4f}' for x in values)})"


def _spread(values: list[float]) -> str:
    return f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"


def fill(document: Path, content: str) -> None:
    """Replace what stands between `<!-- results inside_encoder -->` and `<!-- end inside_encoder -->`."""
    begin, end = "<!-- results inside_encoder -->\n", "<!-- end inside_encoder -->"
    head, rest = document.read_text(encoding="utf-8").split(begin, 1)
    document.write_text(f"{head}{begin}{content}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command."""
    settings = tyro.cli(Settings, args=arguments, description=Settings.__doc__)
    if settings.from_json is not None:
        found = json.loads(settings.from_json.read_text(encoding="utf-8"))
    else:
        found = measure(settings, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"\n{table(found)}")
    if settings.docs is not None:
        fill(settings.docs, table(found))
    return found


if __name__ == "__main__":
    main()
