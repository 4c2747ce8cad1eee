"""Texts to padded token ids and back, by a Hugging Face ``tokenizer.json`` or the one inside a GGUF file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32

from ._gguf_llama import tokenizer_from_gguf


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
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: the model directory must hold tokenizer.json.")
        self.path = file
        if file.suffix == ".gguf":
            self._tokenizer, self._pad_id = tokenizer_from_gguf(file)
            return
        text = file.read_text(encoding="utf-8")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the Rust side raises bare Exception
            raise ValueError(f"{file} is not a tokenizer ({error}): download it again.") from error
        padding = self._tokenizer.padding
        named = (self._tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
        self._pad_id = int(padding["pad_id"]) if padding else next((i for i in named if i is not None), 0)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def vocab_size(self) -> int:
        """Number of token ids; at most the ``vocab_size`` of a model that fits."""
        return self._tokenizer.get_vocab_size()

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
