"""What XLA allocates for a step: compiled, never run."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxdp
from tests.per_example.model_zoo import attention_block, next_token_loss

LAYERS, WIDTH, HEADS, LENGTH, BATCH, WORDS = 6, 128, 4, 64, 16, 500


def transformer() -> tuple:
    """Shapes of a scanned and checkpointed transformer, and its loss of one example."""
    shape = lambda *s: jax.ShapeDtypeStruct((LAYERS, *s), jnp.float32)
    size = WIDTH // HEADS
    layers = {
        "norm": shape(WIDTH),
        "shift": shape(WIDTH),
        **{name: shape(WIDTH, HEADS, size) for name in "qkv"},
        "o": shape(HEADS, size, WIDTH),
        "up": shape(WIDTH, 4 * WIDTH),
        "up_bias": shape(4 * WIDTH),
        "down": shape(4 * WIDTH, WIDTH),
    }
    table = jax.ShapeDtypeStruct((WORDS, WIDTH), jnp.float32)
    params = {"layers": layers, "embed": table, "head": jax.ShapeDtypeStruct((WIDTH, WORDS), jnp.float32)}

    def loss(p: dict, ids: jax.Array) -> jax.Array:
        block = jax.checkpoint(attention_block)
        h, _ = lax.scan(lambda h, w: (block(h, w), None), p["embed"][ids], p["layers"])
        return next_token_loss(h @ p["head"], ids)

    return loss, params, jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)


def temp_bytes(fn, *shapes) -> int:
    return jax.jit(fn).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def clipped_sum(loss, method: str, groups: str = "all"):
    grad = jaxdp.per_example_grad(loss, method=method)
    return lambda p, batch: grad(p, batch).clipped_sum(lambda sq: jnp.minimum(1.0, 1.0 / jnp.sqrt(sq)), groups)


def test_ghost_and_layer_groups_need_the_memory_of_ordinary_training() -> None:
    loss, params, batch = transformer()
    plain = temp_bytes(lambda p, b: jax.grad(lambda p: jnp.sum(jax.vmap(loss, (None, 0))(p, b)))(p), params, batch)
    ghost = temp_bytes(clipped_sum(loss, "ghost"), params, batch)
    materialize = temp_bytes(clipped_sum(loss, "materialize"), params, batch)
    assert ghost <= 1.1 * plain
    # One pass, and yet no factors stacked over the scan: each step clips its own layer.
    assert temp_bytes(clipped_sum(loss, "fused", "layer"), params, batch) <= 1.1 * plain
    # The comparison means something only where per-example gradients are what costs.
    assert materialize > 3 * plain


@pytest.mark.parametrize("method", ["ghost", "bookkeeping"])
def test_a_tied_table_needs_no_gradient_of_its_size_per_example(method: str) -> None:
    def loss(p: jax.Array, ids: jax.Array) -> jax.Array:
        return next_token_loss(jnp.tanh(p[ids]) @ p.T, ids)

    words, width, size = 4000, 64, 16
    table = jax.ShapeDtypeStruct((words, width), jnp.float32)
    needed = temp_bytes(clipped_sum(loss, method), table, jax.ShapeDtypeStruct((size, 8), jnp.int32))
    assert needed < 0.75 * size * table.size * 4


@pytest.mark.parametrize("method", ["ghost", "bookkeeping"])
def test_a_recurrent_weight_needs_no_gradient_of_its_size_per_example(method: str) -> None:
    def loss(p: jax.Array, xs: jax.Array) -> jax.Array:
        h, _ = lax.scan(lambda h, x: (jnp.tanh(h @ p + x), None), jnp.zeros(p.shape[0]), xs)
        return jnp.sum(h)

    width, size = 512, 64
    weight = jax.ShapeDtypeStruct((width, width), jnp.float32)
    needed = temp_bytes(clipped_sum(loss, method), weight, jax.ShapeDtypeStruct((size, 4, width), jnp.float32))
    assert needed < 0.25 * size * weight.size * 4


def test_a_microbatch_bounds_the_memory_of_a_larger_batch() -> None:
    loss, params, batch = transformer()
    larger = jax.ShapeDtypeStruct((4 * BATCH, LENGTH), jnp.int32)
    grad = jaxdp.per_example_grad(loss)
    step = lambda p, b: grad(p, b, microbatch_size=BATCH).clipped_sum(lambda sq: 1.0 / jnp.sqrt(1.0 + sq))
    one, several = temp_bytes(clipped_sum(loss, "ghost"), params, batch), temp_bytes(step, params, larger)
    sums = sum(x.size * 4 for x in jax.tree.leaves(params))
    # The loop carries one running sum and copies one set of batches.
    assert several <= one + 3 * sums


def test_a_use_without_a_rule_holds_few_gradients_at_a_time() -> None:
    """A custom derivative of the model's own: exact by its own backward pass, example by example."""

    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, ct: (ct @ r[1].T, r[0].T @ ct))
    weight = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    batch = jax.ShapeDtypeStruct((64, 4, 512), jnp.float32)
    needed = temp_bytes(clipped_sum(lambda w, x: jnp.sum(jnp.square(product(x, w))), "ghost"), weight, batch)
    assert needed < 16 * weight.size * 4


def test_sums_take_no_memory_before_their_gradients_are_there() -> None:
    depth, width, length, size = 12, 512, 64, 16

    def loss(p: list[jax.Array], x: jax.Array) -> jax.Array:
        for w in p:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    def update(p: list[jax.Array], batch: jax.Array) -> list[jax.Array]:
        return jax.tree.map(lambda w, g: w - g, p, clipped_sum(loss, "fused", "param")(p, batch))

    params = [jax.ShapeDtypeStruct((width, width), jnp.float32)] * depth
    batch = jax.ShapeDtypeStruct((size, length, width), jnp.float32)
    activations = 4 * size * length * width * depth
    # Sums (1 MB each) come as activations (2 MB each) go; a chunk of products and what is at work lie beside them.
    assert temp_bytes(update, params, batch) < 1.5 * activations
