"""A training run on disk: evaluated each epoch, checkpointed, resumable, never computed twice."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from noisescale.errors import Interrupted
from noisescale.plots.training import confusion_figure, curves_figure, image
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.problems.problem import SPLITS, Problem, as_examples
from noisescale.training.config import TrainConfig
from noisescale.training.console import DeferredInterrupts, TrainingProgress, event_writer
from noisescale.training.evaluation import Evaluation, evaluate
from noisescale.training.records.checkpoint import load_checkpoint, save_checkpoint
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import (
    CHECKPOINT,
    CONFIG,
    CONFUSION_PICTURE,
    CURVES_PICTURE,
    STEP_CHECKPOINTS,
    SUMMARY,
    RunFolder,
    folder_state,
    nullable,
    read_json,
    read_summary,
    write_atomically,
    write_json,
    write_table,
)
from noisescale.training.records.tables import CONFUSION, METRICS, NOISE, SHARPNESS, read_metrics
from noisescale.training.tracking.batch_size import BatchSizeTracker
from noisescale.training.tracking.noise import NoiseTracker, NoiseTracking
from noisescale.training.tracking.rows import Every, Tracker
from noisescale.training.tracking.sharpness import SharpnessTracker
from noisescale.training.trainer import Training


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out; nothing here changes its result.

    device, data_dir: where it computes and where its data lie.
    force: recompute what is finished.
    checkpoint_every: also keep checkpoints/step-N.pt each so many steps.
    evaluate_every: epochs between two evaluations, each with a checkpoint; the last is always evaluated.
    measure_sharpness_every: also keep sharpness.csv, a row each so many steps, or at log-spaced ones.
    sharpness_examples: of the random training subset it is measured on, at most.
    noise: also keep noise.csv, measured as this says.
    log_dir: also write TensorBoard events there.
    console: where progress goes; None for none.
    notes: sentences for the run's record, such as why another data set stands in.
    """

    device: str = "cpu"
    data_dir: Path | None = None
    force: bool = False
    checkpoint_every: int | None = None
    evaluate_every: int = 1
    measure_sharpness_every: Every | None = None
    sharpness_examples: int = 10_000
    noise: NoiseTracking | None = None
    log_dir: Path | None = None
    console: Console | None = None
    notes: tuple[str, ...] = ()


def run_training(
    problem_config: ProblemConfig,
    training_config: TrainConfig,
    path: Path,
    options: RunOptions | None = None,
) -> dict[str, Any]:
    """The content of the run's summary.json, computed in the folder `path` unless it is already there.

    A folder with a part of this run is continued from its newest checkpoint. SIGINT and SIGTERM are taken
    between two steps: the run is saved and Interrupted raised. Raises RunFolderError where the folder
    holds something else or another process is at it, SettingError for a batch larger than the training
    set, OSError as the system reports it; what is already on disk stays valid in every case.
    """
    options = options or RunOptions()
    record = {
        "problem": problem_config.to_dict(),
        "training": training_config.to_dict(),
        "notes": list(options.notes),
        "environment": environment(options.device),
    }
    if not options.force and folder_state(path, record) == "finished":
        _note_unmeasured(path, options)
        return read_summary(path)
    problem = build_problem(
        problem_config, seed=training_config.seed, data_dir=options.data_dir, device=options.device
    )
    training = Training(
        problem, training_config
    )  # refuses what cannot work before a folder is made for it
    with RunFolder(path, record, force=options.force) as folder:
        if folder.state == "finished":  # by another process, while the data were loaded
            return read_summary(path)
        if (path / CHECKPOINT).exists():
            training.restore(load_checkpoint(path))
        summary = _Run(problem, training, path, options).complete()
    # the pictures' text is parsed with exceptions in cycles, whose frames hold this run's data
    gc.collect()
    return summary


