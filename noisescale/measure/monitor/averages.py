"""What the updates of a run have told so far, of all parameters and of groups of them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from noisescale.errors import SettingError
from noisescale.statistics.gradient_noise import GradientNoise
from noisescale.statistics.running_noise import RunningNoise, two_batch

# Updates' worth of examples, where no memory is given: enough for the errors of single updates to
# average out, few enough to follow a run
MEMORY = 100
# Of the sizes of two gradients that are compared: nearer ones differ by little more than chance
LEAST_RATIO = 1.25
FOREIGN = "a state of something else ({}): give what state_dict() of a NoiseScaleMonitor returned"


class Averages:
    """|G|² and tr Σ averaged over updates; those of groups add up to those of all parameters.

    groups: their names; none where they are not asked for.
    """

    def __init__(self, *, memory: float | None, groups: list[str]) -> None:
        self.whole = RunningNoise(memory=memory)
        self._groups = {name: RunningNoise(memory=memory) for name in groups}

    def add(self, squares: Tensor, sizes: Tensor) -> bool:
        """Whether an update can be taken in: squared norms (2, G) at two sizes (2,)."""
        small, big = squares.tolist()
        small_size, big_size = sizes.tolist()
        finite = math.isfinite(sum(small) + sum(big))
        if not finite or big_size < LEAST_RATIO * small_size:
            return False
        if self.whole.memory is None:
            for running in (self.whole, *self._groups.values()):
                running.memory = MEMORY * big_size
        estimates = two_batch(sum(small), small_size, sum(big), big_size)
        self.whole.add(*estimates, num_examples=big_size)
        for running, of_small, of_big in zip(self._groups.values(), small, big, strict=False):
            running.add(*two_batch(of_small, small_size, of_big, big_size), num_examples=big_size)
        return True

    def by_group(self) -> dict[str, GradientNoise]:
        """Of each group, by its name; nothing before the first update."""
        return {
            name: running.noise for name, running in self._groups.items() if running.num_updates
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; without groups as before there were any."""
        groups = {name: running.state_dict() for name, running in self._groups.items()}
        return {"running": self.whole.state_dict()} | ({"groups": groups} if groups else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over another's, or raises SettingError and stays as it was.

        Groups that a state without groups says nothing of begin anew.
        """
        if not isinstance(state, dict) or not isinstance(state.get("num_skipped"), int):
            given = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise SettingError(FOREIGN.format(given or "an empty one"))
        whole, groups = RunningNoise(), {name: RunningNoise() for name in self._groups}
        whole.load_state_dict(state.get("running", {}))
        if whole.memory is None:  # of a state before the first update
            whole.memory = self.whole.memory
        stored = state.get("groups", {})
        if not isinstance(stored, dict):
            raise SettingError(FOREIGN.format(f"groups {stored!r}"))
        if stored and groups and set(stored) != set(groups):
            raise SettingError(
                f"the state is of the groups {', '.join(stored)}, the monitor of "
                f"{', '.join(groups)}: give it the same groups"
            )
        for name, running in groups.items():
            running.memory = whole.memory
            if name in stored:
                running.load_state_dict(stored[name])
        self.whole, self._groups = whole, groups
