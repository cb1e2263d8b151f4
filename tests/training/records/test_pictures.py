"""A run's pictures: drawn from its folder once it is over, and again at any time."""

import json
import os
import signal

import pytest
from matplotlib.figure import Figure

from noisescale.errors import Interrupted, RunFolderError
from noisescale.problems.config import ProblemConfig
from noisescale.training import run as module
from noisescale.training.config import TrainConfig
from noisescale.training.records import pictures
from noisescale.training.records.folder import folder_state
from noisescale.training.records.pictures import draw_pictures
from noisescale.training.run import RunOptions, run_training

PROBLEM = ProblemConfig(dataset="digits", width=4)
TRAINING = TrainConfig(batch_size=200, learning_rate=0.1, epochs=1)
WHAT = "digits, MLP of width 4, B = 200, learning rate 0.1"
NAMES = ["curves.png", "confusion.png"]

pytestmark = pytest.mark.pictures


def titles(folder, tmp_path, monkeypatch):
    """What is written above a run's curves."""
    drawn = []
    monkeypatch.setattr(pictures, "image", lambda figure, format: drawn.append(figure) or b"")
    draw_pictures(folder, out=tmp_path / "pictures")
    assert all(isinstance(figure, Figure) for figure in drawn)
    return drawn[0].get_suptitle()


def test_they_can_be_drawn_again_the_same_from_the_folder_alone(tmp_path):
    run_training(PROBLEM, TRAINING, tmp_path / "run")
    before = [(tmp_path / "run" / name).read_bytes() for name in NAMES]
    (tmp_path / "run" / "checkpoint.pt").unlink()
    paths = draw_pictures(tmp_path / "run", out=tmp_path / "again")
    assert paths == [tmp_path / "again" / name for name in NAMES]
    assert [path.read_bytes() for path in paths] == before


def test_a_run_can_do_without_them(tmp_path):
    run_training(PROBLEM, TRAINING, tmp_path, RunOptions(pictures=False))
    assert not list(tmp_path.glob("*.png"))


def test_a_kill_while_they_are_drawn_costs_them_and_no_training(tmp_path, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_draw", killed)
        with pytest.raises(KeyboardInterrupt):
            run_training(PROBLEM, TRAINING, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert folder_state(tmp_path, config) == "finished"
    run_training(PROBLEM, TRAINING, tmp_path)
    assert not list(tmp_path.glob("*.png"))
    assert draw_pictures(tmp_path) == [tmp_path / name for name in NAMES]


def test_an_interrupt_while_they_are_drawn_waits_for_them(tmp_path, monkeypatch):
    draw = module._draw

    def interrupted(path):
        os.kill(os.getpid(), signal.SIGTERM)
        draw(path)

    monkeypatch.setattr(module, "_draw", interrupted)
    with pytest.raises(Interrupted, match="is finished") as stopped:
        run_training(PROBLEM, TRAINING, tmp_path)
    assert stopped.value.exit_code == 143
    assert all((tmp_path / name).exists() for name in NAMES)


def test_titles_say_what_was_trained_and_how_far_it_came(tmp_path, monkeypatch):
    run = tmp_path / "name"
    run_training(PROBLEM, TRAINING, run, RunOptions(pictures=False))
    assert titles(run, tmp_path, monkeypatch) == f"{WHAT}\n7 steps, 1 epoch"
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"diverged_at_step": 7}))
    assert titles(run, tmp_path, monkeypatch) == f"{WHAT}\n7 steps, 1 epoch"
    (run / "summary.json").unlink()
    assert titles(run, tmp_path, monkeypatch) == f"{WHAT}\nunfinished"


def test_a_folder_without_tables_has_none_and_a_damaged_one_is_said_so(tmp_path):
    assert draw_pictures(tmp_path) == []
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,2\n")
    with pytest.raises(RunFolderError, match=r"metrics\.csv is damaged"):
        draw_pictures(tmp_path)
