"""The time that a study's runs still take, by what their batch sizes cost."""

import io
import time

import pytest
from rich.console import Console

from noisescale.studies.jobs.progress import OVERHEAD, StudyProgress

# (seconds since the first run ended, batch size, seconds of its updates): the runs of
# `critical-batch --dataset digits --width 32 --bs 1 --bs 4 --bs 16 --bs 64 --bs 256 --seeds 2` in
# the order in which they ended, two at once on two cores shared with others
RECORDED = (
    *((0, 16, 16.6), (38, 16, 35.2), (66, 16, 13.0), (71, 16, 3.6), (74, 16, 2.7)),
    *((79, 16, 4.9), (86, 16, 5.4), (88, 16, 7.1), (96, 64, 5.8), (100, 16, 11.3)),
    *((101, 64, 4.1), (110, 64, 8.8), (128, 4, 15.7), (128, 4, 24.8), (131, 64, 2.6)),
    *((134, 64, 2.0), (137, 64, 2.1), (139, 256, 1.2), (142, 256, 2.4), (144, 4, 15.0)),
    *((145, 256, 2.2), (149, 256, 2.4), (154, 256, 3.8), (156, 256, 1.7), (160, 256, 2.7)),
    *((162, 4, 16.5), (176, 4, 12.3), (178, 4, 14.6), (194, 4, 16.6), (222, 1, 42.5)),
    *((232, 1, 36.7), (252, 4, 18.3), (272, 1, 48.4), (323, 1, 48.8), (325, 1, 50.8)),
    *((360, 1, 33.5), (365, 1, 38.2), (382, 1, 20.8), (416, 1, 32.3), (461, 1, 43.9)),
)


def replay(monkeypatch):
    """(share done, estimate over truth) after each recorded run, the number of runs known."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = StudyProgress(None, num_at_once=2)
    end = RECORDED[-1][0]
    for index, (at, size, seconds) in enumerate(RECORDED):
        now[0] = at
        progress.finished(size, seconds)
        sizes = [later[1] for later in RECORDED[index + 1 :]]
        progress.expect({size: sizes.count(size) for size in sizes})
        if at < end:
            began = RECORDED[0][2] + OVERHEAD  # the first run's own time, before it ended
            yield (at + began) / (end + began), progress.seconds_left() / (end - at)


def test_the_time_left_on_recorded_runs(monkeypatch):
    """Within a factor of two once three runs of one batch size are known of five to come."""
    ratios = [(done, ratio) for done, ratio in replay(monkeypatch) if 0.1 < done < 0.97]
    assert len(ratios) > 30
    assert min(ratio for _, ratio in ratios) > 0.5
    assert max(ratio for _, ratio in ratios) < 2.5
    assert max(ratio for done, ratio in ratios if done > 0.18) < 2


def test_runs_of_another_day_say_what_runs_cost_and_not_how_fast_they_go(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = StudyProgress(None)
    for _ in range(10):
        progress.stored(16, 10 - OVERHEAD)
    now[0] = 10.0
    progress.finished(16, 10 - OVERHEAD)
    progress.expect({16: 3})
    assert progress.seconds_left() == pytest.approx(30)


def test_a_batch_size_not_seen_yet_costs_as_those_nearest_lead_to_expect():
    progress = StudyProgress(None)
    progress.stored(64, 4 - OVERHEAD)
    progress.expect({16: 1})
    assert progress.seconds_left() == pytest.approx(8)  # the square root of a factor of four
    progress.stored(256, 1 - OVERHEAD)
    assert progress.seconds_left() == pytest.approx(16)  # at equal examples
    progress.stored("full", 7 - OVERHEAD)
    progress.expect({"full": 2})
    assert progress.seconds_left() == pytest.approx(14)


def test_a_line_every_30_seconds_whatever_is_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    file = io.StringIO()
    progress = StudyProgress(Console(file=file, width=200))
    progress.activity("simulating")
    for second in range(100):
        now[0] = second
        progress.update()
    assert file.getvalue().splitlines() == [
        "simulating",
        *(f"simulating, for {text} now" for text in ("31 s", "1 min 02 s", "1 min 33 s")),
    ]
