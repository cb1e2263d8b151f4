"""A training run on disk: evaluated each epoch, checkpointed, resumable, never computed twice."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from noisescale.errors import Interrupted, check_count
from noisescale.problems.build import build_problem
from noisescale.problems.config import (
    CONTEXT,
    STORED_IF_SET,
    AnyConfig,
    FactoryConfig,
    ProblemConfig,
    resolve_device,
)
from noisescale.problems.factory import (
    build_own_problem,
    object_config,
    seeding_notes,
    with_data_on,
)
from noisescale.problems.models import copy_of
from noisescale.problems.problem import (
    SPLITS,
    Problem,
    Source,
    resident,
    source_of,
    units_per_example,
)
from noisescale.statistics.display import Settings
from noisescale.training.config import TrainConfig
from noisescale.training.console import (
    NOTE_STYLE,
    DeferredInterrupts,
    Pace,
    RunReport,
    event_writer,
)
from noisescale.training.evaluation import Evaluation, evaluate
from noisescale.training.records.checkpoint import load_checkpoint, save_checkpoint
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import (
    CHECKPOINT,
    CONFIG,
    STEP_CHECKPOINTS,
    SUMMARY,
    RunFolder,
    folder_state,
    nullable,
    read_json,
    read_summary,
    write_json,
    write_table,
)
from noisescale.training.records.tables import (
    CONFUSION,
    LOSS_COLUMNS,
    LOSSES,
    METRICS,
    NOISE,
    SHARPNESS,
    read_metrics,
)
from noisescale.training.tracking.batch_size import BatchSizeTracker
from noisescale.training.tracking.losses import ends_window
from noisescale.training.tracking.noise import NoiseTracker, NoiseTracking
from noisescale.training.tracking.rows import Every, Tracker
from noisescale.training.tracking.sharpness import SharpnessTracker
from noisescale.training.trainer import Training

DRAWN_EVENLY = "the noise scale along the run is that of examples drawn evenly"


@dataclass(frozen=True, kw_only=True, repr=False)
class RunOptions(Settings):
    """How a run is carried out; nothing here changes the result of one that does not diverge.

    Attributes:
        device: where it computes: "cpu", "cuda" or another name of torch's.
        data_dir: where data sets lie; None: $NOISESCALE_DATA, else the user's cache.
        force: recompute what is finished, and replace another run in the folder.
        checkpoint_every: steps between two kept checkpoints, checkpoints/step-N.pt; None: none are
            kept beside checkpoint.pt, the newest.
        evaluate_every: epochs between two evaluations, each followed by a checkpoint; the state at
            the end is evaluated in any case. Of a run that diverges in an update before an
            evaluation, that is where it ends; without one it ends with the next batch.
        measure_sharpness_every: steps between two rows of sharpness.csv, or "log" for eight in each
            decade of steps; None: no such table.
        sharpness_examples: the size of the random training subset that sharpness is measured on,
            the same throughout; all examples where there are fewer.
        noise: how noise.csv is measured; None: no such table.
        log_dir: where TensorBoard events go as well; None: nowhere.
        console: where progress goes; None: nowhere.
        notes: sentences for the run's record, such as why another data set stands in.
        pictures: draw the tables when the run is finished, see `noisescale plot` for later.
    """

    device: str = "cpu"
    data_dir: Path | str | None = None
    force: bool = False
    checkpoint_every: int | None = None
    evaluate_every: int = 1
    measure_sharpness_every: Every | None = None
    sharpness_examples: int = 10_000
    noise: NoiseTracking | None = None
    log_dir: Path | str | None = None
    console: Console | None = None
    notes: tuple[str, ...] = ()
    pictures: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("evaluate every", self.evaluate_every)
        check_count("sharpness examples", self.sharpness_examples)
        if self.checkpoint_every is not None:
            check_count("checkpoint every", self.checkpoint_every)
        if self.measure_sharpness_every not in (None, "log"):
            check_count("measure sharpness every", self.measure_sharpness_every)


def run_training(
    problem: ProblemConfig | FactoryConfig | Problem,
    training_config: TrainConfig,
    path: Path | str,
    options: RunOptions | None = None,
) -> dict[str, Any]:
    """The content of the run's summary.json, computed in the folder `path` unless it is there.

    A folder with a part of this run is continued from its newest checkpoint. SIGINT and SIGTERM are
    taken between two steps: the run is saved and Interrupted raised. What is already on disk stays
    valid whatever is raised.

    Args:
        problem: model, loss and data. As a configuration of ours, or of a factory of your own (see
            `noisescale.problems.factory.factory_config`), it is built here, its initial parameters
            drawn under the seed. As a Problem it is trained from the parameters that its model has,
            whatever the seed, which then orders the examples alone; the model is left as it is. A
            Problem is known again by the names of its model's class, its loss and its weights, and
            by a digest of the parameters, buffers and examples (of a Dataset how many there are,
            and the first 32): not by what its code does, so that a folder of an older version of
            that code is taken for the same run.
        training_config: optimizer, batch size, length and seed.
        path: the run's folder, made where it is missing.
        options: how the run is carried out; None: as RunOptions' defaults say.

    Returns:
        Settings, final scores of every split (mean loss and, of classes, accuracy and macro F1),
        seconds and environment; a number that is not finite is None, with the reason beside it.

    Raises:
        RunFolderError: where the folder holds something else, or a damaged file.
        RunFolderBusyError: where another process is at it.
        SettingError: for a batch larger than the training set, and other settings that cannot work.
        CheckpointError: for a checkpoint of another run in the folder.
        Interrupted: once the run is saved, after SIGINT or SIGTERM.
        OSError: as the system reports it.

    Examples:
        >>> from pathlib import Path
        >>> from noisescale import ProblemConfig, RunOptions, TrainConfig, run_training
        >>> problem = ProblemConfig(dataset="digits", width=16)
        >>> training = TrainConfig(batch_size=32, epochs=1)
        >>> summary = run_training(problem, training, Path("my_run"), RunOptions(pictures=False))
        >>> summary["steps"], round(summary["test"]["accuracy"], 1)
        (41, 0.2)
        >>> sorted(path.name for path in Path("my_run").glob("*.csv"))[-1]
        'metrics.csv'
    """
    options, path = options or RunOptions(), Path(path)
    config = object_config(problem) if isinstance(problem, Problem) else problem
    # 1 + seed: with seed 0 alone there is nothing to tell apart
    options = replace(options, device=resolve_device(options.device))
    notes = (*options.notes, *seeding_notes(config, num_seeds=1 + training_config.seed))
    if training_config.sampling == "importance" and options.noise is not None:
        notes = (*notes, DRAWN_EVENLY)
    record = {
        "problem": config.to_dict(),
        "training": training_config.to_dict(),
        "notes": list(notes),
        "environment": environment(options.device),
    }
    if not options.force and folder_state(path, record) == "finished":
        _note_unmeasured(path, options)
        return read_summary(path)
    built = _built(problem, config, training_config.seed, options)
    # before the folder is made, so that settings which cannot work leave none behind
    training = Training(built, training_config)
    if options.noise is not None:
        options.noise.check(training)
    del problem, built  # nothing that is drawn needs the data
    with RunFolder(path, record, force=options.force) as folder:
        if folder.state == "finished":  # by another process, while the data were loaded
            return read_summary(path)
        if (path / CHECKPOINT).exists():
            training.restore(load_checkpoint(path))
        with DeferredInterrupts() as interrupts:
            summary = _Run(config, training, path, options).complete(interrupts)
            del training
            if options.pictures:
                _draw(path)
        if interrupts.received is not None:  # this run is whole, but no other is to be begun
            raise Interrupted(f"{path} is finished", interrupts.received)
    return summary


def _built(
    problem: ProblemConfig | FactoryConfig | Problem,
    config: AnyConfig,
    seed: int,
    options: RunOptions,
) -> Problem:
    """The problem on the options' device, with `config` for what it is known by."""
    if isinstance(problem, ProblemConfig):
        return build_problem(problem, seed=seed, data_dir=options.data_dir, device=options.device)
    if isinstance(problem, FactoryConfig):
        return build_own_problem(problem, seed=seed, device=options.device)
    model = copy_of(problem.model).to(options.device)
    return replace(with_data_on(options.device, problem), model=model, config=config)


