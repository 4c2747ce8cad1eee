"""Exact norms of a batch: at once or in a loop, by what is alive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.norms import outer_certificate
from jaxdp.norms._exact import Rule
from tests.drawn import normal


def norms(rule: Rule | None = None):
    return jax.vmap(lambda a, g: outer_certificate(a[None], g[None], rule)[0])


@pytest.mark.quick
@pytest.mark.parametrize(("length", "width", "loops"), [(32, 8192, True), (64, 1536, False)])
def test_gram_matrices_of_large_factors_are_made_one_by_one_on_a_cpu(
    length: int, width: int, loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the product of a batch of these takes 4 times as long."""
    struct = lambda width: jax.ShapeDtypeStruct((64, length, width), jnp.float32)
    program = lambda: str(jax.make_jaxpr(norms())(struct(512), struct(width)))
    assert ("scan[" in program()) == loops
    monkeypatch.setattr("jaxdp.norms._exact._on_cpu", lambda: False)
    assert "scan[" not in program()


@pytest.mark.parametrize("rule", ["gram", "materialize"])
@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("room", [1, 200, 1 << 20])
def test_loops_over_a_batch_change_nothing(
    rule: Rule, one_by_one: bool, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxdp.norms._exact._TOGETHER_ELEMENTS", room)
    monkeypatch.setattr("jaxdp.norms._exact._on_cpu", lambda: one_by_one)
    a, g = (normal(i, 7, 5, 4 + i) for i in range(2))
    each = np.einsum("btc,btp->bcp", *(np.asarray(x, np.float64) for x in (a, g)))
    np.testing.assert_allclose(norms(rule)(a, g), np.sum(np.square(each), axis=(1, 2)), rtol=1e-5)
