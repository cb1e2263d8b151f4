"""Which engine measures: the first of a row that works and gives the right gradients."""

from __future__ import annotations

import math
import time
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.distributed import Share, rank_and_size
from noisescale.measure.gradients.compiled import CompiledEngine
from noisescale.measure.gradients.engine import Engine, EngineError, EngineName
from noisescale.measure.gradients.hooks import LayerEngine
from noisescale.measure.gradients.loop import LoopEngine
from noisescale.measure.gradients.vmap import VmapEngine
from noisescale.measure.objective import Objective, is_out_of_memory
from noisescale.problems.problem import Examples, Params

# What follows an engine that does not work on a model; the last one is the definition
ROWS: dict[EngineName, tuple[EngineName, ...]] = {
    "auto": ("hooks", "vmap", "loop"),
    "hooks": ("hooks", "vmap", "loop"),
    "compiled": ("compiled", "vmap", "loop"),
    "vmap": ("vmap", "loop"),
    "loop": ("loop",),
}
# Examples that are compared with backward passes of their own before the pass: two, the fewest that
# tell an example's gradient from the batch's
COMPARED = 2
# And after it, one of so many: the largest, which matters most, and others at random, at most so
# many, each of which costs a backward pass
CONFIRMED_SHARE, MOST_CONFIRMED = 16, 8
TIMED = 32  # examples on which engines are timed: a small chunk of each
# Numbers of written-out gradients, which take about as long as a compilation
WORTH_COMPILING = 2e10
# Squared norms that agree: a few roundings apart for each of the products behind them, and for
# those that cancel to nothing a hundred roundings of the whole gradient
ROUNDINGS, CANCELLED = 10, 100
LARGEST_TOLERANCE = 0.1  # in half precision


