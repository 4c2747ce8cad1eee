"""The task that a configuration describes."""

from jaxdp.training.config._config import Config
from jaxdp.training.tasks._classifier import encoder_pooling, load_classifier
from jaxdp.training.tasks._data import check_length, count_texts, is_decoder, load_dataset, model_directory
from jaxdp.training.tasks._decoder_classification import load_decoder_classification
from jaxdp.training.tasks._effects import check_effects
from jaxdp.training.tasks._image_classification import load_image_classification, load_images
from jaxdp.training.tasks._language_model import load_language_model
from jaxdp.training.tasks._records import load_records
from jaxdp.training.tasks._task import Task
from jaxdp.training.tasks._text_classification import TextClassification


def load_task(config: Config) -> Task:
    """Read the data and the model, and refuse what does nothing to them."""
    task = _task(config)
    check_effects(config, task)
    return task


def _task(config: Config) -> Task:
    if config.task.kind == "image_classification":
        return load_image_classification(config)
    path = model_directory(config)
    check_length(config, path)
    if config.task.kind == "language_model":
        return load_language_model(config, path)
    if is_decoder(path):
        return load_decoder_classification(config, path)
    encoder_pooling(config)
    dataset = load_dataset(config)
    return TextClassification(load_classifier(config.model, path, dataset.train.label_names), dataset)


def count_examples(config: Config) -> int:
    """Number of training examples, without the model."""
    if config.task.kind == "image_classification":
        return len(load_images(config)[0])
    if config.task.kind == "language_model":
        return load_records(config)[0].num_users
    return count_texts(config)
