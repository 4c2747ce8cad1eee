"""Reference models in Flax NNX, and the Hugging Face directories they are read from and written to."""

from ._bert import BertEncoder
from ._cache import Encoded, encode
from ._classifier import SequenceClassifier
from ._compute import Compute
from ._config import BertConfig, read_config
from ._convnet import ConvNet, ConvNetConfig
from ._decoder_classifier import DecoderClassifier
from ._generate import generate
from ._gguf import Gguf, read_gguf
from ._gguf_llama import gguf_sizes
from ._hugging_face import load_classifier, load_convnet, load_decoder, load_pretrained, load_vision, save_pretrained
from ._language import HiddenTokens, TokenExample, next_token_loss, record_loss, token_loss
from ._layers import Constant
from ._llama import LlamaDecoder, join_top, lowest_layers, split_top
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
    "ConvNet",
    "ConvNetConfig",
    "DecoderClassifier",
    "Encoded",
    "FeatureExample",
    "Gguf",
    "HiddenExample",
    "HiddenTokens",
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
    "generate",
    "gguf_sizes",
    "image_loss",
    "join_top",
    "load_classifier",
    "load_convnet",
    "load_decoder",
    "load_pretrained",
    "load_vision",
    "lowest_layers",
    "merge_lora",
    "next_token_loss",
    "num_layers",
    "parameter_paths",
    "read_config",
    "read_gguf",
    "record_loss",
    "save_pretrained",
    "split_top",
    "token_loss",
    "trainable_filter",
    "trainable_paths",
]
