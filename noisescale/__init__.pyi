"""The public names of noisescale: this list is the only one, `__init__.py` loads what it names."""

from ._version import __version__ as __version__
from .cli.artefacts.report import write_report as write_report
from .errors import NoisescaleError as NoisescaleError
from .measure.curvature.batch_sharpness import (
    batch_sharpness as batch_sharpness,
    gradient_noise_interaction as gradient_noise_interaction,
)
from .measure.curvature.eigenpairs import EigenPairs as EigenPairs, top_eigenpairs as top_eigenpairs
from .measure.curvature.keskar import (
    KeskarSharpness as KeskarSharpness,
    keskar_sharpness as keskar_sharpness,
)
from .measure.curvature.products import (
    CurvatureProduct as CurvatureProduct,
    ggn_matvec as ggn_matvec,
    hessian_matvec as hessian_matvec,
)
from .measure.curvature.spectrum import (
    SpectralDensity as SpectralDensity,
    SpectralMoments as SpectralMoments,
    spectral_density as spectral_density,
    spectral_moments as spectral_moments,
)
from .measure.gradients.layers.factors import Outer as Outer
from .measure.gradients.moments import (
    GradientMoments as GradientMoments,
    gradient_moments as gradient_moments,
)
from .measure.gradients.rules import gradient_rule as gradient_rule
from .measure.monitor.noise_monitor import NoiseScaleMonitor as NoiseScaleMonitor
from .measure.monitor.norm_layers.monitor import NormLayerMonitor as NormLayerMonitor
from .measure.noise import measure_noise as measure_noise
from .measure.noise_parts.options import NoiseOptions as NoiseOptions
from .measure.objective import Objective as Objective
from .measure.objective.preconditioner import preconditioner_of as preconditioner_of
from .measure.sharpness import (
    CriticalSharpness as CriticalSharpness,
    PreconditionedSharpness as PreconditionedSharpness,
    Sharpness as Sharpness,
    SharpnessOptions as SharpnessOptions,
    critical_sharpness as critical_sharpness,
    measure_sharpness as measure_sharpness,
)
from .measure.stability import (
    StabilityOptions as StabilityOptions,
    measure_stability as measure_stability,
    simulate_threshold as simulate_threshold,
)
from .problems.build import build_problem as build_problem
from .problems.config import ProblemConfig as ProblemConfig
from .problems.data.splits import load_splits as load_splits
from .problems.models import (
    GhostBatchNorm as GhostBatchNorm,
    cnn as cnn,
    gpt as gpt,
    mlp as mlp,
)
from .problems.problem import (
    Examples as Examples,
    LossFn as LossFn,
    MatVec as MatVec,
    Params as Params,
    Problem as Problem,
)
from .problems.synthetic import (
    linear_regression as linear_regression,
    noisy_quadratic as noisy_quadratic,
)
from .statistics.critical_batch.advice import Advice as Advice, AimedSize as AimedSize
from .statistics.critical_batch.branches import branch_critical_batch as branch_critical_batch
from .statistics.critical_batch.curves.steps_to_goal import steps_to_goal as steps_to_goal
from .statistics.critical_batch.curves.steps_vs_examples import Tradeoff as Tradeoff
from .statistics.critical_batch.fit import (
    CriticalBatchFit as CriticalBatchFit,
    fit_critical_batch as fit_critical_batch,
)
from .statistics.critical_batch.learning_rate_law import (
    LearningRateLaw as LearningRateLaw,
    best_rate as best_rate,
    fit_learning_rate_laws as fit_learning_rate_laws,
)
from .statistics.critical_batch.recommendation import (
    Recommendation as Recommendation,
    recommend as recommend,
)
from .statistics.estimate import Estimate as Estimate
from .statistics.gradient_noise import (
    FoldWeights as FoldWeights,
    GradientNoise as GradientNoise,
    NoiseAnatomy as NoiseAnatomy,
    NoiseScale as NoiseScale,
    NormTest as NormTest,
    SignNoise as SignNoise,
    noise_anatomy as noise_anatomy,
    noise_scale as noise_scale,
    norm_test as norm_test,
    sign_noise as sign_noise,
)
from .statistics.running_noise import RunningNoise as RunningNoise, two_batch as two_batch
from .statistics.sample import Weighting as Weighting
from .statistics.scores.accuracy import accuracy_estimate as accuracy_estimate
from .statistics.scores.bias_variance import (
    BiasVariance as BiasVariance,
    bias_variance as bias_variance,
)
from .statistics.scores.cross_validation import (
    CrossValidation as CrossValidation,
    choose_rate as choose_rate,
    fold_indices as fold_indices,
)
from .statistics.scores.out_of_bag import OutOfBag as OutOfBag, out_of_bag as out_of_bag
from .statistics.stability.curves import StabilityConstants as StabilityConstants
from .statistics.stability.edge import (
    Threshold as Threshold,
    fit_edge as fit_edge,
    seed_threshold as seed_threshold,
)
from .studies.cost import (
    Cost as Cost,
    noise_cost as noise_cost,
    sharpness_cost as sharpness_cost,
)
from .studies.critical_batch.branches import (
    BranchConfig as BranchConfig,
    BranchResult as BranchResult,
    run_branches as run_branches,
)
from .studies.critical_batch.config import CriticalBatchConfig as CriticalBatchConfig
from .studies.critical_batch.results import CriticalBatchResult as CriticalBatchResult
from .studies.critical_batch.run import run_critical_batch as run_critical_batch
from .studies.interpolation import Interpolation as Interpolation, interpolate as interpolate
from .studies.jobs.options import StudyOptions as StudyOptions
from .studies.recommend.config import RecommendConfig as RecommendConfig
from .studies.recommend.results import RecommendResult as RecommendResult
from .studies.recommend.run import run_recommend as run_recommend
from .studies.stability_map.config import Horizon as Horizon, SweepConfig as SweepConfig
from .studies.stability_map.results import SweepResult as SweepResult
from .studies.stability_map.run import SweepOptions as SweepOptions, run_sweep as run_sweep
from .training.adaptive_batch import AdaptiveBatchSize as AdaptiveBatchSize
from .training.config import (
    AdaptiveConfig as AdaptiveConfig,
    TrainConfig as TrainConfig,
    stable_sharpness as stable_sharpness,
)
from .training.evaluation import Evaluation as Evaluation, evaluate as evaluate
from .training.records.checkpoint import (
    Checkpoint as Checkpoint,
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
)
from .training.records.names import file_digest as file_digest
from .training.records.tables import (
    read_batch_size as read_batch_size,
    read_boundary as read_boundary,
    read_cells as read_cells,
    read_losses as read_losses,
    read_metrics as read_metrics,
    read_noise as read_noise,
    read_noise_layers as read_noise_layers,
    read_sharpness as read_sharpness,
)
from .training.records.weights import load_weights as load_weights
from .training.run import RunOptions as RunOptions, run_training as run_training
from .training.tracking.noise import NoiseTracking as NoiseTracking
from .training.trainer import train as train
