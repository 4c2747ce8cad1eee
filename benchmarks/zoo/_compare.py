"""One model by `vmap(grad)` and NumPy's float64, and by every method of jaxdp with every group style."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

import jaxdp
from benchmarks.zoo._model import BATCH, Model, Parts

PyTree = Any

METHODS = ("auto", "fused", "bookkeeping", "ghost", "materialize")
GROUPS = ("all", "layer", "param")
# Norms are float32, whatever the model computes in. They may be above the exact ones by what rounding does to the sum.
BELOW, ABOVE = 1e-6, 2e-4
# Relative errors of a sum: the weights are float32. A model that rounds to float32 differs by that from itself.
TOLERANCE, TOLERANCE_FLOAT32 = 1e-5, 1e-4
# Squared norms of a group that vanish but for rounding are compared beside the largest ones.
VANISHING = 1e-9


@dataclasses.dataclass
class Row:
    """What is said of one model.

    Attributes:
      name: of the model.
      package: its package, with the version.
      title: what is used of it.
      parameters: their number.
      uses: equations that consume a parameter.
      leaves: arrays of parameters.
      ruled: those of them of which no use stores a gradient for each example.
      error: the largest relative error of a clipped sum beside the definition's, with the exact norms.
      rounding: the same with the norms that jaxdp found, which tells the sum from the norms.
      excess: by how much a squared norm is above the exact one at most, as a part of it.
      deficit: by how much one is below at most.
      float32: whether the loss computes in float32 somewhere.
      seconds: for everything.
      wrong: what disagrees or raises, with method and groups.
      failed: why there is no comparison.
    """

    name: str
    package: str
    title: str
    parameters: int = 0
    uses: int = 0
    leaves: int = 0
    ruled: int = 0
    error: float = 0.0
    rounding: float = 0.0
    excess: float = 0.0
    deficit: float = 0.0
    float32: bool = False
    seconds: float = 0.0
    wrong: list[str] = dataclasses.field(default_factory=list)
    failed: str = ""

    @property
    def agrees(self) -> bool:
        return not self.failed and not self.wrong


def compare(model: Model, package: str) -> Row:
    """The row of one model; what raises is told in it."""
    row, began = Row(model.name, package, model.title), time.monotonic()
    with jax.enable_x64(True):
        try:
            parts = in_double(model.build())
            grads = reference(parts, model.vmapped)
        except Exception as error:
            row.failed = sentence(error)
            return row
        row.parameters = sum(x.size for x in jax.tree.leaves(parts.params))
        row.leaves = len(jax.tree.leaves(parts.params))
        row.float32 = computes_in_float32(parts)
        try:
            lazy = jaxdp.per_example_grad(parts.loss)(parts.params, parts.batch)
            groups = {spec: lazy.groups(spec) for spec in GROUPS}
        except Exception as error:
            row.wrong.append(f"groups raise {sentence(error)}")
            return row
        for method in METHODS:
            try:
                compare_method(row, parts, grads, groups, method)
            except Exception as error:
                row.wrong.append(f"{method} raises {sentence(error)}")
        with contextlib.suppress(Exception):
            row.uses, row.ruled = rules(parts)
    row.seconds = time.monotonic() - began
    return row


def in_double(parts: Parts) -> Parts:
    """Parameters and data in float64."""

    def double(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return parts._replace(params=jax.tree.map(double, parts.params), batch=jax.tree.map(double, parts.batch))


def reference(parts: Parts, vmapped: bool) -> list[np.ndarray]:
    """The examples' gradients, leaf by leaf."""
    one = jax.grad(parts.loss)
    if vmapped:
        grads = jax.jit(jax.vmap(one, in_axes=(None, 0)))(parts.params, parts.batch)
    else:
        one = jax.jit(one)
        each = [one(parts.params, jax.tree.map(lambda x, i=i: x[i], parts.batch)) for i in range(BATCH)]
        grads = jax.tree.map(lambda *x: jnp.stack(x), *each)
    found = [np.asarray(g, np.complex128 if np.iscomplexobj(g) else np.float64) for g in jax.tree.leaves(grads)]
    if not all(np.all(np.isfinite(g)) for g in found):
        raise ValueError("The reference has a gradient that is not finite.")
    if not any(np.any(g) for g in found):
        raise ValueError("The reference has no gradient but zero.")
    return found


