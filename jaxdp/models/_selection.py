"""Which parameters are trained: a short word or path patterns, turned into an NNX filter."""

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

_LAYER = re.compile(r"(?:^|/)layers/(\d+)/")
_STACKED = re.compile(r"(?:^|/)layers/(?!\d+/)")
_WORDS = '"all", "bias", "head", "last:K", "lora" or a list of path patterns'


def path_string(path: Sequence[Any]) -> str:
    """A parameter's path as one string, such as ``encoder/layers/3/up/kernel``."""
    return "/".join(str(part) for part in path)


def parameter_paths(model: nnx.Module) -> tuple[str, ...]:
    """The paths of all parameters of `model`, sorted as `nnx.split` sorts them."""
    return tuple(path_string(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)))


def trainable_paths(spec: str | Sequence[str], model: nnx.Module) -> tuple[str, ...]:
    """The paths of the parameters that `spec` selects.

    ===================  ===================================================================================
    spec                 trained
    ===================  ===================================================================================
    ``"all"``            every parameter
    ``"bias"``           biases, scale and bias of every norm, and the head (BiTFiT)
    ``"head"``           the head
    ``"last:K"``         the top K layers and the head
    ``"lora"``           the low-rank adapters that `add_lora` put in, and the head
    list of patterns     every path that matches one of them (``*`` also matches ``/``); name the head as well
    ===================  ===================================================================================

    "The head" is that of a classifier. A decoder's ``lm_head`` is pretrained and counts as a parameter like others.

    Args:
        spec: see above; patterns are matched against the whole path with their case, as by
            `fnmatch.fnmatchcase`.
        model: a `SequenceClassifier`, or any NNX module whose layers are in ``layers`` and whose head is
            ``head``.

    Returns:
        The selected paths, in the model's order.

    Raises:
        ValueError: an unknown word, a pattern that matches nothing, more layers than the model has, single layers of
            a model whose layers are stacked, or adapters of a model that has none.

    Example:
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.BertConfig(50, hidden_size=8, num_attention_heads=2, intermediate_size=16,
        ...                            num_hidden_layers=2, max_position_embeddings=16)
        >>> model = models.SequenceClassifier(models.BertEncoder(config, rngs=nnx.Rngs(0)), 3)
        >>> trainable_paths("head", model)
        ('head/bias', 'head/kernel')

    References:
        Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
        Language-models, 2022; Bu et al., Differentially Private Bias-Term Fine-tuning of Foundation Models,
        2022.
    """
    paths = parameter_paths(model)
    if not isinstance(spec, str):
        return _matching(tuple(spec), paths)
    if spec == "all":
        return paths
    head = tuple(path for path in paths if path.startswith("head/"))
    if spec == "head":
        if not head:
            raise ValueError('train = "head", but the model has no head: train a SequenceClassifier.')
        return head
    if spec == "bias":
        return tuple(p for p in paths if p in head or p.rsplit("/", 1)[-1] in ("bias", "scale"))
    if spec == "lora":
        adapters = tuple(path for path in paths if "/lora/" in path)
        if not adapters:
            raise ValueError('train = "lora", but the model has no adapters: put them in with add_lora.')
        return tuple(path for path in paths if path in head or path in adapters)
    last = re.fullmatch(r"last:(\d+)", spec)
    if last is None:
        raise ValueError(f"train = {spec!r} is not known: give {_WORDS}.")
    if any(_STACKED.search(path) for path in paths):
        raise ValueError(
            f"train = {spec!r}, but this model's layers are stacked and cannot be told apart: give "
            '"all", "bias", "head", "lora" or path patterns.'
        )
    count = num_layers(model)
    top = int(last[1])
    if not 1 <= top <= count:
        raise ValueError(
            f'train = {spec!r}, but the model has {count} layers: give "last:1" to "last:{count}", or "head".'
        )
    return tuple(p for p in paths if p in head or _layer_index(p) >= count - top)


def trainable_filter(spec: str | Sequence[str], model: nnx.Module) -> Callable[[tuple[Any, ...], Any], bool]:
    """The NNX filter of the parameters that `spec` selects; see `trainable_paths` for the specs and errors.

    Args:
        spec: ``"all"``, ``"bias"``, ``"head"``, ``"last:K"``, ``"lora"`` or a list of path patterns.
        model: the model whose parameters are meant.

    Returns:
        A predicate of (path, value), for ``nnx.split(model, trainable_filter(spec, model), ...)``. Constants
        are never selected.

    Example:
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.BertConfig(50, hidden_size=8, num_attention_heads=2, intermediate_size=16,
        ...                            num_hidden_layers=2, max_position_embeddings=16)
        >>> model = models.SequenceClassifier(models.BertEncoder(config, rngs=nnx.Rngs(0)), 3)
        >>> graphdef, trained, frozen = nnx.split(model, trainable_filter("last:1", model), ...)
        >>> list(trained["encoder"]["layers"])
        [1]
    """
    chosen = frozenset(trainable_paths(spec, model))

    def selects(path: tuple[Any, ...], value: Any) -> bool:
        return path_string(path) in chosen

    return selects


def frozen_layers(spec: str | Sequence[str], model: nnx.Module) -> int | None:
    """How many layers from the bottom, with the embeddings below them, stay as they are.

    Their output can be computed once and stored: it is the ``start`` of `BertEncoder.layers_from`.

    Args:
        spec: what is trained; see `trainable_paths`.
        model: the model.

    Returns:
        The number of frozen bottom layers (all of them if only the head is trained), or None if an embedding
        is trained, so that nothing can be stored.

    Example:
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.BertConfig(50, hidden_size=8, num_attention_heads=2, intermediate_size=16,
        ...                            num_hidden_layers=2, max_position_embeddings=16)
        >>> model = models.SequenceClassifier(models.BertEncoder(config, rngs=nnx.Rngs(0)), 3)
        >>> frozen_layers("last:1", model), frozen_layers("head", model), frozen_layers("bias", model)
        (1, 2, None)
    """
    lowest = num_layers(model)
    for path in trainable_paths(spec, model):
        if path.startswith("head/"):
            continue
        index = _layer_index(path)
        if index < 0:
            return None
        lowest = min(lowest, index)
    return lowest


def num_layers(model: nnx.Module) -> int:
    """Number of separate layers in ``layers``; 0 if they are stacked."""
    return 1 + max((_layer_index(path) for path in parameter_paths(model)), default=-1)


def _layer_index(path: str) -> int:
    """Index of the layer that `path` lies in, or -1."""
    found = _LAYER.search(path)
    return -1 if found is None else int(found[1])


def _matching(patterns: tuple[str, ...], paths: tuple[str, ...]) -> tuple[str, ...]:
    """The paths that match a pattern; every pattern must match one."""
    if not patterns:
        raise ValueError(f"train = [] selects nothing: give {_WORDS}.")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise ValueError(
                f"train pattern {pattern!r} matches no parameter: paths look like {paths[0]!r} and {paths[-1]!r}."
            )
    return tuple(p for p in paths if any(fnmatch.fnmatchcase(p, pattern) for pattern in patterns))
