"""The mean loss of a set of examples as a function of one flat parameter vector."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from noisescale.errors import (
    MeasurementError,
    SettingError,
    check_count,
    first_line,
    is_out_of_memory,
)
from noisescale.measure.objective.checks import check_any_company, check_separate
from noisescale.measure.objective.mean_loss.chunks import first_broken, largest_chunk, saved_bytes
from noisescale.measure.objective.mean_loss.point import LossesAtPoint, name_of
from noisescale.measure.objective.mean_loss.precision import check_amp
from noisescale.measure.objective.mean_loss.weights import RelativeWeights
from noisescale.measure.objective.parameters import (
    State,
    check_whole,
    choose,
    flatten,
    named,
    precise_dtype,
)
from noisescale.measure.objective.passes import differentiable_twice
from noisescale.problems.config import Amp
from noisescale.problems.problem import (
    Data,
    Examples,
    Params,
    Problem,
    Source,
    Tree,
    held,
    source_of,
)
from noisescale.statistics.display import counted, one_line

MEASURED_ONCE = 2  # for a first derivative: a forward pass alone, of which little is shared
MEASURED_EXAMPLES = 8  # whose graph is measured: enough that what all share hardly counts


class Objective(LossesAtPoint):
    """The mean loss L(θ) = (1/N) Σ_i ℓ_i(θ) over examples, the model in evaluation mode.

    Of a problem with weights it is Σ_i w_i ℓ_i/Σ_i w_i: the loss of an example is then taken as r_i
    ℓ_i, with r_i = w_i/w̄ its weight in units of the examples' mean weight w̄, so that everything
    that is a mean over examples is one by weight.

    The model is only read: its mode, gradients and random state stay as they are. In evaluation
    mode batch norm uses its running statistics, so that L is a mean over examples. Parameters that
    require no gradient are constants.

    Args:
        problem: the model, its loss and its examples.
        params: θ by name, copied; None: the model's own.
        examples: what L is the mean over, read as it is needed; None: all of the problem's training
            examples, in memory where they take no more than 1 GiB.
        dtype: float32 or float64, what everything is computed in; None: the parameters' own, but at
            least float32.
        chunk_size: examples in one pass; None: by the memory they take. Either is halved for good
            when the memory does not suffice.
        param_filter: names of parameters, or patterns as "head.*", that θ consists of; the others
            are constants. None: all that require a gradient.
        amp: "bf16": the model runs under torch.autocast, its matrix products in bfloat16; losses
            and derivatives are float32, and sums over examples what they are without. None: no.

    Attributes:
        name: of the model and its loss, for messages.
        examples: what L is the mean over.
        dtype: what everything is computed in.
        point: θ as a vector (P,), in the order of `model.named_parameters()`. Parameters of the
            loss follow those of the model, as "loss.NAME".
        amp: "bf16" where the model runs under torch.autocast.

    Raises:
        SettingError: parameters that do not fit the model, none that requires a gradient, or a bad
            dtype or chunk_size.
        MeasurementError: a parameter is not finite, or the model cannot be copied.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, Objective
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> objective = Objective(problem)
        >>> loss, gradient = objective.value_and_gradient()
        >>> round(loss, 2), gradient.shape
        (2.31, torch.Size([1482]))
    """

    def __init__(
        self,
        problem: Problem,
        params: Params | None = None,
        *,
        examples: Data | None = None,
        dtype: torch.dtype | None = None,
        chunk_size: int | None = None,
        param_filter: Sequence[str] | None = None,
        amp: Amp | None = None,
    ) -> None:
        if chunk_size is not None:
            check_count("chunk size", chunk_size)
        if dtype not in (None, torch.float32, torch.float64):
            raise SettingError(f"dtype {dtype}: give torch.float32 or torch.float64")
        check_whole(problem.model)
        state = State.of(problem)
        params = state.values(params)
        trainable = [name for name, param in state.parameters.items() if param.requires_grad]
        if not trainable:
            raise SettingError(
                f"{name_of(problem.model)} has no parameter that requires a gradient"
            )
        chosen = choose(trainable, param_filter)
        dtype = dtype or precise_dtype(params[name] for name in trainable)
        super().__init__(problem, params, chosen, dtype=dtype, amp=amp)
        check_amp(amp, self.device)
        if amp is not None and dtype != torch.float32:
            raise SettingError(
                f"amp {amp} with {dtype}: autocast leaves float64 as it is; give "
                "dtype=torch.float32, or leave amp out"
            )
        self.examples: Source = (
            held(source_of(problem.train)) if examples is None else source_of(examples)
        )
        self._is_filtered = len(chosen) < len(trainable)
        self._weights = problem.weights and RelativeWeights(problem.weights, self.examples)
        self._chunk_size = chunk_size
        self._given = problem.model
        self._coarsest: torch.dtype | None = None  # not yet known
        self._is_separate = False  # not yet looked at in a whole chunk

    def __repr__(self) -> str:
        return one_line(self, self.name, *self.told())

    def told(self) -> tuple[str, ...]:
        """How many examples and parameters it is of, and in which dtype, in words."""
        device = "" if self.device.type == "cpu" else f" on {self.device}"
        dtype = str(self.dtype).removeprefix("torch.")
        return counted(self.num_examples, "example"), f"P = {self.dim:,}", f"{dtype}{device}"

    @property
    def num_examples(self) -> int:
        """N."""
        return self.examples.num_examples

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the examples, the parameters and the precision."""
        notes = [*self.examples.notes]
        if self._is_filtered:
            notes.append(f"of {named(list(self._layout.shapes))} alone, the others being constants")
        coarsest = self._coarsest or self.dtype
        if torch.finfo(coarsest).eps > torch.finfo(self.dtype).eps:
            notes.append(f"a part of {self.name} computes in {coarsest}, the rest in {self.dtype}")
        return tuple(notes)

    def on(self, examples: Source) -> Objective:
        """The mean loss over other examples, at the same point.

        Args:
            examples: what it is the mean over, by their own mean weight where they have weights.
        """
        other = self.part(examples)
        other._weights = self._weights and self._weights.over(examples)
        return other

    def part(self, examples: Source) -> Objective:
        """Some of the same examples, whose losses stay what they are in the whole's mean.

        Args:
            examples: the part; with weights its own mean of r_i need not be one.
        """
        if self._weights is not None:
            _ = self._weights.mean  # of the whole, so that what is wrong with it is said at once
        other = copy.copy(self)
        other.examples = examples
        other._chunk_size = self.chunk_size  # measured once, not for every batch
        return other

    def differentiated_once(self) -> Objective:
        """The same, its chunks, unless their size is given, by what a first derivative takes."""
        other = copy.copy(self)
        if self._chunk_size is None:
            saved = self._saved_bytes(
                lambda params, chunk: [self.example_losses(params, chunk)], MEASURED_ONCE
            )
            other._chunk_size = largest_chunk(saved, self.device)
        return other

    def losses(self, outputs: Any, targets: Tree, params: Params | None = None) -> Tensor:
        """One loss per example (B,), times r_i where examples have weights.

        Args:
            outputs: what the model returned.
            targets: (B, ...), or a dict, tuple or list of such, on any device.
            params: the differentiated parameters by name, of which the loss may have some; None:
                those of the point, as constants.

        Raises:
            MeasurementError: the problem's loss has reduced them already, or fails on a target.
        """
        losses = super().losses(outputs, targets, params)
        return losses if self._weights is None else self._weights.weigh(losses, targets)

    @property
    def is_weighted(self) -> bool:
        """Whether examples count by weights."""
        return self._weights is not None

    def relative_weights(self) -> Tensor | None:
        """r_i = w_i/w̄ of every example (N,), float64, on the CPU; None: all of them one.

        Raises:
            SettingError: weights that are not finite, below zero, or all zero.
        """
        return None if self._weights is None else self._weights.of(self.examples)

    def has_weight(self, examples: Source) -> bool:
        """Whether any of these examples has a weight above zero; without weights each has one.

        Args:
            examples: some of these, or others.
        """
        return self._weights is None or self._weights.any_of(examples)

    def total_relative(self, chunk: Examples) -> float:
        """Σ r_i over a chunk, which counts for as many examples of mean weight.

        Args:
            chunk: of the examples.
        """
        return float(chunk.num_examples) if self._weights is None else self._weights.total(chunk)

    def check_separate(self) -> None:
        """Whether each example has a loss of its own, by those of the first few; looked at once.

        Inputs that require a gradient are detached, unless the model itself differentiates by them.

        Raises:
            MeasurementError: a loss is random, depends on the other examples of the batch or not on
                the parameters, or cannot be computed.
        """
        if self._coarsest is not None:
            return
        losses = self._losses_at_point()
        try:
            self._coarsest = check_separate(
                losses, self.examples, name=self.name, model=self._given
            )
        except MeasurementError as error:
            if not self._detaches or "does not require grad" not in str(error):
                raise
            self._detaches = False
            self._coarsest = check_separate(
                losses, self.examples, name=self.name, model=self._given
            )

    def check_any_company(self) -> None:
        """The same, and that the losses of a whole chunk are those of its parts.

        Raises:
            MeasurementError: as `check_separate`.
        """
        if self._is_separate:
            return
        losses, dtype = self._losses_at_point(), self.coarsest_dtype

        def compare(chunk: Examples, start: int) -> None:
            check_any_company(losses, chunk, dtype, name=self.name)

        self.on(self.examples.part(slice(self.chunk_size))).for_each_chunk(compare)
        self._is_separate = True

    @property
    def coarsest_dtype(self) -> torch.dtype:
        """The least precise dtype that model or loss compute in, whatever `dtype` is."""
        self.check_separate()
        assert self._coarsest is not None
        return self._coarsest

    def _losses_at_point(self) -> Callable[[Examples], Tensor]:
        """The losses (B,) of any examples at the point, with their graph."""
        params = self.params()
        return lambda part: self.example_losses(params, part)

    def value_and_gradient(self, vector: Tensor | None = None) -> tuple[float, Tensor]:
        """L and its gradient (P,).

        Args:
            vector: θ (P,); None: the point.
        """
        weights = torch.ones(1, self.num_examples, dtype=self.dtype, device=self.device)
        losses, gradients = self.weighted_gradients(weights, vector)
        return losses.sum().item() / self.num_examples, gradients[0] / self.num_examples

    def weighted_gradients(
        self, weights: Tensor, vector: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The losses ℓ_i (N,) in float64, and the gradients (K, P) of K weighted sums of them.

        Args:
            weights: w (K, N), for the gradients of Σ_i w_ki ℓ_i.
            vector: θ (P,); None: the point.
        """
        params = self.params(vector)
        losses = torch.empty(self.num_examples, dtype=torch.float64, device=self.device)
        gradients = self.point.new_zeros(len(weights), self.dim)

        def add(chunk: Examples, start: int) -> None:
            rows = slice(start, start + chunk.num_examples)
            of_chunk = self.example_losses(params, chunk)
            losses[rows] = of_chunk.detach()
            if not of_chunk.requires_grad:  # as where none of them uses the parameters
                return
            parts = [
                flatten(self.derivative(of_chunk, params, row[rows].to(of_chunk)))
                for row in weights
            ]
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.add_(part)

        self.for_each_chunk(add)
        return losses, gradients

    @property
    def chunk_size(self) -> int:
        """Examples in one pass."""
        if self._chunk_size is None:
            self._chunk_size = largest_chunk(self.bytes_per_example, self.device)
        return self._chunk_size

    def cap_chunk_size(self, largest: int) -> None:
        """Takes no more than `largest` examples in one pass from now on.

        Args:
            largest: examples; at least one is taken all the same.
        """
        self._chunk_size = max(min(self.chunk_size, largest), 1)

    @cached_property
    def bytes_per_example(self) -> int:
        """What autograd keeps of one example for a second derivative, measured on the first few."""
        return self._saved_bytes(self._twice_differentiable, MEASURED_EXAMPLES)

    def _saved_bytes(
        self, work: Callable[[Params, Examples], list[Tensor]], num_examples: int
    ) -> int:
        """What autograd keeps of one of the first examples in a pass that gives these roots."""
        self.check_separate()  # so that what fails is said in the package's own words
        params = self.params()
        shared = {
            param.untyped_storage().data_ptr()
            for param in [*params.values(), *self.constants.values()]
        }
        bytes_each: list[int] = []

        def measure(probe: Examples, start: int) -> None:
            if not bytes_each:  # of the first ones that the memory holds
                saved = saved_bytes(lambda: work(params, probe), shared)
                bytes_each.append(max(saved // probe.num_examples, 1))

        probes = copy.copy(self)
        probes.examples = self.examples.part(slice(num_examples))
        probes._chunk_size = num_examples
        probes.for_each_chunk(measure)
        return bytes_each[0]

    def _twice_differentiable(self, params: Params, chunk: Examples) -> list[Tensor]:
        """The summed loss of a chunk and its gradient, with the graph of both."""
        with differentiable_twice():
            loss = self.example_losses(params, chunk).sum()
        if not loss.requires_grad:
            return [loss]
        return [loss, *self.derivative(loss, params, create_graph=True)]

    def for_each_chunk(self, work: Callable[[Examples, int], None]) -> None:
        """Calls a function on the examples, a chunk after the other; the last one may be short.

        Where the memory does not suffice the chunk size is halved and the same examples are tried
        again, so the function must add its result as its last act.

        Args:
            work: is called with a chunk and the index of its first example.

        Raises:
            MeasurementError: the memory does not hold a single example.
        """
        start = 0
        while start < self.num_examples:
            chunk = self.examples.part(slice(start, start + self.chunk_size))
            try:
                work(chunk, start)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if chunk.num_examples == 1:
                    raise MeasurementError(
                        f"{self.name}: the memory does not hold a single example "
                        f"({first_line(error)})"
                    ) from error
                self._chunk_size = chunk.num_examples // 2
                continue
            start += chunk.num_examples

    def first_broken(self, is_broken: Callable[[Examples], bool]) -> int:
        """The index of the first example for which a sum over examples is not finite.

        Args:
            is_broken: whether the sum over a part of the examples is not finite; of one of them it
                is not.
        """
        return first_broken(self.examples, is_broken, chunk_size=self.chunk_size)
