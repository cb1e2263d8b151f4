"""The sharpest directions of a loss, how sharp a random subset makes them look, and its edge."""

from noisescale import (
    ProblemConfig,
    SharpnessOptions,
    TrainConfig,
    build_problem,
    hessian_matvec,
    measure_sharpness,
    top_eigenpairs,
    train,
)

problem = build_problem(ProblemConfig(dataset="digits", width=32))
*_, trained = train(problem, TrainConfig(batch_size=64, learning_rate=0.1, epochs=20))
for num_examples in (200, None):  # None: all of them
    options = SharpnessOptions(num_examples=num_examples)
    largest = measure_sharpness(problem, trained.params, options).largest.value.value
    print(
        f"{num_examples or 'all'} examples: λ_max = {largest:.2f}, stable with η up to "
        f"{2 / largest:.3f}"
    )
pairs = top_eigenpairs(hessian_matvec(problem, trained.params), k=3)
print("three largest:", pairs.values, "residuals:", pairs.residuals, "converged:", pairs.converged)
