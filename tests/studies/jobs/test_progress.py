"""The time that a study's runs still take, by what their batch sizes cost."""

import io
import time
from collections import defaultdict

import pytest
from rich.console import Console

from noisescale.studies.jobs.progress import OVERHEAD, StudyProgress
from tests.helpers.virtual_time import World, replay as replay_measurement

# (seconds since the first run ended, batch size, seconds of its updates, how many these were, and
# how many it could take): the runs of `critical-batch --dataset digits --width 32 --bs 1 --bs 4
# --bs 16 --bs 64 --bs 256 --seeds 2` in the order in which they ended, two at once on two cores
# shared with others
RECORDED = (
    *(
        (0, 16, 16.6, 511, 1640),
        (38, 16, 35.2, 1640, 1640),
        (66, 16, 13.0, 1640, 1640),
        (71, 16, 3.6, 383, 757),
    ),
    *(
        (74, 16, 2.7, 422, 541),
        (79, 16, 4.9, 541, 541),
        (86, 16, 5.4, 348, 541),
        (88, 16, 7.1, 261, 541),
    ),
    *(
        (96, 64, 5.8, 162, 541),
        (100, 16, 11.3, 316, 541),
        (101, 64, 4.1, 110, 541),
        (110, 64, 8.8, 541, 541),
    ),
    *(
        (128, 4, 15.7, 825, 2164),
        (128, 4, 24.8, 1468, 2164),
        (131, 64, 2.6, 156, 156),
        (134, 64, 2.0, 121, 156),
    ),
    *(
        (137, 64, 2.1, 156, 156),
        (139, 256, 1.2, 110, 156),
        (142, 256, 2.4, 156, 156),
        (144, 4, 15.0, 1212, 2164),
    ),
    *(
        (145, 256, 2.2, 156, 156),
        (149, 256, 2.4, 133, 159),
        (154, 256, 3.8, 159, 159),
        (156, 256, 1.7, 100, 159),
    ),
    *(
        (160, 256, 2.7, 159, 159),
        (162, 4, 16.5, 1159, 1159),
        (176, 4, 12.3, 909, 1159),
        (178, 4, 14.6, 1000, 1159),
    ),
    *(
        (194, 4, 16.6, 1159, 1159),
        (222, 1, 42.5, 3162, 4636),
        (232, 1, 36.7, 2873, 4636),
        (252, 4, 18.3, 1212, 1326),
    ),
    *(
        (272, 1, 48.4, 4636, 4636),
        (323, 1, 48.8, 4117, 4117),
        (325, 1, 50.8, 4117, 4117),
        (360, 1, 33.5, 4117, 4117),
    ),
    *(
        (365, 1, 38.2, 4117, 4117),
        (382, 1, 20.8, 3481, 4117),
        (416, 1, 32.3, 4822, 4822),
        (461, 1, 43.9, 4822, 4822),
    ),
)


def replay(monkeypatch):
    """(share done, estimate over truth) after each recorded run, the number of runs known."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = StudyProgress(None, num_at_once=2)
    end = RECORDED[-1][0]
    for index, (at, size, seconds, steps, most) in enumerate(RECORDED):
        now[0] = at
        progress.finished(size, seconds, work=size * most, done=size * steps)
        works = defaultdict(list)
        for _, later, _, _, most in RECORDED[index + 1 :]:
            works[later].append(later * most)
        progress.expect(works)
        if at < end:
            began = RECORDED[0][2] + OVERHEAD  # the first run's own time, before it ended
            yield (at + began) / (end + began), progress.seconds_left() / (end - at)


def test_the_time_left_on_recorded_runs(monkeypatch):
    """Within a factor of two once two runs of one batch size are known of five to come."""
    ratios = [ratio for done, ratio in replay(monkeypatch) if 0.1 < done < 0.97]
    assert len(ratios) > 30
    assert 0.5 < min(ratios) < max(ratios) < 2


@pytest.mark.parametrize(
    "world",
    [
        World(critical=4, step=0.01, example=0),
        World(critical=4, step=0.0001, example=0.001),
        World(critical=30, step=0.005, example=0.0003),
        World(critical=30, step=0.01, example=0, num_processes=4),
    ],
    ids=str,
)
def test_the_time_left_of_a_measurement(world, monkeypatch):
    """Of searches that know neither how long runs will take nor how many there will be."""
    ratios = [
        left / truly
        for share, left, truly in replay_measurement(monkeypatch, world, (1, 4, 16, 64, 256))
        if 0.1 < share < 0.97
    ]
    assert len(ratios) > 20
    assert 0.5 < min(ratios) < max(ratios) < 2


def test_runs_of_another_day_say_what_runs_cost_and_not_how_fast_they_go(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = StudyProgress(None)
    for _ in range(10):
        progress.stored(16, 10 - OVERHEAD)
    now[0] = 10.0
    progress.finished(16, 10 - OVERHEAD)
    progress.expect({16: [1] * 3})
    assert progress.seconds_left() == pytest.approx(30)


def test_a_batch_size_not_seen_yet_costs_as_those_nearest_lead_to_expect():
    progress = StudyProgress(None)
    progress.stored(64, 4 - OVERHEAD)
    progress.expect({16: [1]})
    assert progress.seconds_left() == pytest.approx(8)  # the square root of a factor of four
    progress.stored(256, 1 - OVERHEAD)
    assert progress.seconds_left() == pytest.approx(16)  # at equal examples
    progress.stored("full", 7 - OVERHEAD)
    progress.expect({"full": [1, 1]})
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
