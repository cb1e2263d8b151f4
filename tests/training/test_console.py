"""What a run tells of itself: lines that fit, at least every 30 seconds, and the time left."""

import io
import time

import pytest
from rich.console import Console

from noisescale.training.console import Heartbeat, Pace, RunReport, duration_text, log_line
from noisescale.training.tracking.rows import is_due, num_due

# seconds of each measurement of λ_max and of B_noise, and of the evaluations, at their steps, as
# recorded of `train --bs 32 --epochs 5 --measure-noise-every log --noise-hessian
# --measure-sharpness-every log` on digits, on two cores shared with others
RECORDED = (
    *((0, "sharpness", 10.4), (0, "noise", 12.9), (1, "sharpness", 10.2), (1, "noise", 20.6)),
    *((2, "sharpness", 31.3), (2, "noise", 20.7), (3, "sharpness", 13.8), (3, "noise", 9.3)),
    *((4, "sharpness", 8.4), (4, "noise", 7.6), (6, "sharpness", 20.2), (6, "noise", 20.5)),
    *((7, "sharpness", 17.9), (7, "noise", 16.8), (10, "sharpness", 14.2), (10, "noise", 16.7)),
    *((13, "sharpness", 17.4), (13, "noise", 15.5), (18, "sharpness", 13.0), (18, "noise", 15.9)),
    *((24, "sharpness", 13.0), (24, "noise", 9.1), (32, "sharpness", 13.9), (32, "noise", 14.6)),
    *((42, "sharpness", 13.7), (42, "noise", 13.9), (56, "sharpness", 12.0), (56, "noise", 11.1)),
    *((75, "sharpness", 11.9), (75, "noise", 8.3), (100, "sharpness", 7.0), (100, "noise", 6.1)),
    *((133, "sharpness", 6.6), (133, "noise", 9.5), (178, "sharpness", 9.1)),
    *((178, "noise", 10.4), (205, "sharpness", 10.6), (205, "noise", 13.4)),
)


def test_the_time_left_is_right_within_a_factor_of_two_from_a_tenth_on():
    """By the share of the steps it would be wrong by up to 24."""
    total = sum(seconds for _, _, seconds in RECORDED)
    pace, spent, by_steps = Pace(), 0.0, []
    for step, part, seconds in RECORDED:
        spent += seconds
        pace.spent(part, seconds)
        if part == "sharpness" or not total / 10 < spent < 0.97 * total:
            continue
        number = num_due(step, 205, "log")
        left = pace.left({"sharpness": number, "noise": number})
        assert 0.5 < left / (total - spent) < 2
        by_steps.append(spent / max(step, 1) * (205 - step) / (total - spent))
    assert len(by_steps) > 10
    assert max(by_steps) > 10


def test_a_part_that_is_not_known_yet_leaves_no_estimate():
    pace = Pace()
    pace.spent("updates", 1.0)
    pace.spent("updates", 2.0)
    assert pace.left({"updates": 4}) == 6
    assert pace.left({"updates": 4, "measurements": 1}) is None
    assert pace.left({"updates": 4, "measurements": 0}) == 6


@pytest.mark.parametrize("every", [1, 7, 100, "log"])
@pytest.mark.parametrize("last", [1, 2, 99, 100, 1234])
def test_the_measurements_to_come_are_counted(every, last):
    for step in {0, 1, last // 2, last - 1, last}:
        due = {each for each in range(step + 1, last + 1) if is_due(each, every)}
        assert num_due(step, last, every) == len(due | ({last} if last > step else set()))


def lines_of(report, file):
    report.epoch(
        [
            {
                "epoch": 30,
                "step": 1_650_000,
                "split": split,
                "loss": 12.3456,
                "accuracy": 1.0,
                "f1": 1.0,
                "seconds": 123.4,
            }
            for split in ("train", "validation", "test")
        ]
    )
    for epoch, step in ((0.00213, 1), (0, 0), (12.5, 99_999)):
        report.measurement({"epoch": epoch, "step": step}, "B_simple 71.9 ± 3.1", {})
    report.log("a note of many words, which goes on and on " * 4)
    return file.getvalue().splitlines()


def test_the_lines_of_a_log_are_80_columns_and_in_line():
    file = io.StringIO()
    with RunReport(Console(file=file, width=300), title="B = 32", total_epochs=30) as report:
        lines = lines_of(report, file)
    assert max(map(len, lines)) <= 80
    measured = [line for line in lines if "B_simple" in line]
    assert {line.index("B_simple") for line in measured} == {measured[0].index("B_simple")}
    assert "a note of many words" in lines[-3] or "a note of many words" in lines[-2]


def test_a_terminal_of_another_width_is_honoured():
    for width in (60, 120):
        file = io.StringIO()
        log_line(Console(file=file, width=width, force_terminal=True), "word " * 60)
        longest = max(map(len, file.getvalue().splitlines()))
        assert width - 5 <= longest <= width


def test_a_heartbeat_says_something_where_nothing_else_does():
    file = io.StringIO()
    with Heartbeat(Console(file=file), lambda: "at step 3", every=0.02) as heartbeat:
        deadline = time.monotonic() + 10
        while "at step 3" not in file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        heartbeat.said()
    assert "at step 3" in file.getvalue()
    silent = io.StringIO()
    for console in (Console(file=silent, force_terminal=True), Console(file=silent, quiet=True)):
        with Heartbeat(console, lambda: "at step 3", every=0.0):
            time.sleep(0.03)
    assert silent.getvalue() == ""
    terminal = Console(file=io.StringIO(), force_terminal=True)
    with Heartbeat(terminal, lambda: "at step 3", every=0.02, on_terminals=True):
        deadline = time.monotonic() + 10
        while "at step 3" not in terminal.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "at step 3" in terminal.file.getvalue()  # where no bar is


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (59.6, "1 min 00 s"), (245, "4 min 05 s"), (3700, "1 h 01 min")],
)
def test_a_duration_in_words(seconds, text):
    assert duration_text(seconds) == text
