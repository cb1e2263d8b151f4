import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from noisescale.errors import RunFolderBusyError, RunFolderError
from noisescale.problems.config import ProblemConfig
from noisescale.training.config import TrainConfig
from noisescale.training.records.folder import (
    RunFolder,
    finished_runs,
    folder_state,
    nullable,
    read_json,
    read_summary,
    write_atomically,
    write_json,
)
from noisescale.training.records.tables import read_metrics
from tests.helpers.folders import contents

CONFIG = {"problem": {"dataset": "digits"}, "training": {"seed": 0}}


@pytest.mark.processes
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    """A real full disk: the process may write no file larger than 1,000 bytes."""
    target = tmp_path / "file"
    write_atomically(target, b"old")
    script = (
        "import resource, signal, sys, pathlib\n"
        "from noisescale.training.records.folder import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomically(pathlib.Path(sys.argv[1]), b'x' * 5000)\n"
        "except OSError as error:\n    print(error.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "File too large"
    assert target.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_names_the_file_that_was_to_be_written(tmp_path, monkeypatch):
    def refused(source, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(source), None, str(target))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(PermissionError) as raised:
        write_atomically(tmp_path / "file", b"content")
    assert str(raised.value) == f"[Errno 13] Permission denied: '{tmp_path / 'file'}'"
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_then_its_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    """A rename on disk before the content would leave an empty file after a power cut."""
    calls = []

    def synced(descriptor):
        calls.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))

    def renamed(source, target):
        calls.append(("rename", target.name))
        os.replace(source, target)  # noqa: PTH105

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomically(tmp_path / "file", b"content")
    (_, temporary), *rest = calls
    assert calls[0] == ("sync", temporary)
    assert re.fullmatch(r"\.file\.\w+\.tmp", temporary)
    assert rest == [("rename", "file"), ("sync", tmp_path.name)]


def test_a_folder_goes_from_new_to_unfinished_to_finished(tmp_path):
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        assert folder.state == "unfinished"  # config.json is there from the first moment
        write_json(folder.path / "summary.json", {})
        assert folder.state == "finished"
    assert finished_runs(tmp_path) == [tmp_path / "run"]


def test_another_runs_folder_is_refused_with_the_difference(tmp_path):
    with RunFolder(tmp_path, CONFIG):
        pass
    other = {"problem": CONFIG["problem"], "training": {"seed": 1}}
    with (
        pytest.raises(RunFolderError, match=r"training.seed is 0 there, 1 here.*--force"),
        RunFolder(tmp_path, other),
    ):
        pass
    with RunFolder(tmp_path, other, force=True) as folder:
        assert folder.state == "unfinished"
    assert json.loads((tmp_path / "config.json").read_text()) == other


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with (
            pytest.raises(RunFolderError, match=r"thesis\.tex"),
            RunFolder(tmp_path, CONFIG, force=force),
        ):
            pass
    assert [entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")] == [
        "thesis.tex"
    ]


def leave_a_run(path):
    with RunFolder(path, CONFIG):
        (path / "checkpoints").mkdir()
        for name in ("summary.json", "metrics.csv", "notes.txt", "checkpoints/step-3.pt"):
            (path / name).write_text("{}")


def begin_and_stop(path, config, written, error):
    with RunFolder(path, config, force=True):
        assert not (path / written).exists()
        (path / written).write_text("new")
        raise error


def test_force_puts_the_runs_own_files_aside_and_then_removes_them_alone(tmp_path):
    leave_a_run(tmp_path)
    ours = {"config.json", "notes.txt", ".noisescale.lock", "checkpoints"}
    with RunFolder(tmp_path, CONFIG, force=True) as folder:
        assert folder.state == "unfinished"
        assert {entry.name for entry in tmp_path.iterdir()} == ours | {".replaced"}
        assert finished_runs(tmp_path) == []  # what is put aside is none
    assert {entry.name for entry in tmp_path.iterdir()} == ours
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_run_that_cannot_be_replaced_is_put_back(tmp_path):
    leave_a_run(tmp_path)
    before = contents(tmp_path)
    other = {"problem": CONFIG["problem"], "training": {"seed": 1}}
    with pytest.raises(OSError, match="full"):
        begin_and_stop(tmp_path, other, "metrics.csv", OSError("full"))
    assert contents(tmp_path) == before


