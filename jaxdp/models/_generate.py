"""Texts drawn from a decoder, token by token."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ._llama import LlamaDecoder


def generate(
    decoder: LlamaDecoder,
    ids: Int[Array, "prompts seq"],
    mask: Bool[Array, "prompts seq"],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    temperature: float | int = 1.0,
    top_k: int | None = None,
) -> tuple[Int[Array, "prompts total"], Bool[Array, "prompts total"]]:
    r"""Continue prompts with tokens drawn from :math:`\mathrm{softmax}(z / \tau)` of the decoder's logits z.

    The keys and values of earlier tokens are kept, so that each token costs one pass of itself alone.

    =================  ====================================================
    argument           meaning
    =================  ====================================================
    ``temperature=0``  always the likeliest token; the key plays no part
    ``top_k=k``        of the k likeliest tokens only, and those level with the last of them
    =================  ====================================================

    Args:
        decoder: the model.
        ids: token ids of the prompts, padded on the right.
        mask: true where `ids` holds a token; at least one in every row.
        key: random key. A fixed one makes the texts reproducible.
        max_new_tokens: tokens drawn for each prompt, at least 1.
        temperature: the divisor :math:`\tau` of the logits, from 0.
        top_k: at least 1; None draws from all tokens.

    Returns:
        Ids of length ``seq + max_new_tokens``, each prompt followed by its new tokens, and a mask of both. A row ends
        before the decoder's ``eos_token_id``.

    Raises:
        ValueError: an argument out of range, or more tokens than ``max_position_embeddings``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        ...                             num_attention_heads=4)
        >>> decoder = models.LlamaDecoder(config, rngs=nnx.Rngs(0))
        >>> ids, mask = generate(decoder, jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3), bool), jax.random.key(0),
        ...                      max_new_tokens=4)
        >>> ids.shape
        (2, 7)
    """
    total = ids.shape[1] + max_new_tokens
    if max_new_tokens < 1 or temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"max_new_tokens and top_k must be at least 1 and temperature at least 0: {max_new_tokens}, {top_k}, "
            f"{temperature}."
        )
    if total > decoder.config.max_position_embeddings:
        raise ValueError(
            f"{ids.shape[1]} tokens of the longest prompt and {max_new_tokens} new ones are more than "
            f"max_position_embeddings, {decoder.config.max_position_embeddings}: ask for fewer."
        )
    graphdef, state = nnx.split(decoder)
    end = decoder.config.eos_token_id

    @jax.jit
    def run(state: Any, ids: Array, mask: Array, key: Array) -> tuple[Array, Array]:
        model = nnx.merge(graphdef, state)
        keys = jax.random.split(key, ids.shape[0])
        lengths = jnp.sum(mask, axis=1)
        padded = jnp.pad(ids, ((0, 0), (0, max_new_tokens)))

        def one(prompt: Array, length: Array, key: Array) -> tuple[Array, Array]:
            def advance(carry: Any, place: Array) -> Any:
                token, cache, running = carry
                logits, cache = model.step(token, cache, place)
                chosen = draw(logits, jax.random.fold_in(key, place), temperature, top_k).astype(prompt.dtype)
                given = place + 1 < length
                following = jnp.where(given, prompt[place + 1], chosen)
                ended = jnp.zeros((), bool) if end is None else ~given & (following == end)
                running = running & ~ended & (place + 1 < length + max_new_tokens)
                return (following, cache, running), (following, running)

            start = (prompt[0], model.empty_cache(total), jnp.ones((), bool))
            _, (rest, running) = jax.lax.scan(advance, start, jnp.arange(total - 1, dtype=prompt.dtype))
            kept = jnp.concatenate([jnp.ones(1, bool), running])
            return jnp.where(kept, jnp.concatenate([prompt[:1], rest]), 0), kept

        return jax.vmap(one)(padded, lengths, keys)

    return run(state, ids, mask, key)


def draw(
    logits: Float[Array, "vocab"], key: PRNGKeyArray, temperature: float | int, top_k: int | None
) -> Int[Array, ""]:
    """One token; see `generate`."""
    if temperature == 0:
        return jnp.argmax(logits)
    if top_k is not None and top_k < logits.shape[0]:
        last = jax.lax.top_k(logits, top_k)[0][-1]
        logits = jnp.where(logits >= last, logits, -jnp.inf)
    return jax.random.categorical(key, logits / temperature)
