"""Where a test runs: on the CPU always, and on a GPU where there is one."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from noisescale.problems.problem import Problem

# a parameter "device": what the body asks for is tried on a CPU, so that it is right on a GPU too
EVERYWHERE = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


def on(problem: Problem, device: str) -> Problem:
    """A copy of the problem, its model and its examples on a device."""

    def moved(split: Any) -> Any:
        return None if split is None else type(split)(*(part.to(device) for part in split))

    return replace(
        problem,
        model=copy.deepcopy(problem.model).to(device),
        train=moved(problem.train),
        validation=moved(problem.validation),
        test=moved(problem.test),
    )
