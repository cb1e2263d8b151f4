"""The commands that make what a path holds, as far as what is stored tells them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescale.cli.printing.sharpness import PAPER_ITERATIONS
from noisescale.errors import SettingError
from noisescale.problems.config import AnyConfig, FactoryConfig, ObjectConfig, parse_problem
from noisescale.studies.critical_batch.config import optimizer_words, problem_words, study_words
from noisescale.training.config import BETA2, TrainConfig
from noisescale.training.records.folder import EXPERIMENT, read_json

if TYPE_CHECKING:
    from noisescale.studies.critical_batch.branches import BranchResult
    from noisescale.studies.critical_batch.results import CriticalBatchResult
    from noisescale.studies.stability_map.config import SweepConfig
    from noisescale.studies.stability_map.results import SweepResult

# The options that are not called as the fields are
FLAGS = {
    "batch_size": "--bs",
    "learning_rate": "--lr",
    "initial_batch_size": "--bs-initial",
    "min_batch_size": "--bs-min",
    "max_batch_size": "--bs-max",
}
FACTORS = (1.25, 2.0)  # between the rates of a map, which are tried before others
Words = list[str]


def train_command(folder: Path, problem: AnyConfig, training: TrainConfig) -> str | None:
    """The `train` of a run; None where it was made in Python or as part of an experiment."""
    if isinstance(problem, ObjectConfig) or training.order_seed is not None:
        return None
    settings = {"batch_size": training.batch_size, "learning_rate": training.learning_rate}
    settings |= training.changed()
    words = ["train", *(_word(name, value) for name, value in settings.items())]
    return _command([*words, *problem_words(problem)], folder)


def recommend_command(folder: Path, summary: dict[str, Any], problem: AnyConfig) -> str:
    """The `recommend` of a folder."""
    words = ["recommend"]
    if isinstance(problem, FactoryConfig):
        words.append(shlex.quote(problem.factory))
    elif not isinstance(problem, ObjectConfig):
        words += problem_words(problem)
    names = ("batch_size", "learning_rate", "epochs", "minutes")
    words += [_word(name, summary[name]) for name in names if summary.get(name) is not None]
    words += optimizer_words(TrainConfig(**summary["training"]))
    return _command([*words, *_changed(summary, seed=0)], folder)


def sweep_command(folder: Path, result: SweepResult) -> str:
    """The `sweep-lr` of a map."""
    config, summary = result.config, result.summary
    words = ["sweep-lr"]
    if config.start is None:
        words += study_words(config.problem)
    else:
        words.append("--from CHECKPOINT")
        if isinstance(config.problem, FactoryConfig):
            words += problem_words(config.problem)
    words += optimizer_words(config.training)
    words += [f"--bs {size}" for size in config.batch_sizes]
    words += [_word("lr_min", config.lr_min), _word("lr_max", config.lr_max)]
    if config.num_lr is not None:
        words.append(f"--num-lr {config.num_lr}")
    elif (factor := _factor(config, summary["num_lr"])) is not None:
        words.append(f"--factor {factor:g}")
    words += [
        _word(name, amount) for name, amount in vars(config.horizon).items() if amount is not None
    ]
    if config.folds is None:
        words.append(f"--seeds {config.num_seeds}")
    else:
        words.append(f"--folds {config.folds}")
    if summary["constants"] is None:
        words.append("--no-predict")
    return _command(words, folder)


def front_command(folder: Path, result: CriticalBatchResult) -> str:
    """The `critical-batch` of a measurement, or of a fit to a table of others."""
    summary = result.summary
    if summary is None:
        table = shlex.quote(str(folder / "steps_to_goal.csv"))
        return f"noisescale critical-batch --from-csv {table}"
    problem = parse_problem(summary["problem"])
    words = ["critical-batch"]
    if not isinstance(problem, ObjectConfig):
        words += study_words(problem)
    words += optimizer_words(TrainConfig(**summary["training"]))
    words += [f"--bs {size}" for size in summary["batch_sizes"]]
    words += [_word("goal", goal) for goal in summary["goals"]]
    words.append(f"--seeds {summary['num_seeds']}")
    words += _changed(summary, factor=2.0)
    if summary["split"] != "train":
        words.append(f"--goal-split {summary['split']}")
    tracked = sorted(path.name.partition("-")[2] for path in folder.glob("noise-*"))
    words.append(f"--noise-examples {tracked[0]}" if tracked else "--no-noise")
    return _command(words, folder)


def branch_command(folder: Path, result: BranchResult) -> str:
    """The `critical-batch --method branch` of a folder."""
    summary, means = result.summary, result.to_frame()
    words = ["critical-batch", "--method branch", "CHECKPOINT"]
    problem = parse_problem(summary["problem"])
    if isinstance(problem, FactoryConfig):
        words += problem_words(problem)
    words += [f"--bs {size}" for size in summary["batch_sizes"]]
    words += [f"--examples {summary['examples']}", f"--seeds {summary['num_seeds']}"]
    words += [f"--tolerance {summary['tolerance'] / means['loss'].iloc[0]:.3g}"]
    words.append(f"--lr-scaling {summary['scaling']}")
    if (bend := summary.get("rate_bend")) is not None:
        words.append(f"--lr-bend {bend:g}")
    if summary["split"] != "train":
        words.append(f"--goal-split {summary['split']}")
    return _command(words, folder)


def noise_command(path: Path, entries: list[dict[str, Any]]) -> str:
    """The `measure-noise` whose JSON this is."""
    words = ["measure-noise", *_checkpoints(entries)]
    measured = {"--hessian": "full", "--per-layer": "per_layer", "--per-class": "per_class"}
    measured |= {"--anatomy": "anatomy", "--sign": "sign"}
    for flag, name in measured.items():
        if any(entry.get(name) is not None for entry in entries):
            words.append(flag)
    return _measured(words, path, entries)


def sharpness_command(path: Path, entries: list[dict[str, Any]]) -> str:
    """The `sharpness` whose JSON this is."""
    words = ["sharpness", *_checkpoints(entries)]
    entry = next((entry for entry in entries if not entry["reason"]), entries[0])
    for flag, end in (("--top", "largest"), ("--bottom", "smallest")):
        count = sum(value["which"] == end for value in entry["eigenvalues"])
        if count != (flag == "--top"):
            words.append(f"{flag} {count}")
    words += [f"--{name}" for name in ("trace", "density") if entry[name]]
    spaces = {found["space"] for found in entry["phi"] or ()}
    if spaces - {"filter"}:
        words.append("--phi")
    if "filter" in spaces:
        words.append("--filter-normalised")
    iterations = max((len(found["history"]) - 1 for found in entry["phi"] or ()), default=0)
    if iterations > PAPER_ITERATIONS:
        words.append(f"--phi-iterations {iterations}")
    if entry["batch_size"] is not None:
        words.append(f"--batch-sharpness {entry['batch_size']}")
    if entry.get("critical") is not None:
        words.append("--critical")
    if entry.get("matrix") == "ggn":
        words.append("--ggn")
    return _measured(words, path, entries)


def experiment_commands(path: Path) -> list[str]:
    """The command of the experiment whose folder something lies in, where that is noted."""
    for folder in (path, *path.absolute().parents[:2]):
        if (record := read_json(folder / EXPERIMENT)) is not None:
            return [str(record["command"])]
    return []


def _command(words: Words, folder: Path) -> str:
    return " ".join(["noisescale", *words, f"--out {shlex.quote(str(folder))}"])


def _word(name: str, value: object) -> str:
    text = str(value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        text = f"{value:g}"
    flag = FLAGS.get(name, "--" + name.replace("_", "-"))
    return flag if value is True else f"{flag} {text}"


def _changed(summary: dict[str, Any], **defaults: object) -> Words:
    """The options of a summary that are not at their defaults."""
    return [
        _word(name, summary[name])
        for name, default in defaults.items()
        if summary.get(name, default) != default
    ]


def _factor(config: SweepConfig, num_rates: int) -> float | None:
    """Between neighbouring rates of a bisected map; None where it is the default."""
    assert config.lr_min is not None
    assert config.lr_max is not None
    if num_rates < 2:
        return None
    exact: float = (config.lr_max / config.lr_min) ** (1 / (num_rates - 1))
    for factor in (*FACTORS, *(float(f"{exact:.{digits}g}") for digits in (2, 3, 4, 5, 6))):
        try:
            rates = replace(config, factor=factor).learning_rates
        except SettingError:  # one that is no factor
            continue
        if len(rates) == num_rates:
            return None if factor == FACTORS[0] else factor
    return exact


def _checkpoints(entries: list[dict[str, Any]]) -> Words:
    """What was measured, as a command names it: files, or none and the problem."""
    files = [entry["checkpoint"] for entry in entries]
    if None in files:
        return [f"--problem {shlex.quote(str(entries[0]['run']))}"]
    return [shlex.quote(str(file)) for file in files]


def _measured(words: Words, path: Path, entries: list[dict[str, Any]]) -> str:
    entry = next((entry for entry in entries if not entry["reason"]), entries[0])
    if entry["num_examples"] != entry["population_size"]:
        words.append(f"--num-examples {entry['num_examples']}")
    if entry.get("split") not in (None, "train"):
        words.append(f"--split {entry['split']}")
    if entry.get("amp") is not None:
        words.append(f"--amp {entry['amp']}")
    has_own = entry.get("optimizer") in BETA2 and entry.get("step")
    if has_own and entry.get("preconditioned", False) is None:
        words.append("--preconditioner none")
    return " ".join(["noisescale", *words, "--json >", shlex.quote(str(path))])
