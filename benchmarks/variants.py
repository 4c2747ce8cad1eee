"""What is compared: ways to get from a batch to the gradient that the optimiser sees."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

import jaxdp
from benchmarks.workloads import Workload

PyTree = Any


class Choice(NamedTuple):
    """A way to clip.

    Attributes:
      method: of `per_example_grad`.
      groups: the group style's name.
      microbatch_size: None is the whole batch at once.
    """

    method: str
    groups: str
    microbatch_size: int | None = None

    def __str__(self) -> str:
        return "/".join(str(x) for x in self if x is not None)


# What is measured unless something else is named.
DEFAULT_CHOICES = (
    Choice("materialize", "all"),
    Choice("ghost", "all"),
    Choice("bookkeeping", "all"),
    Choice("fused", "layer"),
    Choice("fused", "param"),
    Choice("auto", "all"),
    Choice("auto", "layer"),
)
LEARNING_RATE = 1e-5


@dataclasses.dataclass(frozen=True)
class Privacy:
    """The same for every private variant; none of it changes the cost of a step.

    Attributes:
      max_norm: the clipping norm.
      noise_multiplier: the noise's std as a multiple of the clipping norm.
    """

    max_norm: float = 1.0
    noise_multiplier: float = 1.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to compute the gradient of a step.

    Attributes:
      key: unique among the variants of a workload.
      label: what tables call it.
      family: `"baseline"`, `"noised"`, `"jaxdp"`, `"jax_privacy"` or `"optax"`.
      init: from parameters to the state of the privatising chain.
      gradient: `(params, state, batch) -> (gradient, state)`.
      loop_length: how often its loop of a length known at run time only is run here, to count FLOPs.
      details: more for the JSON file (method, groups, microbatch size).
    """

    key: str
    label: str
    family: str
    init: Callable[[PyTree], PyTree]
    gradient: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
    loop_length: int = 1
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Absent:
    """A row that cannot be had, and why."""

    key: str
    label: str
    family: str
    note: str
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def optimizer() -> optax.GradientTransformation:
    """The optimiser of every variant: so slow that values stay as they are, whatever the variant."""
    return optax.adam(LEARNING_RATE)


def make_step(variant: Variant) -> Callable[..., tuple[PyTree, PyTree, PyTree]]:
    """One training step `(params, opt_state, private_state, batch) -> (params, opt_state, private_state)`."""
    adam = optimizer()

    def step(params: PyTree, opt_state: PyTree, private_state: PyTree, batch: PyTree) -> tuple[PyTree, ...]:
        gradient, private_state = variant.gradient(params, private_state, batch)
        updates, opt_state = adam.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, private_state

    return step


def baselines(workload: Workload, privacy: Privacy) -> list[Variant]:
    """The non-private step in two forms, each also with jaxdp's own noise but without clipping."""
    size = workload.batch_size

    def plain(params: PyTree, batch: PyTree) -> PyTree:
        return jax.grad(lambda p: jnp.mean(jax.vmap(workload.loss, in_axes=(None, 0))(p, batch)))(params)

    def tapped(params: PyTree, batch: PyTree) -> PyTree:
        grads = jaxdp.per_example_grad(workload.loss, method="ghost")(params, batch)
        return jax.tree.map(lambda g: g / size, grads.weighted_sum(jnp.ones(size)))

    # Nothing is private here: the mean only passes for a clipped sum, to be given the noise of the private rows.
    passed = lambda mean, params=None: jaxdp.transforms.ClippedSum(mean, privacy.max_norm / size)
    noise = optax.chain(
        optax.stateless(passed), jaxdp.transforms.add_gaussian_noise(privacy.noise_multiplier, jax.random.key(5))
    )
    rows = []
    for key, label, gradient in (
        ("plain", "non-private: jax.grad", plain),
        ("tapped", "non-private: tapped, weights 1", tapped),
    ):
        rows.append(Variant(key, label, "baseline", lambda params: (), _stateless(gradient)))
        rows.append(Variant(f"{key}+noise", f"{label}, noise", "noised", noise.init, _then(gradient, noise)))
    return rows


def ours(workload: Workload, privacy: Privacy, choices: Iterable[Choice] = DEFAULT_CHOICES) -> list[Variant | Absent]:
    """A variant for each choice, or why there is none."""
    return [private(workload, privacy, choice) for choice in choices]


def private(workload: Workload, privacy: Privacy, choice: Choice) -> Variant | Absent:
    """One private step."""
    method, groups, microbatch_size = choice
    key, label = str(choice), f"jaxdp {method}/{groups}"
    if microbatch_size is not None:
        label = f"{label}, microbatch {microbatch_size}"
    details = choice._asdict()
    try:
        if microbatch_size is not None and workload.batch_size % microbatch_size:
            raise ValueError(f"microbatches of {microbatch_size} do not divide the batch of {workload.batch_size}.")
        per_example = jaxdp.per_example_grad(workload.loss, method=cast(Any, method))
        chain = jaxdp.transforms.dpsgd(
            max_norm=privacy.max_norm,
            noise_multiplier=privacy.noise_multiplier,
            expected_batch_size=workload.batch_size,
            key=jax.random.key(5),
            groups=group_style(groups),
        )
        jax.eval_shape(chain.init, jax.eval_shape(workload.make_params))
    except ValueError as refusal:
        return Absent(key, label, "jaxdp", str(refusal), details)
    gradient = functools.partial(per_example, microbatch_size=microbatch_size)
    trips = workload.batch_size // (microbatch_size or workload.batch_size)
    return Variant(key, label, "jaxdp", chain.init, _then(gradient, chain), trips, details)


def group_style(name: str) -> Any:
    """What `groups=` is given: `"blocks-4"` stands for four uniform blocks."""
    kind, _, count = name.partition("-")
    return jaxdp.per_example.Blocks(int(count)) if kind == "blocks" and count.isdigit() else name


def _stateless(gradient: Callable[[PyTree, PyTree], PyTree]) -> Callable[..., tuple[PyTree, PyTree]]:
    return lambda params, state, batch: (gradient(params, batch), state)


def _then(
    gradient: Callable[[PyTree, PyTree], Any], chain: optax.GradientTransformation
) -> Callable[..., tuple[PyTree, PyTree]]:
    return lambda params, state, batch: chain.update(gradient(params, batch), state, params)


def parse_choices(names: Iterable[str]) -> tuple[Choice, ...]:
    """`"method/groups"`, `"method/groups/microbatch"`, or `"method"` alone for its usual group styles."""
    choices: dict[Choice, None] = {}
    for name in names:
        method, *rest = name.split("/")
        usual = [choice for choice in DEFAULT_CHOICES if choice.method == method]
        size = rest[1] if len(rest) == 2 else "1"
        if len(rest) > 2 or not size.isdigit() or int(size) < 1 or not (rest or usual):
            raise ValueError(
                f'methods has {name!r}: name a method and a group style, such as "ghost/all", and a microbatch size if '
                'there is to be one, as in "ghost/all/16".'
            )
        given = [Choice(method, rest[0], int(size) if len(rest) == 2 else None)] if rest else usual
        choices.update(dict.fromkeys(given))
    return tuple(choices)
