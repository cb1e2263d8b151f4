"""Gradient noise, stability and critical batch size of PyTorch models, with error bars.

The public names load on first use (PEP 562), so that importing one part does not load torch for another.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from noisescale._version import __version__

if TYPE_CHECKING:
    from noisescale.errors import NoisescaleError
    from noisescale.measure.curvature.batch_sharpness import (
        KeskarSharpness,
        batch_sharpness,
        gradient_noise_interaction,
        keskar_sharpness,
    )
    from noisescale.measure.curvature.eigenpairs import EigenPairs, top_eigenpairs
    from noisescale.measure.curvature.products import ggn_matvec, hessian_matvec
    from noisescale.measure.curvature.spectrum import (
        SpectralDensity,
        SpectralMoments,
        spectral_density,
        spectral_moments,
    )
    from noisescale.measure.gradients.factors import Outer
    from noisescale.measure.gradients.moments import GradientMoments, gradient_moments
    from noisescale.measure.gradients.rules import gradient_rule
    from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
    from noisescale.measure.noise import measure_noise
    from noisescale.measure.objective import Objective
    from noisescale.measure.sharpness import Sharpness, SharpnessOptions, measure_sharpness
    from noisescale.measure.stability import measure_stability, simulate_threshold
    from noisescale.problems.build import build_problem
    from noisescale.problems.config import ProblemConfig, TrainConfig
    from noisescale.problems.data.splits import load_splits
    from noisescale.problems.models import cnn, mlp
    from noisescale.problems.problem import Examples, LossFn, MatVec, Params, Problem
    from noisescale.statistics.critical_batch.branches import branch_critical_batch
    from noisescale.statistics.critical_batch.fit import CriticalBatchFit, fit_critical_batch, steps_to_goal
    from noisescale.statistics.critical_batch.learning_rate_law import (
        LearningRateLaw,
        best_rate,
        fit_learning_rate_laws,
    )
    from noisescale.statistics.critical_batch.recommendation import Recommendation, recommend
    from noisescale.statistics.critical_batch.steps_vs_examples import Tradeoff
    from noisescale.statistics.estimate import Estimate
    from noisescale.statistics.gradient_noise import GradientNoise, NoiseScale, noise_scale
    from noisescale.statistics.running_noise import RunningNoise, two_batch
    from noisescale.statistics.stability_curves import StabilityConstants, stable_sharpness
    from noisescale.statistics.stability_edge import fit_edge
    from noisescale.studies.critical_batch.branches import BranchConfig, BranchResult, run_branches
    from noisescale.studies.critical_batch.config import CriticalBatchConfig
    from noisescale.studies.critical_batch.results import CriticalBatchResult
    from noisescale.studies.critical_batch.run import run_critical_batch
    from noisescale.studies.stability_map.config import Horizon, SweepConfig
    from noisescale.studies.stability_map.results import SweepResult
    from noisescale.studies.stability_map.run import SweepOptions, run_sweep
    from noisescale.training.adaptive_batch import AdaptiveBatchSize
    from noisescale.training.evaluation import Evaluation, evaluate
    from noisescale.training.records.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from noisescale.training.records.weights import load_weights
    from noisescale.training.run import RunOptions, run_training
    from noisescale.training.tracking.noise import NoiseTracking
    from noisescale.training.trainer import train

_MODULES = {
    "AdaptiveBatchSize": "training.adaptive_batch",
    "BranchConfig": "studies.critical_batch.branches",
    "BranchResult": "studies.critical_batch.branches",
    "Checkpoint": "training.records.checkpoint",
    "CriticalBatchConfig": "studies.critical_batch.config",
    "CriticalBatchFit": "statistics.critical_batch.fit",
    "CriticalBatchResult": "studies.critical_batch.results",
    "EigenPairs": "measure.curvature.eigenpairs",
    "Estimate": "statistics.estimate",
    "Evaluation": "training.evaluation",
    "Examples": "problems.problem",
    "GradientMoments": "measure.gradients.moments",
    "GradientNoise": "statistics.gradient_noise",
    "Horizon": "studies.stability_map.config",
    "KeskarSharpness": "measure.curvature.batch_sharpness",
    "LearningRateLaw": "statistics.critical_batch.learning_rate_law",
    "LossFn": "problems.problem",
    "MatVec": "problems.problem",
    "NoiseScale": "statistics.gradient_noise",
    "NoiseScaleMonitor": "measure.monitor.noise_monitor",
    "NoiseTracking": "training.tracking.noise",
    "NoisescaleError": "errors",
    "Objective": "measure.objective",
    "Outer": "measure.gradients.factors",
    "Params": "problems.problem",
    "Problem": "problems.problem",
    "ProblemConfig": "problems.config",
    "Recommendation": "statistics.critical_batch.recommendation",
    "RunOptions": "training.run",
    "RunningNoise": "statistics.running_noise",
    "Sharpness": "measure.sharpness",
    "SharpnessOptions": "measure.sharpness",
    "SpectralDensity": "measure.curvature.spectrum",
    "SpectralMoments": "measure.curvature.spectrum",
    "StabilityConstants": "statistics.stability_curves",
    "SweepConfig": "studies.stability_map.config",
    "SweepOptions": "studies.stability_map.run",
    "SweepResult": "studies.stability_map.results",
    "Tradeoff": "statistics.critical_batch.steps_vs_examples",
    "TrainConfig": "problems.config",
    "batch_sharpness": "measure.curvature.batch_sharpness",
    "best_rate": "statistics.critical_batch.learning_rate_law",
    "branch_critical_batch": "statistics.critical_batch.branches",
    "build_problem": "problems.build",
    "cnn": "problems.models",
    "evaluate": "training.evaluation",
    "fit_critical_batch": "statistics.critical_batch.fit",
    "fit_edge": "statistics.stability_edge",
    "fit_learning_rate_laws": "statistics.critical_batch.learning_rate_law",
    "ggn_matvec": "measure.curvature.products",
    "gradient_moments": "measure.gradients.moments",
    "gradient_noise_interaction": "measure.curvature.batch_sharpness",
    "gradient_rule": "measure.gradients.rules",
    "hessian_matvec": "measure.curvature.products",
    "keskar_sharpness": "measure.curvature.batch_sharpness",
    "load_checkpoint": "training.records.checkpoint",
    "load_splits": "problems.data.splits",
    "load_weights": "training.records.weights",
    "measure_noise": "measure.noise",
    "measure_sharpness": "measure.sharpness",
    "measure_stability": "measure.stability",
    "mlp": "problems.models",
    "noise_scale": "statistics.gradient_noise",
    "recommend": "statistics.critical_batch.recommendation",
    "run_branches": "studies.critical_batch.branches",
    "run_critical_batch": "studies.critical_batch.run",
    "run_sweep": "studies.stability_map.run",
    "run_training": "training.run",
    "save_checkpoint": "training.records.checkpoint",
    "simulate_threshold": "measure.stability",
    "spectral_density": "measure.curvature.spectrum",
    "spectral_moments": "measure.curvature.spectrum",
    "stable_sharpness": "statistics.stability_curves",
    "steps_to_goal": "statistics.critical_batch.fit",
    "top_eigenpairs": "measure.curvature.eigenpairs",
    "train": "training.trainer",
    "two_batch": "statistics.running_noise",
}

__all__ = [
    "AdaptiveBatchSize",
    "BranchConfig",
    "BranchResult",
    "Checkpoint",
    "CriticalBatchConfig",
    "CriticalBatchFit",
    "CriticalBatchResult",
    "EigenPairs",
    "Estimate",
    "Evaluation",
    "Examples",
    "GradientMoments",
    "GradientNoise",
    "Horizon",
    "KeskarSharpness",
    "LearningRateLaw",
    "LossFn",
    "MatVec",
    "NoiseScale",
    "NoiseScaleMonitor",
    "NoiseTracking",
    "NoisescaleError",
    "Objective",
    "Outer",
    "Params",
    "Problem",
    "ProblemConfig",
    "Recommendation",
    "RunOptions",
    "RunningNoise",
    "Sharpness",
    "SharpnessOptions",
    "SpectralDensity",
    "SpectralMoments",
    "StabilityConstants",
    "SweepConfig",
    "SweepOptions",
    "SweepResult",
    "Tradeoff",
    "TrainConfig",
    "__version__",
    "batch_sharpness",
    "best_rate",
    "branch_critical_batch",
    "build_problem",
    "cnn",
    "evaluate",
    "fit_critical_batch",
    "fit_edge",
    "fit_learning_rate_laws",
    "ggn_matvec",
    "gradient_moments",
    "gradient_noise_interaction",
    "gradient_rule",
    "hessian_matvec",
    "keskar_sharpness",
    "load_checkpoint",
    "load_splits",
    "load_weights",
    "measure_noise",
    "measure_sharpness",
    "measure_stability",
    "mlp",
    "noise_scale",
    "recommend",
    "run_branches",
    "run_critical_batch",
    "run_sweep",
    "run_training",
    "save_checkpoint",
    "simulate_threshold",
    "spectral_density",
    "spectral_moments",
    "stable_sharpness",
    "steps_to_goal",
    "top_eigenpairs",
    "train",
    "two_batch",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'noisescale' has no attribute {name!r}")
    return getattr(import_module(f"noisescale.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
