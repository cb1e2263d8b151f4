"""Norms of per-example gradients from the inputs of layers and the gradients of their outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from noisescale.measure.gradients.engine import ChunkStatistics, EngineName
from noisescale.measure.gradients.example_map import ExampleMap
from noisescale.measure.gradients.factors import (
    TEMPORARY_BYTES,
    ExampleGradients,
    projections,
    squared_norms,
)
from noisescale.measure.gradients.recorder import LayerRecorder, first_sizes
from noisescale.measure.gradients.vmap import example_gradients
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Params

# Examples that are compared with backward passes of their own before the pass: two, the fewest that
# tell an example's gradient from the batch's
COMPARED = 2
# And after it: the largest, which matters most, and four at random, each of which costs a backward
# pass
CONFIRMED = 5
LARGEST_CPU_CHUNK = 1024  # examples; more would leave the caches
# What a rule or a module raises for shapes that it does not expect
UNFIT = (RuntimeError, ValueError, TypeError, IndexError)


class LayerEngine:
    """Norms by the rules of `gradient_rule`, at about the price of one gradient.

    One forward and one backward pass over the batch as a whole, from which the summed gradient
    falls out; projections take one more without the products that give weights their gradients. The
    parameters that the layers do not reach go through vmap of the whole model's gradient with
    respect to them alone.

    Args:
        objective: the point, the examples and the chunk size.
        probe: a few examples, on the first of which is found out what the layers reach.
    """

    name: EngineName = "hooks"

    def __init__(self, objective: Objective, probe: Examples) -> None:
        self.objective = objective
        if objective.device.type == "cpu":
            objective.cap_chunk_size(LARGEST_CPU_CHUNK)
        self._recorder = LayerRecorder(objective)
        self._each = ExampleMap()
        self._reach = probe_layers(self._recorder, probe)
        if num_unreached := sum(self.params[name].numel() for name in self.unreached):
            objective.cap_chunk_size(
                TEMPORARY_BYTES // (num_unreached * objective.point.element_size())
            )

    @property
    def params(self) -> Params:
        """The point, leaves by name."""
        return self._recorder.params

    @property
    def unreached(self) -> Set[str]:
        """The parameters that go through vmap of the whole model."""
        return self._reach.unreached

    @property
    def notes(self) -> tuple[str, ...]:
        maps = self._recorder.maps | {"this model": self._each}
        looped = sorted(name for name, each in maps.items() if each.reason is not None)
        notes = [f"vmap does not work on {name}, its examples went one by one" for name in looped]
        if self.unreached:
            names = sorted(self.unreached)
            listed = ", ".join(names[:5]) + (
                f" and {len(names) - 5} more" if len(names) > 5 else ""
            )
            notes.append(
                f"{listed}: not used by the module they belong to, example by example; "
                "through vmap of the whole model"
            )
        return tuple(notes)

    def confirms(self, squared_norms: np.ndarray) -> bool:
        """Whether the norms (n, L) of some examples are those of backward passes of their own.

        The largest and some at random: what shows only in a large batch, as a model that sorts it.
        """
        if not np.isfinite(squared_norms).all():
            return True  # which is another's to report
        num_compared = min(CONFIRMED, len(squared_norms))
        rows = np.random.default_rng(0).choice(len(squared_norms), num_compared, replace=False)
        rows[0] = squared_norms.sum(1).argmax()
        alone = _single_squared_norms(self.objective, rows.tolist())
        return bool(
            _agree(self.objective, torch.from_numpy(squared_norms[rows]), alone.cpu()).all()
        )

    def statistics(self, chunk: Examples) -> ChunkStatistics:
        losses = self._recorder.forward(chunk, parameters=True, repeated=self._reach.repeated)
        gradient = self._recorder.backward(losses)
        pieces = self._pieces(chunk)
        norms = [_norms(self.objective, pieces[name], len(losses)) for name in self.params]
        return ChunkStatistics(losses.detach(), torch.stack(norms, 1), gradient)

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        losses = self._recorder.forward(chunk, parameters=False, repeated=self._reach.repeated)
        self._recorder.backward(losses)
        pieces = self._pieces(chunk)
        zeros = torch.zeros(chunk.num_examples, dtype=torch.float64, device=self.objective.device)
        along = [
            projections(pieces[name], direction[name]) if pieces[name] else zeros
            for direction in directions
            for name in self.params
        ]
        by_tensor: Tensor = torch.stack(along).unflatten(0, (len(directions), -1))  # (K, L, B)
        return by_tensor.mT

    def _pieces(self, chunk: Examples) -> dict[str, list[ExampleGradients]]:
        """The gradients of the single examples, by parameter, after a backward pass."""
        pieces: dict[str, list[ExampleGradients]] = {name: [] for name in self.params}
        for call in self._recorder.calls:
            if call.is_used and not self.unreached >= call.parameters:
                holds_examples = self._reach.holds_examples[call.number]
                for name, gradients in self._recorder.gradients(call, holds_examples).items():
                    pieces[name].append(gradients)
        self._recorder.calls.clear()
        if self.unreached:
            names = sorted(self.unreached)
            written, _ = example_gradients(
                self.objective, self.params, chunk, names, each=self._each
            )
            pieces |= {name: [gradients] for name, gradients in written.items()}
        return pieces


class Reach(NamedTuple):
    """What can be had of a model's per-example gradients from the calls of its layers.

    holds_examples: of each call in a pass, which of its arguments have a first dimension of
        examples.
    repeated: the numbers of the calls whose outputs are to be repeated for every example.
    unreached: the parameters that are not used by the module they belong to, or not along a first
        dimension of examples.
    """

    holds_examples: list[list[bool]]
    repeated: Set[int]
    unreached: Set[str]


def probe_layers(recorder: LayerRecorder, examples: Examples) -> Reach:
    """What the layers reach, by comparison with backward passes of single examples.

    Where some calls hold no examples, the better of repeating their outputs and of leaving them
    alone. Two forward passes, a forward and a backward pass for each of the two ways, and one for
    each of two examples.

    Args:
        recorder: of the model's layers.
        examples: two or more.
    """
    holds_examples = _which_arguments_hold_examples(recorder, examples)
    without = frozenset(number for number, holds in enumerate(holds_examples) if not any(holds))
    few = examples.part(slice(COMPARED))
    wanted = _single_squared_norms(recorder.objective.on(few), range(few.num_examples))

    def reach(repeated: Set[int]) -> Reach:
        unreached = _unreached(recorder, few, wanted, holds_examples, repeated)
        return Reach(holds_examples, repeated, unreached)

    repeating = reach(without)
    if not (without and repeating.unreached):
        return repeating
    plain = reach(frozenset())
    return plain if len(plain.unreached) <= len(repeating.unreached) else repeating


def _which_arguments_hold_examples(recorder: LayerRecorder, examples: Examples) -> list[list[bool]]:
    """Of each call, the arguments whose first dimension follows the number of examples."""
    sizes = []
    for num_examples in (1, 2):
        recorder.forward(examples.part(slice(num_examples)), parameters=True)
        sizes.append([first_sizes(call) for call in recorder.calls])
    of_one, of_two = sizes
    if len(of_one) != len(of_two):  # which modules run depends on the batch
        return [[] for _ in of_two]
    return [
        [size != other for size, other in zip(*arguments, strict=False)]
        for arguments in zip(of_one, of_two, strict=True)
    ]


def _unreached(
    recorder: LayerRecorder,
    examples: Examples,
    wanted: Tensor,
    holds_examples: list[list[bool]],
    repeated: Set[int],
) -> set[str]:
    """The parameters whose norms by the layers' calls are not the wanted ones.

    All of them where the model does not take repeated outputs.

    Args:
        recorder: of the model's layers.
        examples: n of them.
        wanted: |g_i|² by parameter (n, L), by backward passes of single examples.
        holds_examples: see Reach.
        repeated: the calls whose outputs are repeated.
    """
    try:
        recorder.backward(recorder.forward(examples, parameters=True, repeated=repeated))
    except UNFIT:
        if repeated:
            return set(recorder.params)
        raise
    pieces: dict[str, list[ExampleGradients]] = {name: [] for name in recorder.params}
    unfit: set[str] = set()
    for call in recorder.calls:
        if call.is_used:
            try:
                gradients = recorder.gradients(call, holds_examples[call.number])
            except UNFIT:
                unfit |= call.parameters
                continue
            for name, gradient in gradients.items():
                pieces[name].append(gradient)
    norms = torch.full_like(wanted, torch.nan)
    for index, name in enumerate(recorder.params):
        with contextlib.suppress(RuntimeError):  # shapes that do not go together
            norms[:, index] = _norms(recorder.objective, pieces[name], len(wanted))
    agree = _agree(recorder.objective, norms, wanted).tolist()
    return unfit | {name for name, right in zip(recorder.params, agree, strict=True) if not right}


def _norms(objective: Objective, pieces: list[ExampleGradients], num_examples: int) -> Tensor:
    """|Σ pieces|² of each example, zero where there is none: (B,), float64."""
    if not pieces:
        return torch.zeros(num_examples, dtype=torch.float64, device=objective.device)
    return squared_norms(pieces)


def _single_squared_norms(objective: Objective, rows: Sequence[int]) -> Tensor:
    """|g_i|² of the examples at these rows by parameter, a backward pass each: (n, L), float64."""
    norms = []
    for row in rows:
        example = objective.on(objective.examples.part(slice(row, row + 1)))
        gradient = example.value_and_gradient()[1]
        parts = objective.unflatten(gradient.double()).values()
        norms.append(torch.stack([part.square().sum() for part in parts]))
    return torch.stack(norms)


def _agree(objective: Objective, norms: Tensor, wanted: Tensor) -> Tensor:
    """Which tensors' norms (n, L) agree up to rounding: (L,); all where some are not finite."""
    if not wanted.isfinite().all():
        return torch.ones_like(wanted[0], dtype=torch.bool)
    precision = torch.finfo(objective.dtype).eps
    floor = precision * float(wanted.sum(1).max())
    return torch.isclose(norms, wanted, rtol=10 * precision**0.5, atol=floor).all(0)
