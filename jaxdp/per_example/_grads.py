"""`PerExampleGrads`: per-example gradients as a small algebra, computed only as far as it is asked."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxdp.lowering._target import batch_sharded
from jaxdp.norms import EXACT, Exact, Norm, check_norm
from jaxdp.numerics._wide import is_complex
from jaxdp.per_example._private import Private
from jaxdp.per_example.grouping._groups import Groups, GroupSpec, resolve_groups
from jaxdp.per_example.passes._finite import finite_only, slow_in_loops, with_donors, zero_unless
from jaxdp.per_example.passes._materialize import materialize
from jaxdp.per_example.passes._microbatches import reduce_microbatches
from jaxdp.per_example.passes._passes import Passes
from jaxdp.per_example.passes._placement import Placement
from jaxdp.per_example.planning._slack import Slack, slack_of_sum
from jaxdp.per_example.rewriting._traced import TracedLoss, trace, zero_total
from jaxdp.per_example.subspace._projected import matrix_axes
from jaxdp.per_example.subspace._projection import Projection, check_projection, project_stacked
from jaxdp.per_example.tracing import _check

PyTree = Any
WeightFn = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PerExampleGrads(Private):
    r"""The gradients $g_1, \dots, g_B$ of a batch's examples, never stored unless asked for.

    Not a pytree on purpose: `jax.tree.map` over it (scaling it, say) would silently change a sensitivity. Nothing is
    computed until a method is called, and everything it returns is **private** until noise is added to it.
    Examples that are masked out contribute zero everywhere.

    Attributes:
      batch_size: the padded batch's size B, a public constant.
      placement: where batch and parameters lie on a mesh; None on one device.
      shuffled: whether the examples are said to lie in a secret, uniformly random order.
    """

    _what = "per-example gradients reached arithmetic before they were clipped"
    _advice = (
        "start the chain with jaxdp.transforms.clip and add_gaussian_noise (or dpsgd), and put the optimiser, "
        "MultiSteps and every other wrapper behind the noise"
    )

    _loss: Callable
    _params: PyTree
    _batch: PyTree
    _mask: Bool[Array, " batch"]
    _microbatch_size: int | None
    _method: str
    _rules: Mapping[str, Any] | None
    batch_size: int
    _projections: Mapping[int, Projection] = dataclasses.field(default_factory=dict)
    placement: Placement | None = None
    shuffled: bool = False
    _traces: dict[Norm, TracedLoss] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def params(self) -> PyTree:
        """The parameters that the gradients are of, in full also where the gradients are in a subspace."""
        return self._params

    @property
    def mask(self) -> Bool[Array, " batch"]:
        """Which rows of the padded batch are examples: private."""
        return self._mask

    def squared_norms(
        self, groups: GroupSpec = "all", norm: Norm = EXACT, key: PRNGKeyArray | None = None
    ) -> Float[Array, " batch"] | dict[Hashable, Float[Array, " batch"]]:
        r"""Squared gradient norms $\|g_i\|^2$, of the whole gradient or of each clipping group.

        They are rounded up by all that rounding does to the norm and to the sum: with weights of at most
        $R / \|g_i\|$ from them, `weighted_sum` moves by no more than $(1 + s) R$ when an example comes or goes, where s
        is `slack().total`. Where an example's terms cancel that is much more than the norm itself.

        Args:
          groups: as for `jaxdp.transforms.clip`.
          norm: exact, or the estimator of `jaxdp.norms` to take where it is cheaper; `method="materialize"` stays
            exact, which the analysis of estimated norms allows at any use.
          key: of the estimator's probes, one that is used for nothing else. A key does not know where it was used:
            two calls with the same one draw the same probes, while the analysis of estimated norms wants new ones in
            every step. `jaxdp.transforms.clip` folds the step in by itself; whoever calls this must.

        Returns:
          float32 `[batch]` for `"all"`, otherwise a dict of such arrays by group. NaN or Inf where a gradient is.
        """
        resolved = self.groups(groups)
        run = self._engine(norm, key)

        def microbatch(batch: PyTree, mask: Array, rows: Array) -> tuple[Array, tuple]:
            return _masked(run.squared_norms(batch, resolved, rows), mask), ()

        norms, _ = self._reduce(microbatch, self._rows())
        return _by_group(norms, resolved, groups)

    def weighted_sum(self, weights: Float[Array, " batch"]) -> PyTree:
        r"""$\sum_i w_i g_i$, where an example of weight zero is left out even if its gradient is NaN.

        Args:
          weights: `[batch]`, one for each example.

        Returns:
          A pytree like the parameters, float32 or better.
        """
        if jnp.shape(weights) != (self.batch_size,):
            raise ValueError(f"weights has shape {jnp.shape(weights)} where the batch needs ({self.batch_size},).")
        run = self._engine()

        def microbatch(batch: PyTree, mask: Array, w: Array) -> tuple[tuple, PyTree]:
            chosen = mask & (w != 0)
            total = run.weighted_sum(with_donors(batch, chosen), _masked(w.astype(jnp.float32), chosen))
            return (), self._placed(zero_unless(jnp.any(chosen), total))

        return self._reduce(microbatch, weights)[1]

    def clipped_sum(
        self,
        weight_fn: WeightFn,
        groups: GroupSpec = "all",
        thresholds: Float[Array, " groups"] | None = None,
        norm: Norm = EXACT,
        key: PRNGKeyArray | None = None,
    ) -> PyTree:
        r"""$\sum_i \sum_m w(\|g_{i,m}\|^2, R_m)\, g_{i,m}$: the weights are a function of the norms, found in one go.

        An example with a NaN or Inf anywhere in its gradient contributes exactly zero, whatever `weight_fn` says.

        Args:
          weight_fn: from squared norms (and thresholds, where given) to weights, elementwise on arrays of any shape.
          groups: as in `squared_norms`.
          thresholds: `[groups]`, one for each group in the order of `resolve_groups`; given to `weight_fn` as its
            second argument.
          norm: as in `squared_norms`: with estimated norms an example's contribution has no constant bound, and only
            `jaxdp.transforms.clip` keeps account of what bounds it.
          key: of the estimator's probes.

        Returns:
          A pytree like the parameters, float32 or better.

        Example:
          >>> import jax.numpy as jnp, jaxdp
          >>> grads = jaxdp.per_example_grad(lambda w, x: w @ x)(jnp.ones(2), jnp.array([[3.0, 4.0], [0.0, 0.5]]))
          >>> total = grads.clipped_sum(lambda sq: jnp.minimum(1.0, 1.0 / jnp.sqrt(sq)))
          >>> [f"{x:.4f}" for x in total]
          ['0.6000', '1.3000']
        """
        return self.clipped_sum_and_norms(weight_fn, groups, thresholds, norm, key)[0]

    def clipped_sum_and_norms(
        self,
        weight_fn: WeightFn,
        groups: GroupSpec = "all",
        thresholds: Float[Array, " groups"] | None = None,
        norm: Norm = EXACT,
        key: PRNGKeyArray | None = None,
    ) -> tuple[PyTree, Float[Array, "batch groups"]]:
        """`clipped_sum` and the squared norms it was made from, `[batch, groups]`; zero for masked examples."""
        resolved = self.groups(groups)
        if thresholds is not None and jnp.shape(thresholds) != (len(resolved),):
            raise ValueError(f"thresholds has shape {jnp.shape(thresholds)} where ({len(resolved)},) is needed.")
        run = self._engine(norm, key)

        def microbatch(batch: PyTree, mask: Array, rows: Array) -> tuple[Array, PyTree]:
            totals = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self._total_structs())
            zeros = jnp.zeros((mask.shape[0], len(resolved)), jnp.float32), totals

            def attempt(batch: PyTree, alive: Array) -> tuple[Array, PyTree]:
                norms, total = run.clipped_sum(batch, alive, resolved, weight_fn, thresholds, rows)
                return norms, self._placed(total)

            apart = self._method == "materialize" and slow_in_loops(run.traced.closed)
            return finite_only(attempt, zeros, batch, mask, first_apart=apart)

        norms, total = self._reduce(microbatch, self._rows())
        return total, norms

    def groups(self, spec: GroupSpec) -> Groups:
        """The clipping groups that a specification means for this model: layers scanned over are told apart."""
        return resolve_groups(spec, self._params, self._trace().stacks)

    def slack(self, norm: Norm = EXACT) -> Slack:
        r"""What rounding may add to an example's influence on the clipped sum, as a share s of the clipping norm.

        Args:
          norm: as in `clipped_sum`.

        Returns:
          A `Slack` of public numbers: `total` is s, so that a sum clipped to R moves by at most $(1 + s) R$ when an
          example comes or goes; `per_example` is the share by which one example may move rounding errors.

        References:
          docs/floating_point.md.
        """
        with batch_sharded(None if self.placement is None else self.placement.batch):
            return slack_of_sum(self._trace(norm), self.batch_size, self._microbatch_size, self.shuffled)

    def matrices(self) -> PyTree:
        """Which parameters the loss uses as matrices only, and along which axes.

        Returns:
          A pytree like the parameters of `MatrixAxes`; None for a parameter that cannot be projected: a vector, a
          lookup table, a convolution's kernel, one that is cut, reshaped or computed with before it is used.
        """
        found = self._matrices()
        return jax.tree.unflatten(jax.tree.structure(self._params), [None if isinstance(x, str) else x for x in found])

    def project(self, projections: PyTree) -> "PerExampleGrads":
        r"""These gradients in a subspace: for each parameter W that has a projection, $g_i P$ instead of $g_i$.

        The gradient of an example in the parameter's own shape does not come into being, and neither does their sum:
        for $y = xW$ the use reports $(xP)^\top dy$ or $x^\top (dy\, P)$, with every method, group and estimator.

        **Privacy.** Clip what this returns: the norm is to be bounded in the space where the noise is added. P must
        not depend on the examples (draw it from a key), and is the same for all of them.

        Args:
          projections: a pytree like the parameters, with a `Projection` or None at each leaf; see `matrices` for the
            axes.

        Returns:
          Per-example gradients whose sums have `projection.shape(leaf.shape)`.

        Raises:
          ValueError: a parameter that the loss does not use as these matrices only, or a matrix that does not fit.
          TypeError: gradients that are in a subspace already, or something else than a projection.

        Example:
          >>> import jax, jax.numpy as jnp, jaxdp
          >>> loss = lambda w, x: jnp.sum(jnp.tanh(x @ w))
          >>> grads = jaxdp.per_example_grad(loss)(jnp.ones((8, 6)), jnp.ones((4, 8)))
          >>> basis = jax.random.normal(jax.random.key(0), (6, 2)) / jnp.sqrt(2.0)
          >>> grads.project(jaxdp.per_example.Projection(basis, axes=(1,))).weighted_sum(jnp.ones(4)).shape
          (8, 2)

        References:
          DP-GRAPE, arXiv 2506.15588.
        """
        if self._projections:
            raise TypeError("these gradients are in a subspace already: project once, from the full space.")
        treedef = jax.tree.structure(self._params)
        given = treedef.flatten_up_to(projections)
        names, leaves = _check.leaf_names(self._params, "params"), jax.tree.leaves(self._params)
        found = self._matrices()
        chosen = {leaf: projection for leaf, projection in enumerate(given) if projection is not None}
        for leaf, projection in chosen.items():
            check_projection(projection, names[leaf], jnp.shape(leaves[leaf]), found[leaf])
        return dataclasses.replace(self, _projections=chosen)

    def sum_shardings(self, tree: PyTree) -> PyTree | None:
        """How a sum of these gradients is cut over the devices; None if nobody said so."""
        projected = {leaf: projection.axes for leaf, projection in self._projections.items()}
        return None if self.placement is None else self.placement.of_sum(tree, projected)

    def _placed(self, tree: PyTree) -> PyTree:
        shardings = self.sum_shardings(tree)
        return tree if shardings is None else jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)

    def _matrices(self) -> list[Any]:
        traced = trace(self._loss, self._params, self._batch, self._rules)
        return [
            "it is complex"
            if is_complex(x)
            else matrix_axes(list(traced.sites_of(leaf).values()), jnp.ndim(x), traced.stacks[leaf])
            for leaf, x in enumerate(jax.tree.leaves(self._params))
        ]

    def _total_structs(self) -> PyTree:
        """What a sum looks like."""
        leaves, treedef = jax.tree.flatten(self._params)
        total = lambda x, i: jax.eval_shape(lambda: zero_total(x, self._projections.get(i)))
        return treedef.unflatten([total(x, i) for i, x in enumerate(leaves)])

    def materialize(self) -> PyTree:
        """All gradients as a pytree with a leading batch axis: B times the parameters' memory."""
        trace(self._loss, self._params, self._batch)
        grads = materialize(self._loss, self._params, self._batch).grads
        grads = project_stacked(grads, dict(self._projections))
        return jax.tree.map(lambda g: _masked(g, self._mask), grads)

    @property
    def values(self) -> Float[Array, " batch"]:
        """The examples' losses, `[batch]`: private, so not to be printed as they are."""
        return self._forward()[0]

    def values_at(self, params: PyTree) -> Float[Array, " batch"]:
        """The examples' losses at other parameters, `[batch]`, microbatch by microbatch: private."""

        def microbatch(batch: PyTree, mask: Array) -> tuple[Array, tuple]:
            return _masked(jax.vmap(self._loss, in_axes=(None, 0))(params, batch)[0], mask), ()

        return self._reduce(microbatch)[0]

    @property
    def aux(self) -> PyTree:
        """The second output of a loss with `has_aux=True`, with a leading batch axis: private."""
        return self._forward()[1]

    def _forward(self) -> tuple[Array, PyTree]:
        values, aux = jax.vmap(self._loss, in_axes=(None, 0))(self._params, self._batch)
        return _masked(values, self._mask), jax.tree.map(lambda x: _masked(x, self._mask), aux)

    def _engine(self, norm: Norm = EXACT, key: PRNGKeyArray | None = None) -> Passes:
        """The traced loss and the parameters, ready for one microbatch after the other."""
        check_norm(norm)
        if key is None and not isinstance(norm, Exact):
            raise TypeError(f"key is None where {norm} needs one for its probes: give a fresh typed PRNG key.")
        limit = self.slack(norm).per_example
        key = None if isinstance(norm, Exact) else key
        return Passes(self._loss, self._params, self._trace(norm), self._method, key, limit)

    def _trace(self, norm: Norm = EXACT) -> TracedLoss:
        """The loss and its uses of parameters, traced once: groups, norms and sums all ask for them."""
        if norm not in self._traces:
            parts = None if self.placement is None else self.placement.parts()
            randomized = None if isinstance(norm, Exact) else norm
            projections = dict(self._projections)
            # The costs that decide how norms are found are those of the devices that hold the batch.
            with batch_sharded(None if self.placement is None else self.placement.batch):
                self._traces[norm] = trace(
                    self._loss, self._params, self._batch, self._rules, randomized, projections, parts, self._together
                )
        return self._traces[norm]

    @property
    def _together(self) -> int:
        """How many examples' terms meet in one product."""
        return self.batch_size if self._microbatch_size is None else min(self._microbatch_size, self.batch_size)

    def _rows(self) -> Int[Array, " batch"]:
        """Places of the examples in the logical batch."""
        return jnp.arange(self.batch_size)

    def _reduce(self, fn: Callable, *per_example: Array) -> tuple[PyTree, PyTree]:
        return reduce_microbatches(
            fn, self._batch, self._mask, self._microbatch_size, *per_example, placement=self.placement
        )


def _masked(x: Array, mask: Array) -> Array:
    return jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def _by_group(norms: Array, groups: Groups, spec: GroupSpec) -> Any:
    if spec == "all":
        return norms[:, 0]
    return {name: norms[:, i] for i, name in enumerate(groups.names)}
