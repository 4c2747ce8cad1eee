"""Norm, weight and weighted sum of one use whose group is complete there."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdp.per_example.uses._batching import over_batch
from jaxdp.per_example.uses._clipping_weights import ClippingWeights
from jaxdp.per_example.uses._use import Use


def contracted(
    use: Use, weight: Float[Array, "*slices"], shared_entry: Array, operands: dict[int, Array], cts: Sequence[Array]
) -> Array:
    """The use's weighted sum over the batch, without a batch axis: like `shared_entry`, an entry of the whole sum."""

    def contract(
        batched: Any, shared_entry: Array, weight: Array, operands: dict[int, Array], cts: list[Array]
    ) -> tuple[Array]:
        del shared_entry
        size = next(x.shape[0] for x, b in zip((weight, *cts), (batched[0], *batched[2]), strict=True) if b)
        full = lambda x, b: x if b else jnp.broadcast_to(x, (size, *x.shape))
        all_cts = [full(ct, b) for ct, b in zip(cts, batched[2], strict=True)]
        return (use.weighted_sum(full(weight, batched[0]), operands, batched[1], all_cts),)

    return over_batch(contract, (False,), shared_entry, weight, operands, list(cts))[0]


def clipped(
    use: Use,
    weigh: ClippingWeights,
    others: Float[Array, "4"],
    threshold: Float[Array, ""] | None,
    shared_entry: Array,
    operands: dict[int, Array],
    cts: Sequence[Array],
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "4"], Array]:
    """The group's certificate (this use's and the `others`'), and this use's clipped sum over the batch."""
    if not use.clips_in_one_go(cts):
        norm = others + use.certificate(operands, cts, key)
        return norm, contracted(use, weigh(norm, threshold), shared_entry, operands, cts)

    def clip(batched: Any, shared: Any, rest: Any, operands: dict[int, Array], cts: list[Array], key: Any) -> Any:
        rest_batched, operands_batched, cts_batched, _ = batched
        size = next(ct.shape[0] for ct, b in zip(cts, cts_batched, strict=True) if b)
        full = lambda x, b: None if x is None else x if b else jnp.broadcast_to(x, (size, *x.shape))
        rest = tuple(full(x, b) for x, b in zip(rest, rest_batched, strict=True))
        all_cts = [full(ct, b) for ct, b in zip(cts, cts_batched, strict=True)]
        inner = weigh.with_consts(shared[1])
        weights = lambda own, rest: inner(rest[0] + own, rest[1])
        norms, total = use.clipped(weights, rest, operands, operands_batched, all_cts, key)
        return rest[0] + norms, total

    norm, total = over_batch(
        clip, (True, False), (shared_entry, list(weigh.consts)), (others, threshold), operands, list(cts), key
    )
    return norm, total