def _draw(path: Path) -> None:
    """Draws the finished run in the folder `path`.

    After summary.json, whose presence means finished and which the pictures take their titles from:
    a kill or a full disk on the way costs pictures alone, which `noisescale plot` draws again, and
    no training.
    """
    from noisescale.training.records.pictures import draw_pictures  # matplotlib takes 0.8 s to load

    draw_pictures(path)


def _note_unmeasured(path: Path, options: RunOptions) -> None:
    """Says that a finished run is not trained again for the sake of a measurement."""
    measurements = (
        (options.measure_sharpness_every, SHARPNESS, "sharpness"),
        (options.noise, NOISE, "measure-noise"),
    )
    for wanted, file, command in measurements:
        if wanted and options.console and not (path / file).exists():
            options.console.print(
                f"{path} is finished and has no {file}: measure its checkpoints with "
                f"noisescale {command}, or train it again with --force",
                style=NOTE_STYLE,
                markup=False,
            )


class _Run:
    """A run and its folder, which has been checked and locked."""

    def __init__(
        self, config: AnyConfig, training: Training, path: Path, options: RunOptions
    ) -> None:
        problem = training.problem
        self.config = config
        self.splits: dict[str, Source] = {
            split: resident(source_of(examples), training.device)
            for split in SPLITS
            if (examples := getattr(problem, split)) is not None
        }
        self.training = training
        self.units = units_per_example(problem.units, training.examples)
        self.path = path
        self.options = options
        # rows written after the checkpoint that is continued from will come again
        rows = read_metrics(path) if training.step else []
        self.rows = [row for row in rows if row["step"] <= training.step]
        self.evaluations: dict[str, Evaluation] = {}
        self.trackers: list[Tracker] = []
        if options.measure_sharpness_every is not None:
            self.trackers.append(
                SharpnessTracker(
                    training,
                    path,
                    every=options.measure_sharpness_every,
                    num_examples=options.sharpness_examples,
                )
            )
        if options.noise is not None:
            self.trackers.append(NoiseTracker(training, path, options.noise))
        if training.schedule is not None:
            self.trackers.append(BatchSizeTracker(training, path, training.schedule))
        self.pace = Pace()

    def complete(self, interrupts: DeferredInterrupts) -> dict[str, Any]:
        """Trains what is left and writes summary.json, whose content is returned.

        Raises Interrupted, the run saved, where a signal comes before the last step.
        """
        training, options = self.training, self.options
        title = f"B = {training.config.batch_size}"
        with (
            event_writer(options.log_dir, self.path.name, training.step) as events,
            RunReport(
                options.console,
                events,
                title=title,
                total_epochs=training.last_epoch,
                step=training.step,
            ) as report,
        ):
            if training.step:
                report.log(f"{title}  resumed at step {training.step:,}")
            else:
                self._evaluate(report)
            self._track(report)
            said: tuple[str, ...] = ()
            for step in training.calls(self._stops_at):
                if report.is_due:
                    left = self._seconds_left()
                    report.update(epoch=training.epoch, step=step, seconds_left=left)
                if ends_window(step):
                    report.batch_losses(training.losses)
                for note in training.notes:
                    if note not in said:
                        report.log(f"{title}  NOTE: {note}")
                said = training.notes
                self._track(report)
                signal = interrupts.received
                self._save_where_due(step, report, stopping=signal is not None)
                if signal is not None and not training.finished:
                    again = "without --force " if self.options.force else ""
                    resume = f"--resume {self.path}"
                    if isinstance(self.config, FactoryConfig):
                        resume += f" --problem {self.config.factory}"
                    raise Interrupted(
                        f"saved at step {step:,}; the same command {again}goes on from there, or "
                        f"noisescale train {resume}",
                        signal,
                    )
            report.batch_losses(training.losses)  # up to the end, or to where it diverged
            if training.diverged_at_step is not None:
                report.log(
                    f"{title}  diverged: the loss of step {training.diverged_at_step:,} is not "
                    "finite; the run ends there, and that is its result"
                )
            return self._finish()

    def _stops_at(self, step: int) -> bool:
        """Whether something is to be done after this step, besides those that end an epoch."""
        every = self.options.checkpoint_every
        return (
            ends_window(step)
            or (every is not None and step % every == 0)
            or any(tracker.is_at(step) for tracker in self.trackers)
        )

    def _seconds_left(self) -> float | None:
        """What updates, evaluations and measurements still take, each at its own mean cost."""
        training = self.training
        epochs = training.last_epoch - training.epoch
        last_step = training.step + round(training.step / training.epoch * epochs)
        others = self.pace.left(
            {
                "evaluations": math.ceil(epochs / self.options.evaluate_every),
                **{
                    type(tracker).__name__: tracker.num_left(last_step) for tracker in self.trackers
                },
            }
        )
        return None if others is None else others + training.seconds / training.epoch * epochs

    def _save_where_due(self, step: int, report: RunReport, *, stopping: bool) -> None:
        """Evaluates and saves the run where its options say so, at its end and where it stops."""
        training, options = self.training, self.options
        kept = options.checkpoint_every is not None and step % options.checkpoint_every == 0
        evaluated = training.epoch_ended and round(training.epoch) % options.evaluate_every == 0
        if not (kept or evaluated or stopping or training.finished):
            return
        # on a GPU this may find that the run has diverged, and so is finished
        training.check_losses()
        if evaluated or training.finished:
            self._evaluate(report)
        checkpoint = training.checkpoint()
        for tracker in self.trackers:
            tracker.flush()
        losses = pd.DataFrame(training.losses.rows, columns=list(LOSS_COLUMNS))
        write_table(self.path / LOSSES, losses)
        if kept:
            save_checkpoint(checkpoint, self.path / STEP_CHECKPOINTS / f"step-{step}.pt")
        save_checkpoint(checkpoint, self.path / CHECKPOINT)

    def _evaluate(self, report: RunReport) -> None:
        """Appends a row per split to metrics.csv; the training row's seconds are of updates."""
        training = self.training
        begun = time.perf_counter()
        rows = []
        for split, examples in self.splits.items():
            started = time.perf_counter()
            evaluation = self._evaluation(examples)
            seconds, num_examples = time.perf_counter() - started, examples.num_examples
            if split == "train":
                seconds, num_examples = self._updates_since_last_row(num_examples)
            self.evaluations[split] = evaluation
            rows.append(
                {
                    "epoch": training.epoch,
                    "step": training.step,
                    "split": split,
                    **_scores(evaluation),
                    "seconds": seconds,
                    "examples_per_second": num_examples / seconds if seconds > 0 else math.nan,
                }
            )
        if training.diverged_at_step is None and not math.isfinite(self.evaluations["train"].loss):
            # by this last update, whose own loss, of before it, still was finite
            training.diverged_at_step = training.step
        self.rows += rows
        write_table(self.path / METRICS, pd.DataFrame(self.rows))
        self.pace.spent("evaluations", time.perf_counter() - begun)
        report.epoch(rows)

    def _evaluation(self, examples: Source) -> Evaluation:
        """The scores on these examples as the model is now."""
        problem = self.training.problem
        return evaluate(self.training.model, problem.loss, examples, problem.weights)

    def _updates_since_last_row(self, num_examples: int) -> tuple[float, int]:
        """Seconds spent in updates since the last evaluation, and the examples they used.

        num_examples: in the training set.
        """
        past = [row for row in self.rows if row["split"] == "train"]
        seconds = self.training.seconds - sum(row["seconds"] for row in past)
        if not past:
            return seconds, 0
        return seconds, self.training.examples_seen - round(past[-1]["epoch"] * num_examples)

    def _track(self, report: RunReport) -> None:
        """Measures what is due after the present step."""
        for tracker in self.trackers:
            if tracker.due:
                begun = time.perf_counter()
                row = tracker.measure()
                self.pace.spent(type(tracker).__name__, time.perf_counter() - begun)
                report.measurement(row, tracker.describe(row), tracker.scalars(row))

    def _finish(self) -> dict[str, Any]:
        """Writes confusion counts and, last, the summary whose presence means finished."""
        if not self.evaluations:  # resumed after its last step
            for split, examples in self.splits.items():
                self.evaluations[split] = self._evaluation(examples)
        if any(evaluation.confusion is not None for evaluation in self.evaluations.values()):
            write_table(self.path / CONFUSION, _confusion_table(self.evaluations))
        summary = self._summary()
        write_json(self.path / SUMMARY, summary)
        return summary

    def _summary(self) -> dict[str, Any]:
        training, config = self.training, self.training.config
        record = read_json(self.path / CONFIG) or {}  # as the run began
        schedule = training.schedule
        return {
            **what_is_trained(self.config),
            "batch_size": config.batch_size,
            **({} if self.units is None else {"units_per_example": self.units}),
            "learning_rate": config.learning_rate,
            "seed": config.seed,
            **_told_sampling(config),
            "steps": training.step,
            "epochs": training.epoch,
            "diverged_at_step": training.diverged_at_step,
            **{name: self._stored(each) for name, each in self.evaluations.items()},
            **({} if schedule is None else schedule.summary(training.step)),
            "seconds": training.seconds,
            # no update is made where the loss is not finite at the start
            "examples_per_second": training.examples_seen / training.seconds
            if training.seconds > 0
            else 0.0,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "notes": [*record.get("notes", []), *training.notes],
            "environment": record.get("environment", {}),
        }

    def _stored(self, evaluation: Evaluation) -> dict[str, Any]:
        """The scores for strict JSON, of a text with its bits per character."""
        scores = evaluation.stored()
        if isinstance(self.config, ProblemConfig) and self.config.is_text:
            bits = {"bits_per_character": evaluation.loss / math.log(2)}
            scores |= nullable(bits)
        return scores