def _note_unmeasured(path: Path, options: RunOptions) -> None:
    """Says that a finished run is not trained again for the sake of a measurement."""
    asked = (
        (options.measure_sharpness_every, SHARPNESS, "sharpness"),
        (options.noise, NOISE, "measure-noise"),
    )
    for wanted, file, command in asked:
        if wanted and options.console and not (path / file).exists():
            options.console.print(
                f"{path} is finished and has no {file}: measure its checkpoints with "
                f"noisescale {command}, or train it again with --force",
                style="yellow",
                markup=False,
            )


class _Run:
    """A run and its folder, which has been checked and locked."""

    def __init__(
        self, problem: Problem, training: Training, path: Path, options: RunOptions
    ) -> None:
        self.problem = problem
        self.training = training
        self.path = path
        self.options = options
        # rows written after the checkpoint that is continued from will come again
        rows = read_metrics(path) if training.step else []
        self.rows = [row for row in rows if row["step"] <= training.step]
        self.evaluations: dict[str, Evaluation] = {}
        self.trackers: list[Tracker] = []
        if options.measure_sharpness_every is not None:
            every, count = options.measure_sharpness_every, options.sharpness_examples
            self.trackers.append(SharpnessTracker(training, path, every=every, num_examples=count))
        if options.noise is not None:
            self.trackers.append(NoiseTracker(training, path, options.noise))
        if training.schedule is not None:
            self.trackers.append(BatchSizeTracker(training, path, training.schedule))

    def complete(self) -> dict[str, Any]:
        training, options = self.training, self.options
        title = f"B = {training.config.batch_size}"
        with (
            TrainingProgress(
                options.console, title=title, total_epochs=training.last_epoch
            ) as progress,
            event_writer(options.log_dir, self.path.name, training.step) as events,
            DeferredInterrupts() as interrupts,
        ):
            if training.step:
                progress.log(f"{title}  resumed at step {training.step:,}")
            else:
                self._evaluate(progress, events)
            self._track(progress, events)
            for step in training:
                progress.update(epoch=training.epoch, step=step)
                self._track(progress, events)
                milestone = (
                    options.checkpoint_every is not None and step % options.checkpoint_every == 0
                )
                stopping = interrupts.received is not None
                epoch_due = (
                    training.epoch_ended and round(training.epoch) % options.evaluate_every == 0
                )
                if not (epoch_due or training.finished or milestone or stopping):
                    continue
                training.check_losses()  # on a GPU this may find that the run has diverged, and so finished
                if epoch_due or training.finished:
                    self._evaluate(progress, events)
                checkpoint = training.checkpoint()
                if milestone:
                    save_checkpoint(checkpoint, self.path / STEP_CHECKPOINTS / f"step-{step}.pt")
                save_checkpoint(checkpoint, self.path / CHECKPOINT)
                if interrupts.received is not None and stopping and not training.finished:
                    resume = f"continue with noisescale train --resume {self.path}"
                    raise Interrupted(
                        f"stopped and saved at step {step:,}: {resume}", interrupts.received
                    )
            if training.diverged_at_step is not None:
                progress.log(
                    f"{title}  diverged: the loss of step {training.diverged_at_step:,} is not finite; "
                    "the run ends there, and that is its result"
                )
            summary = self._finish()
            if (
                interrupts.received is not None
            ):  # while finishing: this run is whole, no other is begun
                raise Interrupted(f"stopped; {self.path} is finished", interrupts.received)
        return summary

    def _evaluate(self, progress: TrainingProgress, events: Any) -> None:
        """Appends a row per split to metrics.csv; the training row's seconds are those spent in updates."""
        training = self.training
        rows = []
        for split, examples in self._splits():
            started = time.perf_counter()
            evaluation = self.evaluations[split] = evaluate(
                training.model, self.problem.loss, examples
            )
            seconds, num_examples = time.perf_counter() - started, examples.num_examples
            if split == "train":
                past = [row for row in self.rows if row["split"] == "train"]
                seconds = training.seconds - sum(row["seconds"] for row in past)
                num_examples = (
                    training.examples_seen - round(past[-1]["epoch"] * num_examples) if past else 0
                )
            rows.append(
                {
                    "epoch": training.epoch,
                    "step": training.step,
                    "split": split,
                    "loss": evaluation.loss,
                    "accuracy": evaluation.accuracy,
                    "f1": evaluation.f1,
                    "seconds": seconds,
                    "examples_per_second": num_examples / seconds if seconds > 0 else math.nan,
                }
            )
        if training.diverged_at_step is None and not math.isfinite(self.evaluations["train"].loss):
            training.diverged_at_step = (
                training.step
            )  # by this last update, whose own loss still was finite
        self.rows += rows
        write_table(self.path / METRICS, pd.DataFrame(self.rows))
        progress.epoch(rows)
        if events is not None:
            for row in rows:
                for score in ("loss", "accuracy", "f1"):
                    events.add_scalar(f"{score}/{row['split']}", row[score], row["step"])

    def _track(self, progress: TrainingProgress, events: Any) -> None:
        """Measures what is due after the present step."""
        for tracker in self.trackers:
            if tracker.due:
                row = tracker.measure()
                progress.measurement(row, tracker.describe(row))
                if events is not None:
                    for name, value in tracker.scalars(row).items():
                        events.add_scalar(name, value, row["step"])

    def _splits(self) -> list[tuple[str, Any]]:
        data = {split: getattr(self.problem, split) for split in SPLITS}
        return [
            (split, as_examples(examples))
            for split, examples in data.items()
            if examples is not None
        ]

    def _finish(self) -> dict[str, Any]:
        """Pictures, confusion counts and, last, the summary whose presence means finished."""
        training = self.training
        if not self.evaluations:  # resumed after its last step
            for split, examples in self._splits():
                self.evaluations[split] = evaluate(training.model, self.problem.loss, examples)
        metrics = pd.DataFrame(self.rows)
        write_table(self.path / CONFUSION, _confusion_table(self.evaluations))
        title = f"{self.path.name}\n{training.step:,} steps"
        remark = None
        if training.diverged_at_step is not None:
            remark = f"diverged at step {training.diverged_at_step:,}"
            title += f", {remark}"
        curves = curves_figure(metrics, title=title, remark=remark)
        write_atomically(self.path / CURVES_PICTURE, image(curves))
        confusion = confusion_figure(self.evaluations["test"].confusion, title=f"{title}, test")
        write_atomically(self.path / CONFUSION_PICTURE, image(confusion))
        for tracker in self.trackers:
            name, picture = tracker.picture(title)
            write_atomically(self.path / name, image(picture))
        summary = self._summary()
        write_json(self.path / SUMMARY, summary)
        return summary

    def _summary(self) -> dict[str, Any]:
        training, config, problem = self.training, self.training.config, self.problem.config
        assert problem is not None
        record = read_json(self.path / CONFIG) or {}  # as the run began
        scores = {
            split: nullable(
                {"loss": evaluation.loss, "accuracy": evaluation.accuracy, "f1": evaluation.f1}
            )
            for split, evaluation in self.evaluations.items()
        }
        return {
            "dataset": problem.dataset,
            "pixel_scale": problem.pixel_scale,
            "model": problem.model,
            "batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "seed": config.seed,
            "steps": training.step,
            "epochs": training.epoch,
            "diverged_at_step": training.diverged_at_step,
            **scores,
            **({} if training.schedule is None else training.schedule.summary(training.step)),
            "seconds": training.seconds,
            "examples_per_second": training.examples_seen / training.seconds,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "notes": record["notes"],
            "environment": record["environment"],
        }


def _confusion_table(evaluations: dict[str, Evaluation]) -> pd.DataFrame:
    """Every split's confusion counts, tidy, zero counts included."""
    tables = []
    for split, evaluation in evaluations.items():
        target, predicted = np.indices(evaluation.confusion.shape).reshape(2, -1)
        counts = {"target": target, "predicted": predicted, "count": evaluation.confusion.ravel()}
        tables.append(pd.DataFrame({"split": split, **counts}))
    return pd.concat(tables, ignore_index=True)
