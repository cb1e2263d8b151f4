"""Gradient noise, stability and critical batch size of PyTorch models, with error bars.

The public names load on first use (PEP 562), so that importing one part does not load torch for another.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from noisescale._version import __version__

if TYPE_CHECKING:
    from noisescale.build import build_problem
    from noisescale.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from noisescale.config import ProblemConfig, TrainConfig
    from noisescale.data import load_splits
    from noisescale.errors import NoisescaleError
    from noisescale.evaluation import Evaluation, evaluate
    from noisescale.models import cnn, mlp
    from noisescale.problem import Examples, LossFn, Params, Problem
    from noisescale.run import RunOptions, run_training
    from noisescale.training import train

_MODULES = {
    "Checkpoint": "checkpoint",
    "Evaluation": "evaluation",
    "Examples": "problem",
    "LossFn": "problem",
    "NoisescaleError": "errors",
    "Params": "problem",
    "Problem": "problem",
    "ProblemConfig": "config",
    "RunOptions": "run",
    "TrainConfig": "config",
    "build_problem": "build",
    "cnn": "models",
    "evaluate": "evaluation",
    "load_checkpoint": "checkpoint",
    "load_splits": "data",
    "mlp": "models",
    "run_training": "run",
    "save_checkpoint": "checkpoint",
    "train": "training",
}

__all__ = [
    "Checkpoint",
    "Evaluation",
    "Examples",
    "LossFn",
    "NoisescaleError",
    "Params",
    "Problem",
    "ProblemConfig",
    "RunOptions",
    "TrainConfig",
    "__version__",
    "build_problem",
    "cnn",
    "evaluate",
    "load_checkpoint",
    "load_splits",
    "mlp",
    "run_training",
    "save_checkpoint",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'noisescale' has no attribute {name!r}")
    return getattr(import_module(f"noisescale.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
