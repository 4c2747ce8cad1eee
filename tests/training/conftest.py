"""Fixtures of whole runs."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import tokenizers
from flax import nnx

from jaxdp import models

from .small import PLAIN, TINY, TONES, two_phases, write_table


@pytest.fixture(scope="package", autouse=True)
def compile_each_program_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Several runs have the same shapes; what they compute is not changed by compiling them once."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    models.save_pretrained(models.BertEncoder(TINY, rngs=nnx.Rngs(3)), directory)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TONES[0], *TONES[1], *PLAIN])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "reviews.csv")


@pytest.fixture
def config_file(tmp_path: Path, table: Path, tiny_model: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(two_phases(table, tiny_model))
    return path
