"""Gradients in a subspace: those of `vmap(grad)` times P, by every method, and never a gradient of the full shape."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.norms import EXACT, Hutchinson, NormChoice
from jaxdp.per_example import MatrixAxes, Projection
from tests.per_example.model_zoo import BATCH, ZOO, Case, normal
from tests.per_example.test_methods import clip_to, clipped_by_hand, reference, relative_error

RANK = 2


def bases(case: Case, side: str = "smaller") -> Any:
    """A projection for every matrix of a model, with numbers that no library code makes."""
    leaves, treedef = jax.tree.flatten(case.params)
    matrices = jaxdp.per_example_grad(case.loss)(case.params, case.batch).matrices()
    found: list[Projection | None] = []
    for i, (leaf, matrix) in enumerate(zip(leaves, treedef.flatten_up_to(matrices), strict=True)):
        if matrix is None:
            found.append(None)
            continue
        axes = matrix.side(leaf.shape, side)
        shape = (*(leaf.shape[a] for a in matrix.batch), int(np.prod([leaf.shape[a] for a in axes])), RANK)
        found.append(Projection(normal(50 + i, *shape), axes, matrix.batch))
    return treedef.unflatten(found)


def by_hand(grad: np.ndarray, projection: Projection | None) -> np.ndarray:
    """One leaf's gradients `[batch, ...]` times P, matrix by matrix in float64."""
    if projection is None:
        return grad
    order = [*projection.batch, *projection.axes]
    rest = [a for a in range(grad.ndim - 1) if a not in order]
    moved = grad.transpose(0, *(1 + a for a in [*projection.batch, *rest, *projection.axes]))
    lead = moved.shape[: 1 + len(projection.batch)]
    p = np.asarray(projection.matrix, np.float64)
    flat = moved.reshape(*lead, int(np.prod([grad.shape[1 + a] for a in rest])), -1) @ p
    shape = [grad.shape[1 + a] for a in [*projection.batch, *rest]]
    full = flat.reshape(lead[0], *shape, RANK, *(1,) * (len(projection.axes) - 1))
    inverse = np.argsort([*projection.batch, *rest, *projection.axes])
    return full.transpose(0, *(1 + inverse))


