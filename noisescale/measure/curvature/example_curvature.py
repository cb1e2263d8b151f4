"""The Gauss–Newton matrices of single examples: their products, blocks and extremes."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from torch.utils._pytree import tree_map

from noisescale.errors import MeasurementError, NotMeasurable, first_line
from noisescale.measure.curvature.products import Boundary, derivative, record_boundary
from noisescale.measure.objective import Objective, flatten, is_out_of_memory
from noisescale.measure.objective.outputs import with_tensors
from noisescale.measure.objective.parameters import as_real
from noisescale.measure.objective.passes import differentiable_twice
from noisescale.problems.problem import Examples, MatVec, Params, Tree, first_size

# Numbers the model gives for one example: each takes a backward pass, and matrices of their square
# are kept
LARGEST_OUTPUT = 128
JACOBIAN_BYTES = 2**27  # of Jacobians written out at once: 128 MiB, as much as a chunk's graph


class OutputJacobian:
    """The Jacobians J_i (C, P) of single examples' outputs, flattened, at a point; never formed.

    The outputs are what the model returns, of any form, as far as the loss uses it. All products
    are made of backward passes, so that what the model detaches counts as constant.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.params: Params = objective.params()
        objective.check_any_company()
        self._used: list[int] = []  # of all the tensors in the model's outputs
        size = objective.chunk_size
        for start in range(0, objective.num_examples, size):
            probe = objective.examples.part(slice(start, start + size))
            self._used = record_boundary(objective, self.params, probe).numbers
            if self._used:  # not so where none of these examples uses the parameters
                break

    def outputs(self, params: Params, inputs: Tree) -> Tensor:
        """What the loss uses of the model's outputs, one example a row: (B, C)."""
        tensors: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point() or tensor.is_complex():
                tensors.append(as_real(tensor))
            return tensor

        with_tensors(self.objective.outputs(params, inputs), note)
        return self._rows([tensors[number] for number in self._used], first_size(inputs))

    def push(self, inputs: Tree, direction: Params) -> Tensor:
        """J_i·v: (B, C)."""
        return self._pushed(self._outputs_at_point(inputs), direction)

    def forms(self, inputs: Tree, middle: Tensor, direction: Params) -> Tensor:
        """(J_i v)ᵀ M_i J_i v for M (B, C, C): (B,) in float64."""
        pushed = self.push(inputs, direction).double()
        return torch.einsum("bc,bcd,bd->b", pushed, middle.double(), pushed)

    def product(self, inputs: Tree, middle: Tensor, direction: Params) -> Params:
        """Σ_i J_iᵀ M_i J_i v for M (B, C, C)."""
        outputs = self._outputs_at_point(inputs)
        if not outputs.requires_grad:  # none of these examples uses the parameters
            return {name: torch.zeros_like(leaf) for name, leaf in self.params.items()}
        curved = torch.einsum("bcd,bd->bc", middle, self._pushed(outputs, direction))
        leaves = list(self.params.values())
        pulled = derivative(self.objective, outputs, leaves, curved)
        return dict(zip(self.params, pulled, strict=True))

    def rows(self, inputs: Tree) -> Tensor:
        """J of a single example, a backward pass for each of its outputs: (C, P)."""
        outputs: Tensor = self._outputs_at_point(inputs)[0]
        if not outputs.requires_grad:
            return torch.zeros(len(outputs), self.objective.dim).to(outputs)
        leaves = list(self.params.values())
        return torch.stack(
            [flatten(derivative(self.objective, output, leaves)) for output in outputs]
        )

    def output_curvature(self) -> Tensor:
        """A_i, the Hessian of each example's loss in its outputs: (N, C, C)."""
        objective = self.objective
        curvatures: list[Tensor] = []

        def add(chunk: Examples, start: int) -> None:
            boundary = record_boundary(objective, self.params, chunk, self._used)
            curvatures.append(self._curvature(boundary, chunk.num_examples))

        objective.for_each_chunk(add)
        return torch.cat(curvatures)

    def _curvature(self, boundary: Boundary, num_examples: int) -> Tensor:
        """The Hessians of a chunk's losses, which are separate, in their outputs: (B, C, C)."""
        gradient = self._rows(boundary.gradients, num_examples)  # (B, C)
        if not gradient.requires_grad:
            return gradient.new_zeros(*gradient.shape, gradient.shape[1])
        columns = [
            self._rows(derivative(self.objective, column.sum(), boundary.fixed), num_examples)
            for column in gradient.unbind(1)
        ]
        return torch.stack(columns, 1).detach()

    def _rows(self, tensors: Any, num_examples: int) -> Tensor:
        """Tensors (B, ...) side by side: (B, C)."""
        name = self.objective.name
        if not tensors:
            raise MeasurementError(f"{name}: its outputs do not depend on the parameters")
        if strange := [each.shape for each in tensors if each.shape[:1] != (num_examples,)]:
            raise NotMeasurable(
                f"{name} gives {tuple(strange[0])} for {num_examples} examples: the curvature of "
                "single examples takes outputs whose first dimension is the examples"
            )
        rows = torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], 1)
        if rows.shape[1] > LARGEST_OUTPUT:
            raise NotMeasurable(
                f"{name} gives {rows.shape[1]} numbers for one example: "
                f"the curvature of single examples is measured for at most {LARGEST_OUTPUT}"
            )
        return rows

    def _outputs_at_point(self, inputs: Tree) -> Tensor:
        with differentiable_twice():
            return self.outputs(self.params, inputs)

    def _pushed(self, outputs: Tensor, direction: Params) -> Tensor:
        """J_i·v of outputs with their graph, by differentiating Jᵀ: (B, C)."""
        if not outputs.requires_grad:
            return torch.zeros_like(outputs)
        free = torch.zeros_like(outputs, requires_grad=True)
        leaves = list(self.params.values())
        pulled_back = derivative(self.objective, outputs, leaves, free, create_graph=True)
        (pushed,) = derivative(
            self.objective, pulled_back, [free], [direction[name] for name in self.params]
        )
        return pushed


