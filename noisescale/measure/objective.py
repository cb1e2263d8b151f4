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
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_map

from noisescale.errors import MeasurementError, SettingError, check_count, first_line
from noisescale.problems.problem import (
    Examples,
    Params,
    Problem,
    Source,
    Tree,
    arguments_of,
    call_model,
    first_size,
    held,
    kind_of,
    source_of,
)

# What one chunk's graph may take on a CPU: 128 MiB, modest beside what is kept between products
CHUNK_BYTES = 2**27
# On a GPU the share of the free memory: an eighth, which leaves room for the graphs that are kept
# between products and for what the allocator does not give back
CHUNK_GPU_SHARE = 8
LARGEST_CHUNK, LARGEST_CHUNK_ON_GPU = 2048, 65_536  # examples; a larger chunk is no faster
MEASURED_EXAMPLES = 8  # whose graph is measured: enough that what all share hardly counts


class Objective:
    """The mean loss L(θ) = (1/N) Σ_i ℓ_i(θ) over examples, the model in evaluation mode.

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

    Attributes:
        name: of the model and its loss, for messages.
        examples: what L is the mean over.
        dtype: what everything is computed in.
        point: θ as a vector (P,), in the order of `model.named_parameters()`.

    Raises:
        SettingError: parameters that do not fit the model, none that requires a gradient, or a bad
            dtype or chunk_size.
        MeasurementError: a parameter is not finite, or the model cannot be copied.
    """

    def __init__(
        self,
        problem: Problem,
        params: Params | None = None,
        *,
        examples: Source | None = None,
        dtype: torch.dtype | None = None,
        chunk_size: int | None = None,
    ) -> None:
        if chunk_size is not None:
            check_count("chunk size", chunk_size)
        if dtype not in (None, torch.float32, torch.float64):
            raise SettingError(f"dtype {dtype}: give torch.float32 or torch.float64")
        if any(isinstance(param, UninitializedParameter) for param in problem.model.parameters()):
            raise SettingError(
                f"{_name(problem.model)} has lazy parameters: run it on one batch first"
            )
        of_model: Params = dict(problem.model.named_parameters())
        params = of_model if params is None else params
        _check_params(params, of_model)
        differentiated = {
            name: params[name].detach() for name, param in of_model.items() if param.requires_grad
        }
        if not differentiated:
            raise SettingError(f"{_name(problem.model)} has no parameter that requires a gradient")
        self.name = f"{_name(problem.model)} with the loss {_name(problem.loss)}"
        self.examples = held(source_of(problem.train)) if examples is None else examples
        first = next(iter(differentiated.values()))
        self.dtype = dtype or torch.promote_types(first.dtype, torch.float32)
        self.point = flatten(list(differentiated.values())).to(self.dtype)
        self._shapes = {name: param.shape for name, param in differentiated.items()}
        buffers = dict(problem.model.named_buffers())
        self._constants = {
            name: self.cast(tensor.detach()).clone()
            for name, tensor in (params | buffers).items()
            if name not in differentiated
        }
        # a copy for the sake of its mode alone: it shares every tensor with the problem's model
        shared = {id(tensor): tensor for tensor in [*of_model.values(), *buffers.values()]}
        try:
            self._model = copy.deepcopy(problem.model, shared).eval()
        except RuntimeError as error:  # torch.nn.utils.weight_norm's tensors that are no leaves
            raise MeasurementError(f"{_name(problem.model)} cannot be copied: {error}") from error
        self._loss = problem.loss
        self._chunk_size = chunk_size

    @property
    def model(self) -> nn.Module:
        """The copy in evaluation mode, with the problem's own parameters; to look at."""
        return self._model

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

    def on(self, examples: Source) -> Objective:
        """The mean loss over other examples, at the same point.

        Args:
            examples: what it is the mean over.
        """
        other = copy.copy(self)
        other.examples = examples
        other._chunk_size = self.chunk_size  # measured once, not for every batch
        return other

    def instance(self, params: Params) -> nn.Module:
        """A copy of the model, in evaluation mode, with other tensors as its parameters.

        Args:
            params: the tensors by name, used as they are.
        """
        tensors = params | self._constants
        state = [*self._model.named_parameters(), *self._model.named_buffers()]
        exchanged = {id(tensor): tensors[name] for name, tensor in state}
        model: nn.Module = copy.deepcopy(self._model, exchanged)
        return model

    def params(self, vector: Tensor | None = None) -> Params:
        """The differentiated parameters by name: leaves, ready to be differentiated.

        Args:
            vector: θ (P,); None: the point.
        """
        leaves = self.unflatten(self.point if vector is None else vector.to(self.point))
        return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}

    def unflatten(self, vector: Tensor) -> Params:
        """The parts of a vector by parameter, each in its parameter's shape.

        Args:
            vector: (P,), in the order of the point.
        """
        parts = vector.split([shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}

    def outputs(self, params: Params, inputs: Tree) -> Any:
        """What the model returns, such as outputs (B, ...).

        Args:
            params: the differentiated parameters by name.
            inputs: (B, *F), or a dict, tuple or list of such, on any device.
        """
        arguments, keywords = arguments_of(self.cast(inputs))
        with plain_attention():
            return functional_call(self._model, (params, self._constants), arguments, keywords)

    def call(self, model: Callable[..., Any], inputs: Tree) -> Any:
        """What another instance of the model returns.

        Args:
            model: as of `instance`.
            inputs: (B, *F), or a dict, tuple or list of such, on any device.
        """
        with plain_attention():
            return call_model(model, self.cast(inputs))

    def losses(self, outputs: Any, targets: Tree) -> Tensor:
        """One loss per example (B,).

        Args:
            outputs: what the model returned.
            targets: (B, ...), or a dict, tuple or list of such, on any device.

        Raises:
            MeasurementError: the problem's loss has reduced them already, or fails on a target.
        """
        try:
            losses = self._loss(outputs, self.cast(targets))
        except IndexError as error:  # a class that the model has no output for
            raise MeasurementError(f"{self.name} fails on its targets: {error}") from error
        except (TypeError, AttributeError, KeyError) as error:
            if isinstance(outputs, Tensor):
                raise
            raise MeasurementError(
                f"{self.name} fails on what the model returns, {kind_of(outputs)}: "
                f"{type(error).__name__}: {first_line(error)}; the loss is given it as it is: take "
                "from it what it needs, as outputs.logits"
            ) from error
        num_examples = first_size(targets)
        if not isinstance(losses, Tensor) or losses.shape != (num_examples,):
            raise MeasurementError(
                f"{self.name} gives {_form(losses)} for {num_examples} examples: "
                f"return one loss per example, shape ({num_examples},), "
                'as reduction="none" does'
            )
        return losses

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
            of_chunk = self.losses(self.outputs(params, chunk.inputs), chunk.targets)
            parts = [
                torch.autograd.grad(
                    of_chunk,
                    list(params.values()),
                    row[rows].to(of_chunk),
                    retain_graph=True,
                    materialize_grads=True,
                )
                for row in weights
            ]
            losses[rows] = of_chunk.detach()
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.add_(flatten(part))

        self.for_each_chunk(add)
        return losses, gradients

    @property
    def chunk_size(self) -> int:
        """Examples in one pass."""
        if self._chunk_size is None:
            budget, largest = CHUNK_BYTES, LARGEST_CHUNK
            if self.device.type == "cuda":
                largest = LARGEST_CHUNK_ON_GPU
                budget = torch.cuda.mem_get_info(self.device)[0] // CHUNK_GPU_SHARE
            self._chunk_size = min(max(budget // self.bytes_per_example, 1), largest)
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
        params = self.params()
        shared = {
            param.untyped_storage().data_ptr()
            for param in [*params.values(), *self._constants.values()]
        }
        saved: dict[int, int] = {}  # bytes by address

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in shared:
                saved[tensor.data_ptr()] = min(tensor.nbytes, storage.nbytes())
            return tensor

        probe = self.examples.part(slice(MEASURED_EXAMPLES))
        with saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self.losses(self.outputs(params, probe.inputs), probe.targets).sum()
            torch.autograd.grad(
                loss, list(params.values()), create_graph=True, materialize_grads=True
            )
        return max(sum(saved.values()) // probe.num_examples, 1)

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

    def cast(self, values: Tree) -> Tree:
        """The values on the parameters' device, floating-point ones in their dtype.

        Args:
            values: a tensor of any shape, dtype and device, or a dict, tuple or list of such.
        """
        return tree_map(
            lambda leaf: leaf.to(self.point if leaf.is_floating_point() else self.device), values
        )


def plain_attention() -> contextlib.AbstractContextManager[None]:
    """Attention without fused kernels, which have no second derivative and no batching rule."""
    context: contextlib.AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


def flatten(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of any shapes, detached, as one vector."""
    return torch.cat([part.detach().flatten() for part in parts])


def _check_params(params: Params, of_model: Params) -> None:
    """SettingError unless names and shapes are the model's, MeasurementError unless all finite."""
    differences = sorted(params.keys() ^ of_model.keys()) or [
        f"{name} {tuple(params[name].shape)} instead of {tuple(of_model[name].shape)}"
        for name in of_model
        if params[name].shape != of_model[name].shape
    ]
    if differences:
        raise SettingError(f"the parameters do not fit the model: {', '.join(differences[:5])}")
    if broken := [name for name, param in params.items() if not param.isfinite().all()]:
        raise MeasurementError(
            f"the parameters {', '.join(broken[:5])} are not finite: the run had diverged; "
            "measure an earlier checkpoint"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory, for which a CPU has no exception of its own."""
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def _form(losses: object) -> str:
    """What a loss has returned, for messages."""
    if isinstance(losses, Tensor):
        return f"shape {tuple(losses.shape)}"
    return kind_of(losses)


def _name(thing: object) -> str:
    """A function's or class's name, or that of an object's type."""
    return getattr(thing, "__name__", None) or type(thing).__name__
