"""Where a number was made: versions, commit and machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from noisescale._version import __version__

CHECKOUT = Path(__file__).resolve().parents[3]  # the folder that holds the package


def environment(device: torch.device | str) -> dict[str, Any]:
    """Versions, commit, device and threads, as recorded in every run's summary."""
    return {
        "noisescale": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _torchvision_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device | str) -> str:
    """The GPU's name, or the processor's with its number of cores."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores"


def commit(*, but: Sequence[str] = ()) -> str | None:
    """The commit of the checkout that the package is in, "+changes" where it differs, or None.

    Args:
        but: paths from its top whose changes do not count, as of results written there meanwhile.
    """
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        paths = [".", *(f":(exclude){path}" for path in but)]
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", *paths)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def _torchvision_version() -> str:
    """What torchvision.__version__ says, without importing it, which takes longer than torch.

    From its version.py, since the metadata of a wheel may leave out the build, such as +cu130.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is not None and spec.origin is not None:
        version_file = Path(spec.origin).with_name("version.py")
        text = version_file.read_text() if version_file.exists() else ""
        if match := re.search(r"^__version__ = '(.+)'", text, re.MULTILINE):
            return match[1]
    return importlib.metadata.version("torchvision")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(CHECKOUT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
