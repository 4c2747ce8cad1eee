"""A two-layer head on features of real texts, trained in several ways at equal privacy: which one trains better?"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdp
from jaxdp import accounting, models, sampling, transforms

SOURCES = ("tweets", "movie_sentences")
DELTA = 1e-5
# What a gradient goes through between noise and optimiser.
VARIANTS: dict[str, Callable[[], optax.GradientTransformation] | None] = {
    "raw": None,
    "published": lambda: transforms.rmt_denoise(mode="shrink", gate="tracy_widom"),
    "keep_bulk": transforms.rmt_denoise,
    # Half of the inputs' rows of the hidden layer's matrix.
    "pruned": lambda: transforms.prune_blocks(0.5, block=(1, 1 << 16)),
}
# Where gradients are clipped, made noisy and optimised, other than in the space of all parameters: from the mechanism,
# the update rule and a key.
SUBSPACES: dict[str, Callable[..., optax.GradientTransformation]] = {
    **{
        f"DP-GRAPE, r = {rank}": lambda private, rule, key, rank=rank: transforms.grape(
            optax.chain(private, rule), rank=rank, refresh_every=100, key=key
        )
        for rank in (4, 16)
    },
    # Its directions are other ones in every step, so the moments stand behind it.
    "DPZero": lambda private, rule, key: optax.chain(transforms.zeroth_order(private, key=key), rule),
}
# The steps' direction; that of corrected Adam needs the noise as it was drawn.
RULES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.trace(0.9),
    "adam": optax.scale_by_adam,
    "adam_corrected": transforms.scale_by_corrected_adam,
}
LEARNING_RATES = {
    "sgd": (2.0, 4.0, 8.0),
    "adam": (0.01, 0.03, 0.1),
    "adam_corrected": (0.003, 0.01, 0.03),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Features and labels, for training (private) and for evaluation (held out)."""

    name: str
    train: tuple[Any, Any]
    held_out: tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is trained.

    Attributes:
      hidden: width of the hidden layer, the smaller side of its matrix.
      steps: updates of a run.
      batch_size: expected size of the Poisson batches.
      every: updates between two evaluations.
      seeds: one run for each, with its own start, batches and noise.
      epsilons: budgets.
      optimizers: among RULES.
      variants: among VARIANTS and SUBSPACES; all VARIANTS if not given.
    """

    hidden: int = 64
    steps: int = 60
    batch_size: float = 2048.0
    every: int = 4
    seeds: tuple[int, ...] = (1, 2, 3)
    epsilons: tuple[float, ...] = (3.0, 8.0)
    optimizers: tuple[str, ...] = tuple(RULES)
    variants: tuple[str, ...] | None = None


def load(source: str, cache: Path, limit: int | None = None) -> Task:
    """MiniLM's means of every layer, less their mean on the other corpus, which is taken as public."""
    features, labels = _encoded(source, cache, limit)
    other = SOURCES[1 - SOURCES.index(source)]
    public = _encoded(other, cache, limit)[0][0]
    center = public.mean(axis=0, keepdims=True)
    train, held_out = (jnp.asarray((part - center) * 1.5) for part in features)
    return Task(source, (train, jnp.asarray(labels[0])), (held_out, jnp.asarray(labels[1])))


def _encoded(source: str, cache: Path, limit: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    from jaxdp.training.config._io import parse_config
    from jaxdp.training.tasks._classifier import load_classifier
    from jaxdp.training.tasks._data import load_dataset, model_directory
    from jaxdp.training.tasks._features import frozen_outputs

    section = {"source": source, "max_length": 48, **({"train_limit": limit, "held_out_limit": limit} if limit else {})}
    phase = {"train": "head", "steps": 1, "batch_size": "full", "learning_rate": 1.0}
    config = parse_config({"data": section, "privacy": {"epsilon": 8.0}, "phase": [phase]}, source)
    dataset = load_dataset(config)
    classifier = load_classifier(config.model, model_directory(config), dataset.train.label_names)
    parts = (dataset.train, dataset.held_out)
    layers = classifier.build(classifier.params).encoder.config.num_hidden_layers
    outputs = [frozen_outputs(classifier, classifier.params, p, layers, cache, lambda *_: None) for p in parts]
    return [classifier.features(classifier.params, o.means) for o in outputs], [np.asarray(p.labels) for p in parts]


def initial_params(inputs: int, hidden: int, classes: int, key: jax.Array) -> dict[str, Any]:
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(first, (inputs, hidden)) / inputs**0.5, "bias": jnp.zeros(hidden)},
        "out": {"kernel": jax.random.normal(second, (hidden, classes)) / hidden**0.5, "bias": jnp.zeros(classes)},
    }


