"""The examples run, short as they are."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

EXAMPLES = sorted(
    [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples" / "monitor").glob("*.py")]
)
NEEDS = {"accelerated": "accelerate", "hugging_face": "transformers", "in_lightning": "lightning"}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(script, tmp_path):
    if script.stem in NEEDS:
        pytest.importorskip(NEEDS[script.stem])
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=surroundings, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_on_a_screen(script):
    assert len(script.read_text().splitlines()) <= 40


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", ["hugging_face", "accelerated"])
def test_an_example_of_a_trainer_runs_in_two_processes(name, tmp_path):
    pytest.importorskip(NEEDS[name])
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ROOT / "examples" / "monitor" / f"{name}.py"
    run = subprocess.run(
        [sys.executable, *start, script],
        cwd=tmp_path,
        env=surroundings,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Gradient noise over") == 1
