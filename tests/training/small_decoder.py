"""A tiny decoder with its tokenizer, a table of users' records, and configurations of whole runs on them."""

import csv
import json
import random
from pathlib import Path

import tokenizers
from flax import nnx

from jaxdp import models

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "sea", ":", "to", "and"]
TINY_DECODER = models.LlamaConfig(
    vocab_size=16,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=24,
    tie_word_embeddings=True,
    initializer_range=0.3,
    eos_token_id=1,
)


def save_decoder(directory: Path) -> Path:
    models.save_pretrained(models.LlamaDecoder(TINY_DECODER, rngs=nnx.Rngs(5)), directory)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def write_letters(path: Path, users: int = 240) -> Path:
    """Sentences of one form: each noun is followed by its own verb."""
    draw = random.Random(2)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["body", "writer"])
        for user in range(users):
            for _ in range(draw.randint(1, 5)):
                noun, verb = draw.choice([("cat", "sat"), ("dog", "ran")])
                # The end makes most texts different ones, which go to either side of a split.
                end = " ".join(draw.choices(WORDS, k=2))
                out.writerow([f"the {noun} {verb} on the {draw.choice(['mat', 'sea'])} {end}", f"user{user}"])
    return path


def language_model(letters: Path, model: Path, *, unit: str = "record", log: str = "", steps: int = 8) -> str:
    """Adapters of the top layer, on stored outputs of those below."""
    users = 'unit = "user"\nuser_column = "writer"\nmax_records_per_user = 3' if unit == "user" else ""
    return f"""
[task]
kind = "language_model"

[data]
source = {json.dumps(str(letters))}
text_column = "body"
{users}
max_length = 8
held_out = 0.2

[model]
path = {json.dumps(str(model))}
top_layers = 1

[lora]
rank = 2
targets = ["top/*"]

[samples]
prompts = ["the", "the dog"]
max_new_tokens = 6
temperature = 0.5

[privacy]
epsilon = 40.0
delta = 1e-4

[log]
{log}

[[phase]]
train = "lora"
features = "cached"
batch_size = 150
microbatch_size = 50
steps = {steps}
learning_rate = 0.05
evaluations = 2
"""
