"""Products of the Hessian and of the generalised Gauss–Newton matrix with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from noisescale.errors import MeasurementError, first_line
from noisescale.measure.objective import Objective, flatten, free_bytes, is_out_of_memory
from noisescale.measure.objective.checks import graph_nodes
from noisescale.measure.objective.outputs import with_tensors
from noisescale.measure.objective.parameters import as_real
from noisescale.measure.objective.passes import differentiable_twice
from noisescale.problems.problem import Data, Examples, Params, Problem, Source, held, source_of
from noisescale.statistics.display import one_line

# Of graphs kept between products on a CPU: 512 MiB, modest on a machine that trains such models
KEPT_BYTES = 2**29
# On a GPU the share of the free memory: a quarter, beside which a chunk's graph, an eighth, has
# room
KEPT_GPU_SHARE = 4

ChunkProduct = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def hessian_matvec(
    problem: Problem,
    params: Params | None = None,
    *,
    examples: Data | None = None,
    chunk_size: int | None = None,
    dtype: torch.dtype | None = None,
    param_filter: Sequence[str] | None = None,
) -> CurvatureProduct:
    """The product with the Hessian of the mean loss, v -> Hv, (P,) -> (P,).

    H = ∇²L(θ), L the *mean* over the examples, the model in evaluation mode; by differentiating the
    gradient, as a graph, along v (Pearlmutter 1994). At one θ that graph is the same for every v,
    so it is recorded once and kept for as many examples as 512 MiB hold (on a GPU: a quarter of the
    free memory); a product then costs about 1.7 gradients on them and 2.8 on the others, where
    forward-over-reverse differentiation costs 3 on all (the study's MLP, 2 CPU cores). The graph is
    that of the θ given: later changes of the model do not reach it.

    Cross-entropy of 256 classes or more, as of a language model, has its second derivative in
    closed form, without a graph through the softmax: w(p∘u − p(p·u)) along u, for each row of
    probabilities p.

    A wrong second derivative, as torch's of `parametrizations.weight_norm`, shows only as a lack of
    symmetry, for which `top_eigenpairs`, `spectral_moments` and `spectral_density` look.

    Args:
        problem: the model, its loss and its examples.
        params: θ by name; None: the model's own.
        examples: what L is the mean over, as a split of a Problem is given; None: all training
            examples. A Dataset is held where it takes no more than 1 GiB.
        chunk_size: examples in one pass; None: by the memory they take. Chunks are summed and
            divided by N once, so their size does not change the result beyond rounding.
        dtype: float32 or float64; None: the parameters' own, at least float32.
        param_filter: names or patterns of the parameters that count, see `Objective`; None: all.

    Returns:
        A function that knows its `dim` P, its `dtype` and its `device`. Calling it raises
        MeasurementError where the loss has no second derivative or the product is not finite.

    Raises:
        SettingError: parameters that do not fit the model, or a bad chunk_size or dtype.
        MeasurementError: parameters that are not finite.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, hessian_matvec
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> hessian = hessian_matvec(problem)
        >>> hessian.dim
        1482
        >>> direction = hessian.objective.value_and_gradient()[1]
        >>> hessian(direction).shape
        torch.Size([1482])
    """
    return CurvatureProduct(
        Objective(
            problem,
            params,
            examples=None if examples is None else held(source_of(examples)),
            chunk_size=chunk_size,
            dtype=dtype,
            param_filter=param_filter,
        ),
        record_hessian,
    )


def ggn_matvec(
    problem: Problem,
    params: Params | None = None,
    *,
    examples: Data | None = None,
    chunk_size: int | None = None,
    dtype: torch.dtype | None = None,
    param_filter: Sequence[str] | None = None,
) -> CurvatureProduct:
    """The product with the Gauss–Newton matrix of the mean loss, v -> Gv, (P,) -> (P,).

    G = (1/N) Σ_i J_iᵀ (∇²_z ℓ_i) J_i, J_i the Jacobian of the model's outputs z_i (Schraudolph
    2002): positive semi-definite where the loss is convex in the outputs, and the Fisher matrix of
    a cross-entropy. A product costs about 1.4 gradients on the examples whose graph is kept and 2.4
    on the others; otherwise as `hessian_matvec`.

    Args:
        problem: the model, its loss and its examples.
        params: θ by name; None: the model's own.
        examples: what L is the mean over, as a split of a Problem is given; None: all training
            examples. A Dataset is held where it takes no more than 1 GiB.
        chunk_size: examples in one pass; None: by the memory they take.
        dtype: float32 or float64; None: the parameters' own, at least float32.
        param_filter: names or patterns of the parameters that count, see `Objective`; None: all.

    Returns:
        A function that knows its `dim` P, its `dtype` and its `device`. Calling it raises
        MeasurementError where the loss has no second derivative in the outputs or the product is
        not finite.

    Raises:
        SettingError: parameters that do not fit the model, or a bad chunk_size or dtype.
        MeasurementError: parameters that are not finite.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, ggn_matvec, spectral_moments
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> spectral_moments(ggn_matvec(problem)).trace
        Estimate(3.073 ± 0.041 (2.980–3.166))
    """
    return CurvatureProduct(
        Objective(
            problem,
            params,
            examples=None if examples is None else held(source_of(examples)),
            chunk_size=chunk_size,
            dtype=dtype,
            param_filter=param_filter,
        ),
        record_ggn,
    )


class CurvatureProduct:
    """v -> (1/N) Σ over chunks of their products with v, by graphs that are kept between products.

    What `hessian_matvec` and `ggn_matvec` return: called with a vector (P,), it gives the product
    (P,), and it knows its `dim`, `dtype` and `device`.

    Args:
        objective: the loss, its examples and its point.
        record: what gives a chunk's product, `record_hessian` or `record_ggn`.
        kept_bytes: how much of the graphs is kept; None: 512 MiB, on a GPU a quarter of what is
            free.
    """

    def __init__(
        self,
        objective: Objective,
        record: Callable[[Objective, Params, Examples], ChunkProduct],
        *,
        kept_bytes: int | None = None,
    ) -> None:
        self.objective = objective
        self._record = record
        self._params = objective.params()
        self._kept_bytes = kept_bytes
        self._kept: dict[tuple[int, int], ChunkProduct] = {}  # by first and last example

    def __repr__(self) -> str:
        matrix = "Hessian" if self._record is record_hessian else "Gauss–Newton matrix"
        return one_line(self, f"{matrix} of {self.objective.name}", *self.objective.told())

    @property
    def dim(self) -> int:
        """P, the number of differentiated parameters."""
        return self.objective.dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype its products are computed in."""
        return self.objective.dtype

    @property
    def device(self) -> torch.device:
        """The device its products are computed on."""
        return self.objective.device

    @property
    def coarsest_dtype(self) -> torch.dtype:
        """The least precise dtype that its products go through, as of a layer in bfloat16."""
        return self.objective.coarsest_dtype

    def __call__(self, vector: Tensor) -> Tensor:
        """The product (P,) with a vector (P,)."""
        return self._apply(vector, lambda size, part: None)

    def on(self, examples: Source) -> CurvatureProduct:
        """The same matrix of other examples, at the same point.

        Args:
            examples: whose mean loss it is the matrix of.
        """
        return CurvatureProduct(self.objective.on(examples), self._record)

    def with_forms(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The product, and what each of the J chunks contributes to vᵀHv.

        Args:
            vector: v, (P,).

        Returns:
            Hv (P,), vᵀH_jv of each chunk's mean loss (J,), and its share of the examples, by their
            weights where they have some (J,).
        """
        sizes_and_forms: list[tuple[float, float]] = []

        def note(size: float, part: Tensor) -> None:
            form = float(vector.double() @ part.double()) / size if size else 0.0
            sizes_and_forms.append((size, form))

        image = self._apply(vector, note)
        sizes, forms = torch.tensor(sizes_and_forms, dtype=torch.float64).T
        return image, forms, sizes / self.objective.num_examples

    def forms(self, vectors: Tensor, wanted: Tensor) -> Tensor:
        """What chunks contribute to vᵀHv of K vectors, each chunk's graph recorded once for all.

        Args:
            vectors: v, (K, P).
            wanted: with which of the J chunks each of them is multiplied, (K, J).

        Returns:
            vᵀH_jv of the chunks' mean losses (K, J), float64; nan where it is not wanted.

        Raises:
            MeasurementError: there are more chunks than J by now, as after the memory ran out.
        """
        split = [
            list(self.objective.unflatten(v.to(self.objective.point)).values()) for v in vectors
        ]
        columns: list[list[float]] = []

        def multiply(product: ChunkProduct, size: float) -> None:
            if len(columns) == wanted.shape[1]:
                raise MeasurementError(
                    f"{self.objective.name}: the memory ran out between products with the "
                    "Hessian; give a smaller chunk size"
                )
            column = [math.nan] * len(split)
            for number in wanted[:, len(columns)].nonzero().flatten().tolist():
                image = flatten(product(split[number]))
                if not image.isfinite().all():
                    raise MeasurementError(self._say_not_finite(split[number]))
                form = float(vectors[number].double() @ image.double())
                column[number] = form / size if size else 0.0
            columns.append(column)

        self._for_each_product(multiply)
        return torch.tensor(columns, dtype=torch.float64).T

    @property
    def num_kept(self) -> int:
        """On how many examples a product costs least, for their graphs are kept."""
        return min(self._num_kept_chunks() * self.objective.chunk_size, self.objective.num_examples)

    def _apply(self, vector: Tensor, note: Callable[[float, Tensor], None]) -> Tensor:
        """The product, each chunk's size, by weight, and its summed product (P,) told to `note`."""
        parts = list(self.objective.unflatten(vector.to(self.objective.point)).values())
        total = torch.zeros_like(self.objective.point)

        def add(product: ChunkProduct, size: float) -> None:
            image = flatten(product(parts))
            note(size, image)
            total.add_(image)  # last, since it takes no memory: a chunk that fails adds nothing

        self._for_each_product(add)
        if not total.isfinite().all():
            raise MeasurementError(self._say_not_finite(parts))
        return total / self.objective.num_examples

    def _for_each_product(self, work: Callable[[ChunkProduct, float], None]) -> None:
        """Calls a function with the product and the size, by weight, of each chunk in turn."""
        self.objective.check_any_company()
        may_keep = self._num_kept_chunks()
        recorded_for = self.objective.chunk_size

        def visit(chunk: Examples, start: int) -> None:
            out_of_memory = self.objective.chunk_size != recorded_for
            if out_of_memory:  # give back what was kept
                self._kept.clear()
            key = (start, chunk.num_examples)
            product = self._kept.get(key) or self._record(self.objective, self._params, chunk)
            work(product, self.objective.total_relative(chunk))
            if len(self._kept) < may_keep and not out_of_memory:
                self._kept[key] = product

        self.objective.for_each_chunk(visit)

    def _say_not_finite(self, vector: Sequence[Tensor]) -> str:
        """What is not finite, in a sentence."""
        objective = self.objective
        if not all(part.isfinite().all() for part in vector):
            return f"{objective.name}: its curvature is multiplied by a vector that is not finite"

        def is_broken(part: Examples) -> bool:
            image = self._record(objective, self._params, part)(vector)
            return not bool(flatten(image).isfinite().all())

        return (
            f"{objective.name}: the product with the curvature of an example (number "
            f"{objective.first_broken(is_broken)} of the {objective.num_examples} measured, from "
            "0) is not finite, as where a norm or a square root is taken of zero"
        )

    def _num_kept_chunks(self) -> int:
        """How many chunks' graphs, each with its gradient, the memory is to hold."""
        objective = self.objective
        if self._kept_bytes is None:
            on_gpu = objective.device.type == "cuda"
            free = free_bytes(objective.device) if on_gpu else 0
            self._kept_bytes = free // KEPT_GPU_SHARE if on_gpu else KEPT_BYTES
        gradient_bytes = objective.dim * objective.point.element_size()
        return self._kept_bytes // (
            objective.chunk_size * objective.bytes_per_example + gradient_bytes
        )


