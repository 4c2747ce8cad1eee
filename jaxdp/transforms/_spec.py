"""What is clipped to what, and how the noise is shaped: the one place where sensitivities are derived."""

import dataclasses
import math
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdp._numbers import is_number
from jaxdp._shown import setting
from jaxdp.accounting import RandomizedGaussianDpEvent
from jaxdp.norms import EXACT, Exact, Norm, check_norm
from jaxdp.per_example import Groups
from jaxdp.per_example.grouping._groups import certain_names, is_prefix_tree, prefix_nodes, resolve_groups

PyTree = Any
Rule = Literal["flat", "auto_s", "auto_v"]
NoiseShape = Any  # "isotropic", "equal_budget", a mapping from group to gamma, or a prefix tree of gammas

# The stability constant of AUTO-S (arXiv 2206.07136).
AUTO_S_GAMMA = 0.01

# Squares below 1e-38 are lost to float32, so that a shorter norm may be too small by any factor.
_SMALLEST_NORM = 1e-10
SMALLEST_BOUND, LARGEST_BOUND = 1e-8, 1e18
_LARGEST_GAMMA = 1e8


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    r"""What is clipped to what: the one place where the sensitivity is derived.

    Attributes:
      max_norm: the clipping norm R, in the unit of the gradients; or the thresholds $R_m$ by group, as in `clip`.
      groups: the clipping groups, as in `clip`.
      rule: the clipping function.
      normalize: whether the clipped sum is divided by its sensitivity.
      noise_shape: how the noise is shared out over the groups, as in `clip`.
      norm: how the norms are found, as in `clip`.
    """

    max_norm: Any
    groups: Any = "all"
    rule: Rule = "flat"
    normalize: bool = False
    noise_shape: NoiseShape = "isotropic"
    norm: Norm = EXACT

    def __post_init__(self) -> None:
        check_norm(self.norm)
        bounds = {"": self.max_norm} if is_number(self.max_norm) else self._by_group("max_norm", self.max_norm)
        for name, bound in bounds.items():
            check_bound(bound, "max_norm" + (f" of {name!r}" if name else ""))
        if self.rule not in ("flat", "auto_s", "auto_v"):
            raise ValueError(f'rule is {self.rule!r}: use "flat", "auto_s" or "auto_v".')
        if isinstance(self.noise_shape, str):
            if self.noise_shape not in ("isotropic", "equal_budget"):
                raise ValueError(
                    f'noise_shape is {setting(self.noise_shape)}: use "isotropic", "equal_budget", or a positive '
                    "number for each group."
                )
            return
        for name, gamma in self._by_group("noise_shape", self.noise_shape).items():
            if not (is_number(gamma) and 1 / _LARGEST_GAMMA <= gamma <= _LARGEST_GAMMA):
                raise ValueError(
                    f"noise_shape of {name!r} is {setting(gamma)}: give a number from {1 / _LARGEST_GAMMA:g} to "
                    f"{_LARGEST_GAMMA:g}; only the ratios between groups matter."
                )

    @property
    def group_spec(self) -> Any:
        """What decides the groups: `max_norm` where it is a prefix tree of thresholds, otherwise `groups`."""
        return self.groups if is_number(self.max_norm) or self.groups_are_given else self.max_norm

    @property
    def groups_are_given(self) -> bool:
        """Whether `groups` is more than its default."""
        return not (isinstance(self.groups, str) and self.groups == "all")

    @property
    def bound(self) -> float:
        r"""$\sqrt{\sum_m R_m^2}$: the most that one example's clipped gradient measures."""
        if is_number(self.max_norm):
            return float(self.max_norm)
        return math.hypot(*self._by_group("max_norm", self.max_norm).values())

    @property
    def sensitivity(self) -> float:
        """L2 bound on one example's influence: M groups of threshold R / sqrt(M) add up to R."""
        return 1.0 if self.normalize else self.bound

    def thresholds(self, names: tuple[Hashable, ...]) -> Float[np.ndarray, " groups"]:
        """$R_m$ for each group, in the order of the names."""
        if is_number(self.max_norm):
            return np.full(len(names), self.max_norm / math.sqrt(len(names)), np.float32)
        by_group = self._by_group("max_norm", self.max_norm)
        _check_names("max_norm", set(by_group), names)
        return np.array([by_group[name] for name in names], np.float32)

    def gammas(self, thresholds: Array, names: tuple[Hashable, ...]) -> Array | None:
        r"""$\gamma_m$ for each group in the order of the names; None for the same everywhere."""
        if self.noise_shape == "isotropic":
            return None
        if self.noise_shape == "equal_budget":
            return thresholds
        by_group = self._by_group("noise_shape", self.noise_shape)
        _check_names("noise_shape", set(by_group), names)
        return jnp.array([by_group[name] for name in names], jnp.float32)

    def check(self, params: PyTree) -> None:
        """Refuse what cannot fit these parameters, whatever the loss is."""
        names = certain_names(self.group_spec, params)
        for field in ("max_norm", "noise_shape"):
            given = getattr(self, field)
            if is_number(given) or isinstance(given, str):
                continue
            by_group = self._by_group(field, given)
            if names is not None:
                _check_names(field, set(by_group), names)
            elif self.group_spec in ("layer", "param"):
                # A stack's groups have the names of one leaf or module, followed by an index.
                coarse = resolve_groups(self.group_spec, params).names
                of_stack = {n: next((c for c in coarse if str(n).startswith(f"{c}[")), n) for n in by_group}
                _check_names(field, {n if n in coarse else of_stack[n] for n in by_group}, coarse)

    def dp_event(self, noise_multiplier: float | int) -> dp_accounting.DpEvent:
        """The event of one release of the clipped sum with Gaussian noise of this multiplier."""
        if noise_multiplier == 0:
            return dp_accounting.NonPrivateDpEvent()
        if isinstance(self.norm, Exact):
            return dp_accounting.GaussianDpEvent(noise_multiplier)
        return RandomizedGaussianDpEvent(
            float(noise_multiplier), probes=self.norm.probes, shares=self.shares, sharing=self.norm.sharing
        )

    @property
    def shares(self) -> tuple[float, ...]:
        r"""$(R_m/\gamma_m)^2 / \sum_l (R_l/\gamma_l)^2$: each group's share of one example's squared influence.

        Raises:
          ValueError: groups that only the loss, or only the parameters, tell.
        """
        spec = self.group_spec
        if isinstance(spec, str) and spec == "all":
            names: tuple[Hashable, ...] = ("all",)
        elif isinstance(spec, Groups):
            names = spec.names
        elif not is_number(self.max_norm):
            names = tuple(self._by_group("max_norm", self.max_norm))
        else:
            raise ValueError(
                f"groups is {spec!r}, whose number is not known here, but the privacy loss of estimated norms depends "
                "on it: give thresholds by group, or groups=jaxdp.per_example_grad(loss)(params, batch).groups(spec)."
            )
        thresholds = self.thresholds(names).astype(np.float64)
        gammas = self.gammas(jnp.asarray(thresholds, jnp.float32), names)
        squares = np.square(thresholds / (1.0 if gammas is None else np.asarray(gammas, np.float64)))
        return tuple(float(x) for x in squares / np.sum(squares))

    def _by_group(self, field: str, given: Any) -> dict[Any, Any]:
        """Numbers by the name of the group, from a mapping or (where that makes the groups) a prefix tree."""
        if self.groups_are_given or is_number(self.max_norm):
            if isinstance(given, Mapping) and given:
                return dict(given)
        elif is_prefix_tree(given) and all(map(is_number, jax.tree.leaves(given))):
            return prefix_nodes(given)
        if field == "noise_shape":
            raise TypeError(
                f'noise_shape is {setting(given)}: use "isotropic", "equal_budget", a mapping from the name of each '
                "group to a number, or a prefix tree of params where max_norm is one."
            )
        raise TypeError(
            f"max_norm is {setting(given)}: give the clipping norm as a Python number, a prefix tree of params with a "
            "number at each node, or a mapping from the name of each of groups to a number."
        )


