"""Loggers with the real libraries: what was written is read back from their files."""

import csv
import math
import sys

import pytest

from noisescale.errors import SettingError
from noisescale.integrations.loggers import (
    CSVLogger,
    MLflowLogger,
    TensorBoardLogger,
    WandbLogger,
    named,
)

SCALARS = named({"simple": 12.5, "simple_high": math.inf, "gradient_variance": math.nan})


def test_names_are_those_of_the_integrations():
    assert list(SCALARS) == [
        "noise_scale/simple",
        "noise_scale/simple_high",
        "noise_scale/gradient_variance",
    ]


def test_a_table_has_a_row_for_each_step(tmp_path):
    path = tmp_path / "noise.csv"
    logger = CSVLogger(path)
    logger.log(SCALARS, 3)
    logger.log(SCALARS, 4)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["step"] for row in rows] == ["3", "4"]
    assert rows[0]["noise_scale/simple"] == "12.5"
    assert rows[0]["noise_scale/gradient_variance"] == ""
    assert rows[0]["noise_scale/simple_high"] == ""  # which is infinite
    with pytest.raises(SettingError, match="a table of its own"):
        logger.log({"loss": 1.0}, 5)
    with pytest.raises(SettingError, match="is there already"):
        CSVLogger(path)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    logger.log(SCALARS, 3)
    logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["noise_scale/simple"]
    (event,) = events.Scalars("noise_scale/simple")
    assert (event.step, event.value) == (3, 12.5)


class Calls:
    """Stands in for the two trackers' clients, by the signatures that they document."""

    def __init__(self):
        self.made = []

    def log(self, data, step=None, commit=None):  # wandb.Run
        self.made.append((data, step))

    def log_metrics(  # mlflow
        self,
        metrics,
        step=None,
        synchronous=None,
        run_id=None,
        timestamp=None,
        model_id=None,
        dataset=None,
    ):
        self.made.append((metrics, step, run_id))


def test_the_trackers_are_called_as_they_document(monkeypatch):
    calls = Calls()
    WandbLogger(calls).log(SCALARS, 3)
    monkeypatch.setitem(sys.modules, "mlflow", calls)
    MLflowLogger().log(SCALARS, 4)
    MLflowLogger("a1").log(SCALARS, 5)
    resolved = {"noise_scale/simple": 12.5}
    assert calls.made == [(resolved, 3), (resolved, 4, None), (resolved, 5, "a1")]


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="noise")
    WandbLogger(run).log(SCALARS, 3)
    run.finish()
    (written,) = [path.read_bytes() for path in tmp_path.rglob("*.wandb")]
    assert b"noise_scale/simple" in written
    assert b"noise_scale/gradient_variance" not in written


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    mlflow.set_experiment("noise")
    with mlflow.start_run() as run:
        MLflowLogger().log(SCALARS, 3)
    MLflowLogger(run.info.run_id).log(SCALARS, 4)
    found = mlflow.MlflowClient().get_metric_history(run.info.run_id, "noise_scale/simple")
    assert [(metric.step, metric.value) for metric in found] == [(3, 12.5), (4, 12.5)]
