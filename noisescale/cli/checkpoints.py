"""Checkpoints named on the command line, the problems they belong to, and a measurement of each."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, cast

import click
from rich.console import Console

from noisescale.errors import (
    CheckpointError,
    Interrupted,
    MeasurementError,
    SettingError,
    StoppedEarly,
)
from noisescale.statistics.display import counted
from noisescale.training.console import Heartbeat, duration_text, log_line

if TYPE_CHECKING:
    from torch import nn

    from noisescale.problems.config import AnyConfig, ProblemConfig
    from noisescale.problems.problem import Params, Problem
    from noisescale.studies.cost import Cost
    from noisescale.training.records.checkpoint import Checkpoint


Result = TypeVar("Result", covariant=True)
OPTIMIZER_FILE = "optimizer.pt"  # Hugging Face's


class Loaded(NamedTuple):
    """A file and what it holds: a checkpoint of `noisescale train`, or another's state dict.

    Or a problem's model as it is made, `content` None, and the problem's name for a path.
    """

    path: Path
    content: Checkpoint | Params | None

    @property
    def file(self) -> str | None:
        """The path of the file; None where the model is as it is made."""
        return None if self.content is None else str(self.path)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """It, where it is one of ours."""
        return None if isinstance(self.content, dict) else self.content

    @property
    def step(self) -> int | None:
        return None if self.checkpoint is None else self.checkpoint.step

    @property
    def run(self) -> str:
        """The run folder it lies in, the file itself where it is not ours."""
        from noisescale.training.records.folder import STEP_CHECKPOINTS

        if self.checkpoint is None:
            return str(self.path)
        folder = self.path.parent
        return str(folder.parent if folder.name == STEP_CHECKPOINTS else folder)

    @property
    def problem_text(self) -> str | None:
        """What is trained, in words, where the checkpoint says so."""
        from noisescale.training.records.names import describe_problem

        if self.content is None:
            return str(self.path)
        if self.checkpoint is None or self.checkpoint.problem is None:
            return None
        return describe_problem(self.checkpoint.problem)

    def own_preconditioner(self, model: nn.Module) -> tuple[Params | None, str | None]:
        """P of the adaptive optimizer at these weights; None, and perhaps a note, if there is none.

        By `own_optimizer`.
        """
        from noisescale.measure.objective.preconditioner import preconditioner_of

        if self.checkpoint is not None and self.checkpoint.training.optimizer == "muon":
            return None, "Muon has no diagonal preconditioner, so that B_simple is plain SGD's"
        state, note = self.own_optimizer(model)
        if state is None:
            return None, note
        try:
            return preconditioner_of(state, model), note
        except SettingError as error:  # as of a run that has diverged
            return None, str(error)

    def own_optimizer(self, model: nn.Module) -> tuple[Mapping[str, Any] | None, str | None]:
        """The state of the adaptive optimizer at these weights; None, perhaps with a note, if none.

        A checkpoint's own or, beside anybody's weights, that of an optimizer.pt in their folder, as
        Hugging Face's Trainer leaves it; which may be of something else.
        """
        from noisescale.measure.objective.preconditioner import (
            has_second_moments,
            preconditioner_of,
            read_optimizer_state,
        )

        if self.checkpoint is not None:
            if self.checkpoint.training.optimizer == "muon":  # which has no P
                return None, None
            ours = self.optimizer_state(model)
            return (ours if has_second_moments(ours) else None), None
        folder = self.path if self.path.is_dir() else self.path.parent
        beside = folder / OPTIMIZER_FILE
        if self.content is None or not beside.is_file():
            return None, None
        try:
            state = read_optimizer_state(beside)
            if not has_second_moments(state):
                return None, None
            preconditioner_of(state, model)  # whether it is of this model
        except (CheckpointError, SettingError) as error:
            return None, f"{beside} beside the weights is left aside: {error}"
        return state, None

    def optimizer_state(self, model: nn.Module) -> dict[str, Any]:
        """The state of a checkpoint's optimizer, with what torch does not keep of it.

        That is whether its weight decay is beside the gradient, of which torch 2.6 says nothing,
        and which parameters are Muon's. Empty where there is no checkpoint of ours.
        """
        from noisescale.training.updates.muon import muon_names

        if self.checkpoint is None:
            return {"state": {}, "param_groups": []}
        name, stored = self.checkpoint.training.optimizer, self.checkpoint.optimizer
        groups = [dict(group) for group in stored.get("param_groups", [])]
        for group in groups:
            if "amsgrad" in group:
                group["decoupled_weight_decay"] = name != "adam"
        if name == "muon":
            hidden = muon_names(model)
            named = [name for name, _ in model.named_parameters()]
            for group, is_muons in zip(groups, (True, False), strict=True):
                group["param_names"] = [each for each in named if (each in hidden) == is_muons]
        return {"state": {}, **stored, "param_groups": groups}

    @property
    def optimizer_name(self) -> str:
        """What the optimizer is called, where a checkpoint says so."""
        return "the optimizer" if self.checkpoint is None else self.checkpoint.training.optimizer

    @property
    def title(self) -> str:
        if self.content is None:
            return f"{self.path}, as made"
        return str(self.path) if self.step is None else f"{self.path}, step {self.step:,}"


@dataclass(frozen=True)
class Measured(Generic[Result]):
    """A checkpoint with what was measured of it or, where that cannot be, the reason.

    problem: None where the measurement was read back from a file. peak_bytes: of memory, see
    `noisescale.studies.cost.peak_memory`; of a GPU while it was measured.
    """

    loaded: Loaded
    problem: Problem | None
    result: Result | None
    reason: str | None = None
    peak_bytes: int | None = None


def load_all(paths: tuple[Path, ...], *, device: str, problem: str | None = None) -> list[Loaded]:
    """What is in files and run folders, in the order given; a folder's by step, each step once.

    Without any, the model of the problem as it is made.
    """
    from noisescale.training.records.weight_files import read_weights

    if not paths and problem is not None:
        return [Loaded(Path(problem), None)]
    if not paths:
        raise click.MissingParameter(
            "Give one, or --problem for a model as its factory makes it.",
            param_hint="'CHECKPOINT...'",
            param_type="argument",
        )
    loaded: list[Loaded] = []
    for path in paths:
        of_path = [Loaded(*read_weights(file, device=device)) for file in _files(path)]
        by_step = {checkpoint.step: checkpoint for checkpoint in of_path}
        loaded += [by_step[step] for step in sorted(by_step, key=lambda step: step or 0)]
    return loaded


def with_problems(
    loaded: list[Loaded], *, problem: str | None, data_dir: Path | None, device: str
) -> Iterator[tuple[Loaded, Problem]]:
    """Each with its problem, whose model holds its parameters and buffers.

    problem: "module:factory", the problem of all; None: each checkpoint's own, in evaluation mode,
        built once per configuration. CheckpointError for weights that do not say which problem they
        belong to, or that belong to one of the user's own: no file is trusted to name code that is
        run.
    """
    from noisescale.problems.build import build_problem
    from noisescale.problems.config import ProblemConfig
    from noisescale.problems.factory import load_problem
    from noisescale.training.records.names import describe_problem
    from noisescale.training.records.weights import apply_weights

    given = None if problem is None else load_problem(problem)
    built: dict[ProblemConfig, Problem] = {}
    for checkpoint in loaded:
        ours = checkpoint.checkpoint
        config = None if ours is None else ours.problem
        if given is not None:
            current = given
            if ours is not None:  # of a training of ours, as a configured one
                current.model.eval()
                if ours.params.keys() != dict(current.model.named_parameters()).keys():
                    trained = "another problem" if config is None else describe_problem(config)
                    raise CheckpointError(
                        f"{checkpoint.path} is of a training of {trained}, whose parameters are "
                        f"not those of {problem}: give the problem that was trained"
                    )
        elif not isinstance(config, ProblemConfig):
            raise CheckpointError(f"{checkpoint.path} {where_from(config)}")
        else:
            if config not in built:
                built[config] = build_problem(config, data_dir=data_dir, device=device)
                built[config].model.eval()
            current = built[config]
        current.model.to(device)
        if checkpoint.content is not None:
            apply_weights(current.model, checkpoint.content, path=checkpoint.path)
        yield checkpoint, current


def where_from(config: AnyConfig | None) -> str:
    """What is lacking where weights say no more than this of their problem, as a sentence's end."""
    from noisescale.problems.config import FactoryConfig

    if config is None:
        return (
            "does not say which model and data it belongs to: give --problem module:factory or "
            "file.py:factory, a function of yours that returns them"
        )
    if isinstance(config, FactoryConfig):
        return (
            f"belongs to a problem of your own, {config.factory}, and no file is trusted to name "
            f"code that is run: give --problem {config.factory}"
        )
    return (
        "belongs to a problem that was given in Python: give --problem FILE.py:FACTORY, a function "
        "of yours that returns it"
    )


