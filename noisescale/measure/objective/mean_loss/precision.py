"""Automatic mixed precision: which operations of a model run in bfloat16."""

from __future__ import annotations

import contextlib
from typing import get_args

import torch

from noisescale.errors import SettingError, check_choice
from noisescale.problems.config import Amp


def check_amp(amp: Amp | None, device: torch.device) -> None:
    """SettingError where this precision is not known, or the device does not compute in it.

    Args:
        amp: "bf16"; None: no mixed precision.
        device: that the model is on.
    """
    if amp is None:
        return
    check_choice("amp", amp, get_args(Amp))
    if device.type not in ("cpu", "cuda"):
        raise SettingError(
            f"amp {amp} on {device.type}: give a CPU or a CUDA GPU, or leave amp out"
        )
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise SettingError(
            f"amp {amp}: this GPU does not compute in bfloat16, as those from Ampere (2020) on do; "
            "leave amp out"
        )


def autocast(amp: Amp | None, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context in which torch.autocast chooses each operation's precision; None: as it is.

    No copies of the weights are kept from one operation to the next: those that are measured are
    exchanged under way.

    Args:
        amp: "bf16" or None.
        device: that the model is on.
    """
    if amp is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