def test_a_kill_while_a_run_is_put_aside_loses_nothing(tmp_path, monkeypatch):
    """After config.json has moved, the rest not yet."""
    leave_a_run(tmp_path)
    before = contents(tmp_path)
    replace, moved = Path.replace, []

    def killed(path, target):
        if path.name == "step-3.pt":
            raise KeyboardInterrupt
        moved.append(path.name)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(RunFolder, "__exit__", lambda folder, *_: folder._lock.release())
        with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path, CONFIG, force=True):
            pass
    assert "config.json" in moved
    with RunFolder(tmp_path, CONFIG) as folder:
        assert folder.state == "finished"
    assert contents(tmp_path) == before


def test_the_replaced_run_stays_until_its_successor_is_finished(tmp_path):
    """Which is stopped with a checkpoint, begun anew by force, stopped again, and continued."""
    leave_a_run(tmp_path)
    other = {"problem": CONFIG["problem"], "training": {"seed": 1}}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            begin_and_stop(tmp_path, other, "checkpoint.pt", KeyboardInterrupt())
        assert (tmp_path / ".replaced" / "summary.json").exists()
        assert (tmp_path / ".replaced" / "checkpoints" / "step-3.pt").exists()
    with RunFolder(tmp_path, other) as folder:
        write_json(folder.path / "summary.json", {})
    assert not (tmp_path / ".replaced").exists()
    assert (tmp_path / "checkpoint.pt").read_text() == "new"


