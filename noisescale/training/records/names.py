"""What runs are called: keys, digests and folder names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from noisescale.errors import CheckpointError, check_file
from noisescale.problems.config import AnyConfig, FactoryConfig, ObjectConfig
from noisescale.training.config import TrainConfig


def run_key(*configs: AnyConfig | TrainConfig) -> str:
    """Eight hex digits that name a run: a hash of every field that differs from its default.

    Fields at their defaults are left out, so that a field added later renames no run made before
    it.
    """
    changed = {
        f"{type(config).__name__}.{name}": value
        for config in configs
        for name, value in config.changed().items()
    }
    return digest(changed)


def digest(content: dict[str, Any]) -> str:
    """Eight hex digits of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def file_digest(path: Path | str) -> str:
    """Sixteen hex digits of a file's content, from its SHA-256.

    Args:
        path: the file, such as a checkpoint that a study starts from.
    """
    path = Path(path)
    check_file(path, CheckpointError)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def run_name(problem: AnyConfig, training: TrainConfig) -> str:
    """A run's default folder name, readable and unique: mnist-mlp-bs32-lr0.01-0123abcd."""
    return (
        f"{problem_name(problem)}-bs{training.batch_size}-lr{training.learning_rate:g}"
        f"-{run_key(problem, training)}"
    )


def problem_name(problem: AnyConfig) -> str:
    """A problem's name in that of a folder: data set and model, or the factory's own."""
    if isinstance(problem, FactoryConfig):
        return problem.factory.rpartition(":")[2]
    if isinstance(problem, ObjectConfig):
        return problem.model
    data = problem.dataset if problem.text is None else Path(problem.text).stem
    return f"{data}-{problem.model}"


def describe_problem(problem: AnyConfig) -> str:
    """What is trained, in words: "mnist at raw pixels, MLP of width 128"."""
    if isinstance(problem, FactoryConfig):
        return problem.factory
    if isinstance(problem, ObjectConfig):
        return problem.model
    data, model = problem.text or str(problem.dataset), []
    if problem.pixel_scale == "raw":
        data += " at raw pixels"
    if problem.num_train is not None:
        data += f" ({problem.num_train:,} examples)"
    if problem.classes is not None:
        data += f", {problem.classes} classes"
    if problem.imbalance != 1:
        data += f", imbalance {problem.imbalance:g}"
    if problem.label_noise:
        data += f", {100 * problem.label_noise:g} % wrong labels"
    if problem.width is not None:
        model.append(f"width {problem.width}")
    if problem.depth is not None:
        model.append(f"depth {problem.depth}")
    if problem.context is not None:
        model.append(f"context {problem.context}")
    described = f"{data}, {problem.model.upper()}"
    if model:
        described += f" of {' and '.join(model)}"
    if problem.norm == "ghost":
        described += f" with ghost batch norm of {problem.ghost_size}"
    elif problem.norm != "none":
        described += f" with {problem.norm} norm"
    return described if problem.loss == "cross_entropy" else f"{described}, squared error"


def describe_training(training: TrainConfig) -> str:
    """How it is trained, in words: "B = 32, learning rate 0.05, adam"."""
    described = f"B = {training.batch_size}, learning rate {training.learning_rate:g}"
    if training.optimizer != "sgd":
        described += f", {training.optimizer}"
    if training.momentum:
        nesterov = " of Nesterov" if training.nesterov else ""
        described += f", momentum {training.momentum:g}{nesterov}"
    if training.weight_decay:
        described += f", weight decay {training.weight_decay:g}"
    for name in ("beta1", "beta2", "epsilon"):
        if (value := getattr(training, name)) is not None:
            described += f", {name} {value:g}"
    if training.warmup:
        described += f", warm-up {training.warmup:g}"
    if training.lr_schedule != "constant":
        described += f", {training.lr_schedule}"
    if training.lr_schedule == "wsd":
        described += f" over the last {100 * training.decay_share:g} %"
    if training.amp is not None:
        described += f", {training.amp}"
    return described if training.seed == 0 else f"{described}, seed {training.seed}"