def record_hessian(objective: Objective, params: Params, chunk: Examples) -> ChunkProduct:
    """The product with the Hessian of the chunk's *summed* loss."""
    leaves = list(params.values())
    with differentiable_twice():
        loss = objective.example_losses(params, chunk).sum()
    if not loss.requires_grad:  # as where none of the chunk's examples uses the parameters
        return _zeros(leaves)
    gradient = derivative(objective, loss, leaves, create_graph=True)
    dependent = [part for part in gradient if part.requires_grad]
    if not dependent:
        raise MeasurementError(
            f"{objective.name} has no second derivative: "
            "its gradient does not depend on the parameters"
        )

    def product(vector: Sequence[Tensor]) -> Sequence[Tensor]:
        along = [v for v, part in zip(vector, gradient, strict=True) if part.requires_grad]
        return derivative(objective, dependent, leaves, along)

    return product


def record_ggn(objective: Objective, params: Params, chunk: Examples) -> ChunkProduct:
    """The product with the Gauss–Newton matrix of the chunk's *summed* loss."""
    leaves = list(params.values())
    boundary = record_boundary(objective, params, chunk)
    if not any(part.requires_grad for part in boundary.outputs):
        return _zeros(leaves)
    outputs, fixed = boundary.outputs, boundary.fixed
    curved_gradients = [part for part in boundary.gradients if part.requires_grad]
    if not curved_gradients:
        raise MeasurementError(f"{objective.name} has no second derivative in the model's outputs")
    free = [torch.zeros_like(part, requires_grad=True) for part in outputs]
    # Jᵀ·free, linear in it
    pulled_back = derivative(objective, outputs, leaves, free, create_graph=True)

    def product(vector: Sequence[Tensor]) -> Sequence[Tensor]:
        pushed = derivative(objective, pulled_back, free, vector)  # Jv, by differentiating Jᵀ
        along = [
            part
            for part, gradient in zip(pushed, boundary.gradients, strict=True)
            if gradient.requires_grad
        ]
        curved = derivative(objective, curved_gradients, fixed, along)
        return derivative(objective, outputs, leaves, curved)

    return product


