"""Training as a generator of checkpoints; divergence is a result, not a crash."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noisescale.errors import (
    CheckpointError,
    NoisescaleError,
    SettingError,
    is_out_of_memory,
    own_words,
)
from noisescale.measure.objective.mean_loss.precision import autocast, check_amp
from noisescale.measure.objective.outputs import with_tensors
from noisescale.problems.data.stream import Stream
from noisescale.problems.models import GhostBatchNorm, has_batch_norm
from noisescale.problems.problem import (
    Examples,
    Problem,
    Source,
    call_model,
    check_weights,
    resident,
    source_of,
    weights_of,
)
from noisescale.problems.sampling import Batches
from noisescale.training.adaptive_batch import AdaptiveBatchSize
from noisescale.training.config import TrainConfig, resolve_batch_size
from noisescale.training.records.checkpoint import Checkpoint
from noisescale.training.tracking.losses import LossHistory
from noisescale.training.updates.batch import Batch, Share
from noisescale.training.updates.cuda_graph import CudaGraphUpdate
from noisescale.training.updates.importance import ImportanceBatches, OutputNorms
from noisescale.training.updates.in_place.proved import ProvedInPlaceSGD
from noisescale.training.updates.preparation import (
    build_optimizer,
    make_gradients_dense,
    trainable_copy,
)
from noisescale.training.updates.rates import num_updates, rate_at

# examples in a forward and backward pass: a larger batch is accumulated in chunks, to bound the
# memory
CHUNK = 4096
# updates on a GPU between two looks at their losses, each of which waits for it: little beside 64
# steps
UNCHECKED_LOSSES = 64
LEAST_WEIGHT = 1e-30  # of a batch: below any number of tokens, and no zero to divide by
# between the draws of two seeds, so that no run meets another's
MOST_EPOCHS = 2**32


def train(
    problem: Problem,
    config: TrainConfig,
    *,
    checkpoint_steps: Collection[int] = (),
    start: Checkpoint | None = None,
) -> Iterator[Checkpoint]:
    """Checkpoints after each epoch and each of `checkpoint_steps`, and at the end.

    Minimises the mean loss over the training examples, in batches drawn without replacement or, by
    importance, with it; where the problem has weights, that of a batch is Σ w_i ℓ_i/Σ w_i over its
    examples. Ends early, with `diverged_at_step` set in the last checkpoint, when a batch's loss is
    not finite. Batch normalisation sees at most 4,096 examples at once: a larger batch is
    accumulated in chunks.

    Args:
        problem: model, loss and training examples. Its model gives the initial parameters and is
            left as it is. A Dataset is held in memory where it takes no more than 1 GiB; a larger
            one, and one whose items change from read to read, is read batch by batch, under random
            numbers of the config's seed and the epoch.
        config: optimizer, rate, batch size, length and seed.
        checkpoint_steps: updates after which there is a checkpoint besides; 0: before the first.
        start: a checkpoint of an earlier run of the same config, which is continued: on the CPU, by
            the same installation at the same number of threads, to bit-identical parameters. Of one
            that is finished there is no further checkpoint. None: from the beginning.

    A model that draws random numbers itself, as dropout does, draws the process's: neither the seed
    nor a resume gives the same ones again.

    Raises:
        SettingError: for a batch larger than the training set, or one that the model cannot take.
        CheckpointError: where `start` is of another configuration or model.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, TrainConfig, train
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> config = TrainConfig(batch_size=32, learning_rate=0.1, epochs=1)
        >>> for checkpoint in train(problem, config, checkpoint_steps=[10]):
        ...     print(checkpoint.step, checkpoint.examples_seen)
        10 320
        41 1297
    """
    training = Training(problem, config)
    if start is not None:
        training.restore(start)
    if start is None and 0 in checkpoint_steps:
        yield training.checkpoint()
    for step in training.calls(lambda step: step in checkpoint_steps):
        if training.epoch_ended or training.finished or step in checkpoint_steps:
            yield training.checkpoint()


class Training:
    """A run in progress: iterate it for its steps, `checkpoint()` between any two of them.

    Attributes:
        model: a copy of the problem's, in training mode.
        batch_size: may be set between any two steps.
        step: updates made.
        examples_seen: examples used in them.
        seconds: time spent in them.
        losses: of the steps so far, thinned; on a GPU, of those that have been looked at.
        carried: what measurements along the run keep for the next one, a part of each checkpoint.
        diverged_at_step: the first update (from 1) whose loss was not finite; may also be set from
            outside, after an update that left the model with no finite loss, and ends the run. On a
            GPU the losses are looked at every 64 updates and before each checkpoint, so that a few
            more updates may follow it.
    """

    def __init__(self, problem: Problem, config: TrainConfig) -> None:
        self.config = config
        self.problem = problem
        self.model = trainable_copy(problem.model)
        self._trained = list(self.model.parameters())
        self.device = self._trained[0].device
        check_amp(config.amp, self.device)
        if config.amp and any(param.dtype == torch.float64 for param in self._trained):
            raise SettingError(
                f"amp {config.amp} of a model in float64, which autocast leaves as it is: give "
                "model.float(), or leave amp out"
            )
        self.examples: Source = resident(source_of(problem.train), self.device)
        if problem.weights is not None and isinstance(self.examples, Examples):
            check_weights(weights_of(problem.weights, self.examples.targets))
        num_examples = self.examples.num_examples
        self.batch_size = resolve_batch_size(config, num_examples)
        self._check_sampling()
        self._check_batch_norm()
        self.batches: Batches | ImportanceBatches
        self._output_norms: OutputNorms | None = None
        seed = config.seed_of_order
        if config.sampling == "importance":
            self.batches = ImportanceBatches(
                num_examples, floor=config.sampling_floor, seed=seed, device=self.device
            )
            self._output_norms = OutputNorms()
        else:
            self.batches = Batches(num_examples, seed=seed, device=self.device)
        self.num_steps = num_updates(config, batch_size=self.batch_size, num_examples=num_examples)
        self.optimizer = build_optimizer(self.model, config, capturable=self.device.type == "cuda")
        self.schedule: AdaptiveBatchSize | None = None
        if config.batch_size == "adaptive":
            self.schedule = AdaptiveBatchSize(config, self.model, num_examples=num_examples)
        self.in_place = self._in_place_sgd()
        self.step = 0
        self.examples_seen = 0
        self.seconds = 0.0
        self.diverged_at_step: int | None = None
        self.losses = LossHistory()
        self.carried: dict[str, Any] = {}
        self._set_rate()
        # a step depends on nothing but its examples, and all have one rate
        self._has_plain_batches = (
            isinstance(self.examples, Examples)
            and problem.weights is None
            and config.has_constant_rate
            and config.sampling == "shuffle"
        )
        # epoch and loss of the latest updates, not yet looked at
        self._unseen: list[tuple[float, Tensor]] = []
        # not given a method of this object, which would then hold itself, and its data, in a cycle
        self._graphs: CudaGraphUpdate | None = None
        # what is read anew is no part of a graph, and a rate is a constant in it
        is_constant = isinstance(self.examples, Examples) and config.has_constant_rate
        is_constant &= self.schedule is None and config.optimizer != "muon"
        is_constant &= config.sampling == "shuffle"
        if self.device.type == "cuda" and is_constant:
            self._graphs = CudaGraphUpdate(self.device, self.model, self.optimizer)

    @property
    def learning_rate(self) -> float:
        """That of the next update; at the end, of the last one."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def epoch(self) -> float:
        """Passes over the training examples so far, fractions included."""
        return self.examples_seen / self.batches.num_examples

    @property
    def last_epoch(self) -> float:
        """What `epoch` will be at the end, unless the run diverges or its batch size changes."""
        examples = (
            math.inf if self.config.max_steps is None else self.config.max_steps * self.batch_size
        )
        return min(self.config.epochs, examples / self.batches.num_examples)

    @property
    def epoch_ended(self) -> bool:
        """Whether the latest step completed a pass over the training examples."""
        return self.step > 0 and self.batches.remaining == 0

    @property
    def finished(self) -> bool:
        """Whether the run has diverged or come to the end of its epochs or steps."""
        return (
            self.diverged_at_step is not None
            or self.examples_seen >= self.config.epochs * self.batches.num_examples
            or (self.config.max_steps is not None and self.step >= self.config.max_steps)
        )

    def __iter__(self) -> Iterator[int]:
        """Makes one update at a time until `finished`, and gives the number of updates made."""
        return self.calls(lambda step: True)

    def calls(self, stops: Callable[[int], bool]) -> Iterator[int]:
        """Makes the same updates, on a CPU several small ones in a call, which takes less time.

        Gives the number of updates made after each call, none of which goes beyond an epoch's end.

        Args:
            stops: whether a call is to end with the update of this number.
        """
        while not self.finished:
            started = time.perf_counter()
            indices = self.batches.take(self._together(stops) * self.batch_size)
            for loss in self._updates(indices):
                self.step += 1
                self.examples_seen += min(self.batch_size, len(indices))
                self._unseen.append((self.epoch, loss))
            self._set_rate()
            due = self.device.type == "cpu" or len(self._unseen) >= UNCHECKED_LOSSES
            if due or self.epoch_ended or self.finished:
                self.check_losses()
            self.seconds += time.perf_counter() - started
            yield self.step

    def _together(self, stops: Callable[[int], bool]) -> int:
        """How many updates the next call makes: of full batches, within an epoch."""
        if self.in_place is None or not self._has_plain_batches:
            return 1
        most = min(
            self.in_place.together(self.batch_size), self.batches.remaining // self.batch_size
        )
        if self.config.max_steps is not None:
            most = min(most, self.config.max_steps - self.step)
        return next((count for count in range(1, most) if stops(self.step + count)), max(most, 1))

    def _updates(self, indices: Tensor) -> Iterator[Tensor]:
        """A step on each batch of the examples at `indices` (K·B,); gives the mean loss () before.

        Of several, up to one whose loss is not finite.
        """
        if len(indices) > self.batch_size:
            assert self.in_place is not None
            losses = self.in_place.updates(self._examples_at(indices), self.batch_size)
            if losses is not None:
                yield from losses.unbind()
                return
        batches = indices.split(self.batch_size)
        for batch in batches:
            loss = self._update(batch)
            yield loss
            if len(batches) > 1 and not math.isfinite(loss):
                return

    def checkpoint(self) -> Checkpoint:
        """The state after the latest step, a copy."""
        self.check_losses()
        return Checkpoint(
            problem=self.problem.config,
            training=self.config,
            step=self.step,
            examples_seen=self.examples_seen,
            seconds=self.seconds,
            params={name: param.detach().clone() for name, param in self.model.named_parameters()},
            buffers={name: buffer.clone() for name, buffer in self.model.named_buffers()},
            optimizer=copy.deepcopy(self.optimizer.state_dict()),
            batches=self.batches.state_dict(),
            diverged_at_step=self.diverged_at_step,
            schedule=None if self.schedule is None else self.schedule.state_dict(),
            losses=self.losses.state(),
            carried=copy.deepcopy(self.carried),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Why faster ways to update are not, or were once not, used for this model."""
        ways = (self.in_place, self._graphs)
        return tuple(way.note for way in ways if way is not None and way.note is not None)

    def _update(self, indices: Tensor) -> Tensor:
        """One step on the examples at `indices` (B,), on a GPU as a CUDA graph; their mean loss.

        SettingError where the model or the loss fails, of which the memory's end is no case.
        """
        try:
            if self._graphs is not None:
                return self._graphs(self._eager_update, indices)
            return self._eager_update(indices)
        except NoisescaleError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise SettingError(
                f"{type(self.model).__name__} cannot be trained: step {self.step + 1:,} fails with "
                f"{own_words(error)}"
            ) from error

    def _eager_update(self, indices: Tensor) -> Tensor:
        """One step on the mean loss of the examples at `indices` (B,); returns that loss."""
        # accumulating over chunks takes a stored gradient
        if self.in_place is not None and len(indices) <= CHUNK:
            ((examples, part),) = self._with_shares([indices], len(indices))
            losses = partial(self._losses_of, examples=examples)
            loss = self.in_place.update(Batch(losses, part, examples))
            self._record_norms(indices, part)
            return loss
        schedule = self.schedule
        chunk_losses = []
        chunks = schedule.parts(indices, largest=CHUNK) if schedule else indices.split(CHUNK)
        for chunk, (examples, part) in zip(
            chunks, self._with_shares(chunks, len(indices)), strict=True
        ):
            loss = part(self._losses_of(self.model, examples))
            loss.backward()
            self._record_norms(chunk, part)
            make_gradients_dense(self._trained)
            chunk_losses.append(loss.detach())
            if schedule:
                schedule.take(examples.num_examples, weight=part.weight)
        if schedule:
            schedule.update(self.step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if schedule:
            self._follow(schedule)
        return chunk_losses[0] if len(chunk_losses) == 1 else torch.stack(chunk_losses).sum()

    def _with_shares(
        self, chunks: Sequence[Tensor], batch_size: int
    ) -> Iterator[tuple[Examples, Share]]:
        """The examples of a batch's chunks, one after the other, each with its share of the loss.

        With weights of the problem all are read first: what a chunk counts for is said by the whole
        batch.
        """
        weights = self.problem.weights
        if weights is None:
            sizes = [len(chunk) for chunk in chunks]
            drawn: Sequence[Tensor | None] = [None] * len(sizes)
            if isinstance(self.batches, ImportanceBatches):
                drawn = self.batches.weights.split(sizes)
            for chunk, of_chunk in zip(chunks, drawn, strict=True):
                share = Share(size=len(chunk), divisor=batch_size, counts=of_chunk)
                yield self._examples_at(chunk), share
            return
        parts = [self._examples_at(chunk) for chunk in chunks]
        counts = [weights_of(weights, part.targets) for part in parts]
        of_batch = torch.cat(counts)
        if isinstance(self.examples, Stream):  # read anew; others are checked at the start
            check_weights(of_batch)
        # of a batch that counts nothing at all the loss is zero, and so is its gradient
        whole = of_batch.sum(dtype=torch.float64).clamp(min=LEAST_WEIGHT)
        for part, count in zip(parts, counts, strict=True):
            yield part, Share(size=part.num_examples, divisor=whole, counts=count)

    def _losses_of(self, model: Callable[..., Any], examples: Examples) -> Tensor:
        """The losses of examples (n,)."""
        with autocast(self.config.amp, self.device):
            outputs = call_model(model, examples.inputs)
        if self.config.amp is not None:  # the loss in float32
            outputs = with_tensors(outputs, _as_float32)
        if self._output_norms is not None:
            outputs = self._output_norms.keep(outputs)
        return self.problem.loss(outputs, examples.targets)

    def _record_norms(self, indices: Tensor, part: Share) -> None:
        """Of the backward pass just made over these examples, where what is drawn goes by them."""
        if self._output_norms is not None and isinstance(self.batches, ImportanceBatches):
            assert part.counts is not None
            norms = self._output_norms.norms(part.counts / part.divisor)
            self.batches.record(indices, norms)

    def _examples_at(self, indices: Tensor) -> Examples:
        """The examples at these indices (B,); of a Dataset that is read anew, this epoch's draw."""
        examples = self.examples
        if isinstance(examples, Stream):
            draw = self.config.seed_of_order * MOST_EPOCHS + self.batches.epoch
            return examples.drawn(draw).part(indices).to(self.device)
        return examples.part(indices)

    def _set_rate(self) -> None:
        """Gives the optimizer the rate of the next update, where a schedule changes it."""
        if self.config.has_constant_rate:
            return
        rate = rate_at(self.config, self.step, num_steps=self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.in_place is not None:
            self.in_place.learning_rate = rate

    def _follow(self, schedule: AdaptiveBatchSize) -> None:
        """Takes over the batch size and the learning rate for the next update."""
        self.batch_size = schedule.batch_size
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.learning_rate

    def check_losses(self) -> None:
        """Keeps the losses since the last look, up to a divergence; waits for the device."""
        if not self._unseen:
            return
        epochs, tensors = zip(*self._unseen, strict=True)
        self._unseen.clear()
        # one look at all of them; on a CPU there is one
        losses = torch.stack(tensors).tolist() if len(tensors) > 1 else [tensors[0].item()]
        for step, (epoch, loss) in enumerate(
            zip(epochs, losses, strict=True), self.step - len(losses) + 1
        ):
            if self.diverged_at_step is not None:
                break
            self.losses.add(step, epoch=epoch, loss=loss)
            if not math.isfinite(loss):
                self.diverged_at_step = step

    def _in_place_sgd(self) -> ProvedInPlaceSGD | None:
        """The in-place update of linear layers, where the optimizer is SGD without momentum."""
        config, num_examples = self.config, self.examples.num_examples
        if config.optimizer != "sgd" or config.momentum or self.schedule or config.amp:
            return None
        return ProvedInPlaceSGD(
            self.model,
            # for a trial pass: two, since a batch of one may be special
            self._examples_at(torch.arange(min(2, num_examples), device=self.device)).inputs,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            # importance sampling needs what autograd leaves at the outputs
            loss=self.problem.loss if self._output_norms is None else None,
        )

    def restore(self, start: Checkpoint) -> None:
        """Takes over the state of `start`, from any device; CheckpointError for another run's."""
        if start.training != self.config or start.problem != self.problem.config:
            raise CheckpointError(
                "the checkpoint belongs to a run of another configuration: start anew"
            )
        try:
            with torch.no_grad():
                for name, param in self.model.named_parameters():
                    param.copy_(start.params[name])
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(start.buffers[name])
            optimizer = copy.deepcopy(start.optimizer)
            for group in optimizer["param_groups"]:
                if "capturable" in group:  # Adam's, which only a GPU knows
                    group["capturable"] = self.device.type == "cuda"
            self.optimizer.load_state_dict(optimizer)
            self.batches.load_state_dict(start.batches)
            if self.schedule is not None:
                self.schedule.load_state_dict(start.schedule or {})
                self._follow(self.schedule)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit the model or its training: {error}"
            ) from error
        self.step = start.step
        self._set_rate()
        self.examples_seen = start.examples_seen
        self.seconds = start.seconds
        self.diverged_at_step = start.diverged_at_step
        self.losses = LossHistory.restored(start.losses)
        self.carried = copy.deepcopy(start.carried or {})

    def _check_sampling(self) -> None:
        """SettingError where single examples cannot be weighted by how often they are drawn."""
        if self.config.sampling == "shuffle":
            return
        if has_batch_norm(self.model):
            raise SettingError(
                "sampling importance with batch norm, in which an example's gradient depends on "
                "those it is drawn with: give --norm layer, or leave one of them out"
            )
        if self.problem.weights is not None:
            raise SettingError(
                "sampling importance of a Problem with weights, whose batches are divided by their "
                "own weights, so that no factor of an example makes up for how often it is drawn: "
                "leave one of them out"
            )

    def _check_batch_norm(self) -> None:
        """SettingError where batch norm would meet a batch of one, which has no variance."""
        if not has_batch_norm(self.model):
            return
        if self.config.batch_size == "adaptive":
            raise SettingError(
                "an adaptive batch size with batch norm: its gradient depends on how a batch is "
                "divided, so that it has no noise scale; give --norm layer"
            )
        num_examples, size = self.examples.num_examples, self.batch_size
        batches = {size, num_examples % size or size}
        chunks = {part for batch in batches for part in (min(batch, CHUNK), batch % CHUNK)}
        ghosts = ghost_sizes(self.model)
        if any(part == 1 or 1 in {part % ghost for ghost in ghosts} for part in chunks):
            what, other = "batch of one", ""
            if ghosts:
                what, other = f"batch or a part (ghost size {min(ghosts)}) of one", "--ghost-size, "
            raise SettingError(
                f"batch size {size} with batch norm: {num_examples} training examples leave a "
                f"{what}, which has no variance; give another batch size, {other}--num-train "
                "or --norm layer"
            )


def _as_float32(tensor: Tensor) -> Tensor:
    """Numbers of less precision in float32; all else as it is."""
    return tensor.float() if tensor.is_floating_point() else tensor


def ghost_sizes(model: nn.Module) -> set[int]:
    """How many examples the model's ghost batch norms take together, if it has any."""
    return {module.ghost_size for module in model.modules() if isinstance(module, GhostBatchNorm)}
