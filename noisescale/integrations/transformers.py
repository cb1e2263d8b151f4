"""The noise scale in a Hugging Face Trainer: pip install 'noisescale[transformers]'."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from accelerate.state import GradientState
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from noisescale.errors import SettingError
from noisescale.measure.monitor.gradients import squared_norm
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor

IGNORED = -100  # the label that no loss counts


class NoiseScaleCallback(TrainerCallback, ExportableState):
    """Logs |G|², tr Σ and B_simple of the gradients that a Trainer accumulates.

        trainer = Trainer(model, TrainingArguments(gradient_accumulation_steps=8, ...), ...)
        NoiseScaleCallback().add_to(trainer)

    It needs gradient_accumulation_steps of 2 or more, and one process, without which it gives a
    warning and the training goes on unmeasured. The values join the training logs as
    noise_scale/simple and so on, what is unresolved left out, and the averages go into checkpoints.
    The gradient is looked at during the backward pass, so that the Trainer's clipping does not
    disturb it. Where the loss is a mean over tokens, micro-batches count by theirs; an example is a
    sequence. It restores its averages by itself: leave restore_callback_states_from_checkpoint at
    False, its default.

    Args:
        memory: of `NoiseScaleMonitor`, in examples.

    Attributes:
        monitor: the NoiseScaleMonitor, from the start of training on, whose `noise` says why where
            nothing is measured; None before, and where the parameters are sharded.
    """

    def __init__(self, *, memory: float | None = None) -> None:
        self.monitor: NoiseScaleMonitor | None = None
        self._memory = memory
        self._hooks: list[Any] = []
        self._norms: list[Tensor] = []  # of the whole gradient, by parameter
        self._micro_batch: dict[str, Any] = {}  # num_examples and weight of the latest one
        self._begun = False  # an update
        self._spoilt = False  # whether this update's micro-batches cannot be compared
        self._measures = True

    def add_to(self, trainer: Trainer) -> NoiseScaleCallback:
        """Itself, put before the trainer's other callbacks, so that all loggers see its values.

        Args:
            trainer: whose gradients are measured.
        """
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = kwargs["model"]
        self._remove_hooks()  # of a training that was interrupted
        self.monitor, self._measures = None, True
        try:
            self.monitor = NoiseScaleMonitor(model, memory=self._memory)
        except SettingError as error:  # as of sharded parameters
            self._give_up(str(error))
            return
        if reason := _obstacle(args):
            self._give_up(reason)
            return
        callbacks: Any = state.stateful_callbacks  # from the checkpoint, where there is one
        stored = callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step and stored["attributes"]["averages"]:
            self.monitor.load_state_dict(stored["attributes"]["averages"])
        self._begun = False
        self._hooks = [model.register_forward_pre_hook(self._count, with_kwargs=True)]
        self._hooks += [
            parameter.register_post_accumulate_grad_hook(self._look)
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._measures or self.monitor is None:
            return
        self._spoilt = self._begun  # an epoch ended within an update, whose gradient is still there
        self._begun = True
        self.monitor.discard()
        self._norms.clear()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._measures and self.monitor is not None and not self._spoilt:
            self.monitor.micro_batch(**self._micro_batch, scale=_loss_scale(kwargs))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._measures or self.monitor is None:
            return
        if self.monitor.pending and not self._spoilt:
            self.monitor.micro_batch(**self._micro_batch, scale=_loss_scale(kwargs))
            self.monitor.update(last=torch.stack(self._norms).sum())
        self._begun = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if (
            logs is None
            or "loss" not in logs
            or self.monitor is None
            or not self._measures
            or not self.monitor.num_updates
        ):
            return
        values = {
            f"noise_scale/{name}": value
            for name, value in self.monitor.scalars().items()
            if math.isfinite(value)
        }
        logs.update(values)
        state.log_history[-1].update(values)  # a copy of the logs, made before

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._remove_hooks()

    def state(self) -> dict[str, Any]:
        """What the Trainer stores of it in a checkpoint."""
        averages = None if self.monitor is None else self.monitor.state_dict()
        return {"args": {"memory": self._memory}, "attributes": {"averages": averages}}

    def _give_up(self, reason: str) -> None:
        """Leaves the training unmeasured, with a warning."""
        self._measures = False
        if self.monitor is not None:
            self.monitor.unmeasured = reason
        warnings.warn(f"the noise scale is not measured: {reason}", stacklevel=2)

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._norms.clear()

    def _count(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass: what the micro-batch counts for."""
        if not model.training:
            return
        tensors = [
            value for value in (*kwargs.values(), *args) if isinstance(value, Tensor) and value.ndim
        ]
        self._micro_batch = {"num_examples": len(tensors[0])}
        if "num_items_in_batch" in kwargs and "labels" in kwargs:
            self._micro_batch["weight"] = weight = float(kwargs["labels"].ne(IGNORED).sum())
            self._spoilt |= weight == 0  # a micro-batch without a gradient of its own

    def _look(self, parameter: Tensor) -> None:
        """During the last backward pass of an update: the whole gradient, unclipped."""
        if GradientState().sync_gradients and parameter.grad is not None:
            self._norms.append(squared_norm([parameter.grad]))


def _obstacle(args: TrainingArguments) -> str | None:
    """Why a training cannot be measured, and what to do; None where it can."""
    if args.world_size > 1 or args.n_gpu > 1:
        return (
            "several processes or GPUs: this callback measures one; attach a NoiseScaleMonitor "
            "to the DistributedDataParallel model in a loop of your own"
        )
    if args.gradient_accumulation_steps < 2:
        return (
            "one batch per update leaves nothing to compare it with: set "
            "gradient_accumulation_steps to 2 or more, and per_device_train_batch_size as much "
            "lower"
        )
    return None


def _loss_scale(kwargs: dict[str, Any]) -> float:
    """The factor of mixed precision in the gradients during the backward pass."""
    scaler = getattr(kwargs.get("optimizer"), "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())
