"""Denoising of noisy gradient matrices: post-processing, free of privacy cost."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxdp._numbers import is_number, is_whole
from jaxdp.numerics._wide import is_complex, wide_dtype
from jaxdp.transforms._denoise_numerics import (
    COLD_PASSES,
    Denoised,
    Gate,
    Mode,
    Rule,
    denoise_by_gram,
    denoise_by_subspace,
)
from jaxdp.transforms._known_noise import check_stddev, known_noise

PyTree = Any
Method = Literal["auto", "gram", "subspace"]
Layout = Literal["matrix", "conv", "first_axis"]
Select = Callable[[str, tuple[int, ...]], Layout | None]

# With fewer singular values than this, edge and threshold are no guide.
SMALLEST_DENOISED_SIDE = 8
# From here on an eigendecomposition costs more than a few passes of the subspace iteration.
_GRAM_LIMIT = 256

_NO_LINEAR_MAP = re.compile(r"embed|wte|wpe|bias|norm|scale", re.IGNORECASE)


class RmtDenoiseState(NamedTuple):
    """What is carried from step to step; all of it follows from privatised gradients and may be shown.

    Attributes:
      count: updates so far.
      bases: by leaf, its leading right singular vectors `[stack, n, k]`; for the subspace method.
      leading_ratio: by leaf, the largest singular value of the last noisy gradient over the noise's edge `[stack]`.
      rank: by leaf, how many of its singular values were kept as signal `[stack]`; 0 where the gate was closed.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    bases: dict[str, Float[Array, "..."]]
    leading_ratio: dict[str, Float[Array, "..."]]
    rank: dict[str, Int[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class _View:
    """A leaf as a stack of matrices."""

    stack: int
    m: int
    n: int
    method: Literal["gram", "subspace"]
    layout: Layout


def linear_layers(path: str, shape: tuple[int, ...]) -> Layout | None:
    """The leaves that `rmt_denoise` denoises by default: matrices, and stacks `[layers, m, n]` of them.

    Left out are leaves whose path names an embedding, a norm, a scale or a bias, and three-axis leaves whose first axis
    is longer than both others, which is no stack of layers.

    Args:
      path: of the leaf, such as `"['dense']['kernel']"`.
      shape: of the leaf.

    Returns:
      `"matrix"`, or None for a leaf that is left as it is.

    Example:
      >>> linear_layers("['dense']['kernel']", (768, 768)), linear_layers("['embedding']", (768, 768))
      ('matrix', None)
    """
    if _NO_LINEAR_MAP.search(path) or len(shape) not in (2, 3):
        return None
    return "matrix" if len(shape) == 2 or shape[0] <= max(shape[1:]) else None


def rmt_denoise(
    noise_stddev: Any = None,
    *,
    method: Method = "auto",
    mode: Mode = "keep_bulk",
    gate: Gate = "cosine",
    norm_correct: bool = True,
    select: Select = linear_layers,
    width: int = 8,
) -> optax.GradientTransformation:
    r"""Shrink the singular values of noisy gradient matrices towards those of the gradient below the noise.

    A matrix $Y = X + sW$ of m x n, W standard normal, has the noise's singular values below the edge
    $e = s(\sqrt m + \sqrt n)$. Of one that stands out, $y > e$, the best estimate of the signal in Frobenius norm keeps

    $$\eta(y) = \sqrt{(y^2 - e^2)(y^2 - l^2)} / y, \qquad l = s|\sqrt m - \sqrt n|.$$

    With $S^2 = \max(\|Y\|^2 - s^2mn, 0)$, an estimate of $\|X\|^2$, the result $\hat G$ is

    | `mode` | if $y_1 > \kappa e$ | otherwise |
    |---|---|---|
    | `"shrink"` | $\sum_{y_i > e} \eta(y_i) u_i v_i^T$ | Y |
    | `"keep_bulk"` | $\sum_D \eta(y_i) u_i v_i^T + w(Y - Y_D)$, $D = \{y_i > \kappa e\}$ | Y |

    Here $Y_D = \sum_D y_i u_i v_i^T$ and $w = (S^2 - \sum_D y_i \eta_i) / \|Y - Y_D\|^2$ within [0, 1]. The
    bulk below the edge is noisy but not empty, and dropping it hurts where the signal is not of low rank.

    | `gate` | |
    |---|---|
    | `"tracy_widom"` | $\kappa$ is 1 plus three sd of $y_1/e$ for pure noise: about 1.014 for 768 x 768 |
    | `"cosine"` | the same $\kappa$; and `"shrink"` is applied only if $\|\hat G\|\,\|Y\| > S^2$ |
    | a number from 1 | $\kappa$ |

    That condition says that the estimated cosine to X rises; `"keep_bulk"` always raises it.

    **Noise.** s is the std of one entry of Y. It comes with the gradient: see `with_stddev` of `dpsgd` and
    `add_gaussian_noise`. So it is right for grouped, shaped and adaptive noise, and behind `optax.scale`. A gradient
    whose noise is unknown is refused. Put this directly behind, and before momentum and any optimiser. With s = 0
    nothing is changed.

    **Which leaves.** `select(path, shape)` says how a leaf is a matrix; smaller sides below 8, and leaves whose noise
    differs within a matrix, are left as they are.

    | layout | matrix |
    |---|---|
    | `"matrix"` | the last two axes; all before them are stacked: `[L, m, n]` is L matrices |
    | `"conv"` | the last axis (outputs) against all others: `[kh, kw, in, out]` is one of (kh kw in) x out |
    | `"first_axis"` | the first axis against all others, as for `[d, heads, head size]` |
    | None | the leaf is left as it is |

    | `method` | |
    |---|---|
    | `"gram"` | exact, by the eigenvectors of the smaller Gram matrix |
    | `"subspace"` | the `width` leading singular triplets, by one pass of block subspace iteration |
    | `"auto"` | `"gram"` for a smaller side below 256, otherwise `"subspace"` |

    The iteration starts from the last step's triplets, which is why one pass is enough; the first step takes four.

    Args:
      noise_stddev: s, only for a gradient that does not carry it: a number, or a pytree like the gradient.
      method: how singular vectors are found.
      mode: what becomes of the bulk below the edge; `"shrink"` is the published form.
      gate: from where on a singular value is signal.
      norm_correct: scale the result to the norm of Y, so that the step size does not jump as the gate opens.
      select: which leaves, and how they are matrices; `linear_layers` unless given.
      width: k, the number of triplets of the subspace method.

    Returns:
      An `optax.GradientTransformation` from a `NoisyGradient` (or, with `noise_stddev`, a plain pytree) to a plain
      pytree. It computes in float32 or better and keeps the leaves' dtypes. Its state, `RmtDenoiseState`, holds the
      leading ratio $y_1/e$ and the rank $|D|$ of every leaf.

    Raises:
      ValueError: an impossible argument, named; at update, a std that is given twice.
      TypeError: an argument of another kind; at update, a gradient whose noise is unknown, or private values.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdp, optax
      >>> private = jaxdp.transforms.dpsgd(
      ...     max_norm=1.0, noise_multiplier=0.8, expected_batch_size=16.0, key=jax.random.key(0), with_stddev=True
      ... )
      >>> tx = optax.chain(private, jaxdp.transforms.rmt_denoise(), optax.sgd(0.1))
      >>> params = {"kernel": jnp.ones((8, 16))}
      >>> grads = jaxdp.per_example_grad(lambda p, x: jnp.sum(x @ p["kernel"]))(params, jnp.ones((16, 8)))
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> {path: int(rank[0]) for path, rank in state[1].rank.items()}
      {"['kernel']": 1}

    References:
      Gradient matrix denoising in private training, arXiv 2510.01137 (threshold, shrinkage, norm correction).
      Gavish and Donoho, Optimal Shrinkage of Singular Values, IEEE Transactions on Information Theory, 2017.
      Benaych-Georges and Nadakuditi, The singular values and vectors of low rank perturbations of large rectangular
      random matrices, Journal of Multivariate Analysis, 2012.
    """
    check_stddev(noise_stddev)
    _check(method, mode, gate, norm_correct, width)
    rule = Rule(mode, gate, norm_correct)

    def init(params: PyTree) -> RmtDenoiseState:
        views = {path: _view(path, x, select, method) for path, x in _leaves(params)}
        views = {path: view for path, view in views.items() if view is not None}
        # What it begins with is public and means nothing, so that a fixed key will do.
        bases = {
            path: jax.random.normal(jax.random.key(0), (v.stack, v.n, min(width, v.m, v.n)), jnp.float32)
            for path, v in views.items()
            if v.method == "subspace"
        }
        ratios = {path: jnp.zeros(view.stack, jnp.float32) for path, view in views.items()}
        ranks = {path: jnp.zeros(view.stack, jnp.int32) for path, view in views.items()}
        return RmtDenoiseState(jnp.zeros((), jnp.int32), bases, ratios, ranks)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        noisy = known_noise("rmt_denoise", updates, noise_stddev)
        passes = jnp.where(state.count == 0, COLD_PASSES, 1)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(noisy.tree)
        results, bases = [], dict(state.bases)
        ratios, ranks = dict(state.leading_ratio), dict(state.rank)
        for (keys, leaf), given in zip(leaves, jax.tree.leaves(noisy.noise_stddev), strict=True):
            path = jax.tree_util.keystr(keys)
            view = _view(path, leaf, select, method)
            stddev = None if view is None else _stddev_of(view, given, leaf)
            if view is None or stddev is None:
                results.append(leaf)
                continue
            found, bases_of_leaf = _denoise(view, leaf, stddev, rule, bases.get(path), passes)
            if bases_of_leaf is not None:
                bases[path] = bases_of_leaf
            ratios[path], ranks[path] = found.leading_ratio, found.rank
            results.append(found.matrices.reshape(leaf.shape).astype(leaf.dtype))
        return treedef.unflatten(results), RmtDenoiseState(state.count + 1, bases, ratios, ranks)

    return optax.GradientTransformation(init, update)


def _denoise(
    view: _View, leaf: Array, stddev: Array, rule: Rule, basis: Array | None, passes: Array
) -> tuple[Denoised, Array | None]:
    wide = leaf.astype(wide_dtype(leaf.dtype)).reshape(view.stack, view.m, view.n)
    stddev = stddev.astype(wide.dtype)
    if view.method == "gram":
        return denoise_by_gram(wide, stddev, rule), None
    assert basis is not None
    found, basis = denoise_by_subspace(wide, stddev, rule, basis.astype(wide.dtype), passes)
    return found, basis.astype(jnp.float32)


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def _view(path: str, leaf: Any, select: Select, method: Method) -> _View | None:
    """How a leaf is a stack of matrices; None if it is left as it is."""
    shape = tuple(leaf.shape)
    layout = select(path, shape)
    if layout is None:
        return None
    if layout not in ("matrix", "conv", "first_axis"):
        raise ValueError(f'select gave {layout!r} for {path}: give "matrix", "conv", "first_axis" or None.')
    if is_complex(leaf):
        raise TypeError(f"{path} is complex, and rmt_denoise is about real matrices: have select give None for it.")
    if len(shape) < 2:
        raise ValueError(f"select gave {layout!r} for {path}, whose shape is {shape}: give None for it.")
    split = {"matrix": len(shape) - 2, "conv": 0, "first_axis": 0}[layout]
    rows = {"matrix": len(shape) - 1, "conv": len(shape) - 1, "first_axis": 1}[layout]
    stack, m, n = math.prod(shape[:split]), math.prod(shape[split:rows]), math.prod(shape[rows:])
    if min(m, n) < SMALLEST_DENOISED_SIDE or stack == 0:
        return None
    if method == "auto":
        method = "gram" if min(m, n) < _GRAM_LIMIT else "subspace"
    return _View(stack, m, n, method, layout)


def _stddev_of(view: _View, stddev: Array, leaf: Array) -> Array | None:
    """One std for each matrix; None where it differs within one."""
    if stddev.size == 1:
        return jnp.broadcast_to(stddev.reshape(()), (view.stack,))
    if view.layout != "matrix" or stddev.shape[-2:] != (1, 1):
        return None
    return jnp.broadcast_to(stddev[..., 0, 0], leaf.shape[:-2]).reshape(view.stack)


def _check(method: Any, mode: Any, gate: Any, norm_correct: Any, width: Any) -> None:
    if method not in ("auto", "gram", "subspace"):
        raise ValueError(f'method is {method!r}: use "auto", "gram" or "subspace".')
    if mode not in ("keep_bulk", "shrink"):
        raise ValueError(f'mode is {mode!r}: use "keep_bulk" or "shrink".')
    if isinstance(gate, str) or not is_number(gate):
        if gate not in ("cosine", "tracy_widom"):
            raise ValueError(f'gate is {gate!r}: use "cosine", "tracy_widom" or a number from 1.')
    elif not 1 <= gate < math.inf:
        raise ValueError(f"gate is {gate}: below 1 it would open on noise alone, so give a finite number from 1.")
    if not isinstance(norm_correct, bool):
        raise TypeError(f"norm_correct is {norm_correct!r}: give True or False.")
    if not is_whole(width) or width < 1:
        raise ValueError(f"width is {width!r}: give the number of singular triplets, at least 1.")
