"""What is said of failures that are not this package's own, and what is refused beforehand."""

import os
import pickle
import socket
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from noisescale import errors
from noisescale.errors import (
    CheckpointError,
    NotEnoughMemoryError,
    OwnCodeError,
    SettingError,
    available_memory,
    check_file,
    check_memory,
    is_out_of_memory,
    own_place,
    own_words,
)
from noisescale.problems.factory import load_problem
from noisescale.studies.jobs.local import with_own_words

OWN = """
import json

def direct():
    raise KeyError("label")

def by_a_library():
    return json.loads("[")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return "my_own.py"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("direct", "KeyError: 'label' (my_own.py, line 5, in direct)"),
        # the last line that is the user's own, not the library's in which it comes to an end
        (
            "by_a_library",
            "JSONDecodeError: Expecting value: line 1 column 2 (char 1) "
            "(my_own.py, line 8, in by_a_library)",
        ),
    ],
)
def test_an_exception_of_the_users_own_is_told_with_its_line(own, function, words):
    with pytest.raises(SettingError) as failure:
        load_problem(f"{own}:{function}")
    assert str(failure.value) == f"problem '{own}:{function}' cannot be made: {words}"


def test_an_exception_of_the_packages_own_has_no_line_of_the_users():
    """The test is no part of the package, and calls it: its frame is above, not below."""
    with pytest.raises(SettingError) as failure:
        errors.check_count("seeds", 0)
    assert own_place(failure.value) is None
    assert own_words(failure.value) == "SettingError: seeds 0: give a whole number of 1 or more"
    assert own_words(MemoryError()) == "MemoryError"


def test_an_exception_from_a_worker_keeps_its_line(own):
    def fails():
        raise ZeroDivisionError("no examples")

    with ThreadPoolExecutor() as pool:
        error = pool.submit(with_own_words, fails).exception()
    assert type(error) is OwnCodeError
    assert str(error).startswith("ZeroDivisionError: no examples (test_errors.py, line ")
    # to another process, where there is no traceback, unless another library pickles that too
    sent = pickle.loads(pickle.dumps(error.with_traceback(None)))
    assert not traceback.extract_tb(sent.__traceback__)
    assert str(sent) == str(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("not enough memory of days gone by"), False),
    ],
)
def test_the_end_of_the_memory_is_known_by_type_or_words(error, expected):
    assert is_out_of_memory(error) is expected


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, what in [
            ("pipe", "is a pipe"),
            ("link", "is a pipe"),
            (".", "is a folder"),
            ("socket", "is a socket"),
            ("/dev/zero", "is a device"),
            ("loop", "symbolic links"),
            ("a" * 300, "name too long"),
        ]:
            with pytest.raises(CheckpointError, match=f"(?i){what}"):
                check_file(tmp_path / name, CheckpointError)
    check_file(tmp_path / "file", CheckpointError)
    check_file(tmp_path / "absent", CheckpointError)  # which the one who opens it says better


def test_what_is_larger_than_the_memory_is_refused_with_both_numbers(tmp_path, monkeypatch):
    available = available_memory()
    assert available is None or available > 2**20
    monkeypatch.setattr(errors, "available_memory", lambda: 10**9)
    check_memory(10**9, "a model")
    with pytest.raises(NotEnoughMemoryError, match=r"a model, which take 3 GB .* 1 GB are free"):
        check_memory(3 * 10**9, "a model")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(CheckpointError, match="10,000,000,000 bytes"):
        check_file(tmp_path / "sparse", CheckpointError)
    monkeypatch.setattr(errors, "available_memory", lambda: None)
    check_memory(10**30, "where the system does not tell")


@pytest.mark.parametrize(
    ("value", "most", "message"),
    [
        (2**63, 2**63 - 1, "beyond 64 bits: give 9,223,372,036,854,775,807 at most"),
        (10**400, 2**63 - 1, "beyond 64 bits"),
        (10_001, 10_000, "seeds 10,001: give 10,000 at most"),
    ],
)
def test_a_count_has_a_largest_value(value, most, message):
    errors.check_count("seeds", most, most=most)
    with pytest.raises(SettingError, match=message):
        errors.check_count("seeds", value, most=most)