def compare_method(row: Row, parts: Parts, grads: list[np.ndarray], groups: dict[str, Any], method: str) -> None:
    """Every group style of one method, in one program."""
    total = sum(np.square(np.abs(g)).reshape(BATCH, -1).sum(axis=1) for g in grads)
    bounds = {spec: float(np.sqrt(np.median(total) / len(groups[spec]))) for spec in GROUPS}

    @jax.jit
    def run(params: PyTree, batch: PyTree) -> dict[str, Any]:
        found = jaxdp.per_example_grad(parts.loss, method=method)(params, batch)
        return {spec: found.clipped_sum_and_norms(_clip_to(bound), spec) for spec, bound in bounds.items()}

    tolerance = TOLERANCE_FLOAT32 if row.float32 else TOLERANCE
    for spec, (tree, norms) in run(parts.params, parts.batch).items():
        leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
        found = np.asarray(norms, np.float64).reshape(BATCH, -1)
        exact = squared_norms(grads, groups[spec])
        beside = np.maximum(exact, VANISHING * exact.max())
        excess, deficit = float(np.max((found - exact) / beside)), float(np.max((exact - found) / beside))
        error = relative_error(leaves, clipped_sum(grads, groups[spec], exact, bounds[spec]))
        rounding = relative_error(leaves, clipped_sum(grads, groups[spec], found, bounds[spec]))
        row.error, row.rounding = max(row.error, error), max(row.rounding, rounding)
        row.excess, row.deficit = max(row.excess, excess), max(row.deficit, deficit)
        for what, value, limit in (
            ("a norm too small", deficit, max(BELOW, tolerance)),
            ("a norm too large", excess, max(ABOVE, tolerance)),
            ("a wrong sum", rounding, tolerance),
        ):
            if not value <= limit:
                row.wrong.append(f"{method}, {spec}: {what} by {value:.1g}")


def _clip_to(bound: float) -> Any:
    """Weights min(1, bound / norm)."""
    return lambda squared: jnp.minimum(1.0, bound / jnp.sqrt(jnp.where(squared > 0, squared, 1.0)))


def _entries(grads: list[np.ndarray], groups: Any) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Gradients `[batch, entries of the stack, values]` and the group of each entry."""
    for g, mine in zip(grads, groups.of_leaf, strict=True):
        yield g.reshape(len(g), len(mine), -1), list(mine)


def squared_norms(grads: list[np.ndarray], groups: Any) -> np.ndarray:
    """`[batch, groups]`, by the definition."""
    found = np.zeros((BATCH, len(groups)))
    for g, mine in _entries(grads, groups):
        for e, group in enumerate(mine):
            found[:, group] += np.square(np.abs(g[:, e])).sum(axis=1)
    return found


def clipped_sum(grads: list[np.ndarray], groups: Any, squared: np.ndarray, bound: float) -> list[np.ndarray]:
    """Each group's gradients times their weights, leaf by leaf."""
    weights = np.minimum(1.0, bound / np.sqrt(np.where(squared > 0, squared, 1.0)))
    sums = [np.einsum("bei,be->ei", g, weights[:, mine]) for g, mine in _entries(grads, groups)]
    return [s.reshape(g.shape[1:]) for s, g in zip(sums, grads, strict=True)]


def relative_error(found: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """Of all leaves together, and infinite where shapes differ."""
    if [x.shape for x in found] != [x.shape for x in exact]:
        return float("inf")
    apart = sum(np.sum(np.square(np.abs(a - b))) for a, b in zip(found, exact, strict=True))
    return float(np.sqrt(apart / sum(np.sum(np.square(np.abs(b))) for b in exact)))


def rules(parts: Parts) -> tuple[int, int]:
    """How many uses there are, and of how many parameters no use stores a gradient for each example."""
    rows = jaxdp.explain(parts.loss, parts.params, parts.batch).rows
    stored = {row.parameter for row in rows if row.rule.startswith("own gradient")}
    return len(rows), len({row.parameter for row in rows} - stored)


def computes_in_float32(parts: Parts) -> bool:
    """Whether a value on the way to the loss is narrower than float64."""
    one = jax.tree.map(lambda x: x[0], parts.batch)
    return _narrow(jax.make_jaxpr(parts.loss)(parts.params, one).jaxpr)


def _narrow(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        for var in equation.outvars:
            if getattr(var.aval, "dtype", None) in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64):
                return True
        if any(_narrow(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params)):
            return True
    return False


def sentence(error: Exception) -> str:
    """An exception in one short line, without a path."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:200]