class ExampleCurvature:
    """H_i = J_iᵀ A_i J_i of each of an objective's n examples, none of them ever formed.

    J_i (C, P): the Jacobian of the example's C outputs; A_i (C, C): the Hessian of its loss in
    them. H = (1/n) Σ H_i is the Gauss–Newton matrix of `ggn_matvec`.

    output_curvature: A (n, C, C), in the objective's dtype.

    Raises MeasurementError where the model gives more than 128 numbers for an example.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._jacobian = OutputJacobian(objective)
        self.output_curvature = self._jacobian.output_curvature()

    @cached_property
    def kernel(self) -> Tensor:
        """J_iJ_iᵀ (n, C, C), a backward pass for every output of every example."""
        written = self._kernel_by_loop if self.notes else self._kernel_by_vmap
        kernels: list[Tensor] = []

        def add(chunk: Examples, start: int) -> None:
            kernels.append(written(chunk.inputs))

        self.objective.for_each_chunk(add)
        return torch.cat(kernels)

    @property
    def matvec(self) -> MatVec:
        """The product v -> Hv; (P,) -> (P,)."""
        return lambda vector: self._mean_product(self.output_curvature, vector)

    @property
    def squares_matvec(self) -> MatVec:
        """The product v -> (mean H_i²) v; (P,) -> (P,)."""
        squared = self._squared()
        return lambda vector: self._mean_product(squared, vector)

    def forms(self, vector: Tensor) -> Tensor:
        """vᵀH_i v of each example, for v (P,): (n,) in float64."""
        return self._forms(self.output_curvature, vector)

    def deviation_forms(self, vector: Tensor) -> Tensor:
        """vᵀH_i²v − 2 vᵀHH_i v of each example, for v (P,): (n,) in float64.

        How much each adds to vᵀ(mean H_i² − H²)v, to first order and up to a constant.
        """
        image = self.matvec(vector)
        stretch = float(image.norm() / vector.norm())
        image = image / stretch  # as long as v, so that rounding spares either
        # 2 vᵀH_i u = (v + u)ᵀH_i(v + u) − vᵀH_i v − uᵀH_i u
        mixed = self.forms(vector + image) - self.forms(vector) - self.forms(image)
        return self._forms(self._squared(), vector) - stretch * mixed

    def _squared(self) -> Tensor:
        """The M_i of H_i² = J_iᵀM_iJ_i: (n, C, C)."""
        return self.output_curvature @ self.kernel @ self.output_curvature

    def _forms(self, middle: Tensor, vector: Tensor) -> Tensor:
        """vᵀJ_iᵀM_iJ_i v of each example, for M (n, C, C) and v (P,): (n,) in float64."""
        forms: list[Tensor] = []
        direction = self.objective.unflatten(vector.to(self.objective.point))

        def add(chunk: Examples, start: int) -> None:
            rows = slice(start, start + chunk.num_examples)
            forms.append(self._jacobian.forms(chunk.inputs, middle[rows], direction))

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

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Why the kernel is computed example by example; empty where vmap gives it.

        That is tried on the first examples, against single backward passes.
        """
        few = self.objective.examples.part(slice(2)).inputs
        expected = self._kernel_by_loop(few)
        try:
            found = self._kernel_by_vmap(few)
        # whatever torch raises under vmap: for an operation without a batching rule, for a question
        # about a value, for gradients taken inside the model
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
        else:
            precision = torch.finfo(self.objective.coarsest_dtype).eps ** 0.5
            if torch.allclose(found, expected, rtol=precision, atol=float(expected.max()) * 1e-6):
                return ()
            reason = "its gradients differ from those of backward passes"
        return (f"vmap does not work on this model ({reason}), its examples went one by one",)

    def _kernel_by_loop(self, inputs: Tree) -> Tensor:
        """J_iJ_iᵀ of a chunk's examples, a backward pass for each output: (B, C, C)."""
        kernels = []
        for row in range(first_size(inputs)):
            single = tree_map(lambda leaf, row=row: leaf[row : row + 1], inputs)
            jacobian = self._jacobian.rows(single)
            kernels.append(jacobian @ jacobian.mT)
        return torch.stack(kernels)

    def _kernel_by_vmap(self, inputs: Tree) -> Tensor:
        """J_iJ_iᵀ of a chunk's examples: (B, C, C)."""

        def outputs(params: Params, example: Tree) -> Tensor:
            batch_of_one = tree_map(lambda leaf: leaf.unsqueeze(0), example)
            return self._jacobian.outputs(params, batch_of_one)[0]

        each = vmap(jacrev(outputs), in_dims=(None, 0))
        params = {name: leaf.detach() for name, leaf in self._jacobian.params.items()}
        row_bytes = self.objective.dim * self.objective.point.element_size()
        at_once = max(JACOBIAN_BYTES // (self.output_curvature.shape[1] * row_bytes), 1)
        kernels = []
        for start in range(0, first_size(inputs), at_once):
            part = tree_map(lambda leaf, start=start: leaf[start : start + at_once], inputs)
            by_parameter = each(params, self.objective.cast(part)).values()
            jacobians = [jacobian.flatten(2) for jacobian in by_parameter]  # (B, C, P')
            kernels.append(torch.stack([jacobian @ jacobian.mT for jacobian in jacobians]).sum(0))
        return torch.cat(kernels)

    def _mean_product(self, middle: Tensor, vector: Tensor) -> Tensor:
        """(1/n) Σ J_iᵀ M_i J_i v for M (n, C, C)."""
        total = torch.zeros_like(self.objective.point)
        direction = self.objective.unflatten(vector.to(self.objective.point))

        def add(chunk: Examples, start: int) -> None:
            rows = slice(start, start + chunk.num_examples)
            product = self._jacobian.product(chunk.inputs, middle[rows], direction)
            total.add_(flatten(list(product.values())))

        self.objective.for_each_chunk(add)
        return total / self.objective.num_examples
