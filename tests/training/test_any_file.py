"""Damaged files of models and data: each is refused in a sentence that names it, or read; none ends in a traceback."""

import gzip
import json
import random
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from flax import nnx

from jaxdp import data, models
from tests.models.conftest import TINY
from tests.models.test_gguf import CONFIG, llama_file
from tests.training.small_decoder import TINY_DECODER, save_decoder

# What any value of a JSON file can be at worst.
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 10**6, 2**31, 2**63, 10**30, 1e-320, 1e308, float("nan"), float("inf"), "", "x",
    "7", "bert", "\ud800", [], [1], [None], {}, {"a": None}, [[[[]]]], "a" * 10_000,
]  # fmt: skip

Reader = Callable[[Path], Any]


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    kind, at = draw.randrange(6), draw.randrange(max(1, len(content)))
    # The headers are where the sizes are.
    at = at if draw.random() < 0.5 else at % min(len(content), 200)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + draw.randbytes(draw.randint(1, 16)) + content[at:]
    if kind == 2:
        return content[:at] + b"\xff" * 8 + content[at + 8 :]
    if kind == 3:
        return content[:at] + struct.pack("<Q", draw.choice([0, 1, 2**31, 2**32 - 1, 2**63 - 1])) + content[at + 8 :]
    flipped = bytearray(content)
    for _ in range(draw.randint(1, 20) if kind == 4 else 1):
        flipped[draw.randrange(len(flipped)) if kind == 4 else at] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def damaged_json(content: bytes, draw: random.Random) -> bytes:
    """Another value in one place; now and then other bytes."""
    if draw.random() < 0.2:
        return damaged_bytes(content, draw)
    if draw.random() < 0.03:
        return draw.choice([b"[" * 100_000, b"{}", b"[]", b"null", b'"a"', b"9" * 5000, b"\xef\xbb\xbf" + content])
    document = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(document)
    node, key = draw.choice(places)
    if isinstance(node, dict) and draw.random() < 0.2:
        del node[key]
    else:
        node[key] = draw.choice(VALUES)
    return json.dumps(document).encode()


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[tuple[Path, Callable, Reader]]:
    """A file, how it is damaged, and what reads it."""
    root = tmp_path_factory.mktemp("files")
    encoder, vit, convnet = root / "encoder", root / "vit", root / "convnet"
    classifier = models.SequenceClassifier(models.BertEncoder(TINY, rngs=nnx.Rngs(0)), 2, label_names=("a", "b"))
    models.save_pretrained(classifier, encoder)
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "b"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.save(str(encoder / "tokenizer.json"))
    sizes = {"image_size": 8, "num_channels": 1, "num_classes": 10}
    shape = models.ViTConfig(
        **sizes, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    models.save_pretrained(models.VisionTransformer(shape, rngs=nnx.Rngs(0)), vit)
    net = models.ConvNetConfig(**sizes, channels=(4, 4), kernel_size=3, hidden_size=4)
    models.save_pretrained(models.ConvNet(net, rngs=nnx.Rngs(0)), convnet)
    decoder = save_decoder(root / "decoder")
    parted = root / "parted"
    models.save_pretrained(models.LlamaDecoder(TINY_DECODER, rngs=nnx.Rngs(5)), parted)
    (parted / "model.safetensors").rename(parted / "a.safetensors")
    import safetensors.numpy

    names = safetensors.numpy.load_file(parted / "a.safetensors")
    index = {"weight_map": dict.fromkeys(names, "a.safetensors")}
    (parted / "model.safetensors.index.json").write_text(json.dumps(index))
    gguf = root / "model.gguf"
    gguf.write_bytes(llama_file(models.LlamaDecoder(CONFIG, rngs=nnx.Rngs(1)), root / "hf"))
    table = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(12)]
    (root / "t.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in table))
    (root / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), root / "t.parquet")
    images = root / "images"
    images.mkdir()
    for part in ("train", "t10k"):
        for what, array in (("images-idx3", np.zeros((3, 8, 8), np.uint8)), ("labels-idx1", np.zeros(3, np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (images / f"{part}-{what}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
            (images / f"{part}-{what}-ubyte").write_bytes(head + array.tobytes())
    read_table: Reader = lambda file: data.read_table(file, "text", "label")
    tokens: Reader = lambda file: models.Tokenizer(file).encode_batch(["a b zzz", ""], 4)
    classify: Reader = lambda file: (models.load_pretrained(file.parent), models.load_classifier(file.parent))
    decode: Reader = lambda file: models.load_decoder(file.parent)
    found = [
        (encoder / "config.json", damaged_json, classify),
        (encoder / "model.safetensors", damaged_bytes, classify),
        (encoder / "tokenizer.json", damaged_json, tokens),
        (decoder / "config.json", damaged_json, decode),
        (decoder / "model.safetensors", damaged_bytes, decode),
        (parted / "model.safetensors.index.json", damaged_json, decode),
        (vit / "config.json", damaged_json, lambda file: models.load_vision(file.parent, num_classes=4)),
        (convnet / "config.json", damaged_json, lambda file: models.load_convnet(file.parent)),
        (gguf, damaged_bytes, lambda file: (models.load_decoder(file), tokens(file))),
        (images / "train-images-idx3-ubyte.gz", damaged_bytes, lambda file: data.fashion_mnist(file.parent)),
        (images / "t10k-images-idx3-ubyte", damaged_bytes, data.read_idx),
        (root / "t.csv", damaged_bytes, read_table),
        (root / "t.jsonl", damaged_bytes, read_table),
        (root / "t.parquet", damaged_bytes, read_table),
    ]
    for file, _, read in found:
        read(file)  # whole, they are read
    return found


def outcomes(cases: list[tuple[Path, Callable, Reader]], count: int) -> Counter[str]:
    """Of so many damaged files; a failure names the file and the seed that make it again."""
    found: Counter[str] = Counter()
    for seed in range(count):
        draw = random.Random(seed)
        file, damage, read = cases[seed % len(cases)]
        whole = file.read_bytes()
        file.write_bytes(damage(whole, draw))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(file)
            found["read"] += 1
        except (FileNotFoundError, ValueError) as error:
            text = str(error)
            assert type(error) in (FileNotFoundError, ValueError), f"{file.name}, seed {seed}: {error!r}"
            assert text and "\n" not in text and len(text) < 2000, f"{file.name}, seed {seed}: {text}"
            found["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{file.name}, seed {seed} ended in {error!r}") from error
        finally:
            file.write_bytes(whole)
    return found


@pytest.mark.usefixtures("without_type_checks")
def test_any_file_is_read_or_refused(cases):
    found = outcomes(cases, 84)
    assert found["refused"] > 40


@pytest.mark.slow
@pytest.mark.usefixtures("without_type_checks")
def test_a_thousand_files(cases):
    found = outcomes(cases, 1120)
    print(dict(found))
    assert found["refused"] > 500
