"""The Gauss–Newton matrices of single examples: their products, blocks and extremes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import hessian, jacrev, jvp, vjp, vmap

from noisescale.errors import MeasurementError
from noisescale.measure.objective import Objective, flatten
from noisescale.problems.problem import Examples, MatVec, Params

# Numbers the model gives for one example: each takes a backward pass, and matrices of their square
# are kept
LARGEST_OUTPUT = 128
JACOBIAN_BYTES = 2**27  # of Jacobians written out at once: 128 MiB, as much as a chunk's graph


class OutputJacobian:
    """The Jacobians J_i (C, P) of single examples' outputs, flattened, at a point; never formed."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.params: Params = {name: leaf.detach() for name, leaf in objective.params().items()}

    def outputs(self, params: Params, inputs: Tensor) -> Tensor:
        """(B, *F) -> (B, C)."""
        outputs: Tensor = self.objective.outputs(params, inputs).flatten(1)
        return outputs

    def push(self, inputs: Tensor, direction: Params) -> Tensor:
        """J_i·v: (B, C)."""
        pushed: Tensor = jvp(
            lambda params: self.outputs(params, inputs), (self.params,), (direction,)
        )[1]
        return pushed

    def forms(self, inputs: Tensor, middle: Tensor, direction: Params) -> Tensor:
        """(J_i v)ᵀ M_i J_i v for M (B, C, C): (B,) in float64."""
        pushed = self.push(inputs, direction).double()
        return torch.einsum("bc,bcd,bd->b", pushed, middle.double(), pushed)

    def product(self, inputs: Tensor, middle: Tensor, direction: Params) -> Params:
        """Σ_i J_iᵀ M_i J_i v for M (B, C, C)."""
        pull = vjp(lambda params: self.outputs(params, inputs), self.params)[1]
        pulled: Params = pull(torch.einsum("bcd,bd->bc", middle, self.push(inputs, direction)))[0]
        return pulled

    def output_curvature(self) -> Tensor:
        """A_i, the Hessian of each example's loss in its outputs: (N, C, C)."""
        objective = self.objective
        objective.check_any_company()
        curvatures: list[Tensor] = []

        def loss(output: Tensor, target: Tensor) -> Tensor:
            return objective.losses(output.unsqueeze(0), target.unsqueeze(0))[0]

        def add(chunk: Examples, start: int) -> None:
            outputs = objective.outputs(self.params, objective.cast(chunk.inputs))
            size = outputs[0].numel()
            if size > LARGEST_OUTPUT:
                raise MeasurementError(
                    f"{objective.name} gives {size} numbers for one example: "
                    f"the curvature of single examples is measured for at most {LARGEST_OUTPUT}"
                )
            curvature = vmap(hessian(loss))(outputs, chunk.targets)
            curvatures.append(curvature.detach().reshape(chunk.num_examples, size, size))

        objective.for_each_chunk(add)
        return torch.cat(curvatures)


class ExampleCurvature:
    """H_i = J_iᵀ A_i J_i of each of an objective's n examples, none of them ever formed.

    J_i (C, P): the Jacobian of the example's C outputs; A_i (C, C): the Hessian of its loss in
    them. H = (1/n) Σ H_i is the Gauss–Newton matrix of `ggn_matvec`.

    output_curvature: A (n, C, C). kernel: J_iJ_iᵀ (n, C, C). Both in the objective's dtype.

    Raises MeasurementError where the model gives more than 128 numbers for an example.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._jacobian = OutputJacobian(objective)
        self.output_curvature = self._jacobian.output_curvature()
        kernels: list[Tensor] = []

        def add(chunk: Examples, start: int) -> None:
            kernels.append(self._kernel(objective.cast(chunk.inputs)))

        objective.for_each_chunk(add)
        self.kernel = torch.cat(kernels)

    @property
    def matvec(self) -> MatVec:
        """The product v -> Hv; (P,) -> (P,)."""
        return lambda vector: self._mean_product(self.output_curvature, vector)

    @property
    def squares_matvec(self) -> MatVec:
        """The product v -> (mean H_i²) v; (P,) -> (P,)."""
        squared = self.output_curvature @ self.kernel @ self.output_curvature
        return lambda vector: self._mean_product(squared, vector)

    def forms(self, vector: Tensor) -> Tensor:
        """vᵀH_i v of each example, for v (P,): (n,) in float64."""
        forms: list[Tensor] = []
        direction = self.objective.unflatten(vector.to(self.objective.point))

        def add(chunk: Examples, start: int) -> None:
            middle = self.output_curvature[start : start + chunk.num_examples]
            forms.append(self._jacobian.forms(self.objective.cast(chunk.inputs), middle, direction))

        self.objective.for_each_chunk(add)
        return torch.cat(forms)

    def largest_each(self) -> Tensor:
        """λ_max(H_i) of each example: (n,) in float64.

        Read off A_i J_i J_iᵀ (C, C), which has the eigenvalues of H_i but for zeros.
        """
        values: Tensor = torch.linalg.eigvals(self.output_curvature.double() @ self.kernel.double())
        return values.real.amax(1)

    def traces(self) -> Tensor:
        """The trace of each H_i: (n,) in float64."""
        return torch.einsum("bcd,bdc->b", self.output_curvature.double(), self.kernel.double())

    def _kernel(self, inputs: Tensor) -> Tensor:
        """J_iJ_iᵀ of a chunk's examples: (B, C, C)."""

        def outputs(params: Params, example: Tensor) -> Tensor:
            return self._jacobian.outputs(params, example.unsqueeze(0))[0]

        each = vmap(jacrev(outputs), in_dims=(None, 0))
        row_bytes = self.objective.dim * self.objective.point.element_size()
        at_once = JACOBIAN_BYTES // (self.output_curvature.shape[1] * row_bytes)
        kernels = []
        for part in inputs.split(max(at_once, 1)):
            by_parameter = each(self._jacobian.params, part).values()
            jacobians = [jacobian.flatten(2) for jacobian in by_parameter]  # (B, C, P')
            kernels.append(torch.stack([jacobian @ jacobian.mT for jacobian in jacobians]).sum(0))
        return torch.cat(kernels)

    def _mean_product(self, middle: Tensor, vector: Tensor) -> Tensor:
        """(1/n) Σ J_iᵀ M_i J_i v for M (n, C, C)."""
        total = torch.zeros_like(self.objective.point)
        direction = self.objective.unflatten(vector.to(self.objective.point))

        def add(chunk: Examples, start: int) -> None:
            rows = slice(start, start + chunk.num_examples)
            product = self._jacobian.product(
                self.objective.cast(chunk.inputs), middle[rows], direction
            )
            total.add_(flatten(list(product.values())))

        self.objective.for_each_chunk(add)
        return total / self.objective.num_examples