def measure_all(
    loaded: list[Loaded],
    measure: Callable[[Problem, Callable[[str], None], Loaded], Result],
    *,
    quiet: bool = False,
    **where: Any,
) -> list[Measured[Result]]:
    """Each checkpoint with what `measure` gives of its problem.

    Args:
        loaded: the checkpoints.
        measure: is given a problem, a function to report its activity to, and what was loaded.
        quiet: whether not to show that activity on stderr.
        **where: for `with_problems`.

    Raises:
        MeasurementError: none of them can be measured.
        Interrupted: after Ctrl-C; `found` is what was measured until then.
    """
    from noisescale.studies.cost import forget_peak, peak_memory

    every: list[Measured[Result]] = []
    console = Console(stderr=True, highlight=False, quiet=quiet)
    current: Loaded | None = None
    try:
        with Activity(console, total=len(loaded)) as activity:
            for current, problem in with_problems(loaded, **where):
                activity.begin(current.title)
                forget_peak(where["device"])
                try:
                    result = measure(problem, activity.show, current)
                    peak = peak_memory(where["device"])
                    every.append(Measured(current, problem, result, peak_bytes=peak))
                except MeasurementError as error:
                    if len(loaded) == 1:
                        raise MeasurementError(f"{current.title}: {error}") from error
                    every.append(Measured(current, problem, None, str(error)))
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, StoppedEarly) and current is not None:
            every.append(Measured(current, problem, cast(Result, interrupt.found)))
        known = [measured for measured in every if measured.result is not None]
        kept = f"{counted(len(known), 'checkpoint')} of {len(loaded)} measured"
        raise Interrupted(
            f"{kept}, as far as is printed" if known else "nothing was measured yet",
            signal.SIGINT,
            found=every if known else None,
        ) from interrupt
    if all(measured.reason for measured in every):
        raise MeasurementError(f"none of the checkpoints can be measured: {every[0].reason}")
    return every