def logits(params: dict[str, Any], features: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(features @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def loss(params: dict[str, Any], example: tuple[jax.Array, jax.Array]) -> jax.Array:
    return models.cross_entropy(logits(params, example[0]), example[1])


class Trainer:
    """Runs of one task at one budget, by one variant and kind of optimiser; compiled once."""

    def __init__(self, task: Task, plan: Plan, epsilon: float, variant: str, optimizer: str) -> None:
        self.task, self.plan = task, plan
        count = len(task.train[1])
        batch = min(plan.batch_size, count / 4)
        self.sampler = sampling.PoissonSampling.from_expected_batch_size(count, batch)
        clip = transforms.clip(1.0)
        event = lambda sigma: self.sampler.event(clip.dp_event(sigma), plan.steps)
        sigma = calibrated(event, epsilon, (count, batch, plan.steps))
        between, subspace = VARIANTS.get(variant), SUBSPACES.get(variant)
        rule = RULES[optimizer]()

        def chain(key: jax.Array) -> optax.GradientTransformation:
            private = transforms.dpsgd(
                max_norm=1.0,
                noise_multiplier=sigma,
                expected_batch_size=batch,
                key=key,
                with_stddev=between is not None or optimizer == "adam_corrected",
            )
            if subspace is not None:
                return subspace(private, rule, key)
            return optax.chain(private, *(() if between is None else (between(),)), rule)

        self.chain = chain
        update = chain(jax.random.key(0)).update

        def step(train: Any, carry: Any, number: Any) -> tuple[Any, None]:
            params, state, key, rate = carry
            drawn = self.sampler.sample(key, number)
            batch = jax.tree.map(lambda rows: rows[drawn.indices], train)
            grads = jaxdp.per_example_grad(loss)(params, batch, mask=drawn.mask)
            updates, state = update(grads, state, params)
            slower = 0.5 * (1 + jnp.cos(jnp.pi * number / plan.steps))
            params = jax.tree.map(lambda p, u: p - rate * slower * u, params, updates)
            return (params, state, key, rate), None

        # The data are arguments: enclosed, they would be copied into every program.
        @jax.jit
        def block(carry: Any, first: Any, train: Any, evaluation: Any) -> tuple[Any, Any]:
            held_out, labels = evaluation
            carry, _ = jax.lax.scan(functools.partial(step, train), carry, first + jnp.arange(plan.every))
            correct = jnp.argmax(logits(carry[0], held_out), axis=-1) == labels
            return carry, jnp.mean(correct)

        self.block = block

    def run(self, seed: int, rate: float) -> dict[str, Any]:
        """Held-out accuracy after every few steps."""
        start, noise, batches = jax.random.split(jax.random.key(seed), 3)
        features, labels = self.task.train
        params = initial_params(features.shape[1], self.plan.hidden, int(labels.max()) + 1, start)
        state = self.chain(noise).init(params)
        carry, accuracies, ranks, ratios = (params, state, batches, jnp.float32(rate)), [], [], []
        for first in range(0, self.plan.steps, self.plan.every):
            carry, accuracy = self.block(carry, jnp.int32(first), self.task.train, self.task.held_out)
            accuracies.append(float(accuracy))
            denoiser = next(filter(_is_denoiser, jax.tree.leaves(carry[1], is_leaf=_is_denoiser)), None)
            if denoiser is not None:
                ranks.append(int(denoiser.rank["['hidden']['kernel']"][0]))
                ratios.append(float(denoiser.leading_ratio["['hidden']['kernel']"][0]))
        return {"seed": seed, "accuracies": accuracies, "ranks": ranks, "leading_ratios": ratios}


def _is_denoiser(state: Any) -> bool:
    return isinstance(state, transforms.RmtDenoiseState)


_CALIBRATED: dict[Any, float] = {}


def calibrated(event: Any, epsilon: float, what: tuple) -> float:
    if (epsilon, *what) not in _CALIBRATED:
        _CALIBRATED[epsilon, *what] = accounting.calibrate(event, epsilon, DELTA)
    return _CALIBRATED[epsilon, *what]


def measure(tasks: Iterable[Task], plan: Plan, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One row for each task, optimiser, variant and budget, as soon as it is there.

    The learning rate is that of the best final accuracy of a run of another seed at the largest budget: the same search
    for every variant, and outside the guarantee.
    """
    for task in tasks:
        trainer_of = functools.lru_cache(functools.partial(Trainer, task, plan))
        for optimizer in plan.optimizers:
            for variant in ("raw",) if optimizer == "adam_corrected" else plan.variants or VARIANTS:
                trainer = trainer_of(max(plan.epsilons), variant, optimizer)
                found = {rate: trainer.run(0, rate)["accuracies"][-1] for rate in LEARNING_RATES[optimizer]}
                rate = max(found, key=found.__getitem__)
                say(f"{task.name} {optimizer} {variant}: " + str({k: round(v, 4) for k, v in found.items()}))
                for epsilon in plan.epsilons:
                    trainer = trainer_of(epsilon, variant, optimizer)
                    runs = [trainer.run(seed, rate) for seed in plan.seeds]
                    final = [run["accuracies"][-1] for run in runs]
                    say(f"{task.name} epsilon {epsilon:g} {optimizer} {variant}: final {final}")
                    row = {"task": task.name, "epsilon": epsilon, "variant": variant, "optimizer": optimizer}
                    yield row | {"learning_rate": rate, "every": plan.every, "final": final, "runs": runs}


def summaries(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table, sorted, with the steps that each run took to 90% and 95% of the best mean final accuracy.

    The goal is the same for all rows of a task and budget: the best mean that any of them ends with.
    """
    optimizers, variants = list(RULES), [*VARIANTS, *SUBSPACES]
    place = lambda row: (row["epsilon"], optimizers.index(row["optimizer"]), variants.index(row["variant"]))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    found = []
    for row in sorted(rows, key=lambda row: (tasks.index(row["task"]), *place(row))):
        rivals = [r for r in rows if (r["task"], r["epsilon"]) == (row["task"], row["epsilon"])]
        best = max(statistics.mean(rival["final"]) for rival in rivals)
        found.append(row | summary(row["runs"], best, row["every"]))
    return found


def summary(runs: list[dict[str, Any]], best: float, every: int) -> dict[str, Any]:
    """Final accuracies, and steps to 90% and 95% of `best`; None where that is not reached."""

    def steps_to(share: float, accuracies: list[float]) -> int | None:
        return next((every * (i + 1) for i, a in enumerate(accuracies) if a >= share * best), None)

    return {
        "best": best,
        "final": [run["accuracies"][-1] for run in runs],
        "steps_to_90": [steps_to(0.9, run["accuracies"]) for run in runs],
        "steps_to_95": [steps_to(0.95, run["accuracies"]) for run in runs],
    }
