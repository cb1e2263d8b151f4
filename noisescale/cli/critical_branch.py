"""noisescale critical-batch --method branch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from noisescale.cli.executors import open_executor
from noisescale.errors import SettingError
from noisescale.problems.config import FactoryConfig, ProblemConfig
from noisescale.training.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from noisescale.studies.critical_batch.branches import BranchConfig


def branch(options: dict[str, Any], given: set[str], console: Console) -> None:
    """The critical batch size where a checkpoint is, measured and printed."""
    from noisescale.cli.printing.critical_batch import print_branches
    from noisescale.studies.critical_batch.branches import run_branches
    from noisescale.studies.stability_map.run import SweepOptions
    from noisescale.training.records.folder import CHECKPOINT

    start: Path = options["checkpoint"]
    start = start / CHECKPOINT if start.is_dir() else start
    config = _branch_config(options, given, start)
    out = options["out"] or Path("runs") / config.name()
    executor = open_executor(options, console)
    run_options = SweepOptions(
        device=options["device"], data_dir=options["data_dir"], console=console
    )
    try:
        result = run_branches(config, start, out, executor=executor, options=run_options)
    finally:
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)
    if options["as_json"]:
        click.echo(json.dumps(result.summary, indent=2, allow_nan=False))
    else:
        print_branches(result)
    click.echo(out, err=options["as_json"])
    report_failures(result.summary["failures"], out)


def report_failures(failures: list[str], out: Path) -> None:
    """ClickException where anything failed, with what of it is kept."""
    if failures:
        raise click.ClickException(
            f"{len(failures)} failed ({failures[0]}): what is finished in {out} is kept, and the same "
            "command tries the rest again"
        )


def _branch_config(options: dict[str, Any], given: set[str], start: Path) -> BranchConfig:
    """The branches that the options describe, from a checkpoint of ours or weights of another origin."""
    from noisescale.problems.factory import factory_config
    from noisescale.studies.critical_batch.branches import (
        BranchConfig,
        default_branch_sizes,
        default_examples,
    )
    from noisescale.studies.critical_batch.start import count_examples
    from noisescale.training.records.checkpoint import Checkpoint
    from noisescale.training.records.names import file_digest
    from noisescale.training.records.weights import read_weights

    _, content = read_weights(start)
    stored = content if isinstance(content, Checkpoint) else None
    problem: ProblemConfig | FactoryConfig | None = None if stored is None else stored.problem
    if options["problem"] is not None:
        problem = factory_config(options["problem"])
    if problem is None:
        raise SettingError(
            f"{start} does not say which model and data it belongs to: give --problem module:factory"
        )
    sizes = tuple(dict.fromkeys(options["batch_sizes"]))
    training = TrainConfig() if stored is None else stored.training
    seen = 0 if stored is None else stored.examples_seen
    if options["learning_rate"] is not None:
        if not sizes:
            raise SettingError("--lr is the rate at the smallest batch size: give --bs too")
        training = TrainConfig(
            **training.optimizer_settings(),
            batch_size=min(sizes),
            learning_rate=options["learning_rate"],
            seed=training.seed,
        )
    elif stored is None:
        raise SettingError(f"{start} does not say how it was trained: give --lr and --bs")
    base = training.batch_size
    examples = options["examples"]
    if examples is None and isinstance(base, int):
        examples = default_examples(base, seen)
    if not sizes and isinstance(base, int):
        sizes = default_branch_sizes(base, examples or 0, count_examples(problem, options["split"]))
    scaling: Any = options["scaling"] or ("linear" if training.optimizer == "sgd" else "sqrt")
    return BranchConfig(
        problem=problem,
        training=training,
        start=file_digest(start),
        examples=examples or 0,
        batch_sizes=sizes,
        scaling=scaling,
        num_seeds=options["num_seeds"] if "num_seeds" in given else BranchConfig.num_seeds,
        tolerance=options["tolerance"],
        split=options["split"],
    )
