"""The noise scale in a Hugging Face Trainer: pip install 'noisescale[transformers]'."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import GradientState
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from noisescale.errors import MeasurementError, SettingError, check_choice
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
from noisescale.problems.random_state import preserved_random_state
from noisescale.statistics.display import counted

IGNORED = -100  # the label that no loss counts


class NoiseScaleCallback(TrainerCallback, ExportableState):
    """Logs |G|², tr Σ and B_simple of the gradients that a Trainer accumulates.

        trainer = Trainer(model, TrainingArguments(gradient_accumulation_steps=8, ...), ...)
        NoiseScaleCallback().add_to(trainer)

    It needs gradient_accumulation_steps of 2 or more, or several processes, by
    DistributedDataParallel or FSDP2, without which it gives a warning and the training goes on
    unmeasured. The values join the training logs as noise_scale/simple and so on, what is
    unresolved left out, and the averages go into checkpoints. The gradient is looked at after each
    `training_step`, before the Trainer clips it. Where the Trainer divides by
    the number of tokens that count, micro-batches weigh as many as it counts in them, also with
    label smoothing and with a `compute_loss_func` that divides by `num_items_in_batch`; an example
    is a sequence. Whether a loss is so divided is tried at the first micro-batch, by two forward
    passes in evaluation mode. A `training_step` or `compute_loss` of your own works if it leaves
    those gradients behind; set `loss_is_scaled_for_ga=False` on the Trainer where it returns plain
    means. It restores its averages by itself: leave restore_callback_states_from_checkpoint at
    False, its default.

    Args:
        memory: of `NoiseScaleMonitor`, in examples.
        geometry: "plain"; or "optimizer", under whose diagonal P, as of AdamW, norms are then taken
            in place of plain ones (see `NoiseScaleMonitor`), under the names
            noise_scale/preconditioned_simple and so on.

    Raises:
        SettingError: another geometry than these.

    Attributes:
        monitor: the NoiseScaleMonitor, from the start of training on, whose `noise` says why where
            nothing is measured; None before.
    """

    def __init__(
        self, *, memory: float | None = None, geometry: Literal["plain", "optimizer"] = "plain"
    ) -> None:
        check_choice("geometry", geometry, ("plain", "optimizer"))
        self.monitor: NoiseScaleMonitor | None = None
        self._memory = memory
        self._geometry = geometry
        self._trainer: Trainer | None = None
        self._micro_batch: dict[str, Any] = {}  # num_examples and weight of the latest one
        self._divides: bool | None = None  # whether losses are divided by the number of items
        self._divided_by: float | None = None  # what they are divided by; None: by their weights
        self._begun = False  # an update
        self._spoilt = False  # whether this update's micro-batches cannot be compared
        self._measures = True
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
        self._stop_watching()  # of a training that was interrupted
        self.monitor, self._measures = None, True
        self._divides = self._divided_by = None
        if self._trainer is None:
            self._give_up("the callback knows no trainer: add it by NoiseScaleCallback().add_to()")
            return
        # the model in its wrapper, if it has one: the callback's own argument is the bare model
        model: nn.Module = self._trainer.model_wrapped
        try:
            self.monitor = NoiseScaleMonitor(
                model.parameters(), memory=self._memory, preconditioner=self._preconditioner()
            )
            if reason := _obstacle(args, self._trainer):
                self._give_up(reason)
                return
            if args.world_size > 1:
                self.monitor.attach(model)
            callbacks: Any = state.stateful_callbacks  # from the checkpoint, where there is one
            stored = callbacks.setdefault(type(self).__name__, self.state())
            if state.global_step and stored["attributes"]["averages"]:
                self.monitor.load_state_dict(stored["attributes"]["averages"])
        except SettingError as error:  # as of a model in another wrapper, or of another geometry
            self._give_up(str(error))
            return
        self._begun = False
        self._watch_training_step(self._trainer)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._measures or self.monitor is None:
            return
        self._spoilt = self._begun  # an epoch ended within an update, whose gradient is still there
        self._begun = True
        self.monitor.discard()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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
        self._stop_watching()

    def state(self) -> dict[str, Any]:
        """What the Trainer stores of it in a checkpoint."""
        averages = None if self.monitor is None else self.monitor.state_dict()
        own = {"memory": self._memory, "geometry": self._geometry}
        return {"args": own, "attributes": {"averages": averages}}

    def _preconditioner(self) -> Optimizer | None:
        """The Trainer's optimizer, out of Accelerate's wrapper; None for plain norms."""
        if self._geometry == "plain" or self._trainer is None:
            return None
        optimizer: Optimizer | None = self._trainer.optimizer
        return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer

    def _give_up(self, reason: str) -> None:
        """Leaves the training unmeasured, with a warning."""
        self._measures = False
        if self.monitor is not None:
            self.monitor.unmeasured = reason
        warnings.warn(f"the noise scale is not measured: {reason}", stacklevel=2)

    def _stop_watching(self) -> None:
        if self._trainer is not None and self._is_watching:
            del vars(self._trainer)["training_step"]
            if self._own_step is not None:
                vars(self._trainer)["training_step"] = self._own_step
        self._own_step, self._is_watching = None, False

    def _watch_training_step(self, trainer: Trainer) -> None:
        """Puts a count of the micro-batch before each of the trainer's steps, a look after it."""
        step = trainer.training_step
        self._own_step, self._is_watching = vars(trainer).get("training_step"), True

        def watched(
            model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
        ) -> Tensor:
            if self._measures:
                self._count(trainer, model, inputs, num_items_in_batch)
            loss: Tensor = step(model, inputs, num_items_in_batch)
            if self._measures and not self._spoilt:
                self._look(trainer)
            return loss

        vars(trainer)["training_step"] = watched

    def _count(
        self, trainer: Trainer, model: nn.Module, inputs: dict[str, Any], num_items: Any
    ) -> None:
        """What a micro-batch counts for, by the Trainer's own rule."""
        tensors = [value for value in inputs.values() if isinstance(value, Tensor) and value.ndim]
        if not tensors:
            self._give_up(f"inputs of {', '.join(inputs)} hold no tensor to count examples by")
            return
        self._micro_batch = {"num_examples": len(tensors[0])}
        if num_items is None or trainer.loss_is_scaled_for_ga is False:
            return
        own_step = self._own_step or type(trainer).training_step is not Trainer.training_step
        if own_step:  # which knows best
            self._divides = True
        elif self._divides is None:
            self._divides = _divides(trainer, model, inputs, num_items)
            if self._divides is False:
                warnings.warn(
                    f"the loss of {type(trainer.model).__name__} is not divided by the number of "
                    "items that the Trainer gives it, and so by nothing: the sum of the "
                    "micro-batches' gradients is trained with. It is measured as their mean; give "
                    "the Trainer loss_is_scaled_for_ga=False to train with that",
                    stacklevel=2,
                )
        if self._divides is False:
            # the Trainer multiplies by the number of processes what it takes for shares of a mean
            averaged = trainer.args.average_tokens_across_devices
            self._divided_by = 1 / (trainer.args.world_size if averaged else 1)
            return
        items = _items(trainer, inputs)
        each_its_own_mean = (
            trainer.args.world_size > 1 and not trainer.args.average_tokens_across_devices
        )
        if items and each_its_own_mean:  # and the mean over processes counts them alike
            return
        self._micro_batch["weight"] = items / (float(num_items) or 1.0)

    def _look(self, trainer: Trainer) -> None:
        """After a micro-batch's backward pass, and after an update's last, before it is clipped."""
        assert self.monitor is not None, "from the start of training on"
        scaler = trainer.accelerator.scaler
        scale = 1.0 if scaler is None else float(scaler.get_scale())  # of mixed precision
        try:
            self.monitor.micro_batch(**self._micro_batch, scale=scale)
            if GradientState().sync_gradients:
                self.monitor.update(divided_by=self._divided_by)
        except (MeasurementError, SettingError) as error:  # the training goes on, unmeasured
            self.monitor.discard()
            self._give_up(str(error))


