"""Which examples carry the noise of the gradient? Mislabelled ones, here, that were planted."""

import numpy as np
import torch
from torch import nn

from noisescale import (
    Examples,
    Problem,
    ProblemConfig,
    TrainConfig,
    build_problem,
    gradient_moments,
    train,
)

digits = build_problem(ProblemConfig(dataset="digits", width=64))
targets = digits.train.targets.clone()
planted = torch.arange(20)  # of 1,297
targets[planted] = (targets[planted] + 1) % 10
problem = Problem(
    model=digits.model,
    loss=nn.CrossEntropyLoss(reduction="none"),
    train=Examples(digits.train.inputs, targets),
)
*_, trained = train(problem, TrainConfig(batch_size=64, learning_rate=0.1, epochs=20))
squared_norms = gradient_moments(problem, trained.params).squared_norms.sum(axis=1)  # (N,)
noisiest = np.argsort(squared_norms)[::-1][: len(planted)]
print(f"{np.isin(noisiest, planted).sum()} of the 20 largest gradients are of the 20 wrong labels")
print(f"they carry {squared_norms[planted].sum() / squared_norms.sum():.0%} of all |g|²")