@pytest.fixture
def unit_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimate every norm, with probes that are the identity: exact if they meet all of the gradient."""
    eye = lambda key, shape, dtype: jnp.broadcast_to(jnp.eye(shape[-2], dtype=dtype), (*shape[:-1], shape[-2]))
    monkeypatch.setattr("jaxdp.norms._sketches.probe_matrix", eye)
    monkeypatch.setattr(NormChoice, "estimator", lambda self, k, t, c, p: self.randomized)


@pytest.mark.parametrize(
    ("name", "method", "groups", "side", "options"),
    [
        pytest.param("dense_net", "ghost", "all", "larger", {"microbatch_size": 2}),
        ("dense_net", "bookkeeping", "all", "smaller", {}),
        ("dense_net", "fused", "param", "rows", {}),
        ("dense_net", "materialize", "all", "smaller", {}),
        ("scanned_checkpointed_transformer", "ghost", "all", "larger", {}),
        ("scanned_checkpointed_transformer", "bookkeeping", "all", "rows", {}),
        ("scanned_checkpointed_transformer", "fused", "layer", "smaller", {}),
        ("experts", "ghost", "all", "rows", {}),
        ("experts", "bookkeeping", "all", "smaller", {}),
        ("experts", "fused", "param", "larger", {}),
        ("recurrent", "bookkeeping", "all", "smaller", {}),
    ],
)
def test_every_method_equals_the_gradients_times_p(
    name: str, method: Any, groups: str, side: str, options: dict
) -> None:
    case, grads = reference(name)
    projections = bases(case, side)
    every = jax.tree.structure(case.params).flatten_up_to(projections)
    assert sum(p is not None for p in every) >= 1
    inside = [by_hand(g, p) for g, p in zip(grads, every, strict=True)]
    bound = float(np.sqrt(np.median(sum(np.square(g).reshape(BATCH, -1).sum(axis=1) for g in inside)))) / 2
    make = jaxdp.per_example_grad(case.loss, method=method)

    @jax.jit
    def run(params, batch):
        return make(params, batch, **options).project(projections).clipped_sum_and_norms(clip_to(bound), groups)

    total, norms = run(case.params, case.batch)
    resolved = make(case.params, case.batch).groups(groups)
    expected_norms, expected = clipped_by_hand(inside, resolved, bound, np.ones(BATCH, bool))
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-5, atol=1e-5 * expected_norms.max())
    assert relative_error(jax.tree.leaves(total), expected) < 1e-5


@pytest.mark.parametrize("method", ["fused", "ghost"])
def test_estimated_norms_are_those_of_the_projected_gradient(unit_probes: None, method: Any) -> None:
    case, _ = reference("experts")
    grads = jaxdp.per_example_grad(case.loss, method=method)(case.params, case.batch).project(bases(case))
    exact, estimated = jax.jit(
        lambda: [
            grads.clipped_sum(clip_to(1.0), "param", None, norm, jax.random.key(1)) for norm in (EXACT, Hutchinson(8))
        ]
    )()
    assert relative_error(estimated, exact) < 1e-5


@pytest.mark.quick
def test_the_linear_maps_are_adjoint() -> None:
    p = Projection(normal(1, 3, 8, 2), axes=(1, 3), batch=(0,))
    g, z = normal(2, 3, 2, 5, 4), normal(3, *p.shape((3, 2, 5, 4)))
    assert z.shape == (3, 2, 5, 1)
    inside, outside = jnp.vdot(p.project(g), z), jnp.vdot(g, p.back(z, g.shape))
    np.testing.assert_allclose(inside, outside, rtol=1e-5)
    np.testing.assert_allclose(p.project(g), by_hand(np.asarray(g)[None], p)[0], rtol=1e-4, atol=1e-5)


def test_matrices_are_what_the_loss_multiplies_with() -> None:
    def found(name: str) -> dict[str, Any]:
        case = ZOO[name]()
        matrices = jaxdp.per_example_grad(case.loss)(case.params, case.batch).matrices()
        path = jax.tree_util.keystr
        leaves = jax.tree_util.tree_leaves_with_path(matrices, is_leaf=lambda x: x is None)
        return {path(p): x for p, x in leaves}

    stacked = found("scanned_checkpointed_transformer")
    assert stacked["['layers']['q']"] == MatrixAxes((0,), (1,), (2, 3))
    assert stacked["['layers']['o']"] == MatrixAxes((0,), (1, 2), (3,))
    assert stacked["['layers']['up']"] == MatrixAxes((0,), (1,), (2,))
    assert stacked["['head']"] == MatrixAxes((), (0,), (1,))
    assert stacked["['embed']"] is stacked["['layers']['norm']"] is stacked["['layers']['up_bias']"] is None
    # Looked up and multiplied with; cut; computed with; convolved: all of these stay as they are.
    for name in ("tied_embedding_and_head", "stacked_but_unrolled", "weight_normalised", "convolutions"):
        assert [x for path, x in found(name).items() if path != "['w']" or "cut" in name or "stacked" in name] == [
            None
        ] * (len(found(name)) - (name == "tied_embedding_and_head"))


@pytest.mark.quick
def test_what_cannot_be_projected_is_refused_by_name() -> None:
    case = ZOO["tied_embedding_and_head"]()
    grads = jaxdp.per_example_grad(case.loss)(case.params, case.batch)
    column = lambda k: Projection(jnp.ones((k, 2)), (1,))
    with pytest.raises(ValueError, match=r"params\['embed'\] cannot be projected, because .*'gather' is no matrix"):
        grads.project({"embed": column(8), "w": None})
    with pytest.raises(ValueError, match=r"params\['w'\] has a matrix of shape \(7, 2\) where \(8,\)"):
        grads.project({"embed": None, "w": column(7)})
    with pytest.raises(TypeError, match=r"params\['w'\] is 3: give"):
        grads.project({"embed": None, "w": 3})
    once = grads.project({"embed": None, "w": column(8)})
    with pytest.raises(TypeError, match="in a subspace already"):
        once.project({"embed": None, "w": column(8)})
    stacked = ZOO["scanned_checkpointed_transformer"]()
    grads = jaxdp.per_example_grad(stacked.loss)(stacked.params, stacked.batch)
    shared = jax.tree.map(lambda _: None, stacked.params)
    shared["layers"]["up"] = Projection(jnp.ones((8, 2)), (1,))
    with pytest.raises(ValueError, match=r"\['up'\] is to be projected along its axes \(1,\) .*\.matrices\(\)"):
        grads.project(shared)
    # A use that only the trace with the basis would meet.
    cut = lambda w, x: jnp.sum(x @ w) + jnp.sum(jnp.square(w))
    with pytest.raises(ValueError, match="params cannot be projected"):
        jaxdp.per_example_grad(cut)(jnp.ones((3, 4)), jnp.ones((2, 3))).project(Projection(jnp.ones((4, 2)), (1,)))


@pytest.mark.parametrize("method", ["fused", "ghost", "bookkeeping"])
def test_no_buffer_of_the_full_gradient(method: Any) -> None:
    size, t, m, n, r = 6, 10, 48, 80, 4
    loss = lambda p, x: jnp.sum(jnp.square(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"])))
    params = {"w": jnp.zeros((m, n)), "v": jnp.zeros((n, m))}
    p = {"w": Projection(jnp.ones((m, r)), (0,)), "v": Projection(jnp.ones((m, r)), (1,))}
    make = jaxdp.per_example_grad(loss, method=method)

    def products(project: bool) -> list[list[int]]:
        def step(params, x):
            grads = make(params, x)
            return (grads.project(p) if project else grads).clipped_sum(clip_to(1.0))

        hlo = jax.jit(step).lower(params, jnp.zeros((size, t, m))).compile().as_text() or ""
        # Weights pass through unchanged; only what is computed counts.
        made = re.findall(r"= f32\[([\d,]+)\]\S* (?:dot|fusion|add|multiply|broadcast|convolution|custom-call)\(", hlo)
        return [[int(k) for k in dims.split(",")] for dims in made]

    full = lambda found: [dims for dims in found if m in dims and n in dims]
    assert full(products(False))  # the measure sees what it is meant to see
    assert not full(products(True))
