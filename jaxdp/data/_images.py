"""Labelled images from files in the format of MNIST."""

import dataclasses
import gzip
import hashlib
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, UInt8

from jaxdp._reading import read_bytes, reason
from jaxdp._shown import of_shapes

_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
_UNSIGNED_BYTES = 8
# The largest image side, and the most bytes of a file: nothing larger is allocated on a header's word.
_LARGEST_SIDE, _LARGEST_FILE = 4096, 1 << 32


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with the index of their class; one image is one example, the unit that privacy protects.

    Args:
        images: pixels from 0 to 255.
        labels: indices into `label_names`, one an image.
        label_names: names of the classes; they are public.

    Raises:
        ValueError: unequal lengths, or a label that is no index.
    """

    __repr__ = of_shapes

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int32[np.ndarray, "_"]
    label_names: tuple[str, ...]

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise ValueError(f"there are {len(self.images)} images but {len(self.labels)} labels: give one an image.")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.label_names):
            raise ValueError(f"labels must be indices from 0 to {len(self.label_names) - 1}.")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Int[np.ndarray, "k"]) -> "LabelledImages":
        """The given rows, in the given order."""
        return LabelledImages(self.images[rows], self.labels[rows], self.label_names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over images, labels and names; it identifies the data, so it is private like them."""
        digest = hashlib.sha256(repr((self.images.shape, self.label_names)).encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        digest.update(np.ascontiguousarray(self.labels, "<i4").tobytes())
        return digest.hexdigest()


def fashion_mnist(directory: str | Path = _FASHION_MNIST) -> tuple[LabelledImages, LabelledImages]:
    """Fashion-MNIST with its own division: grey images of clothes, 28 x 28, in 10 classes.

    Args:
        directory: holds train-images-idx3-ubyte.gz and the like; the place where the Debian package
            dataset-fashion-mnist puts them when left out.

    Returns:
        60,000 training images and 10,000 test images. (Files of other sizes are read as they are.)

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file of another format, or sizes that do not fit.

    References:
        Xiao et al., Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017.
    """
    parts = []
    for part in ("train", "t10k"):
        images, labels = (_file(Path(directory), f"{part}-{what}-ubyte") for what in ("images-idx3", "labels-idx1"))
        pixels, classes = read_idx(images), read_idx(labels)
        if pixels.ndim != 3 or classes.ndim != 1:
            raise ValueError(f"{images} and {labels} must hold images and labels: download them again.")
        if not len(pixels) or not 1 <= min(pixels.shape[1:]) <= max(pixels.shape[1:]) <= _LARGEST_SIDE:
            raise ValueError(
                f"{images} holds {len(pixels)} images of {pixels.shape[1]} x {pixels.shape[2]} pixels: give at least "
                f"one, of sides from 1 to {_LARGEST_SIDE:,}."
            )
        try:
            parts.append(LabelledImages(pixels[..., None], classes.astype(np.int32), _CLASSES))
        except ValueError as error:
            raise ValueError(f"{images} and {labels}: {error}") from error
    (train, test), sizes = parts, [part.images.shape[1:3] for part in parts]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{directory} has training images of {sizes[0][0]} x {sizes[0][1]} pixels and test images of "
            f"{sizes[1][0]} x {sizes[1][1]}: give files of one data set."
        )
    return train, test


def _file(directory: Path, name: str) -> Path:
    for path in (directory / f"{name}.gz", directory / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{directory / name}.gz does not exist: install the Debian package (apt-get install dataset-fashion-mnist), or "
        "give the folder of the four files of Fashion-MNIST."
    )


def read_idx(path: str | Path) -> UInt8[np.ndarray, "..."]:
    """Read an array of unsigned bytes in the IDX format, gzipped if the name ends in ``.gz``.

    Args:
        path: the file.

    Returns:
        The array.

    Raises:
        ValueError: another format, or a file that was cut off.
    """
    file = Path(path)
    content = read_bytes(file, "download it again", _LARGEST_FILE)
    try:
        if file.suffix == ".gz":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
                content = stream.read(_LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise ValueError(f"{file} is not a gzip file ({reason(error)}): download it again.") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTES]) or not content[3]:
        raise ValueError(f"{file} is not an IDX file of unsigned bytes: download it again.")
    count = content[3]
    begin = 4 + 4 * count
    shape = struct.unpack(f">{count}I", content[4:begin]) if len(content) >= begin else (-1,)
    if math.prod(shape) != len(content) - begin:
        raise ValueError(f"{file} does not hold as many bytes as it says: download it again.")
    if count > 4:
        raise ValueError(f"{file} has {count} axes: give a file of images or labels.")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape).copy()
