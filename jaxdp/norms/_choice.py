"""How the squared norm of one use's gradient is found: the cheapest way among those that were asked for."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from jaxdp.lowering._late import zeros_after
from jaxdp.lowering._shards import sum_examples
from jaxdp.norms._costs import default_machine, estimate_cost, gram_cost, product_cost
from jaxdp.norms._estimators import Hutchinson, HutchPP, Randomized
from jaxdp.norms._exact import ExactRule, Rule, exact_rule, mixed_certificate, outer_certificate
from jaxdp.norms._sketches import estimated_certificate, estimated_mixed_certificate
from jaxdp.numerics._wide import wide, wide_dtype

NormRule = ExactRule | Literal["Hutchinson", "Hutch++"]


@dataclasses.dataclass(frozen=True)
class NormChoice:
    """What was asked for at a use of a leaf.

    Attributes:
      rule: the exact way that the user chose for this leaf.
      randomized: the estimator to take where it is cheaper than exact ways; not where a rule was chosen.
      examples: how many examples' terms meet in one product of a sum.
    """

    rule: Rule | None = None
    randomized: Randomized | None = None
    examples: int = 1

    def plain(self) -> "NormChoice":
        """With probes alone, where Hutch++ has no rule."""
        if not isinstance(self.randomized, HutchPP):
            return self
        return dataclasses.replace(self, randomized=Hutchinson(self.randomized.probes, self.randomized.sharing))

    def estimator(self, k: int, t: int, c: int, p: int) -> Randomized | None:
        """The estimator, for factors of sizes for which it is the cheapest way."""
        if self.randomized is None or self.rule is not None:
            return None
        seconds = default_machine().seconds
        exact = min(seconds(gram_cost(k, t, c, p)), seconds(product_cost(k, t, c, p)))
        return self.randomized if seconds(estimate_cost(k, t, c, p, self.randomized)) < exact else None


ANY_EXACT = NormChoice()


def norm_rule(k: int, t: int, c: int, p: int, choice: NormChoice) -> NormRule:
    """How `factored_certificate` goes about factors of these sizes."""
    estimator = choice.estimator(k, t, c, p)
    if estimator is None:
        return exact_rule(k, t, c, p, choice.rule)
    return "Hutch++" if isinstance(estimator, HutchPP) else "Hutchinson"


def factored_certificate(
    a: Float[Array, "k t c"],
    g: Float[Array, "k t p"],
    choice: NormChoice,
    key: PRNGKeyArray | None,
    precision: Any = None,
) -> Float[Array, "4"]:
    r"""Of $\sum_k \|A_k^\top G_k\|_F^2$, as `norm_rule` says; `key` is that of this gradient's probes."""
    estimator = choice.estimator(a.shape[0], a.shape[1], a.shape[2], g.shape[2])
    more: dict[str, Any] = {"precision": precision, "examples": choice.examples}
    if estimator is None:
        return outer_certificate(a, g, choice.rule, **more)
    return estimated_certificate(wide(a), wide(g), _given(key), estimator, **more)


def estimated_clipped_sum(
    a: Float[Array, "b t c"],
    g: Float[Array, "b t p"],
    weigh: Callable[[Array, Any], Array],
    rest: Any,
    choice: NormChoice,
    keys: Key[Array, "*each"],
    precision: Any,
) -> tuple[Float[Array, "c p"], Float[Array, "b 4"]]:
    r"""$\sum_i w_i A_i^\top G_i$ with $w_i$ = `weigh(certificates, rest)`, one example after the other.

    All at once would hold the smaller factor of every example a second time, multiplied by its weight. `keys` is the
    probes' key, or one for each example.
    """
    own_keys = keys.shape == a.shape[:1]

    def add(total: Array, part: Any) -> tuple[Array, Array]:
        a, g, rest, key = part
        a, g = wide(a), wide(g)
        norm = factored_certificate(a[None], g[None], choice, key if own_keys else keys, precision)
        weight = weigh(norm[None], jax.tree.map(lambda x: x[None], rest))[0].astype(a.dtype)
        a, g = (weight * a, g) if a.size < g.size else (a, weight * g)
        return total + jnp.einsum("tc,tp->cp", a, g, precision=precision), norm

    zeros = zeros_after((a.shape[-1], g.shape[-1]), wide_dtype(a.dtype), g)
    return sum_examples(add, zeros, (a, g, rest, keys if own_keys else None))


def mixed_factored_certificate(
    a: Float[Array, "t v"],
    g: Float[Array, "t p"],
    ids: Int[Array, " s"],
    rows: Float[Array, "s p"],
    choice: NormChoice,
    key: PRNGKeyArray | None,
    precision: Any = None,
) -> Float[Array, "4"]:
    r"""Of $\|A^\top G + \sum_s e_{ids_s} rows_s^\top\|_F^2$, likewise."""
    estimator = choice.plain().estimator(1, a.shape[0], a.shape[1], g.shape[1])
    more: dict[str, Any] = {"precision": precision, "examples": choice.examples}
    if estimator is None:
        return mixed_certificate(a, g, ids, rows, choice.rule, **more)
    return estimated_mixed_certificate(a, g, ids, rows, _given(key), estimator, **more)


def _given(key: PRNGKeyArray | None) -> PRNGKeyArray:
    assert key is not None, "an estimated norm needs a key for its probes"
    return key
