"""Updates in place, for as long as they are those of autograd and torch.optim."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD

from noisescale.errors import first_line
from noisescale.problems.models import copy_of, gradient_of
from noisescale.problems.problem import Examples, LossFn, Tree
from noisescale.problems.random_state import preserved_random_state
from noisescale.training.updates.batch import Batch
from noisescale.training.updates.in_place.chain import Chain
from noisescale.training.updates.in_place.compiled import NOT_BUILT, CompiledSteps
from noisescale.training.updates.in_place.in_place_sgd import InPlaceSGD
from noisescale.training.updates.preparation import make_gradients_dense

# Updates made both ways: in the first one alone, layers that start at zero hide all below them
PROVED_UPDATES = 3
# Relative difference of two updates that rounding explains, in units of the precision: the terms of
# a gradient may cancel to a thousandth of their size, and then be added in another order
ROUNDING = 1e4


class ProvedInPlaceSGD:
    """Plain SGD, its linear layers updated in place where that has been seen to change nothing.

    The first updates are made twice, from the same parameters, buffers and random state: by
    autograd and torch.optim.SGD, and in place on a copy. Where the parameters come out the same up
    to rounding, those of the copy are taken, and later updates are in place alone, but for
    parameters that `InPlaceSGD.check` leaves to autograd. Where they do not, or the copy fails,
    every update is torch.optim's. On a CPU the way in place of a chain of layers is `Chain`, at
    small batch sizes `CompiledSteps`.

    Args:
        model: whose parameters are updated.
        inputs: of a trial pass, made on a copy.
        learning_rate: η.
        weight_decay: λ.
        loss: of the examples; where its gradient at the outputs is known, that of a chain needs no
            autograd. None: autograd is wanted.

    Attributes:
        note: why linear layers are, or once were, not updated in place, or small batches not by
            compiled code; None: there is no such layer, or they always were.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tree,
        *,
        learning_rate: float,
        weight_decay: float,
        loss: LossFn | None = None,
    ) -> None:
        self.note: str | None = None
        self._model = model
        self._sgd = partial(SGD, weight_decay=weight_decay)
        self._optimizer = self._sgd(model.parameters(), lr=learning_rate)
        self._gradient = None if loss is None else gradient_of(loss)
        self._to_prove = PROVED_UPDATES
        self._in_place: InPlaceSGD | None = None
        self._chain: Chain | None = None
        self._compiled: CompiledSteps | None = None
        if any(_is_compiled(module) for module in model.modules()):
            self._disprove("the model is compiled")
            return
        try:
            mode = InPlaceSGD(model, inputs, learning_rate=learning_rate, weight_decay=weight_decay)
            self._in_place = mode if mode.covered else None
            self._chain = _chain_of(model)
            self._compiled = CompiledSteps.of(self._chain, self._gradient)
        except Exception as error:
            self._disprove(f"the model fails on two examples ({first_line(error)})")

    @property
    def learning_rate(self) -> float:
        """That of the next update, which may be changed."""
        return float(self._optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._optimizer.param_groups[0]["lr"] = rate
        if self._in_place is not None:
            self._in_place.learning_rate = rate

    def update(self, batch: Batch) -> Tensor:
        """One step; returns the mean loss () before it.

        Args:
            batch: whose mean loss is minimised.
        """
        in_place = self._in_place
        if in_place is None:
            return self._stored(batch)
        if self._to_prove:
            self._to_prove -= 1
            return self._both_ways(in_place, batch)
        if self._chain is not None:
            return self._down_the_chain(self._chain, self._compiled, self._optimizer, batch)
        return self._without_storing(in_place, self._model, self._optimizer, batch)

    def together(self, batch_size: int) -> int:
        """How many updates `updates` may be asked for at once.

        Notes where it is one for want of compiled code.

        Args:
            batch_size: examples of each.
        """
        compiled = self._compiled
        if self._to_prove or self._in_place is None or compiled is None:
            return 1
        at_once = compiled.at_once(batch_size)
        if at_once and not compiled.is_built:
            self.note = self.note or NOT_BUILT
            return 1
        return max(1, at_once)

    def updates(self, examples: Examples, batch_size: int) -> Tensor | None:
        """Steps on one batch after the other; returns the mean losses (K,) before each.

        They end after the first one whose loss is not finite. None: no step is made, and each is to
        be made by `update`.

        Args:
            examples: of all batches.
            batch_size: examples of each.
        """
        assert self._compiled is not None
        return self._steps(self._compiled, self._optimizer, examples, batch_size)

    def _steps(
        self, compiled: CompiledSteps, optimizer: SGD, examples: Examples, batch_size: int
    ) -> Tensor | None:
        group = optimizer.param_groups[0]
        return compiled(
            examples.inputs,
            examples.targets,
            batch_size=batch_size,
            learning_rate=group["lr"],
            weight_decay=group["weight_decay"],
        )

    def _both_ways(self, in_place: InPlaceSGD, batch: Batch) -> Tensor:
        """One step by torch.optim, and the same one in place on a copy, whose result is kept."""
        before = [param.detach().clone() for param in self._model.parameters()]
        twin = self._twin(in_place, batch)
        in_place.serve(self._model)
        loss = self._stored(batch)
        if twin is None:
            return loss
        for (name, param), theirs, start in zip(
            self._model.named_parameters(), twin.parameters(), before, strict=True
        ):
            if not agree(param.detach(), theirs.detach(), start):
                self._disprove(f"updated in place, {name} takes another step")
                return loss
        with torch.no_grad():
            for param, theirs in zip(self._model.parameters(), twin.parameters(), strict=True):
                param.copy_(theirs)
        return loss

    def _twin(self, in_place: InPlaceSGD, batch: Batch) -> nn.Module | None:
        """A copy of the model after the step in place; None where that cannot be made."""
        device = next(self._model.parameters()).device
        try:
            with preserved_random_state([device] if device.type == "cuda" else []):
                twin = copy_of(self._model)
                in_place.serve(twin)
                optimizer = self._sgd(twin.parameters(), lr=self.learning_rate)
                if self._chain is not None and (chain := _chain_of(twin)) is not None:
                    compiled = CompiledSteps.of(chain, self._gradient)
                    self._down_the_chain(chain, compiled, optimizer, batch)
                    return twin
                self._without_storing(in_place, twin, optimizer, batch)
        except Exception as error:
            self._disprove(f"an update in place fails ({first_line(error)})")
            return None
        if in_place.departure is not None and not in_place.serves_any:
            self._disprove(in_place.departure)
            return None
        return twin

    def _down_the_chain(
        self, chain: Chain, compiled: CompiledSteps | None, optimizer: SGD, batch: Batch
    ) -> Tensor:
        """One step on a chain, its layers one by one where nothing has been hung on them."""
        share = batch.share
        is_mean = share.counts is None and share.size == share.divisor
        if compiled is not None and is_mean and compiled.at_once(share.size):
            losses = self._steps(compiled, optimizer, batch.examples, share.size)
            if losses is not None:
                return losses[0]
        group = optimizer.param_groups[0]
        known = self._without_autograd(chain, batch)
        if known is not None:
            loss, grad = known
            chain.descend(grad, group["lr"], group["weight_decay"])
            return loss
        loss = batch.mean(chain)
        loss.backward()
        if chain.ran:
            chain.descend(chain.gradient, group["lr"], group["weight_decay"])
        else:
            self._note(
                "its layers could not be run one by one, as where they have changed or have hooks"
            )
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def _without_autograd(self, chain: Chain, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The mean loss (), and its gradient at the outputs (B, C); None: they are autograd's."""
        targets = batch.examples.targets
        if self._gradient is None or not isinstance(targets, Tensor):
            return None
        outputs = chain.forward(batch.examples.inputs)
        if outputs is None or outputs.dim() != 2 or targets.dtype != torch.int64:
            return None
        with torch.no_grad():
            losses, grad = self._gradient(outputs, targets, batch.share.of_each(outputs))
            return batch.share(losses), grad

    def _without_storing(
        self, in_place: InPlaceSGD, model: nn.Module, optimizer: SGD, batch: Batch
    ) -> Tensor:
        """One step, in place where the mode's check finds nothing against it."""
        with in_place:
            of_examples = batch.losses(model)
        loss = batch.share(of_examples)
        in_place.check(loss)
        if in_place.departure is not None:
            self._note(in_place.departure)
        loss.backward()
        if not in_place.served_all:
            make_gradients_dense(model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def _stored(self, batch: Batch) -> Tensor:
        """One step by autograd and torch.optim."""
        loss = batch.mean(self._model)
        loss.backward()
        make_gradients_dense(self._model.parameters())
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def _disprove(self, reason: str) -> None:
        self._in_place = None
        self._note(reason)

    def _note(self, reason: str) -> None:
        self.note = self.note or (
            "linear layers are updated from stored gradients, which is slower at small batch "
            f"sizes: {reason}"
        )


def _chain_of(model: nn.Module) -> Chain | None:
    """The chain that a model on a CPU is; on a GPU an update is captured, however it is made."""
    return Chain.of(model) if next(model.parameters()).is_cpu else None


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile holds this module, which would compile what watches it as well."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def agree(expected: Tensor, updated: Tensor, start: Tensor) -> bool:
    """Whether two updates of a tensor from `start` are the same up to rounding.

    One that is not finite says nothing: a run that diverges does so either way.

    Args:
        expected: the tensor after an update.
        updated: after the one that is compared.
        start: before both.
    """
    if not (expected.is_floating_point() or expected.is_complex()):
        return torch.equal(expected, updated)
    if not expected.isfinite().all():
        return True
    precision = torch.finfo(expected.dtype).eps
    wide = torch.promote_types(expected.dtype, torch.float64)  # complex numbers stay complex
    expected, updated, start = (values.to(wide) for values in (expected, updated, start))
    allowed = ROUNDING * precision * (expected - start).norm() + 4 * precision * start.norm()
    return bool((updated - expected).norm() <= allowed)
