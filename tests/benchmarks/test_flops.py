"""FLOPs against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.flops import count_flops

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))
PRODUCT = 2 * 3 * 4 * 5
SQUARE = jnp.ones((4, 4))


def flops(fn, *args, **options):
    return count_flops(jax.make_jaxpr(fn)(*args), **options).total


def loop(x, w, length=7):
    return jax.lax.scan(lambda h, _: (h @ w, None), x, None, length=length)[0]


@pytest.mark.parametrize(
    ("fn", "args", "expected"),
    [
        (lambda a, b: a @ b, (A, B), PRODUCT),
        (jax.jit(lambda a, b: a @ b), (A, B), PRODUCT),
        (lambda a, b: (a @ b) + (a @ b), (A, B), PRODUCT),  # computed once by XLA
        (lambda a, b: jax.jit(jnp.dot)(a, b) + a @ b, (A, B), PRODUCT),
        (lambda a, b: (a @ b) + (a @ (2 * b)), (A, B), 2 * PRODUCT),
        (lambda a, b: (a @ b, a + 1)[1], (A, B), 0),  # never computed
        (jax.vmap(jnp.dot, in_axes=(0, None)), (jnp.ones((6, 3, 4)), B), 6 * PRODUCT),
        (loop, (A, SQUARE), 7 * 2 * 3 * 4 * 4),
        (lambda a, w: jax.lax.map(lambda r: loop(r, w), a), (A, SQUARE), 3 * 7 * 2 * 4 * 4),
        (
            lambda a, w, p: jax.lax.cond(p, lambda: a @ w, lambda: (a @ w) @ w),
            (A, SQUARE, True),
            2 * 2 * 3 * 4 * 4,
        ),
        (
            lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", feature_group_count=2),
            (jnp.ones((1, 4, 9, 9)), jnp.ones((6, 2, 3, 3))),
            2 * (6 * 4 * 4) * (2 * 3 * 3),
        ),
    ],
)
def test_counts_match_those_by_hand(fn, args, expected):
    assert flops(fn, *args) == expected


def test_training_step_costs_three_forward_passes():
    """Less the cotangent of the input: 2 + 2 for the first layer, 2 + 2 + 2 for the others."""
    weights = [SQUARE] * 3

    def loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    one = 2 * 3 * 4 * 4
    assert flops(jax.grad(loss), weights, A) == (2 + 3 + 3) * one
    assert flops(jax.value_and_grad(loss), weights, A) == (2 + 3 + 3) * one
    # A checkpoint computes the forward pass once more, and XLA may not merge it with the first.
    assert flops(jax.value_and_grad(jax.checkpoint(loss)), weights, A) == (2 + 3 + 3) * one + 3 * one
    # Without the value nothing needs the first one.
    assert flops(jax.grad(jax.checkpoint(loss)), weights, A) == (2 + 3 + 3) * one


def test_length_of_a_loop_that_depends_on_data_is_given_by_the_caller():
    def fn(a, w, n):
        return jax.lax.fori_loop(0, n, lambda i, h: h @ w, a)

    closed = jax.make_jaxpr(fn)(A, SQUARE, 5)
    assert count_flops(closed) == (2 * 3 * 4 * 4, 1)
    assert count_flops(closed, unknown_length=5) == (5 * 2 * 3 * 4 * 4, 1)


def test_a_loop_of_unknown_length_inside_another_is_taken_to_run_once():
    """Microbatches that go over examples without a finite gradient again, which there are none of."""

    def fn(a, w, n, m):
        again = lambda i, h: jax.lax.fori_loop(0, m, lambda j, h: h @ w, h)
        return jax.lax.fori_loop(0, n, again, a)

    closed = jax.make_jaxpr(fn)(A, SQUARE, 5, 5)
    assert count_flops(closed, unknown_length=5).total == 5 * 2 * 3 * 4 * 4
