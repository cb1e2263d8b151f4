"""Norms of per-example gradients from the inputs of layers and the gradients of their outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

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

COMPARED = 2  # examples that are compared with backward passes of their own before the pass
CONFIRMED = 5  # and after it
LARGEST_CHUNK = 1024  # examples on a CPU, whose caches more would leave
# what a rule or a module raises for shapes that it does not expect
UNFIT = (RuntimeError, ValueError, TypeError, IndexError)


class LayerEngine:
    """Norms by the rules of `gradient_rules`, at about the price of one gradient.

    One forward and one backward pass over the batch as a whole, from which the summed gradient falls out;
    projections take one more without the products that give weights their gradients.

    elsewhere: the parameters that are not used by the module they belong to, or not along a first dimension
    of examples; they go through vmap of the whole model's gradient with respect to them alone. Which they
    are is found by comparison with single-example backward passes on the first of `probe`.
    """

    name: EngineName = "hooks"

    def __init__(self, objective: Objective, probe: Examples) -> None:
        self.objective = objective
        if objective.device.type == "cpu":
            objective.cap_chunk_size(LARGEST_CHUNK)
        self._recorder = LayerRecorder(objective)
        self._each = ExampleMap()
        self._holds_examples = self._which_arguments_hold_examples(probe)
        once = {number for number, holds in enumerate(self._holds_examples) if not any(holds)}
        few = probe.part(slice(COMPARED))
        self.elsewhere = self._unreachable(few, repeated=once)
        if once and self.elsewhere:  # does it do without repeated outputs?
            without = self._unreachable(few, repeated=set())
            if len(without) <= len(self.elsewhere):
                self.elsewhere = without
            else:
                self._recorder.repeated = once
        if num_elsewhere := sum(self.params[name].numel() for name in self.elsewhere):
            objective.cap_chunk_size(
                TEMPORARY_BYTES // (num_elsewhere * objective.point.element_size())
            )

    @property
    def params(self) -> Params:
        return self._recorder.params

    @property
    def notes(self) -> tuple[str, ...]:
        maps = self._recorder.maps | {"this model": self._each}
        looped = sorted(name for name, each in maps.items() if each.reason is not None)
        notes = [f"vmap does not work on {name}, its examples went one by one" for name in looped]
        if self.elsewhere:
            names = sorted(self.elsewhere)
            listed = ", ".join(names[:5]) + (
                f" and {len(names) - 5} more" if len(names) > 5 else ""
            )
            notes.append(
                f"{listed}: not used by the module they belong to, example by example; through vmap of the "
                "whole model"
            )
        return tuple(notes)

    def confirms(self, squared_norms: np.ndarray) -> bool:
        """Whether the norms (n, L) of some examples are those of backward passes of their own.

        The largest and some at random: what shows only in a large batch, as a model that sorts it.
        """
        if not np.isfinite(squared_norms).all():
            return True  # which is another's to report
        count = min(CONFIRMED, len(squared_norms))
        chosen = np.random.default_rng(0).choice(len(squared_norms), count, replace=False)
        chosen[0] = squared_norms.sum(1).argmax()
        alone = [
            self._alone(self.objective.examples.part(slice(i, i + 1))) for i in chosen.tolist()
        ]
        return bool(
            self._agree(torch.from_numpy(squared_norms[chosen]), torch.stack(alone).cpu()).all()
        )

    def _agree(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Which tensors' norms (n, L) agree up to rounding: (L,); all where some are not finite."""
        if not wanted.isfinite().all():
            return torch.ones_like(wanted[0], dtype=torch.bool)
        precision = torch.finfo(self.objective.dtype).eps
        floor = precision * float(wanted.sum(1).max())
        return torch.isclose(found, wanted, rtol=10 * precision**0.5, atol=floor).all(0)

    def statistics(self, chunk: Examples) -> ChunkStatistics:
        losses = self._recorder.forward(chunk, parameters=True)
        gradient = self._recorder.backward(losses)
        pieces = self._pieces(chunk)
        norms = [self._norms(pieces[name], len(losses)) for name in self.params]
        return ChunkStatistics(losses.detach(), torch.stack(norms, 1), gradient)

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        self._recorder.backward(self._recorder.forward(chunk, parameters=False))
        pieces = self._pieces(chunk)
        nothing = torch.zeros(chunk.num_examples, dtype=torch.float64, device=self.objective.device)
        found = [
            projections(pieces[name], direction[name]) if pieces[name] else nothing
            for direction in directions
            for name in self.params
        ]
        by_tensor: Tensor = torch.stack(found).unflatten(0, (len(directions), -1))  # (K, L, B)
        return by_tensor.mT

    def _pieces(self, chunk: Examples) -> dict[str, list[ExampleGradients]]:
        """The gradients of the single examples, by parameter, after a backward pass."""
        pieces: dict[str, list[ExampleGradients]] = {name: [] for name in self.params}
        for call in self._recorder.calls:
            is_used = any(gradient is not None for gradient in call.gradients)
            if is_used and not self.elsewhere >= call.parameters:
                found = self._recorder.gradients(call, self._holds_examples[call.number])
                for name, gradients in found.items():
                    pieces[name].append(gradients)
        self._recorder.calls.clear()
        if self.elsewhere:
            names = sorted(self.elsewhere)
            written, _ = example_gradients(
                self.objective, self.params, chunk, names, each=self._each
            )
            pieces |= {name: [gradients] for name, gradients in written.items()}
        return pieces

    def _norms(self, pieces: list[ExampleGradients], count: int) -> Tensor:
        if not pieces:
            return torch.zeros(count, dtype=torch.float64, device=self.objective.device)
        return squared_norms(pieces)

    def _which_arguments_hold_examples(self, probe: Examples) -> list[list[bool]]:
        """Of each call in a pass: the arguments whose first dimension follows the number of examples."""
        sizes = []
        for count in (1, 2):
            self._recorder.forward(probe.part(slice(count)), parameters=True)
            sizes.append([first_sizes(call) for call in self._recorder.calls])
        if len(sizes[0]) != len(sizes[1]):  # which modules run depends on the batch
            return [[] for _ in sizes[1]]
        return [
            [one != two for one, two in zip(*both, strict=False)]
            for both in zip(*sizes, strict=True)
        ]

    def _unreachable(self, probe: Examples, *, repeated: set[int]) -> set[str]:
        """The parameters whose norms by the rules are not those of single-example backward passes.

        repeated: calls without examples whose outputs are repeated for each; all parameters where the model
        does not take that.
        """
        recorder, count = self._recorder, probe.num_examples
        recorder.repeated = repeated
        try:
            recorder.backward(recorder.forward(probe, parameters=True))
        except UNFIT:
            if repeated:
                return set(self.params)
            raise
        pieces: dict[str, list[ExampleGradients]] = {name: [] for name in self.params}
        unreachable: set[str] = set()
        for call in recorder.calls:
            if any(gradient is not None for gradient in call.gradients):
                try:
                    found = recorder.gradients(call, self._holds_examples[call.number])
                except UNFIT:
                    unreachable |= call.parameters
                    continue
                for name, gradients in found.items():
                    pieces[name].append(gradients)
        wanted = torch.stack([self._alone(probe.part(slice(i, i + 1))) for i in range(count)])
        found_norms = torch.full_like(wanted, torch.nan)
        for index, name in enumerate(self.params):
            with contextlib.suppress(RuntimeError):  # shapes that do not go together
                found_norms[:, index] = self._norms(pieces[name], count)
        agree = self._agree(found_norms, wanted).tolist()
        return unreachable | {
            name for name, right in zip(self.params, agree, strict=True) if not right
        }

    def _alone(self, example: Examples) -> Tensor:
        """|g|² of a single example, by parameter: (L,)."""
        gradient = self.objective.on(example).value_and_gradient()[1]
        parts = self.objective.unflatten(gradient.double()).values()
        return torch.stack([part.square().sum() for part in parts])
