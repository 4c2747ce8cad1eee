"""Reference models in Flax NNX, and the Hugging Face directories they are read from and written to."""

from ._bert import BertEncoder
from ._cache import Encoded, encode
from ._classifier import SequenceClassifier
from ._compute import Compute
from ._config import BertConfig
from ._gguf import Gguf, read_gguf
from ._hugging_face import load_classifier, load_decoder, load_pretrained, load_vision, save_pretrained
from ._language import TokenExample, next_token_loss, token_loss
from ._layers import Constant
from ._llama import LlamaDecoder
from ._llama_config import LlamaConfig
from ._lora import add_lora, merge_lora
from ._loss import FeatureExample, HiddenExample, TextExample, cross_entropy, example_loss
from ._rope import Rope
from ._selection import frozen_layers, num_layers, parameter_paths, trainable_filter, trainable_paths
from ._tokenizer import Tokenizer
from ._vision_loss import ImageExample, image_loss
from ._vit import VisionTransformer
from ._vit_config import ViTConfig

__all__ = [
    "BertConfig",
    "BertEncoder",
    "Compute",
    "Constant",
    "Encoded",
    "FeatureExample",
    "Gguf",
    "HiddenExample",
    "ImageExample",
    "LlamaConfig",
    "LlamaDecoder",
    "Rope",
    "SequenceClassifier",
    "TextExample",
    "TokenExample",
    "Tokenizer",
    "ViTConfig",
    "VisionTransformer",
    "add_lora",
    "cross_entropy",
    "encode",
    "example_loss",
    "frozen_layers",
    "image_loss",
    "load_classifier",
    "load_decoder",
    "load_pretrained",
    "load_vision",
    "merge_lora",
    "next_token_loss",
    "num_layers",
    "parameter_paths",
    "read_gguf",
    "save_pretrained",
    "token_loss",
    "trainable_filter",
    "trainable_paths",
]
