"""The differentiated parameters of a model as one real vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.problems.problem import Params, Problem, check_not_lazy

NAMED = 5  # names in a message, enough to see how they look


@dataclass(frozen=True)
class Layout:
    """How parameters lie in one real vector (P,), one after the other.

    A complex one of shape (...) is a real one of shape (..., 2): its real and its imaginary parts.

    Attributes:
        shapes: of each parameter, as a real one.
        complex_names: of those that are complex in the model.
    """

    shapes: dict[str, torch.Size]
    complex_names: frozenset[str]

    @classmethod
    def of(cls, params: Params) -> Layout:
        """That of these parameters.

        Args:
            params: by name.
        """
        return cls(
            {name: as_real(param).shape for name, param in params.items()},
            frozenset(name for name, param in params.items() if param.is_complex()),
        )

    def unflatten(self, vector: Tensor) -> Params:
        """The parts of a vector by parameter, as real ones.

        Args:
            vector: (P,).
        """
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}

    def as_given(self, params: Params) -> Params:
        """The parameters as the model takes them, some of them complex.

        Args:
            params: real ones, by name.
        """
        # not view_as_complex, which takes no part of the vector that begins at an odd place
        return {
            name: torch.complex(*param.unbind(-1)) if name in self.complex_names else param
            for name, param in params.items()
        }


@dataclass(frozen=True)
class State:
    """The parameters and buffers of a model and of a loss that is a module.

    The loss's go by "loss." and their names there, but for those that it shares with the model.

    Attributes:
        parameters: by name.
        buffers: by name.
        names: by the tensors' id.
        loss_names: of the loss's own parameters and buffers.
    """

    parameters: Params
    buffers: Params
    names: dict[int, str]
    loss_names: frozenset[str]

    @classmethod
    def of(cls, problem: Problem) -> State:
        """That of a problem.

        Args:
            problem: its model and its loss.
        """
        parameters: Params = dict(problem.model.named_parameters())
        buffers: Params = dict(problem.model.named_buffers())
        of_model = {id(tensor): name for name, tensor in (parameters | buffers).items()}
        taken = any(name.startswith("loss.") for name in of_model.values())
        prefix = "loss_function." if taken else "loss."
        if isinstance(problem.loss, nn.Module):
            for held, of_loss in (
                (parameters, problem.loss.named_parameters()),
                (buffers, problem.loss.named_buffers()),
            ):
                own = {
                    prefix + name: tensor for name, tensor in of_loss if id(tensor) not in of_model
                }
                held.update(own)
        names = {id(tensor): name for name, tensor in (parameters | buffers).items()}
        loss_names = frozenset(names.values()) - frozenset(of_model.values())
        return cls(parameters, buffers, names, loss_names)

    def values(self, params: Params | None) -> Params:
        """The parameters' values, detached, complex where the model's are.

        Args:
            params: other ones than the problem's own; those of the loss may be absent.

        Raises:
            SettingError: names, shapes or complex values that the model does not have.
            MeasurementError: values that are not finite.
        """
        own = self.parameters
        of_loss = {name: param for name, param in own.items() if name in self.loss_names}
        given = own if params is None else of_loss | params
        check_fits(given, own)
        return {name: as_kind_of(param, given[name]) for name, param in own.items()}


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor (...) as its real and imaginary parts (..., 2); a real one as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def as_kind_of(of_model: Tensor, values: Tensor) -> Tensor:
    """The values of a parameter, detached, complex where the model's are.

    Args:
        of_model: the model's own parameter.
        values: in its place.
    """
    values = values.detach()
    return values.to(values.dtype.to_complex()) if of_model.is_complex() else values


def flatten(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of any shapes, detached, as one real vector."""
    return torch.cat([_dense(as_real(part.detach())).flatten() for part in parts])


def precise_dtype(params: Iterable[Tensor]) -> torch.dtype:
    """The most precise real dtype of the parameters, at least float32."""
    dtype = torch.float32
    for param in params:
        dtype = torch.promote_types(dtype, param.dtype.to_real())
    return dtype


def choose(names: Sequence[str], patterns: Sequence[str] | None) -> list[str]:
    """The names that one of the patterns matches, in their order; all without patterns.

    Args:
        names: of the parameters that require a gradient.
        patterns: names, or such with *, ? and [...] as of files; None: no choice.

    Raises:
        SettingError: a pattern that matches none.
    """
    if patterns is None:
        return list(names)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns or [""]:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SettingError(
                f"param filter {pattern!r}: no parameter that requires a gradient has such a name; "
                f"give names or patterns of {named(names)}"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def named(names: Sequence[str]) -> str:
    """The first few names, and how many more there are.

    Args:
        names: of parameters.
    """
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def check_fits(params: Params, of_model: Params) -> None:
    """Whether parameters are a model's own in other values.

    Args:
        params: by name.
        of_model: the model's own.

    Raises:
        SettingError: names, shapes or complex values that the model does not have.
        MeasurementError: parameters that are not finite.
    """
    differences = sorted(params.keys() ^ of_model.keys()) or [
        f"{name} {_form(params[name])} instead of {_form(of_model[name])}"
        for name in of_model
        if params[name].shape != of_model[name].shape
        or (params[name].is_complex() and not of_model[name].is_complex())
    ]
    if differences:
        raise SettingError(f"the parameters do not fit the model: {', '.join(differences[:NAMED])}")
    if broken := [name for name, param in params.items() if not param.isfinite().all()]:
        raise MeasurementError(
            f"the parameters {', '.join(broken[:NAMED])} are not finite: the run had diverged; "
            "measure an earlier checkpoint"
        )


def check_whole(model: nn.Module) -> None:
    """Whether all of a model's parameters are there, and in one process.

    Args:
        model: to be measured.

    Raises:
        SettingError: lazy parameters, or such as FSDP holds a part of.
    """
    check_not_lazy(model)
    if _is_sharded(model):
        raise SettingError(
            f"{type(model).__name__} is sharded (FSDP, fully_shard or DTensor), and only whole "
            "models are measured: gather its weights, as get_model_state_dict(model, options="
            "StateDictOptions(full_state_dict=True)) does, load them into a model that is not "
            "sharded, and measure that"
        )


def _is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of a model's parameters each, by the names of what does so."""
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    return bool(kinds & {"FSDPModule", "FullyShardedDataParallel"}) or any(
        hasattr(param, "full_tensor") for param in model.parameters()
    )


def _form(param: Tensor) -> str:
    """A parameter's shape, and that it is complex, for messages."""
    return f"{tuple(param.shape)}{' complex' if param.is_complex() else ''}"


def _dense(part: Tensor) -> Tensor:
    """A sparse gradient, as of an embedding, written out."""
    return part if part.layout == torch.strided else part.to_dense()
