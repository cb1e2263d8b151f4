import hashlib
import math

import numpy as np
import pytest
import torch

from noisescale import ProblemConfig, build_problem, load_splits
from noisescale.errors import DataError, SettingError
from noisescale.problems.config import OF_TEXTS
from noisescale.problems.data import markov, texts
from noisescale.problems.data.splits import num_training_examples, resolve_dataset
from noisescale.problems.data.texts import TextSource, encode, fetch_text


@pytest.fixture
def file(tmp_path):
    """2,000 characters of which those at 10·k are unlike all others before them."""
    path = tmp_path / "text.txt"
    path.write_text("".join("é" if place % 7 == 3 else "abc\n"[place % 4] for place in range(2000)))
    return path


def test_a_text_is_cut_into_contiguous_parts_and_each_into_sequences(file):
    text = file.read_text()
    splits = load_splits("text", text=str(file), context=16)
    vocabulary = sorted(set(text))
    assert splits.num_classes == len(vocabulary) == 5
    begins = {"train": 0, "validation": 1800, "test": 1900}
    counts = {"train": 112, "validation": 6, "test": 6}  # (1800 − 1)//16, (100 − 1)//16
    for name, begin in begins.items():
        inputs, targets = getattr(splits, name)
        assert inputs.shape == targets.shape == (counts[name], 16)
        for row in range(len(inputs)):
            start = begin + 16 * row
            assert "".join(vocabulary[code] for code in inputs[row]) == text[start : start + 16]
            assert (
                "".join(vocabulary[code] for code in targets[row]) == text[start + 1 : start + 17]
            )


def test_bytes_that_are_no_utf8_are_characters():
    codes, num_symbols = encode(bytes([200, 65, 200, 255, 10]))
    assert num_symbols == 4
    assert codes.tolist() == [2, 1, 2, 3, 0]


def test_a_subset_is_of_the_training_sequences(file):
    every = load_splits("text", text=str(file), context=16)
    some = load_splits("text", text=str(file), context=16, num_train=20)
    rows = {tuple(row) for row in every.train.inputs.tolist()}
    assert some.train.num_examples == 20
    assert {tuple(row) for row in some.train.inputs.tolist()} <= rows
    assert torch.equal(some.test.inputs, every.test.inputs)
    with pytest.raises(SettingError, match="text has 112 training sequences of 16"):
        load_splits("text", text=str(file), context=16, num_train=113)


def test_the_number_of_sequences_is_known_beforehand(file):
    for config in (
        ProblemConfig(dataset="markov", model="gpt", context=50),
        ProblemConfig(dataset="text", model="gpt", text=str(file), context=7),
    ):
        assert num_training_examples(config) == build_problem(config).train.num_examples
    config = ProblemConfig(dataset="shakespeare", model="gpt")
    assert num_training_examples(config) == (1_003_854 - 1) // 64  # without its file


def test_a_text_shorter_than_its_sequences_says_how_long_they_may_be(file):
    with pytest.raises(SettingError, match=r"2,000 characters.* a context of 99 at most"):
        load_splits("text", text=str(file), context=100)
    load_splits("text", text=str(file), context=99)


def test_a_run_is_known_by_what_its_file_holds(file):
    config = ProblemConfig(dataset="text", model="gpt", text=str(file))
    assert config.text_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert ProblemConfig.from_dict(config.to_dict()) == config
    file.write_text(file.read_text() + "more")
    assert ProblemConfig.from_dict(config.to_dict()) == config  # readable all the same
    with pytest.raises(DataError, match="has changed since"):
        build_problem(config)
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        build_problem(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "shakespeare"}, "model mlp on dataset shakespeare: give model gpt"),
        ({"model": "gpt"}, "model gpt on dataset mnist: give model gpt with a text"),
        ({"dataset": "markov", "model": "gpt", "norm": "layer"}, "norm 'layer' with model gpt"),
        ({"dataset": "markov", "model": "gpt", "loss": "mse"}, "loss 'mse' with model gpt"),
        ({"dataset": "digits", "heads": 2}, "heads 2 with model mlp: leave it out"),
        ({"dataset": "digits", "tied": True}, "tied True with model mlp"),
        ({"dataset": "text", "model": "gpt"}, "give a file as text"),
        ({"dataset": "markov", "model": "gpt", "text": "x"}, "with dataset text, and with no"),
        ({"dataset": "text", "model": "gpt", "text": "none.txt"}, "none.txt cannot be read"),
        ({"dataset": "markov", "model": "gpt", "context": 0}, "context 0"),
    ],
)
def test_settings_that_do_not_go_together_say_so(fields, message):
    with pytest.raises(SettingError, match=message):
        ProblemConfig(**fields)


def test_the_records_of_images_know_nothing_of_texts():
    """So that runs and studies from before there were texts are those of today."""
    assert not set(OF_TEXTS) & set(ProblemConfig(dataset="digits").to_dict())
    assert set(OF_TEXTS) < set(ProblemConfig(dataset="markov", model="gpt").to_dict())


def test_the_markov_source_has_the_entropy_it_says():
    """Of its text, the mean of −log₂ P(c | the last two) is the entropy but for sampling."""
    transitions, codes = markov.transition_probabilities(), markov.markov_codes().astype(int)
    np.testing.assert_allclose(transitions.sum(2), 1)
    surprise = -np.log2(transitions[codes[:-2], codes[1:-1], codes[2:]])
    stderr = surprise.std() / math.sqrt(len(surprise))  # its terms are nearly uncorrelated
    assert abs(surprise.mean() - markov.entropy_rate()) < 4 * stderr
    assert round(markov.entropy_rate(), 3) == 2.978  # which the documentation quotes
    # the same on every machine: else runs of two of them would not compare
    assert codes[:12].tolist() == [18, 7, 0, 12, 4, 2, 11, 2, 11, 16, 2, 22]


def test_a_text_is_downloaded_whole_and_checked(server, tmp_path):
    address, folder = server
    (folder / "input.txt").write_text("to be or not")
    digest = hashlib.sha256(b"to be or not").hexdigest()
    source = TextSource("some/input.txt", f"{address}input.txt", digest, 12)
    assert fetch_text(source, tmp_path / "data").read_text() == "to be or not"
    (folder / "input.txt").write_text("damaged")
    assert fetch_text(source, tmp_path / "data").read_text() == "to be or not"  # is there
    with pytest.raises(DataError, match="damaged"):
        fetch_text(source, tmp_path / "other")
    assert list((tmp_path / "other" / "some").iterdir()) == []
    absent = TextSource("some/input.txt", f"{address}absent.txt", digest, 12)
    with pytest.raises(DataError, match="--dataset markov"):
        fetch_text(absent, tmp_path / "other")


def test_auto_means_shakespeare_and_else_the_markov_source(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "reachable", lambda urls: False)
    name, note = resolve_dataset("auto", tmp_path, text=True)
    assert name == "markov"
    assert "2.978 bits per character stands in" in note
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("damaged")
    assert resolve_dataset("auto", tmp_path, text=True) == ("shakespeare", None)
    with pytest.raises(DataError, match="damaged"):  # which is no reason to fall back
        load_splits("shakespeare", data_dir=tmp_path)
