"""Write reference.npz: what torch and transformers compute for small models with random weights.

Needs an environment of its own, with torch 2.13.0 and transformers 5.23.0:

    python tests/models/make_reference.py

For each model the file holds its Hugging Face directory (config.json as text, the bytes of model.safetensors), an input
and the output of torch.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as hf

# Large weights and epsilons, a small base of the rotary angles, fewer heads of keys than of queries: what is read
# wrongly must show.
LLAMA = {
    "vocab_size": 23,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 0.03,
    "bos_token_id": None,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": hf.LlamaConfig(
        **LLAMA,
        head_dim=6,
        rope_parameters={"rope_type": "default", "rope_theta": 20.0},
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    "llama_tied": hf.LlamaConfig(
        **LLAMA,
        head_dim=12,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 40.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 30,
        },
        tie_word_embeddings=True,
    ),
    "llama_linear": hf.LlamaConfig(
        **LLAMA,
        rope_parameters={"rope_type": "linear", "rope_theta": 20.0, "factor": 3.0},
        tie_word_embeddings=True,
    ),
    "roberta": hf.RobertaConfig(
        vocab_size=23,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        type_vocab_size=1,
        pad_token_id=1,
        layer_norm_eps=0.03,
    ),
    "vit": hf.ViTConfig(
        image_size=6,
        patch_size=2,
        num_channels=2,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        layer_norm_eps=0.03,
        num_labels=3,
    ),
}
CLASSES = {"roberta": hf.RobertaModel, "vit": hf.ViTForImageClassification}


def main() -> None:
    draw = np.random.default_rng(0)
    arrays = {}
    for name, config in CONFIGS.items():
        model = CLASSES.get(name, hf.LlamaForCausalLM)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Few different values, so that the file compresses well.
                values = draw.integers(-24, 25, tuple(parameter.shape)) / 16
                parameter.copy_(torch.from_numpy(values.astype(np.float32)))
            if name == "vit":
                inputs = draw.integers(-8, 9, (2, 2, 6, 6)).astype(np.float32) / 8
                output = model(pixel_values=torch.from_numpy(inputs)).logits
                inputs = inputs.transpose(0, 2, 3, 1)
            else:
                inputs = draw.integers(2, 23, (2, 9))
                if name == "roberta":
                    inputs[1, 6:] = config.pad_token_id
                mask = torch.from_numpy((inputs != 1).astype(np.int64))
                output = model(torch.from_numpy(inputs), attention_mask=mask)
                output = output.last_hidden_state if name == "roberta" else output.logits
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory)
            arrays[f"{name}/config"] = np.array(Path(directory, "config.json").read_text())
            arrays[f"{name}/weights"] = np.fromfile(Path(directory, "model.safetensors"), np.uint8)
        arrays[f"{name}/input"] = inputs.astype(np.float32 if name == "vit" else np.int32)
        arrays[f"{name}/output"] = output.numpy()
    path = Path(__file__).with_name("reference.npz")
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
