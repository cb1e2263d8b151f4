"""The noise scale in a Lightning Trainer: pip install 'noisescale[lightning]'."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from noisescale.errors import MeasurementError, SettingError, check_choice
from noisescale.measure.monitor.fsdp_norms import is_sharded
from noisescale.measure.monitor.noise_monitor import SCALARS, NoiseScaleMonitor
from noisescale.statistics.gradient_noise import under_preconditioner


class NoiseScaleCallback(Callback):
    """Logs |G|², tr Σ and B_simple of the gradients that a Trainer accumulates or reduces.

        trainer = Trainer(accumulate_grad_batches=8, callbacks=[NoiseScaleCallback()])

    It needs two gradients to compare: accumulate_grad_batches of 2 or more, also by a
    GradientAccumulationScheduler, or several processes, by DistributedDataParallel or FSDP2
    (`fully_shard`, as in ModelParallelStrategy; without accumulation), without which it gives a
    warning and the training goes on unmeasured, as it does with manual optimization and with the
    older FSDPStrategy. The loss must be a mean over the
    examples of a batch, or a sum of as many terms as `weight` says. The values go to every logger
    as noise_scale/simple and so on, nan where unresolved, and the averages into checkpoints.
    Clipping and mixed precision do not disturb it.

    Args:
        memory: of `NoiseScaleMonitor`, in examples.
        num_examples: gives the number of examples in a batch; None: the length of the first tensor
            in it.
        geometry: "plain"; or "optimizer", under whose diagonal P, as of Adam, norms are then taken
            in place of plain ones (see `NoiseScaleMonitor`), under the names
            noise_scale/preconditioned_simple and so on.
        weight: where the loss of a batch is a sum, gives how many terms it is of: the examples, or
            the tokens that count; G is then the gradient of their mean. None: the loss is a mean.

    Raises:
        SettingError: another geometry than these.

    Attributes:
        monitor: the NoiseScaleMonitor, from the start of a fit on, whose `noise` says why where
            nothing is measured; None before, and where it cannot be made.
    """

    def __init__(
        self,
        *,
        memory: float | None = None,
        num_examples: Callable[[Any], int] | None = None,
        weight: Callable[[Any], float] | None = None,
        geometry: Literal["plain", "optimizer"] = "plain",
    ) -> None:
        check_choice("geometry", geometry, ("plain", "optimizer"))
        self.monitor: NoiseScaleMonitor | None = None
        self._memory = memory
        self._num_examples = num_examples or _first_length
        self._weight = weight
        self._geometry = geometry
        self._terms: float | None = None  # of the batch's loss, where that is a sum
        self._restored: dict[str, Any] | None = None
        self._count = 0
        self._reduced = False  # over processes
        self._measures = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.monitor, self._measures = None, True
        try:
            self.monitor = NoiseScaleMonitor(
                pl_module,
                memory=self._memory,
                preconditioner=trainer.optimizers[0] if self._geometry == "optimizer" else None,
            )
            if self._restored is not None:
                self.monitor.load_state_dict(self._restored)
        except SettingError as error:  # as of sharded parameters, or of SGD as a preconditioner
            self._give_up(str(error))
            return
        model = trainer.strategy.model
        self._reduced = trainer.world_size > 1 and _is_watched(model)
        if reason := _obstacle(trainer, pl_module, is_reduced=self._reduced):
            self._give_up(reason)
        elif self._reduced:
            try:
                self.monitor.attach(cast(nn.Module, model))
            except SettingError as error:  # as of a communication hook
                self._give_up(str(error))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._measures:
            return
        try:
            self._count = self._num_examples(batch)
            self._terms = None if self._weight is None else float(self._weight(batch))
        except SettingError as error:
            self._give_up(str(error))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._measures and self.monitor is not None:
            scale = _loss_scale(trainer)
            with self._or_give_up():
                self.monitor.micro_batch(self._count, weight=self._terms, scale=scale)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if not self._measures or self.monitor is None:
            return
        if not self.monitor.pending:  # training_step returned None throughout
            return
        # gradients are unscaled by now, but not when they were reduced
        is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)  # unscales by itself
        scale = _loss_scale(trainer) if self._reduced or is_fused else 1.0
        with self._or_give_up():
            self.monitor.update(scale=scale, divided_by=trainer.accumulate_grad_batches)
        every: int = cast(Any, trainer).log_every_n_steps  # which the Trainer does not declare
        if every and (trainer.global_step + 1) % every == 0:  # 0: never
            scalars = (
                self.monitor.scalars()
                if self.monitor.num_updates
                else dict.fromkeys(self._names, math.nan)
            )
            pl_module.log_dict({f"noise_scale/{name}": value for name, value in scalars.items()})

    @property
    def _names(self) -> tuple[str, ...]:
        """Of what is logged."""
        return SCALARS if self._geometry == "plain" else tuple(under_preconditioner(*SCALARS))

    @contextmanager
    def _or_give_up(self) -> Iterator[None]:
        """Leaves the training unmeasured, and running, where its gradients cannot be compared."""
        try:
            yield
        except (MeasurementError, SettingError) as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        """Leaves the training unmeasured, with a warning."""
        self._measures = False
        if self.monitor is not None:
            self.monitor.discard()
            self.monitor.unmeasured = reason
        warnings.warn(f"the noise scale is not measured: {reason}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


def _obstacle(trainer: Trainer, pl_module: LightningModule, *, is_reduced: bool) -> str | None:
    """Why a training cannot be measured, and what to do; None where it can."""
    if not pl_module.automatic_optimization:
        return (
            "manual optimization: the callback cannot know where an update ends; "
            "use a NoiseScaleMonitor in training_step"
        )
    if trainer.world_size > 1 and not is_reduced:
        return (
            f"{trainer.world_size} processes by {type(trainer.strategy).__name__}: only "
            "DistributedDataParallel and FSDP2 are measured; give the Trainer strategy='ddp' or a "
            "ModelParallelStrategy, which shards by fully_shard"
        )
    accumulates = trainer.accumulate_grad_batches > 1 or any(
        isinstance(callback, GradientAccumulationScheduler)
        and callback.going_to_accumulate_grad_batches()
        for callback in cast(Any, trainer).callbacks
    )
    if accumulates and is_reduced and is_sharded(cast(nn.Module, trainer.strategy.model)):
        return (
            "Lightning reduces every batch of a sharded model, where only an update's last may be: "
            "leave accumulate_grad_batches at 1, which is enough with several processes"
        )
    if not accumulates and not is_reduced:
        return (
            "one batch per update leaves nothing to compare it with: give the Trainer "
            "accumulate_grad_batches of 2 or more, of batches as much smaller, or several processes"
        )
    return None


def _is_watched(model: Any) -> bool:
    """Whether a monitor can be attached to the strategy's model."""
    return isinstance(model, DistributedDataParallel) or (
        isinstance(model, nn.Module) and is_sharded(model)
    )


def _loss_scale(trainer: Trainer) -> float:
    """The factor of mixed precision in the gradients before they are unscaled."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def _first_length(batch: Any) -> int:
    """The length of the first tensor in a batch of nested containers, scalars aside."""
    for tensor in _tensors(batch):
        if tensor.ndim:
            return len(tensor)
    raise SettingError(
        f"a batch of {type(batch).__name__} without a tensor to count examples by: give "
        "NoiseScaleCallback(num_examples=...)"
    )


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested mappings and sequences, in order."""
    if isinstance(batch, torch.Tensor):
        yield batch
        return
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(parts, Iterable) and not isinstance(parts, str | bytes):
        for part in parts:
            yield from _tensors(part)