@pytest.mark.processes
def test_a_second_writer_is_refused_and_a_dead_one_forgotten(tmp_path):
    script = (
        "import sys, pathlib, json\nfrom noisescale.training.records.folder import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), json.dumps(CONFIG)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline().strip() == "held"
        with (
            pytest.raises(RunFolderBusyError, match="another process"),
            RunFolder(tmp_path, CONFIG),
        ):
            pass
        holder.kill()
    with RunFolder(tmp_path, CONFIG) as folder:
        assert folder.state == "unfinished"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, None) for name in ("learning_rate", "seconds", "steps", "train", "batch_size")],
        *[("steps", True), ("epochs", "5"), ("test", []), ("test.loss", "low"), ("notes", None)],
    ],
)
def test_a_summary_with_a_field_of_another_kind_or_none_is_named(tmp_path, name, value):
    scores = {"loss": None, "accuracy": 0.5, "f1": 0.5}
    numbers = dict.fromkeys(("learning_rate", "epochs", "seconds", "examples_per_second"), 1.0)
    words = dict.fromkeys(("dataset", "pixel_scale", "model"), "a")
    summary = {
        **{**numbers, **words, "batch_size": 8, "seed": 0, "steps": 3, "diverged_at_step": None},
        **{"train": scores, "test": dict(scores), "environment": {}, "notes": []},
    }
    write_json(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path) == summary  # a loss that is null was not finite
    within, _, last = name.rpartition(".")
    (summary[within] if within else summary)[last] = value
    write_json(tmp_path / "summary.json", summary)
    with pytest.raises(RunFolderError, match=f"{name}.*move that file away"):
        read_summary(tmp_path)
    if name != "notes":  # of which older runs have none
        del (summary[within] if within else summary)[last]
        write_json(tmp_path / "summary.json", summary)
        with pytest.raises(RunFolderError, match=f"{name}.*move that file away"):
            read_summary(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_json_nested_too_deep_is_named_and_no_folder_said_to_be_deleted(tmp_path, name):
    (tmp_path / name).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(RunFolderError, match="nested too deep") as failure:
        read_json(tmp_path / name)
    assert "delete" not in str(failure.value)


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"problem": ')
    with pytest.raises(RunFolderError, match="not valid JSON"), RunFolder(tmp_path, CONFIG):
        pass


def test_numbers_that_are_not_finite_become_null_with_their_reason():
    content = nullable({"loss": math.nan, "accuracy": 0.5})
    assert content == {
        "loss": None,
        "accuracy": 0.5,
        "loss_null_because": "the loss is nan, not finite",
    }


def test_a_number_that_is_not_finite_is_never_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "summary.json", {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_cleared_and_nothing_of_strangers(tmp_path):
    with RunFolder(tmp_path, CONFIG):
        pass
    (tmp_path / "checkpoints").mkdir()
    litter = [tmp_path / ".checkpoint.pt.123.tmp", tmp_path / "checkpoints" / ".step-10.pt.123.tmp"]
    strangers = [tmp_path / ".notes.txt.123.tmp", tmp_path / ".lock"]
    for path in litter + strangers:
        path.write_text("")
    with RunFolder(tmp_path, CONFIG):
        pass
    assert [path.exists() for path in litter + strangers] == [False, False, True, True]


def test_the_lock_holds_against_one_who_waited_for_the_file_to_go(tmp_path):
    """Were the lock file deleted on leaving, one could lock the old file and another a new one."""
    with RunFolder(tmp_path, CONFIG):
        first = (tmp_path / ".noisescale.lock").stat().st_ino
    with RunFolder(tmp_path, CONFIG):
        assert (tmp_path / ".noisescale.lock").stat().st_ino == first


def test_a_configuration_without_a_field_added_later_is_still_the_same_run(tmp_path):
    full = {
        "problem": ProblemConfig(dataset="digits").to_dict(),
        "training": TrainConfig().to_dict(),
    }
    write_json(tmp_path / "config.json", {"problem": {"dataset": "digits"}, "training": {}})
    assert folder_state(tmp_path, full) == "unfinished"
    write_json(
        tmp_path / "config.json", {"problem": {"dataset": "digits", "dropout": 0.5}, "training": {}}
    )
    with pytest.raises(RunFolderError, match="no field dropout"):
        folder_state(tmp_path, full)
    write_json(tmp_path / "config.json", {"problem": 3})
    with pytest.raises(RunFolderError, match="not a run's configuration"):
        folder_state(tmp_path, full)


@pytest.mark.parametrize("content", ["", "garbage,,\n1\n", "epoch,step,split\n1,2,train\n"])
def test_damaged_metrics_and_summaries_are_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(RunFolderError, match=r"metrics\.csv is damaged"):
        read_metrics(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(RunFolderError, match="no run's summary"):
        read_summary(tmp_path)


def test_a_folder_that_another_process_begins_meanwhile_is_no_strangers(tmp_path, monkeypatch):
    """Its config.json appears between the look for it and the listing of what else there is."""
    config = {"problem": ProblemConfig().to_dict(), "training": TrainConfig().to_dict()}
    original = Path.iterdir

    def iterdir(path):
        write_json(path / "config.json", config)
        return original(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert folder_state(tmp_path, config) == "unfinished"


def test_a_finished_successor_is_not_lost_to_what_it_replaced(tmp_path):
    """Killed once it was whole, before the replaced run went; then another fails by force."""
    leave_a_run(tmp_path)
    before = contents(tmp_path)
    (tmp_path / ".replaced").mkdir()
    (tmp_path / ".replaced" / "metrics.csv").write_text("of the replaced one")
    other = {"problem": CONFIG["problem"], "training": {"seed": 1}}
    with pytest.raises(OSError, match="full"):
        begin_and_stop(tmp_path, other, "losses.csv", OSError("full"))
    assert contents(tmp_path) == before
