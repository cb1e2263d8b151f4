"""Up to which learning rate does SGD stay at a minimum? Predicted for each batch size."""

import torch
from torch import nn

from noisescale import Examples, Problem, measure_stability, simulate_threshold

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(200, 5, generator=generator)
targets = inputs @ torch.ones(5, 1)  # without noise: there is a minimum of loss zero
model = nn.Linear(5, 1, bias=False)
with torch.no_grad():
    model.weight.fill_(1.0)
problem = Problem(
    model=model,
    loss=lambda outputs, targets: 0.5 * (outputs - targets).square().sum(dim=1),
    train=Examples(inputs, targets),
)
constants = measure_stability(problem)
for batch_size in (1, 8, 64):
    curves = constants.rates(batch_size, population_size=200)
    simulated = simulate_threshold(problem, batch_size=batch_size, constants=constants)
    print(
        f"B = {batch_size}: stays below {curves['lower']:.2f}, leaves above {curves['upper']:.2f} "
        f"(in mean square); a typical run leaves at {simulated.value:.2f}"
    )
