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
from noisescale.statistics.display import counted

IGNORED = -100  # the label that no loss counts


class NoiseScaleCallback(TrainerCallback, ExportableState):
    """Logs |G|², tr Σ and B_simple of the gradients that a Trainer accumulates.

        trainer = Trainer(model, TrainingArguments(gradient_accumulation_steps=8, ...), ...)
        NoiseScaleCallback().add_to(trainer)

    It needs gradient_accumulation_steps of 2 or more, or several processes, by
    DistributedDataParallel or FSDP2, without which it gives a warning and the training goes on
    unmeasured. The values join the training logs as noise_scale/simple and so on, what is
    unresolved left out, and the averages go into checkpoints. The gradient is looked at during the
    backward pass, so that the Trainer's clipping does not disturb it. Where the Trainer divides by
    the number of tokens that count, micro-batches weigh as many as it counts in them, also with
    label smoothing and with a `compute_loss_func` that divides by `num_items_in_batch`; an example
    is a sequence. A `training_step` or `compute_loss` of your own works if it leaves those
    gradients behind; set `loss_is_scaled_for_ga=False` on the Trainer where it returns plain means.
    It restores its averages by itself: leave restore_callback_states_from_checkpoint at False, its
    default.

    Args:
        memory: of `NoiseScaleMonitor`, in examples.

    Attributes:
        monitor: the NoiseScaleMonitor, from the start of training on, whose `noise` says why where
            nothing is measured; None before.
    """

    def __init__(self, *, memory: float | None = None) -> None:
        self.monitor: NoiseScaleMonitor | None = None
        self._memory = memory
        self._trainer: Trainer | None = None
        self._hooks: list[Any] = []
        self._norms: list[Tensor] = []  # of the whole gradient, by parameter
        self._micro_batch: dict[str, Any] = {}  # num_examples and weight of the latest one
        self._begun = False  # an update
        self._spoilt = False  # whether this update's micro-batches cannot be compared
        self._measures = True
        self._is_attached = False  # to a model of several processes
        self._own_step: Any = None  # a training_step that the trainer object itself was given
        self._is_watching = False  # whether ours is in its place

    def add_to(self, trainer: Trainer) -> NoiseScaleCallback:
        """Itself, put before the trainer's other callbacks, so that all loggers see its values.

        Args:
            trainer: whose gradients are measured.
        """
        self._trainer = trainer
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._remove_hooks()  # of a training that was interrupted
        self.monitor, self._measures, self._is_attached = None, True, False
        if self._trainer is None:
            self._give_up("the callback knows no trainer: add it by NoiseScaleCallback().add_to()")
            return
        # the model in its wrapper, if it has one: the callback's own argument is the bare model
        model: nn.Module = self._trainer.model_wrapped
        several = args.world_size > 1
        try:
            self.monitor = NoiseScaleMonitor(model.parameters(), memory=self._memory)
            if reason := _obstacle(args):
                self._give_up(reason)
                return
            if several:
                self.monitor.attach(model)
        except SettingError as error:  # as of a model in another wrapper
            self._give_up(str(error))
            return
        self._is_attached = several
        callbacks: Any = state.stateful_callbacks  # from the checkpoint, where there is one
        stored = callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step and stored["attributes"]["averages"]:
            self.monitor.load_state_dict(stored["attributes"]["averages"])
        self._begun = False
        self._watch_training_step(self._trainer)
        if not several:
            self._hooks = [
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
            last = None if self._is_attached else torch.stack(self._norms).sum()
            self.monitor.update(last=last)
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
        if self._trainer is not None and self._is_watching:
            del vars(self._trainer)["training_step"]
            if self._own_step is not None:
                vars(self._trainer)["training_step"] = self._own_step
        self._own_step, self._is_watching = None, False

    def _watch_training_step(self, trainer: Trainer) -> None:
        """Puts a count of the micro-batch before each of the trainer's steps."""
        step = trainer.training_step
        self._own_step, self._is_watching = vars(trainer).get("training_step"), True

        def counting(
            model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
        ) -> Tensor:
            if self._measures:
                self._count(trainer, inputs, num_items_in_batch)
            return step(model, inputs, num_items_in_batch)

        vars(trainer)["training_step"] = counting

    def _count(self, trainer: Trainer, inputs: dict[str, Any], num_items: Any) -> None:
        """What a micro-batch counts for, by the Trainer's own rule."""
        tensors = [value for value in inputs.values() if isinstance(value, Tensor) and value.ndim]
        if not tensors:
            self._give_up(f"inputs of {', '.join(inputs)} hold no tensor to count examples by")
            return
        self._micro_batch = {"num_examples": len(tensors[0])}
        if num_items is None or trainer.loss_is_scaled_for_ga is False:
            return
        # of all of the update's items: of all processes, or of this one where each has its own mean
        weight = _items(trainer, inputs) / float(num_items)
        self._micro_batch["weight"] = weight
        self._spoilt |= weight == 0  # a micro-batch without a gradient of its own

    def _look(self, parameter: Tensor) -> None:
        """During the last backward pass of an update: the whole gradient, unclipped."""
        if GradientState().sync_gradients and parameter.grad is not None:
            self._norms.append(squared_norm([parameter.grad]))


def _items(trainer: Trainer, inputs: dict[str, Any]) -> int:
    """How many labels of a micro-batch the Trainer counts; 0 where it finds none to count."""
    labels = inputs.get("shift_labels", inputs.get("labels"))
    if not isinstance(labels, Tensor):
        return 0
    # so since transformers 5; losses of causal language models predict no first token
    if "shift_labels" not in inputs and getattr(trainer, "_loss_shifts_labels", False):
        labels = labels[..., 1:]
    return int(labels.ne(IGNORED).sum())


def _obstacle(args: TrainingArguments) -> str | None:
    """Why a training cannot be measured, and what to do; None where it can."""
    if args.n_gpu > 1:
        return (
            f"{counted(args.n_gpu, 'GPU')} in one process: start a process for each, by torchrun "
            "or accelerate launch"
        )
    if args.gradient_accumulation_steps < 2 and args.world_size < 2:
        return (
            "one batch per update leaves nothing to compare it with: set "
            "gradient_accumulation_steps to 2 or more, and per_device_train_batch_size as much "
            "lower, or start several processes"
        )
    return None


def _loss_scale(kwargs: dict[str, Any]) -> float:
    """The factor of mixed precision in the gradients during the backward pass."""
    scaler = getattr(kwargs.get("optimizer"), "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())
