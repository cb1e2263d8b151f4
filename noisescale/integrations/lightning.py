"""The noise scale in a Lightning Trainer: pip install 'noisescale[lightning]'."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.parallel import DistributedDataParallel

from noisescale.errors import SettingError
from noisescale.measure.monitor.noise_monitor import SCALARS, NoiseScaleMonitor


class NoiseScaleCallback(Callback):
    """Logs |G|², tr Σ and B_simple of the gradients that a Trainer accumulates or reduces.

        trainer = Trainer(accumulate_grad_batches=8, callbacks=[NoiseScaleCallback()])

    It needs two gradients to compare: accumulate_grad_batches of 2 or more, or
    DistributedDataParallel; the loss must be a mean over the examples of a batch. The values go to
    every logger as noise_scale/simple and so on, nan where unresolved, and the averages into
    checkpoints. Clipping and mixed precision do not disturb it.

    Args:
        memory: of `NoiseScaleMonitor`, in examples.
        num_examples: gives the number of examples in a batch; None: the length of the first tensor
            in it.

    Attributes:
        monitor: the NoiseScaleMonitor, from the start of a fit on; None before.

    Raises:
        SettingError: at the start of a fit that leaves nothing to compare, or whose gradients are
            sharded or optimised by hand.
    """

    def __init__(
        self, *, memory: float | None = None, num_examples: Callable[[Any], int] | None = None
    ) -> None:
        self.monitor: NoiseScaleMonitor | None = None
        self._memory = memory
        self._num_examples = num_examples or _first_length
        self._restored: dict[str, Any] | None = None
        self._count = 0
        self._reduced = False  # over processes, by DistributedDataParallel

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise SettingError(
                "manual optimization: the callback cannot know where an update ends; "
                "use a NoiseScaleMonitor in training_step"
            )
        self.monitor = NoiseScaleMonitor(pl_module, memory=self._memory)
        if self._restored is not None:
            self.monitor.load_state_dict(self._restored)
        model = trainer.strategy.model
        self._reduced = False
        if isinstance(model, DistributedDataParallel) and trainer.world_size > 1:
            self._reduced = True
            self.monitor.attach(model)
        elif trainer.world_size > 1:
            raise SettingError(
                f"{trainer.world_size} processes by {type(trainer.strategy).__name__}: only "
                "DistributedDataParallel is measured; give the Trainer strategy='ddp'"
            )
        elif trainer.accumulate_grad_batches < 2:
            raise SettingError(
                "one batch per update leaves nothing to compare it with: give the Trainer "
                "accumulate_grad_batches of 2 or more, or several processes"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._count = self._num_examples(batch)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.monitor is not None, "made in on_fit_start"
        self.monitor.micro_batch(self._count, scale=_loss_scale(trainer))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert self.monitor is not None, "made in on_fit_start"
        if not self.monitor.pending:  # training_step returned None throughout
            return
        # gradients are unscaled by now, but not when they were reduced
        scale = _loss_scale(trainer) if self._reduced else 1.0
        self.monitor.update(scale=scale, divided_by=trainer.accumulate_grad_batches)
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            scalars = (
                self.monitor.scalars()
                if self.monitor.num_updates
                else dict.fromkeys(SCALARS, math.nan)
            )
            pl_module.log_dict({f"noise_scale/{name}": value for name, value in scalars.items()})

    def state_dict(self) -> dict[str, Any]:
        return {} if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


def _loss_scale(trainer: Trainer) -> float:
    """The factor of mixed precision in the gradients before they are unscaled."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def _first_length(batch: Any) -> int:
    """The length of the first tensor in a batch of nested containers."""
    if isinstance(batch, torch.Tensor):
        return len(batch)
    parts = batch.values() if isinstance(batch, dict) else batch
    if isinstance(parts, str | bytes) or not hasattr(parts, "__iter__"):
        raise SettingError(
            f"a batch of {type(batch).__name__}: give NoiseScaleCallback(num_examples=...)"
        )
    for part in parts:
        return _first_length(part)
    raise SettingError("an empty batch: give NoiseScaleCallback(num_examples=...)")