def clipping_weights(
    rule: Rule, squared_norm: Float[Array, "..."], threshold: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The factor on each example's gradient (of one group): zero where the norm is not finite."""
    norm = jnp.sqrt(squared_norm)
    # Dividing by a safe norm keeps 0/0 out of the branch that `where` discards.
    safe = jnp.where(norm > 0, norm, 1.0)
    if rule == "flat":
        weight = jnp.where(norm > threshold, threshold / safe, 1.0)
    elif rule == "auto_s":
        weight = threshold / (norm + AUTO_S_GAMMA)
    else:
        weight = jnp.where(norm > 0, threshold / jnp.maximum(safe, _SMALLEST_NORM), 0.0)
    return jnp.where(jnp.isfinite(squared_norm), weight, 0.0)


def noise_scales(tree: PyTree, groups: Groups, thresholds: Array, gammas: Array) -> PyTree:
    r"""$S\gamma_m$ for each entry, $S^2 = \sum_m R_m^2 / \gamma_m^2$, as arrays that broadcast against the leaves."""
    ratios = thresholds / gammas
    # Divided by the largest, no square overflows.
    largest = jnp.max(ratios)
    scales = gammas * largest * jnp.sqrt(jnp.sum(jnp.square(ratios / largest)))
    leaves, treedef = jax.tree.flatten(tree)
    spread = []
    for leaf, stack, own in zip(leaves, groups.stacks, groups.of_leaf, strict=True):
        shape = (*stack, *(1,) * (leaf.ndim - len(stack)))
        spread.append(scales[np.array(own)].reshape(shape) if stack else scales[own[0]])
    return treedef.unflatten(spread)


def check_bound(bound: Any, name: str) -> None:
    """Refuse what is no clipping norm."""
    if not is_number(bound):
        raise TypeError(f"{name} is {setting(bound)}: give the clipping norm as a Python number.")
    if not (math.isfinite(bound) and bound > 0):
        raise ValueError(
            f"{name} is {bound}: the clipping norm must be positive and finite, or the sum has no bounded sensitivity."
        )
    if not SMALLEST_BOUND <= bound <= LARGEST_BOUND:
        raise ValueError(
            f"{name} is {bound}: float32 cannot square norms of that size, so scale the loss and give "
            f"a clipping norm from {SMALLEST_BOUND:g} to {LARGEST_BOUND:g}."
        )


def check_expected_batch_size(size: Any) -> None:
    """Refuse what is no public, positive number."""
    if not is_number(size):
        raise TypeError(f"expected_batch_size is {setting(size)}: give a public Python number.")
    if not (math.isfinite(size) and size > 0):
        raise ValueError(f"expected_batch_size is {size}: it must be positive and finite.")


def _check_names(field: str, given: set[Any], names: tuple[Hashable, ...]) -> None:
    """One number for every group and none for others: otherwise the sensitivity would be of other groups."""
    for name in names:
        if name not in given:
            raise ValueError(f"{field} has no number for the group {name!r}: give one for each group.")
    for name in given:
        if name not in names:
            shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"{field} names the group {name!r}, which does not exist: the groups are {shown}.")