def print_cost(
    loaded: list[Loaded],
    estimate: Callable[[Problem, Loaded], Cost],
    *,
    as_json: bool,
    quiet: bool = False,
    **where: Any,
) -> None:
    """Prints what measuring all the checkpoints will take, by the first chunk of the first one.

    Args:
        loaded: the checkpoints.
        estimate: what one takes, of its problem.
        as_json: whether to print JSON.
        quiet: whether to print nothing, as all processes but one.
        **where: for `with_problems`.
    """
    console = Console(stderr=True, highlight=False, quiet=quiet)
    with Activity(console, total=1) as activity:
        first, problem = next(with_problems(loaded[:1], **where))
        activity.begin(first.title)
        activity.show("its first chunk of examples")
        cost = estimate(problem, first)
    if quiet:
        return
    record = {
        "checkpoint": first.file,
        "checkpoints": len(loaded),
        "total_seconds": len(loaded) * cost.seconds,
        **cost.to_dict(),
    }
    if as_json:
        click.echo(json.dumps(record, indent=2, allow_nan=False))
        return
    click.echo(cost.times(len(loaded)))
    if len(loaded) > 1:
        click.echo(f"  Note: of {counted(len(loaded), 'checkpoint')}, by the first of them.")


class Activity:
    """What is being measured: a moving line on a terminal, elsewhere a line every 30 seconds.

    Args:
        console: where to say it.
        total: how many checkpoints there are.
    """

    def __init__(self, console: Console, *, total: int) -> None:
        self._console = console
        self._total = total
        self._number = 0
        self._title = ""
        self._text = "reading"
        self._part, self._began = "", time.monotonic()
        self._status = console.status("reading")
        self._heartbeat = Heartbeat(console, lambda: self._text)

    def __enter__(self) -> Self:
        self._status.__enter__()
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._heartbeat.__exit__(*exception)
        self._status.stop()

    def begin(self, title: str) -> None:
        """Notes that the next checkpoint is being measured."""
        self._number += 1
        self._title = title if self._total == 1 else f"{title} ({self._number} of {self._total})"

    def show(self, activity: str) -> None:
        """Says what is being done; with the time left where it counts itself, "probe 3 of 32"."""
        if activity.startswith("Optional"):  # to be read at leisure
            log_line(self._console, activity)
            return
        counts = re.search(r"(\d+) of (\d+)$", activity)
        part = activity[: counts.start()] if counts else activity
        if part != self._part:
            self._part, self._began = part, time.monotonic()
        left = ""
        if counts and (done := int(counts[1]) - 1) > 0:
            seconds = (time.monotonic() - self._began) / done * (int(counts[2]) - done)
            left = f", {duration_text(seconds)} left"
        self._text = f"{self._title}: {activity}{left}"
        self._status.update(self._text)


def _files(path: Path) -> list[Path]:
    """All checkpoints of a run folder; anything else, a folder of weights too, as it is."""
    from noisescale.training.records.folder import CHECKPOINT, STEP_CHECKPOINTS

    files = [*(path / STEP_CHECKPOINTS).glob("step-*.pt"), path / CHECKPOINT]
    return [file for file in files if file.exists()] or [path]
