"""The losses of any examples, at any parameters near one point."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from noisescale.errors import MeasurementError, SettingError, is_out_of_memory, own_words
from noisescale.measure.objective.mean_loss.precision import autocast
from noisescale.measure.objective.model_copy import ModelCopy, forgetting
from noisescale.measure.objective.outputs import with_tensors
from noisescale.measure.objective.parameters import Layout, State, flatten
from noisescale.measure.objective.passes import as_measured
from noisescale.problems.config import Amp
from noisescale.problems.problem import (
    Examples,
    LossFn,
    Params,
    Problem,
    Tree,
    arguments_of,
    call_model,
    first_size,
    kind_of,
    shapes,
)


class LossesAtPoint:
    """The losses ℓ_i(θ) of any examples, of a model's copy in evaluation mode.

    Args:
        problem: its model and its loss.
        params: all values by name, as `State.values` gives them.
        chosen: names of those that θ consists of; the others, and buffers, are constants.
        dtype: what everything is computed in.
        amp: "bf16": the model runs under torch.autocast, so that its matrix products are in
            bfloat16; its outputs, the losses and all that is made of them are in `dtype`.

    Attributes:
        name: of the model and its loss, for messages.
        dtype: what everything is computed in.
        point: θ as a vector (P,).
        constants: by name, in that dtype.
        amp: as given.

    Raises:
        MeasurementError: the model cannot be copied.
    """

    def __init__(
        self,
        problem: Problem,
        params: Params,
        chosen: list[str],
        *,
        dtype: torch.dtype,
        amp: Amp | None = None,
    ) -> None:
        state = State.of(problem)
        differentiated = {name: params[name] for name in chosen}
        self.name = f"{name_of(problem.model)} with the loss {name_of(problem.loss)}"
        self.dtype = dtype
        self.point = flatten(list(differentiated.values())).to(dtype)
        self.amp = amp
        self._layout = Layout.of(differentiated)
        self._detaches = True  # inputs that require a gradient
        self.constants: Params = {
            name: self.cast(tensor.detach())
            for name, tensor in (params | state.buffers).items()
            if name not in differentiated
        }
        self._model = ModelCopy(problem.model, state.names)
        self._loss = problem.loss
        self._loss_copy = (
            ModelCopy(problem.loss, state.names) if isinstance(problem.loss, nn.Module) else None
        )

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

    def instance(self, params: Params) -> nn.Module:
        """A copy of the model, in evaluation mode, with other tensors as its parameters.

        Args:
            params: the tensors by name, used as they are.
        """
        return self._model.instance(self._layout.as_given(params) | self.constants)

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
        tensors = self._layout.as_given(params) | self.constants
        with self._model.exchanged(tensors) as model, as_measured(), self._autocast():
            returned = model(*arguments, **keywords)
        return self._precise(returned)

    def call(self, model: nn.Module, inputs: Tree) -> Any:
        """What another instance of the model returns, to be differentiated once, by autograd.

        Args:
            model: as of `instance`.
            inputs: (B, *F), or a dict, tuple or list of such, on any device.
        """
        with forgetting(model), as_measured(once=True), self._autocast():
            returned = call_model(model, self.cast(inputs))
        return self._precise(returned)

    def losses(self, outputs: Any, targets: Tree, params: Params | None = None) -> Tensor:
        """One loss per example (B,).

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
        return losses

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
                f"{own_words(error)}{_advice(str(error), self.dtype)}"
            ) from error

    def derivative(
        self,
        losses: Tensor,
        params: Params,
        weights: Tensor | None = None,
        *,
        create_graph: bool = False,
    ) -> Sequence[Tensor]:
        """The gradient of a weighted sum of losses by parameter, their graph left in place.

        Args:
            losses: of this point, of any shape, with their graph.
            params: what they are differentiated by.
            weights: of the losses' shape; None: the losses are one number.
            create_graph: whether the gradient is differentiable in its turn.

        Raises:
            MeasurementError: an operation has no derivative.
        """
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

    def cast(self, values: Tree) -> Tree:
        """Copies of the values on the parameters' device, floating-point ones in their dtype.

        Copies, since a model or a loss may write into what it is given.

        Args:
            values: a tensor of any shape, dtype and device, or a dict, tuple or list of such.
        """

        def move(leaf: Tensor) -> Tensor:
            if self._detaches:
                leaf = leaf.detach()
            if leaf.is_complex():
                return leaf.to(self.device, self.dtype.to_complex(), copy=True)
            return leaf.to(self.point if leaf.is_floating_point() else self.device, copy=True)

        return tree_map(move, values)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        return autocast(self.amp, self.device)

    def _precise(self, returned: Any) -> Any:
        """What a model under autocast has returned, in the dtype that the loss is computed in."""
        if self.amp is None:
            return returned
        return with_tensors(
            returned, lambda tensor: tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        )

    def _loss_at(self, params: Params | None) -> contextlib.AbstractContextManager[LossFn]:
        """The loss, with these values of the parameters that it may have."""
        if self._loss_copy is None:
            return contextlib.nullcontext(self._loss)
        params = self.unflatten(self.point) if params is None else params
        return self._loss_copy.exchanged(self._layout.as_given(params) | self.constants)


def name_of(thing: object) -> str:
    """A function's or class's name, or that of an object's type."""
    return getattr(thing, "__name__", None) or type(thing).__name__


def _advice(message: str, dtype: torch.dtype) -> str:
    """What to do about some of torch's messages, as the end of a sentence."""
    if "Guard failed" in message:
        return (
            ". An exported model takes the numbers of examples that it was exported for: give "
            "the module that it was made of, or export it with a dynamic first dimension"
        )
    if "same dtype" in message or "scalar type" in message:
        return (
            f". Everything is computed in {dtype}, but the model or the loss holds or "
            "makes tensors of another dtype: give dtype=torch.float32, or have it make them in "
            "its inputs' dtype"
        )
    return ""


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
