"""A BERT or RoBERTa encoder in Flax NNX for one example at a time; a caller vmaps it."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ._bert_layers import Embeddings, Layer
from ._config import BertConfig
from ._layers import Constant, split_key, widen
from ._stack import run_layer


class BertEncoder(nnx.Module):
    """A BERT encoder (Devlin et al. 2019) that maps the token ids of one example to hidden states.

    ``h_0 = LayerNorm(word[ids] + position[first : first + T] + token_type[types])`` and, for each layer,
    ``u = LayerNorm(h + Attention(h))``, ``h = LayerNorm(u + W_down gelu(W_up u))``. BERT's first position is 0; RoBERTa
    (Liu et al. 2019) is the same network whose first position is ``pad_token_id + 1``. Padding belongs on the right.

    The layers are separate modules in ``layers``, so the paths of the parameters are
    ``embeddings/word``, ``layers/0/attention/query/kernel``, ``layers/0/output_norm/scale`` and so on.
    A pooler that came with pretrained weights is kept as constants, to be written back, and is not used.

    Args:
        config: the shape of the encoder.
        rngs: draws the initial weights; `load_pretrained` reads them from a directory instead.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> config = BertConfig(vocab_size=50, hidden_size=8, num_attention_heads=2, intermediate_size=16,
        ...                     num_hidden_layers=2, max_position_embeddings=16)
        >>> encoder = BertEncoder(config, rngs=nnx.Rngs(0))
        >>> ids, mask = jnp.ones((3, 5), jnp.int32), jnp.ones((3, 5), bool)
        >>> jax.vmap(encoder)(ids, mask).shape
        (3, 5, 8)

    References:
        Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, 2019;
        Liu et al., RoBERTa: A Robustly Optimized BERT Pretraining Approach, 2019.
    """

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(config, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
        self.pooler_kernel: Constant | None = nnx.data(None)
        self.pooler_bias: Constant | None = nnx.data(None)

    def __call__(
        self,
        ids: Int[Array, "seq"],
        attention_mask: Bool[Array, "seq"] | Int[Array, "seq"],
        *,
        token_types: Int[Array, "seq"] | None = None,
        key: Array | None = None,
        deterministic: bool = False,
    ) -> Float[Array, "seq hidden"]:
        """Hidden states of the last layer.

        Args:
            ids: token ids of one example.
            attention_mask: true (or 1) where `ids` holds a token, false (or 0) where it is padding.
            token_types: token types; all 0 when left out.
            key: random key of this example's dropout; needed when ``config.dropout > 0``.
            deterministic: no dropout, whatever the config says; for evaluation.

        Returns:
            One hidden state a token; those of padded places mean nothing.

        Raises:
            ValueError: a sequence longer than the position table, or dropout without a key.
        """
        below, above = split_key(key, 2)
        hidden = self.embed(ids, attention_mask, token_types=token_types, key=below, deterministic=deterministic)
        return self.layers_from(hidden, attention_mask, 0, key=above, deterministic=deterministic)

    def embed(
        self,
        ids: Int[Array, "seq"],
        attention_mask: Bool[Array, "seq"] | Int[Array, "seq"],
        *,
        token_types: Int[Array, "seq"] | None = None,
        key: Array | None = None,
        deterministic: bool = False,
    ) -> Float[Array, "seq hidden"]:
        """The input of layer 0; arguments as in `__call__` (the mask plays no part here)."""
        longest = self.config.max_length
        if ids.shape[0] > longest:
            before = (
                f", of which RoBERTa leaves {self.config.first_position} unused" if self.config.first_position else ""
            )
            raise ValueError(
                f"the sequence has {ids.shape[0]} tokens, but max_position_embeddings is "
                f"{self.config.max_position_embeddings}{before}: truncate the texts to {longest} tokens."
            )
        return self.embeddings(ids, token_types, self._dropout_key(key, deterministic))

    def layers_from(
        self,
        hidden: Float[Array, "seq hidden"],
        attention_mask: Bool[Array, "seq"] | Int[Array, "seq"],
        start: int,
        *,
        stop: int | None = None,
        key: Array | None = None,
        deterministic: bool = False,
    ) -> Float[Array, "seq hidden"]:
        """Run layers `start`, ..., `stop` - 1 on the input of layer `start`.

        ``layers_from(layers_from(h, mask, 0, stop=k), mask, k)`` equals ``layers_from(h, mask, 0)``, so the
        output of frozen lower layers can be computed once and kept.

        Args:
            hidden: the input of layer `start`; that of layer 0 comes from `embed`.
            attention_mask: as in `__call__`.
            start: index of the first layer to run.
            stop: index after the last one; all the layers above `start` when left out.
            key: as in `__call__`.
            deterministic: as in `__call__`.

        Returns:
            The output of layer `stop` - 1, or `hidden` itself when there is no layer to run.

        Raises:
            ValueError: layers that do not exist, or dropout without a key.
        """
        return self._levels(hidden, attention_mask, start, stop, key, deterministic)[-1]

    def means_from(
        self,
        hidden: Float[Array, "seq hidden"],
        attention_mask: Bool[Array, "seq"] | Int[Array, "seq"],
        start: int,
        *,
        stop: int | None = None,
        key: Array | None = None,
        deterministic: bool = False,
    ) -> Float[Array, "levels hidden"]:
        """The masked means of `hidden` and of the output of every layer that `layers_from` runs on it.

        Args and errors are those of `layers_from`.

        Returns:
            ``stop - start + 1`` means; level i of the whole model is the input of layer i.
        """
        levels = self._levels(hidden, attention_mask, start, stop, key, deterministic)
        return jnp.stack([self.pooled(level, attention_mask) for level in levels])

    def _levels(
        self, hidden: Array, attention_mask: Array, start: int, stop: int | None, key: Array | None, deterministic: bool
    ) -> list[Array]:
        """`hidden` and the output of each layer from `start` to `stop` - 1."""
        count = len(self.layers)
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise ValueError(
                f"start = {start} and stop = {stop} must satisfy 0 <= start <= stop <= {count}, the number of layers."
            )
        keys = split_key(self._dropout_key(key, deterministic), count)
        mask = attention_mask.astype(bool)
        levels = [hidden]
        for index in range(start, stop):
            levels.append(run_layer(self.layers[index], levels[-1], mask, keys[index], compute=self.config.compute))
        return levels

    def pooled(
        self, hidden: Float[Array, "seq hidden"], attention_mask: Bool[Array, "seq"] | Int[Array, "seq"]
    ) -> Float[Array, "hidden"]:
        """Mean of the hidden states over the places where the mask is true; zero where it is nowhere true."""
        return masked_mean(hidden, attention_mask.astype(bool))

    def _dropout_key(self, key: Array | None, deterministic: bool) -> Array | None:
        """The key that dropout uses, or None for no dropout."""
        if deterministic or self.config.dropout == 0.0:
            return None
        if key is None:
            raise ValueError(
                f"dropout is {self.config.dropout}, which needs a random key for each example: pass key=..., "
                "or deterministic=True to evaluate without dropout."
            )
        return key


def masked_mean(hidden: Float[Array, "seq hidden"], mask: Bool[Array, "seq"]) -> Float[Array, "hidden"]:
    """Mean of the rows where `mask` is true, accumulated in float32."""
    wide = widen(hidden)
    # A select, not a product: what stands in a padded place must not reach the mean, not even a NaN.
    total = jnp.sum(jnp.where(mask[:, None], wide, jnp.zeros_like(wide)), axis=0)
    count = jnp.maximum(jnp.sum(mask), 1).astype(wide.dtype)
    return (total / count).astype(hidden.dtype)
