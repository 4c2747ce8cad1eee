"""WordNet's glosses."""

import pytest

from jaxdp import data

NOUN = '00001740 03 n 02 ice_cream 0 gelato 1 001 ~ 00001930 n 0000 | a frozen dessert; "he ate ice cream"  '


@pytest.fixture
def directory(tmp_path):
    lines = {
        "noun": ["  1 This software is provided under a licence.  ", NOUN, NOUN.replace("00001740", "00001741")],
        "verb": ["00001930 29 v 01 run 0 000 01 + 02 00 | move fast  "],
        "adj": ["00002000 00 a 01 galore(ip) 0 000 | in great numbers  "],
        "adv": ["00003000 02 r 10 " + " ".join(f"w{i} 0" for i in range(16)) + " 000 | sixteen words  "],
    }
    for part, content in lines.items():
        (tmp_path / f"data.{part}").write_text("\n".join(content) + "\n")
    return tmp_path


@pytest.mark.quick
def test_each_synonym_set_is_a_record(directory):
    assert data.wordnet_glosses(directory) == (
        'ice cream, gelato: a frozen dessert; "he ate ice cream"',
        "run: move fast",
        "galore: in great numbers",
        ", ".join(f"w{i}" for i in range(16)) + ": sixteen words",
    )


@pytest.mark.parametrize("line", ["0 1 n", "0 1 n xx a 0 | b", "0 1 n 02 a 0 | b", "0 1 n 01 a 0 b"])
def test_other_files_are_refused(directory, line):
    (directory / "data.verb").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"data\.verb, line 1 is no line of WordNet's data files"):
        data.wordnet_glosses(directory)


def test_a_missing_file_is_named(directory):
    (directory / "data.adv").unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.adv does not exist: give the folder of WordNet's data files"):
        data.wordnet_glosses(directory)
