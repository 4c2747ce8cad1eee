"""Reference models in Flax NNX, and the Hugging Face directories they are read from and written to."""

from ._bert import BertEncoder
from ._cache import Encoded, encode
from ._classifier import SequenceClassifier
from ._config import BertConfig
from ._hugging_face import load_classifier, load_pretrained, save_pretrained
from ._layers import Constant
from ._loss import FeatureExample, HiddenExample, TextExample, cross_entropy, example_loss
from ._selection import frozen_layers, num_layers, parameter_paths, trainable_filter, trainable_paths
from ._tokenizer import Tokenizer

__all__ = [
    "BertConfig",
    "BertEncoder",
    "Constant",
    "Encoded",
    "FeatureExample",
    "HiddenExample",
    "SequenceClassifier",
    "TextExample",
    "Tokenizer",
    "cross_entropy",
    "encode",
    "example_loss",
    "frozen_layers",
    "load_classifier",
    "load_pretrained",
    "num_layers",
    "parameter_paths",
    "save_pretrained",
    "trainable_filter",
    "trainable_paths",
]
