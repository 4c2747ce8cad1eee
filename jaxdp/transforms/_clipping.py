"""Clipping as a gradient transformation: per-example gradients in, a sum of known sensitivity out."""

import zlib
from typing import Any, NamedTuple

import dp_accounting
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from jaxdp._numbers import takes_numbers
from jaxdp._shown import of_shapes
from jaxdp.norms import EXACT, Exact, Norm
from jaxdp.transforms._clipped_sum import ClippedSum, check_key, refuse_masked
from jaxdp.transforms._examples import check_examples, clip_and_sum, resolved_groups, slack_of, sum_shardings
from jaxdp.transforms._spec import ClipSpec, NoiseShape, Rule, clipping_weights, noise_scales

PyTree = Any

# Folded into the caller's key: the same key given to add_gaussian_noise or to a sampler yields other bits.
_PROBE_TAG = zlib.crc32(b"jaxdp.transforms.clip")


class RandomizedClipState(NamedTuple):
    """The key of the probes' stream and the number of steps so far: restoring both never repeats a draw."""

    __repr__ = of_shapes

    key: PRNGKeyArray
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


class Clip(optax.GradientTransformation):
    """The transformation that `clip` returns: it carries the `spec` that accounting reads."""

    spec: ClipSpec

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity of the clipped sum under adding or removing one example.

        Raises:
          ValueError: norms are estimated.
        """
        if not isinstance(self.spec.norm, Exact):
            raise ValueError(
                f"with norm={self.spec.norm} no constant bounds the sum's sensitivity: account with dp_event(...), "
                "which knows the law that does."
            )
        return self.spec.sensitivity

    def dp_event(self, noise_multiplier: float | int) -> dp_accounting.DpEvent:
        """The privacy event of one noisy release of the clipped sum."""
        return self.spec.dp_event(noise_multiplier)


@takes_numbers
def clip(
    max_norm: Any,
    *,
    groups: Any = "all",
    norm: Norm = EXACT,
    rule: Rule = "flat",
    normalize: bool = False,
    noise_shape: NoiseShape = "isotropic",
    key: PRNGKeyArray | None = None,
) -> Clip:
    r"""Clip each example's gradient and sum: $\sum_i \sum_m w_{i,m}\, g_{i,m}$ with $\|w_{i,m}\, g_{i,m}\| \le R_m$.

    Here $g_{i,m}$ is the part of example i's gradient that belongs to the clipping group m.

    | rule | weight $w$ | |
    |---|---|---|
    | `"flat"` | $\min(1, R/\|g\|)$ | Abadi et al. |
    | `"auto_s"` | $R/(\|g\| + 0.01)$ | automatic clipping, stable |
    | `"auto_v"` | $R/\|g\|$, 0 for a zero gradient | automatic clipping |

    | `max_norm` | thresholds | sensitivity |
    |---|---|---|
    | a number R | $R_m = R/\sqrt M$ for each of M groups | R |
    | a mapping from the name of each of `groups` to a number | these | $\sqrt{\sum_m R_m^2}$ |
    | a prefix tree of the parameters, a number at each node, with `groups` left out | by node | $\sqrt{\sum_m R_m^2}$ |

    | `noise_shape` | $\gamma_m$: the noise on group m has std $\sigma S\gamma_m$, $S^2 = \sum_m R_m^2/\gamma_m^2$ |
    |---|---|
    | `"isotropic"` | 1 |
    | `"equal_budget"` | $R_m$, so that each group has the same share of the privacy budget |
    | numbers by group, as for `max_norm` | these; only their ratios matter |

    | `norm` | |
    |---|---|
    | `norms.Exact()` | $\|g\|$ itself |
    | `norms.Hutchinson(k)` | estimated from k random probes, where that is cheaper: memory k (T + d + p) for each use |
    | `norms.HutchPP(k, s)` | likewise, exactly for the s leading directions |

    With estimated norms no constant bounds one example's influence. It is bounded in law: by $R_m \bar Z_m$ in each
    group, with independent $\bar Z_m = \max(1, \sqrt{k/\chi^2_k})$. `dp_event` says so, and only the PLD accountant of
    `jaxdp.accounting` takes it. A budget then asks for more noise, 6% at k = 64 and 13% at k = 32 for one group and
    epsilon 8 (`jaxdp budget`), and less so with many groups.

    `add_gaussian_noise` draws it. For every shape it is the same Gaussian mechanism of noise multiplier $\sigma$, in
    coordinates divided by $\gamma_m$.

    | edge case | what happens |
    |---|---|
    | a NaN or Inf gradient (or a norm that overflows float32) | that example contributes exactly zero, to every group |
    | a masked example | contributes exactly zero |
    | a norm below 1e-10 under `"auto_v"` | divided by 1e-10: float32 cannot square it |
    | `max_norm` of 0, below 0, NaN or infinite; below 1e-8 or above 1e18 | refused |
    | a boolean, an array or a traced `max_norm` | refused: the sensitivity is a public constant |
    | a group without a threshold, a threshold without a group | refused |
    | estimated norms without a `key` | refused |
    | estimated norms and gradients that are a pytree, or `method="materialize"` | exact norms: any mixture is covered |
    | inside `optax.masked` or `optax.multi_transform` | refused: the parameters left out would not be clipped |

    Args:
      max_norm: the clipping norm R, or thresholds by group, in the unit of the gradients.
      groups: `"all"` (one norm over everything), `"layer"` (each module by itself, of a model that scans over stacked
        layers each layer), `"param"` (each parameter by itself, of a stack each layer's),
        `jaxdp.per_example.Blocks(...)`, a function from a leaf's path (such as `"['dense']['kernel']"`) to the name of
        its group, a prefix tree of the parameters with a name at each node, or resolved
        `jaxdp.per_example.Groups`. See `jaxdp.per_example.resolve_groups`.
      norm: how the norms are found.
      rule: the clipping function of the table above.
      normalize: divide the sum by $\sqrt{\sum_m R_m^2}$, so that the sensitivity is 1 and the learning rate does not
        depend on the thresholds' size.
      noise_shape: how the noise is shared out over the groups.
      key: a typed PRNG key for the probes of estimated norms, as from `jaxdp.sampling.key_from_entropy()`; every step
        draws new ones. It may be the one given to `add_gaussian_noise`, whose stream is another one.

    Returns:
      An `optax.GradientTransformation` whose `update` takes `PerExampleGrads` (or a pytree with a leading batch
      axis, together with `params`) and returns a `ClippedSum`; with `.sensitivity` and `.dp_event(...)`.

    Raises:
      ValueError: an impossible `max_norm`, `rule`, `noise_shape` or `groups`; at init or update, ones that do not fit
        the parameters.
      TypeError: one of another kind; at update, something that is not per-example gradients.

    Example:
      >>> import jax.numpy as jnp, jaxdp
      >>> grads = jaxdp.per_example_grad(lambda w, x: w @ x)(jnp.ones(2), jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      >>> tx = jaxdp.transforms.clip(1.0)
      >>> clipped, _ = tx.update(grads, tx.init(jnp.ones(2)))
      >>> [f"{x:.4f}" for x in clipped.tree], f"{clipped.sensitivity:.4f}"
      (['0.6000', '1.3000'], '1.0000')
      >>> jaxdp.transforms.clip({"encoder": 0.3, "head": 0.4}).sensitivity
      0.5

    References:
      Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133.
      Bu et al., Automatic Clipping, arXiv 2206.07136. He et al., Group-wise clipping, arXiv 2212.01539.
      Bu et al., On the accuracy and efficiency of group-wise clipping, arXiv 2310.19215.
      Ullah, Aketi, Gupta, Zhang and Razaviyayn, Efficient DP-SGD for LLMs with Randomized Clipping, ICML 2026,
      arXiv 2605.24879.
    """
    spec = ClipSpec(max_norm, groups, rule, normalize, noise_shape, norm)
    exact = isinstance(norm, Exact)
    if key is None and not exact:
        raise TypeError(f"key is None where {norm} draws probes: use jaxdp.sampling.key_from_entropy().")
    if key is not None:
        check_key(key)
    unit = spec.bound if normalize else 1.0

    def weight_fn(squared_norm: Any, threshold: Any) -> Any:
        return clipping_weights(rule, squared_norm, threshold) / unit

    def init(params: PyTree) -> Any:
        refuse_masked(params, "clip")
        spec.check(params)
        if exact:
            return optax.EmptyState()
        # A copy, so that a training loop may donate its state without destroying the caller's key.
        return RandomizedClipState(jax.random.clone(key), jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[Any, Any]:
        check_examples("clip", updates, params)
        resolved = resolved_groups(updates, params, spec.group_spec)
        thresholds = jnp.asarray(spec.thresholds(resolved.names))
        probe_key = None if exact else jax.random.fold_in(jax.random.fold_in(state.key, _PROBE_TAG), state.count)
        tree = clip_and_sum(updates, resolved, weight_fn, thresholds, norm, probe_key)
        gammas = spec.gammas(thresholds, resolved.names)
        slack = slack_of(updates, norm).total
        bounds = thresholds * ((1 + slack) / unit)
        scales = None if gammas is None else noise_scales(tree, resolved, bounds, gammas)
        after = state if exact else RandomizedClipState(state.key, state.count + 1)
        sensitivity, shardings = spec.sensitivity * (1 + slack), sum_shardings(updates, tree)
        return ClippedSum(tree, sensitivity, scales, norm=norm, shardings=shardings, slack=slack), after

    transformation = Clip(init, update)
    transformation.spec = spec
    return transformation
