"""The noise scale of a training step of one batch, from per-example gradients of norm layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noisescale.errors import MeasurementError, SettingError, check_count
from noisescale.measure.monitor.averages import Averages
from noisescale.measure.monitor.gradients import Gradients
from noisescale.measure.monitor.groups import Groups
from noisescale.measure.monitor.micro_batches import check_example_losses
from noisescale.measure.monitor.norm_layers.watch import Watch, is_norm
from noisescale.statistics.display import counted, one_line
from noisescale.statistics.estimate import Estimate, quotient, ratio, undefined
from noisescale.statistics.gradient_noise import GradientNoise
from noisescale.statistics.running_noise import two_batch

LEAST_PAIRS = 3  # split updates, below which their spread says little of the factor


class NormLayerMonitor:
    """B_simple of a loop without micro-batches, from what its LayerNorm and RMSNorm layers do.

    The weight and bias of a norm layer have per-example gradients that cost next to nothing: the
    output's gradient times the normalised input, summed over positions. From them |G|² and tr Σ of
    these layers' parameters are unbiased in a single backward pass. The noise scale of all
    parameters is a multiple of theirs that changes little along a training (Gray et al. 2024, arXiv
    2411.00999, figure 4); which multiple is measured on the model itself, in updates that
    `backward` splits in two.

        monitor = NormLayerMonitor(model)
        for inputs, targets in batches:
            losses = loss_per_example(model(inputs), targets)
            monitor.backward(losses, every=20)  # instead of losses.mean().backward()
            monitor.update()
            optimizer.step()
            optimizer.zero_grad()
        print(monitor.simple())

    Args:
        model: with nn.LayerNorm, nn.RMSNorm, or RMSNorm layers like those of transformers, on
            inputs whose first dimension is the examples'. One process, and a loss that is a mean
            over examples.
        memory: as of `NoiseScaleMonitor`.

    Attributes:
        layers: the names of the norm layers.
        num_skipped: updates that were left out: with one example, or not finite.

    Raises:
        SettingError: no norm layer with a trained weight.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from noisescale import NormLayerMonitor
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(20, 20), nn.LayerNorm(20), nn.Linear(20, 1))
        >>> monitor = NormLayerMonitor(model)
        >>> for _ in range(50):
        ...     inputs = torch.randn(32, 20, generator=generator)
        ...     errors = model(inputs)[:, 0] - inputs.sum(1)
        ...     monitor.backward(errors.square(), every=5)
        ...     _ = monitor.update()
        ...     model.zero_grad()
        >>> monitor
        NormLayerMonitor(1 norm layer, 50 updates, 10 of them split)
        >>> monitor.norm_layer_noise().resolved
        True
    """

    def __init__(self, model: nn.Module, *, memory: float | None = None) -> None:
        layers = {name: module for name, module in model.named_modules() if is_norm(module)}
        if not layers:
            raise SettingError(
                "no nn.LayerNorm or RMSNorm with a trained weight: a NoiseScaleMonitor takes "
                "any model"
            )
        self.layers = tuple(layers)
        self.num_skipped = 0
        self._whole = Gradients(Groups(model))
        self._averages = Averages(memory=memory, groups=[])
        # tr Σ and |G|² of all parameters and of the norm layers, of each update that was split
        self._pairs: list[tuple[float, float, float, float]] = []
        self._watches = [Watch(name, module) for name, module in layers.items()]
        self._hook = model.register_forward_pre_hook(self._begin)
        self._removed = False
        self._squares: Tensor | float = 0.0  # Σ|γ_i|² over examples, whose γ_i add up to .grad
        self._count = 0  # examples since the last update
        self._scale = 1.0
        self._since_split = 0
        self._halves: tuple[Tensor, Tensor] | None = None  # |.grad|² after each
        self._half = 0  # examples in the first
        self._checked = False

    def __repr__(self) -> str:
        updates = self._averages.whole.num_updates
        split = f"{len(self._pairs):,} of them split" if self._pairs else ""
        return one_line(
            self, counted(len(self.layers), "norm layer"), counted(updates, "update"), split
        )

    def backward(self, losses: Tensor, *, every: int = 20, scaler: Any = None) -> None:
        """The backward pass of an update's only batch; splits one in so many, to compare.

        Leaves in `.grad` what `losses.mean().backward()` does, up to rounding; `update` follows.

        Args:
            losses: one per example, (B,), with their graph, the examples in random order.
            every: goes back through the graph twice in one update of so many, which then gives the
                noise of all parameters too.
            scaler: the GradScaler of mixed precision, which scales the losses.

        Raises:
            SettingError: losses of another shape, an `every` below 1, or a second batch.
        """
        check_count("every", every)
        self._check_attached()
        if self._count:
            raise SettingError(
                "a second backward() before update(): of batches that are accumulated call "
                "micro_batch(num_examples) after each backward pass of your own"
            )
        check_example_losses(losses)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        is_split = self._since_split % every == 0 and len(losses) > 1
        self._since_split += 1
        parts = losses.tensor_split(2) if is_split else (losses,)
        norms = []
        for part in parts:
            loss = part.sum() / len(losses)
            # by the scaler itself, which begins with its first loss
            loss = loss if scaler is None else scaler.scale(loss)
            loss.backward(retain_graph=part is not parts[-1])
            if is_split:
                norms.append(self._whole.squared_norms()[0])
        self.micro_batch(len(losses), scale=scale)
        if is_split:
            self._halves, self._half = (norms[0], norms[1]), len(parts[0])

    def micro_batch(self, num_examples: int, *, scale: float = 1.0) -> None:
        """Takes note of a backward pass of your own; `backward` calls it by itself.

        The losses of batches that are accumulated must add up to the mean over all their examples:
        of batches of other sizes, sums divided by the number in all.

        Args:
            num_examples: in the batch, or in each of several that are accumulated.
            scale: a further factor in `.grad`, such as an AMP GradScaler's get_scale().

        Raises:
            SettingError: other than so many examples in a layer, or a layer of another kind than
                its name says.
            MeasurementError: no norm layer has taken part in a backward pass.
        """
        check_count("num examples", num_examples)
        self._check_attached()
        sums = [watch.take(num_examples) for watch in self._watches]
        if not any(found is not None for found in sums):
            raise MeasurementError(
                "no norm layer has taken part in a backward pass: call this after each"
            )
        if not self._checked:
            for watch in self._watches:
                watch.check()
            self._checked = True
        self._squares = self._squares + sum(found for found in sums if found is not None)
        self._count += num_examples
        self._scale = scale

    def update(self) -> bool:
        """Whether the update is taken in; to be called after its last backward pass.

        Raises:
            MeasurementError: no backward pass since the last update.
        """
        if not self._count:
            raise MeasurementError("update() before a backward pass: call backward(losses) first")
        count, squares, halves = self._count, self._squares, self._halves
        whole = torch.stack([watch.square() for watch in self._watches]).sum()
        self.discard()
        # other layers' gradients may overflow where those of the norm layers do not
        overflows = halves is not None and not torch.stack([*halves]).isfinite().all()
        if count < 2 or overflows:
            self.num_skipped += 1
            return False
        # g_i = n γ_i, of which the mean is .grad: batches of 1 and of n
        both = torch.stack([count * torch.as_tensor(squares), whole]).cpu() / self._scale**2
        if not self._averages.add(both[:, None], torch.tensor([1.0, count], dtype=torch.float64)):
            self.num_skipped += 1
            return False
        if halves is not None:
            first, last = (float(square) / self._scale**2 for square in halves)
            share = self._half / count
            norm, trace = two_batch(first / share**2, self._half, last, count)
            of_layers, trace_of_layers = two_batch(float(both[0]), 1, float(both[1]), count)
            self._pairs.append((trace, norm, trace_of_layers, of_layers))
        return True

    def remove(self) -> None:
        """Takes the hooks off the model, which costs a training nothing from then on.

        What was measured stays; another monitor may take its state.
        """
        self.discard()
        self._removed = True
        self._hook.remove()
        for watch in self._watches:
            watch.remove()

    def discard(self) -> None:
        """Forgets the backward passes since the last update, where that one is not to be made."""
        self._squares, self._count, self._halves = 0.0, 0, None
        for watch in self._watches:
            watch.clear()

    def _check_attached(self) -> None:
        if self._removed:
            raise SettingError(
                "a NormLayerMonitor after remove(): make another one of the model, and give it "
                "this one's state_dict() to go on from"
            )

    def _begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Before a forward pass: forgets a backward pass of which nobody took note."""
        for watch in self._watches:
            watch.drop()

    def norm_layer_noise(self) -> GradientNoise:
        """|G|², tr Σ and B_simple of the norm layers' parameters alone.

        Raises:
            MeasurementError: no update has been taken in yet.
        """
        if not self._averages.whole.num_updates:
            raise MeasurementError("no noise scale yet: it takes an update of two examples or more")
        return self._averages.whole.noise

    def factor(self) -> Estimate:
        """B_simple of all parameters over that of the norm layers, from the updates split so far.

        Ratios of sums, of tr Σ and of |G|², each with Fieller's interval from the updates' spread,
        and their quotient; undefined before 3 updates, or where |G|² is not resolved.
        """
        pairs = np.array(self._pairs).reshape(-1, 4)
        count = len(pairs)
        if count < LEAST_PAIRS:
            return undefined(num_samples=count)
        means, covariance = pairs.mean(0), np.cov(pairs.T) / count
        factors = []
        for both in ([0, 2], [1, 3]):  # of all parameters and of the norm layers
            of_all, of_layers = means[both].tolist()
            spread = covariance[np.ix_(both, both)]
            factors.append(ratio(of_all, of_layers, spread, num_samples=count, dof=count - 1))
        traces, norms = factors
        return quotient(traces, norms)

    def simple(self) -> Estimate:
        """B_simple of all parameters in examples: that of the norm layers times `factor`.

        The interval takes the two for independent, though they share the split updates; in
        simulations of a small network (`python -m experiments.coverage.norm_layers`) it held
        B_simple in 95 to 97 % of the trainings that resolved it.
        """
        of_layers, factor = self.norm_layer_noise().simple, self.factor()
        if not factor.value > 0 or math.isnan(of_layers.value):
            return undefined(num_samples=of_layers.num_samples)
        inverse = Estimate(
            value=1 / factor.value,
            stderr=factor.stderr / factor.value**2,
            low=1 / factor.high,
            high=1 / factor.low if factor.low > 0 else math.inf,
            num_samples=factor.num_samples,
        )
        return quotient(of_layers, inverse)

    def scalars(self) -> dict[str, float]:
        """For a logger, nan if unresolved: those of `NoiseScaleMonitor`.

        simple, simple_low and simple_high of all parameters; norm_layers/squared_gradient_norm,
        norm_layers/gradient_variance and norm_layers/simple of the norm layers.
        """
        noise, simple = self.norm_layer_noise(), self.simple()
        return {
            "simple": simple.value,
            "simple_low": simple.low,
            "simple_high": simple.high,
            "norm_layers/squared_gradient_norm": noise.squared_gradient_norm.value,
            "norm_layers/gradient_variance": noise.gradient_variance.value,
            "norm_layers/simple": noise.simple.value if noise.resolved else math.nan,
        }

    def state_dict(self) -> dict[str, Any]:
        """The averages between two updates, as plain numbers."""
        return {
            **self._averages.state_dict(),
            "num_skipped": self.num_skipped,
            "pairs": [list(pair) for pair in self._pairs],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from another monitor's state.

        Args:
            state: what `state_dict` gave.

        Raises:
            SettingError: a state of something else; the monitor stays as it was.
        """
        try:
            pairs = [(float(a), float(b), float(c), float(d)) for a, b, c, d in state["pairs"]]
        except (KeyError, TypeError, ValueError) as error:
            raise SettingError(
                "a state of something else: give what state_dict() of a NormLayerMonitor returned"
            ) from error
        self._averages.load_state_dict(state)
        self.num_skipped = state["num_skipped"]
        self._pairs = pairs
