"""Texts to padded token ids and back, by a Hugging Face ``tokenizer.json`` or the one inside a GGUF file."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32

from jaxdp._reading import read_text, reason, regular_file

from ._gguf_llama import tokenizer_from_gguf

# Ids are held in 32 bits.
_LARGEST_ID = 2**31 - 1


@contextlib.contextmanager
def refusing(what: str, fix: str) -> Iterator[None]:
    """Whatever the Rust side raises, which is a bare Exception or a panic, as a sentence."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{what} ({reason(error)}): {fix}.") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what} ({reason(error)}): {fix}.") from error


class Tokenizer:
    """The tokenizer of a Hugging Face directory; each call, not the file, sets padding and truncation.

    Args:
        path: ``tokenizer.json``, the directory that holds it, or a ``.gguf`` file with a byte-level BPE tokenizer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no tokenizer.

    Example:
        ``ids, mask = Tokenizer(directory).encode_batch(["a sentence"], max_length=48)``
    """

    def __init__(self, path: str | Path):
        import tokenizers  # comes with the extra `train`; the encoder itself does without

        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        regular_file(file, "the model directory must hold tokenizer.json")
        self.path = file
        if file.suffix == ".gguf":
            with refusing(f"{file} holds no tokenizer that can be made", "download it again"):
                self._tokenizer, self._pad_id = tokenizer_from_gguf(file)
            return
        text = read_text(file, "download it again")
        with refusing(f"{file} is not a tokenizer", "download it again"):
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        padding = self._tokenizer.padding
        named = (self._tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
        self._pad_id = int(padding["pad_id"]) if padding else next((i for i in named if i is not None), 0)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if self.largest_id > _LARGEST_ID:
            raise ValueError(f"{file} has ids up to {self.largest_id:,}: download it again.")

    @property
    def vocab_size(self) -> int:
        """Number of token ids; at most the ``vocab_size`` of a model that fits."""
        return self._tokenizer.get_vocab_size()

    @property
    def largest_id(self) -> int:
        """The largest id that a text can get, which an embedding table must have a row for."""
        special: list[int] = []
        with contextlib.suppress(ValueError), refusing("the tokenizer cannot read an empty text", ""):
            special = self._tokenizer.encode("").ids
        return max([*self._tokenizer.get_vocab().values(), *special, self._pad_id])

    def check_fits(self, rows: int) -> None:
        """Refuse an embedding table that lacks rows: ids beyond it would all share one.

        Args:
            rows: of the table.

        Raises:
            ValueError: an id beyond the table; it is one of the tokenizer's, whatever the texts are.
        """
        if self.largest_id >= rows:
            raise ValueError(
                f"{self.path} has ids up to {self.largest_id:,}, but the model's embedding table has {rows:,} rows, "
                f"for ids up to {rows - 1:,}: use the tokenizer that belongs to the model."
            )

    def encode_batch(
        self, texts: Sequence[str], max_length: int
    ) -> tuple[Int32[np.ndarray, "n seq"], Bool[np.ndarray, "n seq"]]:
        """Token ids of every text, cut off and padded to the same length.

        Args:
            texts: the texts.
            max_length: number of tokens of every row, the special ones at both ends included.

        Returns:
            The ids, and a mask that is true where there is a token; both have one row a text.

        Raises:
            ValueError: a `max_length` too short for the special tokens.
        """
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= special:
            raise ValueError(
                f"max_length must be more than the {special} special tokens of every text, not {max_length}."
            )
        with refusing(f"{self.path} cannot read a text", "give it a token for unknown words"):
            self._tokenizer.enable_truncation(max_length)
            try:
                encoded = self._tokenizer.encode_batch(list(texts))
            finally:
                self._tokenizer.no_truncation()
        ids = np.full((len(encoded), max_length), self._pad_id, np.int32)
        mask = np.zeros((len(encoded), max_length), bool)
        for row, encoding in enumerate(encoded):
            length = len(encoding.ids)
            ids[row, :length] = encoding.ids
            mask[row, :length] = True
        return ids, mask

    def lengths(self, texts: Sequence[str]) -> Int32[np.ndarray, "n"]:
        """Number of tokens of every text without truncation, the special ones included."""
        with refusing(f"{self.path} cannot read a text", "give it a token for unknown words"):
            return np.array([len(e.ids) for e in self._tokenizer.encode_batch(list(texts))], np.int32)

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, "n"]) -> str:
        """The text of token ids, special tokens left out."""
        return self._tokenizer.decode([int(index) for index in ids])

    def save(self, directory: str | Path) -> Path:
        """Write ``tokenizer.json`` into a directory, such as one that `save_pretrained` wrote.

        Args:
            directory: is made if need be; a file of that name is replaced.

        Returns:
            The path of the file.
        """
        target = Path(directory) / "tokenizer.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(target))
        return target
