"""Configuration files: round trip, overrides, and one sentence for each mistake."""

from pathlib import Path

import pytest

from jaxdp.training import UserError, dump_config, load_config

MINIMAL = """
[data]
source = "tweets"
[privacy]
epsilon = 8
[[phase]]
train = "head"
steps = 10
batch_size = "full"
learning_rate = 0.1
"""


def load(tmp_path: Path, text: str, *overrides: tuple[str, str]):
    path = tmp_path / "a.toml"
    path.write_text(text)
    return load_config(path, overrides)


@pytest.mark.quick
def test_defaults_are_written_out_and_read_back_equal(tmp_path):
    config = load(tmp_path, MINIMAL, ("phase.train", '["head/*", "a\\"b"]'), ("model.path", 'x "y" \\z é'))
    assert config.phase[0].betas == (0.9, 0.999) and config.phase[0].train == ("head/*", 'a"b')
    assert load(tmp_path, dump_config(config)) == config


def test_one_phase_may_be_a_plain_table(tmp_path):
    assert load(tmp_path, MINIMAL.replace("[[phase]]", "[phase]")) == load(tmp_path, MINIMAL)


def test_phases_take_what_they_train_from_the_model_section_and_get_names_of_their_own(tmp_path):
    text = MINIMAL.replace('train = "head"\n', "") + '[model]\ntrain = "last:2"\n'
    assert load(tmp_path, text).phase[0].train == "last:2"
    second = MINIMAL[MINIMAL.index("[[phase]]") :]
    config = load(tmp_path, MINIMAL + second)
    assert [phase.name for phase in config.phase] == ["head", "head2"]


def test_overrides_name_a_phase_by_number_or_name_and_replace_a_rival(tmp_path):
    text = MINIMAL + MINIMAL[MINIMAL.index("[[phase]]") :].replace('"head"', '"last:2"')
    config = load(
        tmp_path,
        text,
        ("phase.2.steps", "7"),
        ("phase.head.learning_rate", "2e-3"),
        ("phase.last2.optimizer", "sgd"),
        ("privacy.noise_multiplier", "1.5"),
        ("data.source", "movie_sentences"),
    )
    assert (config.phase[1].steps, config.phase[0].learning_rate, config.phase[1].optimizer) == (7, 0.002, "sgd")
    assert config.privacy.epsilon is None and config.privacy.noise_multiplier == 1.5
    assert config.data.source == "movie_sentences"


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("data.sorce", "x", 'data.sorce is not a field: did you mean "source"?'),
        ("phase.1.stepz", "3", 'phase.1.stepz is not a field: did you mean "steps"?'),
        ("zzz.bar", "3", "[zzz] is not a section: the sections are task, data, model, lora"),
        ("privacy.epsilon", "-1", "privacy.epsilon is -1: it must be greater than 0."),
        ("privacy.epsilon", "nan", "privacy.epsilon is NaN: it must be finite."),
        ("privacy.epsilon", "eight", 'privacy.epsilon is "eight": give a number.'),
        ("privacy.delta", "2", "privacy.delta is 2: it must be less than 1."),
        ("privacy.noise_multiplier", "0", "privacy.noise_multiplier is 0: it must be greater than 0."),
        ("privacy.enabled", "yes", 'privacy.enabled is "yes": give true or false.'),
        ("privacy.accountant", "prv", 'privacy.accountant is "prv": use "pld" or "rdp".'),
        ("phase.steps", "1.5", "phase.1.steps is 1.5: give a whole number."),
        ("phase.steps", "0", "phase.1.steps is 0: it must be greater than or equal to 1."),
        ("phase.steps", "true", "phase.1.steps is true: give a whole number."),
        ("phase.batch_size", "-3", "phase.1.batch_size is -3: it must be greater than 0."),
        ("phase.batch_size", "half", 'phase.1.batch_size is "half": use "full", or a positive number of examples.'),
        ("phase.train", "heads", 'phase.1.train is "heads": use "head", "bias", "lora", "all", "last:N"'),
        ("phase.train", "3", "phase.1.train is 3: give a text in quotes, or a list of patterns."),
        ("phase.train", "[1]", "phase.1.train is [1]: give a text in quotes, or a list of patterns."),
        ("phase.train", "[]", "phase.1.train is []: name at least one pattern"),
        ("phase.betas", "[0.9]", "phase.1.betas is [0.9]: give two numbers."),
        ("phase.optimizer", "rmsprop", 'is "rmsprop": use "adam", "adamw", "sgd" or "adam_corrected".'),
        ("phase.warmup_steps", "20", "phase.1.warmup_steps is 20 of 10 steps: make it less than steps."),
        ("phase.weight_decay", "0.1", "phase.1.weight_decay has no meaning for optimizer"),
        ("phase.momentum", "0.1", "phase.1.momentum has no meaning for optimizer"),
        ("phase.padded_batch_size", "9", "phase.1.padded_batch_size has no meaning with batch_size"),
        ("phase.3.steps", "9", "--phase.3.steps names no phase: write --phase.N.field with N from 1 to 1"),
        ("data", "3", "--data is not a field: write --section.field value"),
        ("data.held_out", "1", "data.held_out is 1: it must be less than 1."),
        ("clipping.probes", "7", "clipping.probes is 7: it must be greater than or equal to 8."),
        ("clipping.norm", "hutch", 'clipping.norm is "hutch": use "exact", "hutchinson" or "hutch++".'),
        ("data.source", "a.csv", "data.text_column is missing: name the column of a.csv to read."),
    ],
)
def test_a_wrong_field_is_one_sentence(tmp_path, field, value, sentence):
    with pytest.raises(UserError) as caught:
        load(tmp_path, MINIMAL, (field, value))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "[data] is missing: add the section."),
        ("phase = 3\n" + MINIMAL.split("[[phase]]")[0], "phase is not a list of tables"),
        (MINIMAL.split("[[phase]]")[0], "[[phase]] is missing: add the section."),
        (MINIMAL.replace("steps = 10", ""), "phase.1.steps is missing: add it."),
        (MINIMAL.replace("epsilon = 8", ""), "privacy.epsilon is missing: give it, or privacy.noise_multiplier"),
        (MINIMAL.replace("= 8", "= 8\nnoise_multiplier = 1"), "are both given"),
        (MINIMAL.replace("= 8", "="), "is not valid TOML"),
        (
            MINIMAL.replace('"full"', "64\npadded_batch_size = 32"),
            "phase.1.padded_batch_size is 32, below the expected batch_size of 64",
        ),
        (
            MINIMAL + 'name = "a"\n' + MINIMAL[MINIMAL.index("[[phase]]") :] + 'name = "a"\n',
            'phase 2 and another one are both named "a": rename one.',
        ),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, sentence):
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence_with_the_nearest_name(tmp_path):
    (tmp_path / "tweets.toml").write_text(MINIMAL)
    with pytest.raises(UserError, match=r"tweet\.toml does not exist: did you mean .*tweets\.toml\?"):
        load_config(tmp_path / "tweet.toml")


def test_every_shipped_configuration_is_valid():
    files = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
    assert len(files) >= 6
    for file in files:
        assert load_config(file).privacy.enabled != ("nonprivate" in file.name), file


def test_features_are_not_centered_on_the_private_corpus_itself(tmp_path):
    assert load(tmp_path, MINIMAL, ("model.center", "movie_sentences")).model.center == "movie_sentences"
    with pytest.raises(UserError, match=r'model\.center is "tweets", the corpus that the run trains on'):
        load(tmp_path, MINIMAL, ("model.center", "tweets"))