def _divides(
    trainer: Trainer, model: nn.Module, inputs: dict[str, Any], num_items: Any
) -> bool | None:
    """Whether a loss is divided by the number of items it is given; None: one of 0 shows nothing.

    Models that take any keyword, as BERT, are given it by the Trainer and leave it alone.
    """
    prepared = trainer._prepare_inputs(inputs)
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # leaves running statistics alone
    losses = []
    for count in (num_items, 2 * num_items):
        with (
            torch.no_grad(),
            preserved_random_state([device] if device.type == "cuda" else []),
            trainer.compute_loss_context_manager(),
        ):
            loss: Any = trainer.compute_loss(model, {**prepared}, num_items_in_batch=count)
            losses.append(loss.detach().float().abs())
    for module, mode in modes:
        module.training = mode
    # of all processes, which must go the same way: a forward pass may gather parameters
    once: float
    twice: float
    once, twice = trainer.accelerator.reduce(torch.stack(losses), "sum").tolist()
    if not 0 < once < math.inf:
        return None
    return twice < 0.75 * once  # half, but for rounding; or all of it


def _items(trainer: Trainer, inputs: dict[str, Any]) -> int:
    """How many labels of a micro-batch the Trainer counts; 0 where it finds none to count."""
    labels = inputs.get("shift_labels", inputs.get("labels"))
    if not isinstance(labels, Tensor):
        return 0
    # so since transformers 5; losses of causal language models predict no first token
    if "shift_labels" not in inputs and getattr(trainer, "_loss_shifts_labels", False):
        labels = labels[..., 1:]
    return int(labels.ne(IGNORED).sum())


def _obstacle(args: TrainingArguments, trainer: Trainer) -> str | None:
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
    each = trainer.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
    if each and args.world_size > 1 and args.gradient_accumulation_steps > 1:
        return (
            "sync_each_batch reduces every micro-batch, where only the last one's reduction can be "
            "compared: leave it out of gradient_accumulation_kwargs"
        )
    return None