class EngineChoice:
    """The engine that is tried, and what is to be said of those that failed.

    Args:
        name: of the first engine, or "auto".
        objective: the point, and the examples on the first of which engines are checked.
        preconditioner: P by parameter, for the norms under it, which are checked too; None: none.

    Attributes:
        notes: on the engines that failed.

    Raises:
        SettingError: there is no such engine.
    """

    def __init__(
        self, name: EngineName, objective: Objective, preconditioner: Params | None = None
    ) -> None:
        if name not in get_args(EngineName):
            raise SettingError(f"engine {name!r}: give one of {', '.join(get_args(EngineName))}")
        self.notes: list[str] = []
        self._is_free = name == "auto"
        self._row = list(ROWS[name])
        self._may_compile = True  # once
        self._objective, self._preconditioner = objective, preconditioner
        self._few = objective.examples.part(slice(COMPARED))

    def make(self, objective: Objective) -> Engine:
        """The engine whose turn it is, once its gradients are those of single backward passes.

        Args:
            objective: what it is to measure.

        Raises:
            EngineError: it does not work on the model.
        """
        name = self._row[0]
        if name == "hooks":
            return self._quickest(self._layers(objective))
        if name == "vmap":
            return self._vmap(objective)
        if name == "compiled" and objective.amp is not None:  # torch's compiler fails at length
            raise EngineError("the engine compiled does not work under autocast")
        return CompiledEngine(objective) if name == "compiled" else LoopEngine(objective)

    def confirm(
        self, engine: Engine, squared_norms: np.ndarray, weighted: np.ndarray | None = None
    ) -> None:
        """EngineError unless some examples' norms (n, L) are those of backward passes of their own.

        The largest and some at random: what shows only in a large batch, as a model that sorts it.

        Args:
            engine: that gave the norms.
            squared_norms: |g_i|² of the engine's examples by parameter, (n, L).
            weighted: those under the preconditioner (n, L); None without one.
        """
        num_examples = len(squared_norms)
        if isinstance(engine, LoopEngine) or not np.isfinite(squared_norms).all():
            return  # which is another's to report
        num_confirmed = min(
            max(num_examples // CONFIRMED_SHARE, COMPARED), MOST_CONFIRMED, num_examples
        )
        rows = np.random.default_rng(0).choice(num_examples, num_confirmed, replace=False)
        rows[0] = squared_norms.sum(1).argmax()
        examples = engine.objective.examples.part(torch.from_numpy(rows))
        wanted = LoopEngine(engine.objective).statistics(examples, self._preconditioner)
        pairs = [(squared_norms, wanted.squared_norms)]
        if weighted is not None and wanted.weighted is not None:
            pairs.append((weighted, wanted.weighted))
        if not all(
            _agree(engine.objective, torch.from_numpy(given[rows]), norms.cpu()).all()
            for given, norms in pairs
        ):
            raise EngineError(
                f"the engine {engine.name} gave wrong norms, as where a model reorders its batch"
            )

    def all_did(self, failure: MeasurementError | None, share: Share) -> bool:
        """Whether the engine served in all processes; if not, it is the next one's turn.

        Args:
            failure: of the engine in this process.
            share: of the processes.

        Raises:
            MeasurementError: there is no further engine.
        """
        if not share.sum(torch.tensor(int(failure is not None))):
            return True
        name = self._row.pop(0)
        failure = failure or EngineError(f"the engine {name} failed in another process")
        if not self._row:
            raise failure
        self.notes.append(f"{failure}; {self._row[0]} was used instead, many times slower")
        return False

    def _layers(self, objective: Objective) -> LayerEngine:
        """The engine "hooks", its doubtful parameters given up."""
        engine = LayerEngine(objective)
        agree = self._agree_on_few(engine).tolist()
        wrong = [name for name, right in zip(engine.params, agree, strict=True) if not right]
        if doubtful := set(wrong) - engine.unreached.keys():
            engine.give_up(sorted(doubtful), "not what backward passes of single examples give")
        elif wrong:
            raise EngineError("the engine hooks gives other gradients than single backward passes")
        return engine

    def _vmap(self, objective: Objective) -> VmapEngine:
        """The engine "vmap"."""
        engine = VmapEngine(objective)
        if not self._agree_on_few(engine).all():
            raise EngineError("the engine vmap gives other gradients than single backward passes")
        return engine

    def _agree_on_few(self, engine: Engine) -> Tensor:
        """Which tensors' norms of the few examples are those of a backward pass each: (L,)."""
        given = engine.statistics(self._few, self._preconditioner)
        wanted = LoopEngine(self._objective).statistics(self._few, self._preconditioner)
        agree = _agree(self._objective, given.squared_norms, wanted.squared_norms)
        if given.weighted is not None and wanted.weighted is not None:
            agree &= _agree(self._objective, given.weighted, wanted.weighted)
        return agree

    def _quickest(self, layers: LayerEngine) -> Engine:
        """The engine "hooks", or where it has to go through the whole model as well a quicker one.

        The choice is by the time that a few examples take, so it is left out where several
        processes would have to agree on it.
        """
        objective = layers.objective
        is_worth_it = objective.num_examples > 4 * TIMED and rank_and_size()[1] == 1
        if not self._is_free or not layers.unreached or not is_worth_it:
            return layers
        written_out = sum(layers.params[name].numel() for name in layers.unreached)
        is_long = written_out * objective.num_examples > WORTH_COMPILING
        if is_long and self._may_compile and objective.amp is None:
            self._may_compile = False
            self._row[0:0] = ["compiled"]
            self.notes.append("compiled instead of hooks, which cannot reach most parameters")
            return CompiledEngine(objective)
        engines: list[Engine] = [layers]
        try:
            engines.append(self._vmap(objective))
        except EngineError:
            engines.append(LoopEngine(objective))
        examples = objective.examples.part(slice(TIMED))
        times = [_seconds(engine, examples) for engine in engines]
        quickest = engines[int(np.argmin(times))]
        if quickest is not layers:
            self.notes.append(
                f"{quickest.name} instead of hooks, which cannot reach {len(layers.unreached)} of "
                f"{len(layers.params)} parameters: {max(times) / min(times):.1f} times as fast on "
                f"{TIMED} examples"
            )
        return quickest


def _seconds(engine: Engine, examples: Examples) -> float:
    """What an engine takes for the statistics of some examples; for ever, where memory is short."""
    started = time.perf_counter()
    try:
        engine.statistics(examples)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    if engine.objective.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _agree(objective: Objective, given: Tensor, wanted: Tensor) -> Tensor:
    """Which tensors' norms (n, L) agree up to rounding: (L,); all where some are not finite."""
    if not wanted.isfinite().all():
        return torch.ones_like(wanted[0], dtype=torch.bool)
    precision = torch.finfo(objective.coarsest_dtype).eps
    tolerance = min(ROUNDINGS * precision**0.5, LARGEST_TOLERANCE)
    floor = (CANCELLED * precision) ** 2 * float(wanted.sum(1).max())
    return torch.isclose(given, wanted, rtol=tolerance, atol=floor).all(0)
