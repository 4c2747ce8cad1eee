"""Labelled images from files in the format of MNIST."""

import dataclasses
import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

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
        parts.append(LabelledImages(pixels[..., None], classes.astype(np.int32), _CLASSES))
    return parts[0], parts[1]


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
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{file} is not a gzip file ({error}): download it again.") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTES]):
        raise ValueError(f"{file} is not an IDX file of unsigned bytes: download it again.")
    count = content[3]
    begin = 4 + 4 * count
    shape: tuple[Any, ...] = struct.unpack(f">{count}I", content[4:begin]) if len(content) >= begin else (-1,)
    if int(np.prod(shape)) != len(content) - begin:
        raise ValueError(f"{file} does not hold as many bytes as it says: download it again.")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape).copy()
