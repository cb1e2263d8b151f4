"""The mean loss of a set of examples as a function of one flat parameter vector."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_map

from noisescale.errors import (
    MeasurementError,
    SettingError,
    check_count,
    first_line,
    is_out_of_memory,
    own_words,
)
from noisescale.measure.objective.checks import (
    check_any_company,
    check_separate,
    graph_bytes,
)
from noisescale.measure.objective.model_copy import ModelCopy, forgetting
from noisescale.measure.objective.parameters import (
    Layout,
    State,
    choose,
    flatten,
    named,
    precise_dtype,
)
from noisescale.measure.objective.passes import as_measured
from noisescale.problems.problem import (
    Data,
    Examples,
    LossFn,
    Params,
    Problem,
    Source,
    Tree,
    arguments_of,
    call_model,
    check_weights,
    first_size,
    held,
    kind_of,
    shapes,
    source_of,
    weights_of,
)
from noisescale.statistics.display import counted, one_line

# What one chunk's graph may take on a CPU: 128 MiB, modest beside what is kept between products
CHUNK_BYTES = 2**27
# On a GPU the share of the free memory: an eighth, which leaves room for the graphs that are kept
# between products and for what the allocator does not give back
CHUNK_GPU_SHARE = 8
LARGEST_CHUNK, LARGEST_CHUNK_ON_GPU = 2048, 65_536  # examples; a larger chunk is no faster
MEASURED_ONCE = 2  # for a first derivative: a forward pass alone, of which little is shared
WEIGHED = 4096  # examples whose targets are read at a time to weigh them
MEASURED_EXAMPLES = 8  # whose graph is measured: enough that what all share hardly counts


class Objective:
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

    Attributes:
        name: of the model and its loss, for messages.
        examples: what L is the mean over.
        dtype: what everything is computed in.
        point: θ as a vector (P,), in the order of `model.named_parameters()`. Parameters of the
            loss follow those of the model, as "loss.NAME".

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
    ) -> None:
        if chunk_size is not None:
            check_count("chunk size", chunk_size)
        if dtype not in (None, torch.float32, torch.float64):
            raise SettingError(f"dtype {dtype}: give torch.float32 or torch.float64")
        if any(isinstance(param, UninitializedParameter) for param in problem.model.parameters()):
            raise SettingError(
                f"{_name(problem.model)} has lazy parameters: run it on one batch first"
            )
        if _is_sharded(problem.model):
            raise SettingError(
                f"{_name(problem.model)} is sharded (FSDP, fully_shard or DTensor), and only whole "
                "models are measured: gather its weights, as get_model_state_dict(model, options="
                "StateDictOptions(full_state_dict=True)) does, load them into a model that is not "
                "sharded, and measure that"
            )
        state = State.of(problem)
        params = state.values(params)
        trainable = [name for name, param in state.parameters.items() if param.requires_grad]
        if not trainable:
            raise SettingError(f"{_name(problem.model)} has no parameter that requires a gradient")
        chosen = choose(trainable, param_filter)
        differentiated = {name: params[name] for name in chosen}
        self.name = f"{_name(problem.model)} with the loss {_name(problem.loss)}"
        self.examples: Source = (
            held(source_of(problem.train)) if examples is None else source_of(examples)
        )
        self.dtype = dtype or precise_dtype(params[name] for name in trainable)
        self._layout = Layout.of(differentiated)
        self._is_filtered = len(chosen) < len(trainable)
        self._detaches = True  # inputs that require a gradient
        self.point = flatten(list(differentiated.values())).to(self.dtype)
        self._constants = {
            name: self.cast(tensor.detach()).clone()
            for name, tensor in (params | state.buffers).items()
            if name not in differentiated
        }
        self._model = ModelCopy(problem.model, state.names)
        self._loss = problem.loss
        self._weights = problem.weights
        self._mean_weight: float | None = None  # not yet known
        self._loss_copy = (
            ModelCopy(problem.loss, state.names) if isinstance(problem.loss, nn.Module) else None
        )
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
    def model(self) -> nn.Module:
        """The copy in evaluation mode, with the problem's own parameters; to look at."""
        return self._model.module

    @property
    def dim(self) -> int:
        """P, the number of differentiated parameters."""
        return len(self.point)

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return self.point.device

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
        other._mean_weight = None
        return other

    def part(self, examples: Source) -> Objective:
        """Some of the same examples, whose losses stay what they are in the whole's mean.

        Args:
            examples: the part; with weights its own mean of r_i need not be one.
        """
        if self.is_weighted:
            _ = self.mean_weight  # of the whole
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
            other._chunk_size = self._largest_chunk(saved)
        return other

    def instance(self, params: Params) -> nn.Module:
        """A copy of the model, in evaluation mode, with other tensors as its parameters.

        Args:
            params: the tensors by name, used as they are.
        """
        return self._model.instance(self._layout.as_given(params) | self._constants)

    def params(self, vector: Tensor | None = None) -> Params:
        """The differentiated parameters by name: leaves, ready to be differentiated.

        Args:
            vector: θ (P,); None: the point.
        """
        leaves = self.unflatten(self.point if vector is None else vector.to(self.point))
        return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}

    def unflatten(self, vector: Tensor) -> Params:
        """The parts of a vector by parameter, each in its parameter's shape.

        A complex parameter of shape (...) counts as real and imaginary parts, (..., 2).

        Args:
            vector: (P,), in the order of the point.
        """
        return self._layout.unflatten(vector)

    def outputs(self, params: Params, inputs: Tree) -> Any:
        """What the model returns, such as outputs (B, ...).

        Args:
            params: the differentiated parameters by name.
            inputs: (B, *F), or a dict, tuple or list of such, on any device.
        """
        arguments, keywords = arguments_of(self.cast(inputs))
        tensors = self._layout.as_given(params) | self._constants
        with self._model.exchanged(tensors) as model, as_measured():
            return model(*arguments, **keywords)

    def call(self, model: nn.Module, inputs: Tree) -> Any:
        """What another instance of the model returns, to be differentiated once, by autograd.

        Args:
            model: as of `instance`.
            inputs: (B, *F), or a dict, tuple or list of such, on any device.
        """
        with forgetting(model), as_measured(once=True):
            return call_model(model, self.cast(inputs))

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
        try:
            with self._loss_at(params) as loss, as_measured():
                losses = loss(outputs, self.cast(targets))
        except IndexError as error:  # a class that the model has no output for
            raise MeasurementError(f"{self.name} fails on its targets: {error}") from error
        except (TypeError, AttributeError, KeyError) as error:
            if isinstance(outputs, Tensor):
                raise
            raise MeasurementError(
                f"{self.name} fails on what the model returns, {kind_of(outputs)}: "
                f"{own_words(error)}; the loss is given it as it is: take "
                "from it what it needs, as outputs.logits"
            ) from error
        num_examples = first_size(targets)
        if not isinstance(losses, Tensor) or losses.shape != (num_examples,):
            raise MeasurementError(
                f"{self.name} gives {_form(losses)} for {num_examples} examples: "
                f"return one loss per example, shape ({num_examples},), "
                + _how_to_reduce(losses, num_examples)
            )
        if self._weights is None:
            return losses
        return losses * (weights_of(self._weights, targets).to(losses) / self.mean_weight)

    @property
    def is_weighted(self) -> bool:
        """Whether examples count by weights."""
        return self._weights is not None

    @property
    def mean_weight(self) -> float:
        """w̄, of the examples; of a part that of the whole.

        Raises:
            SettingError: weights that are not finite, below zero, or all zero.
        """
        if self._mean_weight is None:
            total = float(self._all_weights().sum())
            if total <= 0:
                raise SettingError(
                    f"the weights of the Problem are zero for all of {self.num_examples} examples: "
                    "no mean is defined"
                )
            self._mean_weight = total / self.num_examples
        return self._mean_weight

    def relative_weights(self) -> Tensor | None:
        """r_i = w_i/w̄ of every example (N,), float64, on the CPU; None: all of them one."""
        return self._all_weights() / self.mean_weight if self.is_weighted else None

    def _all_weights(self) -> Tensor:
        """w_i of every example (N,), float64, on the CPU."""
        assert self._weights is not None
        parts = []
        for start in range(0, self.num_examples, WEIGHED):
            targets = self.examples.part(slice(start, start + WEIGHED)).targets
            parts.append(weights_of(self._weights, targets).double().cpu())
        weights = torch.cat(parts)
        check_weights(weights)
        return weights

    def total_relative(self, chunk: Examples) -> float:
        """Σ r_i over a chunk, which counts for as many examples of mean weight.

        Args:
            chunk: of the examples.
        """
        if self._weights is None:
            return float(chunk.num_examples)
        return float(weights_of(self._weights, chunk.targets).double().sum()) / self.mean_weight

    def _loss_at(self, params: Params | None) -> contextlib.AbstractContextManager[LossFn]:
        """The loss, with these values of the parameters that it may have."""
        if self._loss_copy is None:
            return contextlib.nullcontext(self._loss)
        params = self.unflatten(self.point) if params is None else params
        return self._loss_copy.exchanged(self._layout.as_given(params) | self._constants)

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

    def example_losses(self, params: Params, chunk: Examples) -> Tensor:
        """The losses (B,) of a chunk, as one pass.

        Args:
            params: the differentiated parameters by name.
            chunk: the examples.

        Raises:
            MeasurementError: what the model or the loss raises, in the package's own words.
        """
        try:
            return self.losses(self.outputs(params, chunk.inputs), chunk.targets, params)
        except (MeasurementError, SettingError):
            raise
        except Exception as error:  # whatever a model or a loss of the user's own raises
            if is_out_of_memory(error):
                raise
            raise MeasurementError(
                f"{self.name} fails on {chunk.num_examples} examples with inputs of shape "
                f"{shapes(chunk.inputs)} and targets of shape {shapes(chunk.targets)}: "
                f"{own_words(error)}{self._advice(str(error))}"
            ) from error

    def _advice(self, message: str) -> str:
        """What to do about some of torch's messages, as the end of a sentence."""
        if "Guard failed" in message:
            return (
                ". An exported model takes the numbers of examples that it was exported for: give "
                "the module that it was made of, or export it with a dynamic first dimension"
            )
        if "same dtype" in message or "scalar type" in message:
            return (
                f". Everything is computed in {self.dtype}, but the model or the loss holds or "
                "makes tensors of another dtype: give dtype=torch.float32, or have it make them in "
                "its inputs' dtype"
            )
        return ""

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
            parts = [self._derivative(of_chunk, params, row[rows].to(of_chunk)) for row in weights]
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.add_(flatten(part))

        self.for_each_chunk(add)
        return losses, gradients

    @property
    def chunk_size(self) -> int:
        """Examples in one pass."""
        if self._chunk_size is None:
            self._chunk_size = self._largest_chunk(self.bytes_per_example)
        return self._chunk_size

    def _largest_chunk(self, bytes_per_example: int) -> int:
        """How many examples go into one pass that takes so much of each."""
        budget, largest = CHUNK_BYTES, LARGEST_CHUNK
        if self.device.type == "cuda":
            largest = LARGEST_CHUNK_ON_GPU
            budget = torch.cuda.mem_get_info(self.device)[0] // CHUNK_GPU_SHARE
        return min(max(budget // bytes_per_example, 1), largest)

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
            for param in [*params.values(), *self._constants.values()]
        }
        saved: dict[int, int] = {}  # bytes by address
        # An operation that saves its own output through a hook holds itself, and nothing frees the
        # two: what is saved lies in boxes, which are emptied
        boxes: list[list[Tensor]] = []

        def note(tensor: Tensor) -> list[Tensor]:
            if tensor.layout == torch.strided:  # a sparse gradient has no storage
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in shared:
                    saved[tensor.data_ptr()] = min(tensor.nbytes, storage.nbytes())
            boxes.append([tensor])
            return boxes[-1]

        probe = self.examples.part(slice(num_examples))
        try:
            with saved_tensors_hooks(note, lambda box: box[0]):
                roots = work(params, probe)
            saved_bytes = sum(saved.values())
        except MeasurementError as error:  # torch.func inside the model takes no such hooks
            if "saved tensor hooks" not in str(error):
                raise
            roots = work(params, probe)
            saved_bytes = graph_bytes(roots)
        finally:
            for box in boxes:
                box.clear()
        return max(saved_bytes // probe.num_examples, 1)

    def _twice_differentiable(self, params: Params, chunk: Examples) -> list[Tensor]:
        """The summed loss of a chunk and its gradient, with the graph of both."""
        loss = self.example_losses(params, chunk).sum()
        if not loss.requires_grad:
            return [loss]
        return [loss, *self._derivative(loss, params, create_graph=True)]

    def _derivative(
        self,
        losses: Tensor,
        params: Params,
        weights: Tensor | None = None,
        *,
        create_graph: bool = False,
    ) -> Sequence[Tensor]:
        """The gradient of a weighted sum of losses by parameter, their graph left in place."""
        try:
            return torch.autograd.grad(
                losses,
                list(params.values()),
                weights,
                retain_graph=True,
                create_graph=create_graph,
                materialize_grads=True,
            )
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            raise MeasurementError(
                f"{self.name} cannot be differentiated: {own_words(error)}"
            ) from error

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
        first, size = 0, self.num_examples
        while size > 1:
            half = min(-(-size // 2), self.chunk_size)
            if is_broken(self.examples.part(slice(first, first + half))):
                size = half
            else:
                first, size = first + half, size - half
        return first

    def cast(self, values: Tree) -> Tree:
        """The values on the parameters' device, floating-point ones in their dtype.

        Args:
            values: a tensor of any shape, dtype and device, or a dict, tuple or list of such.
        """

        def move(leaf: Tensor) -> Tensor:
            if self._detaches:
                leaf = leaf.detach()
            if leaf.is_complex():
                return leaf.to(self.device, self.dtype.to_complex())
            return leaf.to(self.point if leaf.is_floating_point() else self.device)

        return tree_map(move, values)


def _is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of a model's parameters each, by the names of what does so."""
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    return bool(kinds & {"FSDPModule", "FullyShardedDataParallel"}) or any(
        hasattr(param, "full_tensor") for param in model.parameters()
    )


def _how_to_reduce(losses: object, num_examples: int) -> str:
    """What to do about losses of another shape than (B,)."""
    shape = losses.shape if isinstance(losses, Tensor) else ()
    if len(shape) < 2 or shape[0] != num_examples:
        return 'as reduction="none" does'
    advice = "as losses.flatten(1).sum(1), or .mean(1), makes of these"
    if shape == (num_examples, num_examples):
        advice += "; or are outputs (B, 1) and targets (B,) broadcast against each other?"
    return advice


def _form(losses: object) -> str:
    """What a loss has returned, for messages."""
    if isinstance(losses, Tensor):
        return f"shape {tuple(losses.shape)}"
    return kind_of(losses)


def _name(thing: object) -> str:
    """A function's or class's name, or that of an object's type."""
    return getattr(thing, "__name__", None) or type(thing).__name__
