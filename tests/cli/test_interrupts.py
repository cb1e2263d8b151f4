"""Ctrl-C: one wording, the exit code, what was found so far; and folders that are finished."""

import os
import signal

import pytest

from noisescale.errors import Interrupted
from noisescale.studies.jobs.tasks import Tasks
from tests.helpers.command_line import SMALL, run
from tests.helpers.executors import Here

SIZES = [word for size in (2, 8, 32, 128) for word in ("--bs", size)]
CRITICAL = ("critical-batch", "--dataset", "digits", "--num-train", "200", "--width", "8")
CRITICAL = (*CRITICAL, *SIZES, "--goal", "1.8", "--seeds", "1", "--noise-examples", "40")
SWEEP = ("sweep-lr", "--dataset", "digits", "--num-train", "100", "--width", "4")
SWEEP = (*SWEEP, "--bs", "4", "--bs", "50", "--steps", "6", "--seeds", "2", "--factor", "5")


class Refusing(Here):
    """An executor that must not be needed."""

    def submit(self, function, /, *args, **kwargs):
        raise AssertionError(f"{function} was submitted")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def cut_short_by_a_signal():
    """A function in the place of a run, which is pressed Ctrl-C in, once."""
    signals = iter([signal.SIGINT])

    def cut_short(*args, **kwargs):
        for number in signals:
            os.kill(os.getpid(), number)
        raise RuntimeError("cut short")

    return cut_short


@pytest.fixture(autouse=True)
def _in_this_thread(monkeypatch):
    monkeypatch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Here())
    monkeypatch.setattr("noisescale.measure.stability.MOST_STEPS", 30)
    monkeypatch.setattr("noisescale.measure.stability.FEWEST_STEPS", 30)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("interrupts") / "run"
    assert run(*SMALL, "--out", out).exit_code == 0
    return out / "checkpoint.pt"


def test_measure_noise_prints_what_it_has_before_the_hessian(checkpoint, monkeypatch):
    monkeypatch.setattr("noisescale.measure.noise_parts.probes._deflation", interrupt)
    result = run("measure-noise", checkpoint, "--hessian", "--num-examples", "50")
    assert result.exit_code == 130
    assert "B_simple" in result.stdout
    assert "stopped by Ctrl-C: what --hessian" in " ".join(result.stdout.split())
    said = " ".join(result.stderr.split())
    assert "Optional, --hessian: about " in said
    assert said.endswith("Stopped: 1 checkpoint of 1 measured, as far as is printed.")


def test_sharpness_prints_what_it_has_before_phi(checkpoint, monkeypatch):
    monkeypatch.setattr("noisescale.measure.sharpness.measurement.keskar_sharpness", interrupt)
    arguments = (checkpoint, checkpoint, "--phi", "--trace", "--num-examples", "50")
    result = run("sharpness", *arguments)
    assert result.exit_code == 130
    assert "λ_max" in result.stdout
    assert "trace" in result.stdout
    said = " ".join(result.stderr.split())
    assert "Optional, the trace and φ: about" in said
    assert said.endswith("Stopped: 1 checkpoint of 2 measured, as far as is printed.")


def test_nothing_measured_yet_is_said(checkpoint, monkeypatch):
    monkeypatch.setattr("noisescale.measure.sharpness.measurement.top_eigenpairs", interrupt)
    result = run("sharpness", checkpoint, "--num-examples", "50")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "Stopped: nothing was measured yet."


@pytest.mark.pictures
def test_a_critical_batch_size_without_the_rest_of_its_noise(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(
            "noisescale.studies.critical_batch.goal_runs.noise_runs.run_to_goal",
            cut_short_by_a_signal(),
        )
        result = run(*CRITICAL, "--out", out)
    assert result.exit_code == 130
    assert "B_crit" in result.stdout
    assert not (out / "noise.csv").exists()
    assert result.stdout.splitlines()[-1] == str(out)
    said = " ".join(result.stderr.split())
    assert "Optional, the noise scale along 1 run at B = " in said
    assert "of the whole. Ctrl-C prints the result without the rest of it" in said
    assert "finished and kept; the same command runs the rest." in said
    whole = run(*CRITICAL, "--out", out)
    assert whole.exit_code == 0
    assert (out / "noise.csv").exists()

    pictures = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert pictures
    monkeypatch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Refusing())
    monkeypatch.setattr("noisescale.studies.critical_batch.results.fit_goals", interrupt)
    again = run(*CRITICAL, "--out", out)
    assert again.stdout == whole.stdout
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.png")} == pictures


def test_a_sweep_without_the_rest_of_its_simulations(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def signal_there(self, constants):
        if self.simulations:
            self.tasks._interrupts.received = signal.SIGINT
            raise Interrupted("3 runs are kept", signal.SIGINT)
        return predictions(self, constants)

    from noisescale.studies.stability_map.run import _Sweep

    predictions = _Sweep._predictions
    with monkeypatch.context() as patch:
        patch.setattr(_Sweep, "_predictions", signal_there)
        result = run(*SWEEP, "--out", out)
    assert result.exit_code == 130
    assert "η_max" in result.stdout
    assert result.stderr.splitlines()[-1] == "Stopped: 3 runs are kept."
    whole = run(*SWEEP, "--out", out)
    assert whole.exit_code == 0
    monkeypatch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Refusing())
    again = run(*SWEEP, "--out", out)
    assert again.stdout == whole.stdout


@pytest.mark.parametrize(("number", "words"), [(1, "1 run is"), (2, "2 runs are")])
def test_one_wording_with_the_right_plural(number, words):
    tasks = Tasks(Here(), None)
    for _ in range(number):
        tasks.progress.stored(8, 1.0)
    tasks._interrupts.received = signal.SIGTERM
    with pytest.raises(Interrupted) as stopped:
        tasks.wait({Here().submit(int)})
    assert str(stopped.value) == (
        f"Stopped: {words} finished and kept; the same command runs the rest."
    )
    assert stopped.value.exit_code == 143