class Boundary(NamedTuple):
    """Where the model ends and the loss begins: the tensors that the loss is computed from.

    outputs: those of the model, real. fixed: the same values, as leaves. gradients: of the chunk's
    *summed* loss in these, with its graph. numbers: which of all the model's tensors they are.
    """

    outputs: list[Tensor]
    fixed: list[Tensor]
    gradients: list[Tensor]
    numbers: list[int]


def record_boundary(
    objective: Objective, params: Params, chunk: Examples, numbers: Sequence[int] | None = None
) -> Boundary:
    """The boundary between the model and the loss on a chunk.

    Args:
        objective: the model and its loss.
        params: the differentiated parameters by name, leaves.
        chunk: the examples.
        numbers: of the tensors; None: those that the loss uses and that depend on the parameters.
    """
    outputs: list[Tensor] = []
    fixed: list[Tensor] = []

    def cut(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        outputs.append(as_real(tensor))
        fixed.append(outputs[-1].detach().requires_grad_())
        copy = fixed[-1].clone()  # a leaf itself must not be changed in place
        return torch.complex(*copy.unbind(-1)) if tensor.is_complex() else copy

    with differentiable_twice():
        returned = with_tensors(objective.outputs(params, chunk.inputs), cut)
        constants = {name: leaf.detach() for name, leaf in params.items()}
        loss = objective.losses(returned, chunk.targets, constants).sum()
    gradients: list[Tensor | None] = [None] * len(fixed)
    if loss.requires_grad:
        gradients = list(derivative(objective, loss, fixed, create_graph=True, unused=True))
    if numbers is None:
        numbers = [
            number
            for number, (output, gradient) in enumerate(zip(outputs, gradients, strict=True))
            if gradient is not None and output.requires_grad
        ]
    chosen = [(outputs[number], fixed[number], gradients[number]) for number in numbers]
    return Boundary(
        [output for output, _, _ in chosen],
        [leaf for _, leaf, _ in chosen],
        [torch.zeros_like(leaf) if part is None else part for _, leaf, part in chosen],
        list(numbers),
    )


def _zeros(leaves: Sequence[Tensor]) -> ChunkProduct:
    """The product with a matrix of zeros."""
    return lambda vector: [torch.zeros_like(leaf) for leaf in leaves]


def derivative(
    objective: Objective,
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    along: Tensor | Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
    unused: bool = False,
) -> Sequence[Tensor]:
    """autograd.grad that leaves the graph in place.

    Args:
        objective: whose derivative it is, for messages.
        outputs: what is differentiated.
        inputs: with respect to what.
        along: what multiplies the outputs from the left; None: one, for a scalar.
        create_graph: whether the derivative is to be differentiated again.
        unused: whether None stands where there is no dependence, instead of zeros.

    Raises:
        MeasurementError: an operation cannot be differentiated, or not once more.
    """
    try:
        parts = torch.autograd.grad(
            outputs,
            inputs,
            along,
            create_graph=create_graph,
            retain_graph=True,
            allow_unused=unused or None,
            materialize_grads=not unused,
        )
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        raise MeasurementError(
            f"{objective.name} has no second derivative, as one of its operations can be "
            f"differentiated only once: {first_line(error)}; write that operation in others"
        ) from error
    if create_graph:
        roots = [outputs] if isinstance(outputs, Tensor) else outputs
        _check_twice_differentiable(
            objective, [*roots, *(part for part in parts if part is not None)]
        )
    return parts


def _check_twice_differentiable(objective: Objective, tensors: Sequence[Tensor]) -> None:
    """MeasurementError where the tensors' graph has a backward pass marked once_differentiable.

    Its second derivative would silently count as zero: it leaves a node Error in the graph, which
    raises only on the way to its own inputs, and those are cut off.
    """
    seen = graph_nodes(tensors)
    if any(type(node).__name__ == "Error" for node in seen):
        custom = {type(node).__name__ for node in seen if isinstance(node, BackwardCFunction)}
        suspects = f" (it uses {', '.join(sorted(custom))})" if custom else ""
        raise MeasurementError(
            f"{objective.name} has no second derivative: "
            f"one of its operations can be differentiated only once{suspects}"
        )
