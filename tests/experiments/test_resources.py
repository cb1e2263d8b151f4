"""Benchmarks made of parts: what is cut, what a peer is missing, and what is left on disk."""

import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments import resources
from experiments.benchmarks import __main__ as driver
from experiments.benchmarks.scaling import exponent
from experiments.resources import CUT, Deadline, PeerMissing, Record, peer

QUIET = Console(quiet=True)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [0.0]
    monkeypatch.setattr(resources.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch):
    monkeypatch.setattr(resources, "where_and_when", lambda device: {"environment": device})


def test_rounds_end_with_the_time_but_not_before_the_fewest(clock):
    deadline, made = Deadline(1.0), []
    for index in deadline.rounds(10, fewest=2):
        made.append(index)
        clock[0] += 25
    assert made == [0, 1, 2]  # the third began at 50 s
    assert list(deadline.rounds(10, fewest=2)) == [0, 1]
    assert list(Deadline().rounds(4)) == [0, 1, 2, 3]


def test_parts_share_the_time_that_is_left(clock, tmp_path):
    given = []

    def part(deadline):
        given.append(deadline.minutes)
        clock[0] += 60  # a minute, whatever it was given
        return len(given)

    record = Record(tmp_path / "r.json", "cpu", minutes=4.0)
    record.measure({"a": part, "b/c": part, "b/d": part, "e": part}, QUIET)
    assert given == [4 / 4, 3 / 3, 2 / 2, 1 / 1]
    record = Record(tmp_path / "r.json", "cpu", minutes=1.5, targets={"x": 1})
    record.measure({"a": part, "b/+one": part, "b/+two": part}, QUIET)
    content = json.loads((tmp_path / "r.json").read_text())
    assert content == {
        "environment": "cpu",
        "targets": {"x": 1},
        "left_out": {"b/+two": "there was no time left for it"},
        "a": 5,
        "b": [6],
    }


def test_a_part_may_have_a_larger_share(clock, tmp_path):
    given = []
    record = Record(tmp_path / "r.json", "cpu", minutes=10.0)
    parts = dict.fromkeys("abc", lambda deadline: given.append(deadline.minutes))
    record.measure(parts, QUIET, {"b": 3.0})
    assert given == [10 * 1 / 5, 10 * 3 / 4, 10 * 1 / 1]


def test_what_ends_a_benchmark_leaves_the_parts_before_it(tmp_path):
    path = tmp_path / "r.json"

    def broken(deadline):
        assert json.loads(path.read_text())["a"] == 1  # written before this one began
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Record(path, "cpu").measure({"a": lambda _: 1, "b": broken, "c": broken}, QUIET)
    content = json.loads(path.read_text())
    assert content["a"] == 1
    assert content["left_out"] == {"b": CUT, "c": CUT}


def test_a_peer_that_is_not_installed_is_said_and_the_rest_measured(tmp_path):
    with pytest.raises(PeerMissing, match="no_such_library is not installed"):
        peer("no_such_library.parts")
    assert peer("math") is math
    record = Record(tmp_path / "r.json", "cpu")
    record.measure({"a": lambda _: peer("no_such_library"), "b": lambda _: 2}, QUIET)
    assert record.content["left_out"] == {"a": "no_such_library is not installed"}
    assert record.content["b"] == 2


@pytest.mark.parametrize("power", [0.0, 0.7, 2.0])
def test_exponents_are_those_of_powers(power):
    sizes = [16, 64, 128, 1024]
    found = exponent(sizes, [3.0 * size**power for size in sizes])
    assert found["value"] == pytest.approx(power, abs=1e-12)
    assert found["stderr"] == pytest.approx(0, abs=1e-12)


def test_the_error_of_an_exponent_is_that_of_least_squares():
    sizes, costs = [1, 2, 4, 8, 16], [1.0, 2.3, 3.7, 8.4, 15.2]
    coefficients, covariance = np.polyfit(np.log(sizes), np.log(costs), 1, cov="unscaled")
    residuals = np.log(costs) - np.polyval(coefficients, np.log(sizes))
    found = exponent(sizes, costs)
    assert found["value"] == pytest.approx(coefficients[0])
    assert found["stderr"] == pytest.approx(
        np.sqrt(covariance[0, 0] * (residuals @ residuals) / (len(sizes) - 2))
    )


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A benchmark in place of Python: it writes its file, starts a process and goes on."""

    def make(lines):
        script = tmp_path / "stand_in"
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
        monkeypatch.setattr(driver.sys, "executable", str(script))

    return make


@pytest.mark.processes
def test_a_benchmark_is_ended_with_all_it_started_when_its_share_is_over(stand_in, tmp_path):
    stand_in('echo "{}" > "$8"; sleep 60 & echo $! > "$8.pid"; wait')
    started = time.monotonic()
    outcome = driver.run_one("training", device="cpu", minutes=0.01, out=tmp_path)
    assert "its share of the time" in outcome
    assert time.monotonic() - started < 10
    assert (tmp_path / "training-cpu.json").read_text() == "{}\n"
    child = int((tmp_path / "training-cpu.json.pid").read_text())
    assert _is_gone(child)


@pytest.mark.processes
def test_the_outcome_of_a_benchmark_is_told(stand_in, tmp_path):
    stand_in("exit 3")
    assert driver.run_one("noise", device="cpu", minutes=1, out=tmp_path) == (
        "failed with exit code 3"
    )
    stand_in('printf "%s\\n" "$@" > "$8"')
    assert driver.run_one("startup", device="cpu", minutes=1, out=tmp_path) == "done"
    given = (tmp_path / "startup.json").read_text().split()
    assert given[:4] == ["-m", "experiments.benchmarks.startup", "--device", "cpu"]
    assert given[4:6] == ["--minutes", f"{driver.TOLD:g}"]


def test_every_benchmark_is_one_of_all():
    files = Path(driver.__file__).parent.glob("[a-z]*.py")
    assert {path.stem for path in files} == set(driver.BENCHMARKS)


def _is_gone(process):
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if "\nState:\tZ" in Path(f"/proc/{process}/status").read_text():
            return True
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    return False