def _scores(evaluation: Evaluation) -> dict[str, float]:
    return {"loss": evaluation.loss, "accuracy": evaluation.accuracy, "f1": evaluation.f1}


def _told_sampling(config: TrainConfig) -> dict[str, Any]:
    """What a summary says of how examples are drawn, where that is not by shuffling them."""
    if config.sampling == "shuffle":
        return {}
    return {"sampling": config.sampling, "sampling_floor": config.sampling_floor}


def what_is_trained(config: AnyConfig) -> dict[str, Any]:
    """What a summary says of the problem: data set, subset and model, or the name of one's own."""
    if isinstance(config, ProblemConfig):
        named = ("dataset", "pixel_scale", "num_train", "model")
        values = {name: getattr(config, name) for name in named}
        changed = config.changed()
        values |= {name: changed[name] for name in STORED_IF_SET if name in changed}
        return values | ({"context": config.context or CONTEXT} if config.is_text else {})
    return {"problem": config.factory if isinstance(config, FactoryConfig) else config.model}


def _confusion_table(evaluations: dict[str, Evaluation]) -> pd.DataFrame:
    """Every split's confusion counts, tidy, zero counts included."""
    tables = []
    for split, evaluation in evaluations.items():
        if evaluation.confusion is None:
            continue
        # (C, C) counts as C² rows
        target, predicted = np.indices(evaluation.confusion.shape).reshape(2, -1)
        counts = {"target": target, "predicted": predicted, "count": evaluation.confusion.ravel()}
        tables.append(pd.DataFrame({"split": split, **counts}))
    return pd.concat(tables, ignore_index=True)
