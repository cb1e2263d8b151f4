"""Gradient noise, stability and critical batch size of PyTorch models, with error bars.

Which name is for what: help(noisescale.measure_noise) and the like say
more, with an example.

A model to measure
    Problem, Examples: a model, its loss per example, and data.
    ProblemConfig, build_problem, load_splits, mlp, cnn, gpt: ready-made
        ones on MNIST, digits and texts. GhostBatchNorm: batch norm over
        parts of a batch.
    Weighting: what examples count for, as of a mean over a batch's tokens.
    load_weights: weights of a file into a model.
    noisy_quadratic, linear_regression: problems whose answers are known
        in closed form.

Gradient noise at one point: |G|², tr Σ, B_simple and B_noise
    measure_noise, NoiseOptions -> NoiseScale.
    gradient_moments -> GradientMoments, noise_scale: its two halves.
    NoiseScale.anatomy -> NoiseAnatomy, noise_anatomy: who carries tr Σ.
    preconditioner_of: an optimizer's P, for the noise in its geometry.
    sign_noise, FoldWeights -> SignNoise: the noise scale of descent along
        the sign.
    gradient_rule, Outer: per-example gradients of a layer of one's own.

Gradient noise along a training loop of one's own
    NoiseScaleMonitor -> GradientNoise; RunningNoise and two_batch are
        what it is made of.
    NormLayerMonitor: from norm layers alone, where nothing is accumulated.
    norm_test -> NormTest: what a batch size makes of a noise scale.
    AdaptiveBatchSize: a batch size that follows the noise.

Which batch size
    run_recommend, RecommendConfig -> RecommendResult with its Advice, an
        AimedSize for each aim: within minutes, by a few short runs.
    recommend -> Recommendation: from the noise scale along a run.
    run_critical_batch, CriticalBatchConfig -> CriticalBatchResult:
        measured, by many runs.
    run_branches, BranchConfig -> BranchResult, branch_critical_batch:
        from one checkpoint on.
    fit_critical_batch -> CriticalBatchFit, steps_to_goal, Tradeoff: from
        anybody's numbers.
    best_rate, fit_learning_rate_laws -> LearningRateLaw: the learning
        rate that goes with it.

Curvature
    measure_sharpness, SharpnessOptions -> Sharpness: all of the following
        as one record, PreconditionedSharpness in it.
    Objective, hessian_matvec, ggn_matvec -> CurvatureProduct: the loss,
        and products with a matrix.
    top_eigenpairs -> EigenPairs; spectral_moments -> SpectralMoments.
    spectral_density -> SpectralDensity; keskar_sharpness ->
        KeskarSharpness.
    batch_sharpness, gradient_noise_interaction; stable_sharpness: the 2/η
        beside them; critical_sharpness -> CriticalSharpness: by a few
        forward passes.

What a measurement will take, before it is begun
    noise_cost, sharpness_cost -> Cost: by its first chunk of examples.

Between two models
    interpolate -> Interpolation: loss and accuracy along the line, and the
        barrier.

Which learning rates are stable
    measure_stability, StabilityOptions -> StabilityConstants;
        simulate_threshold: predicted.
    run_sweep, SweepConfig, Horizon, SweepOptions -> SweepResult:
        measured, by many runs.
    fit_edge, seed_threshold, Threshold: from anybody's runs.

What models score
    bias_variance -> BiasVariance: of models trained on crossed draws of
        data and seed; out_of_bag -> OutOfBag: of bagged ones.
    accuracy_estimate: an accuracy with its interval.
    choose_rate -> CrossValidation, fold_indices: a rate by k folds and the
        one-standard-error rule.

Training
    run_training, TrainConfig, AdaptiveConfig, RunOptions, NoiseTracking:
        a run in a folder.
    train -> Checkpoint, evaluate -> Evaluation: the loop alone.
    load_checkpoint, save_checkpoint, file_digest; StudyOptions: how
        studies are carried out.
    read_metrics, read_losses, read_noise, read_noise_layers,
        read_sharpness, read_batch_size, read_cells, read_boundary: the
        tables that runs and sweeps leave.

Results
    write_report: one page of runs, studies and measurements, with their
        pictures.

Every number is an Estimate: its value, standard error and 95 % interval;
print it, format it, or take its float(). Results print a short table;
their to_frame() is a table of pandas. What can go wrong is a
NoisescaleError. LossFn, MatVec and Params are the types of functions and
parameters.
"""

# The public names are those of `__init__.pyi`. Each loads on first use (SPEC 1), so that importing
# one part of the package does not load torch for another.

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
