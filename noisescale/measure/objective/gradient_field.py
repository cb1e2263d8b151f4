"""Whether a gradient is that of one function, so that it has a Hessian."""

from __future__ import annotations

import torch

from noisescale.errors import MeasurementError
from noisescale.measure.objective.mean_loss import Objective
from noisescale.problems.problem import MatVec

# The step in units of a parameter, as a power of the precision: 1.3e-6 in float64, far above
# rounding, and so little that hardly a ReLU of a few examples changes sides
STEP_POWER = 0.375
# The share of the derivative that differences must miss, and how much less they must miss each
# other by, to be believed
DIFFERENCE = 0.01
CONSISTENCY = 0.1


def check_one_function(objective: Objective, hessian: MatVec) -> None:
    """Compares the derivative of the gradient along a random vector with its differences.

    Autograd takes what a model detaches for constant and the derivative of an operation for what
    its backward pass says, in the first derivative and in the second, so that its Hessian looks
    symmetric where the gradient is that of no function. Parameters without a gradient, as an
    embedding's padding row, are left where they are.

    Args:
        objective: of a few examples, in float64. Where parts of the model are in less than float32
            nothing is compared: no step is both above their rounding and small.
        hessian: the product with its Hessian.

    Raises:
        MeasurementError: they differ.
    """
    precision = torch.finfo(objective.coarsest_dtype).eps
    if precision > torch.finfo(torch.float32).eps:
        return
    point = objective.point
    moves = objective.value_and_gradient()[1] != 0  # (P,)
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(point), generator=generator, dtype=point.dtype).to(point)
    vector *= moves * (point.square().mean().sqrt() or 1.0)
    expected = hessian(vector)[moves]
    first, second = (
        (
            objective.value_and_gradient(point + step * vector)[1]
            - objective.value_and_gradient(point - step * vector)[1]
        )[moves]
        / (2 * step)
        # at two steps, since what differs at both alike is no error of the steps
        for step in (precision**STEP_POWER, precision**STEP_POWER / 2)
    )
    gap, spread = float((first - expected).norm()), float((first - second).norm())
    size = max(float(first.norm()), float(expected.norm()))
    if gap > DIFFERENCE * size and spread < CONSISTENCY * gap:
        raise MeasurementError(
            f"{objective.name} has no Hessian: its gradient is not that of one function, as where "
            "a layer reverses gradients or passes them straight through a rounding, or a target "
            "that depends on the parameters is detached; or the second derivative of one of its "
            f"operations is wrong (differences of the gradient are {gap / size:.0%} off its "
            "derivative). The Gauss–Newton matrix can be measured"
        )
