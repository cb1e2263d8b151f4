"""The noise scale inside anybody's training loop, from gradients it computes anyway."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, distributed as dist, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from noisescale.errors import MeasurementError, SettingError, check_count, is_real
from noisescale.measure.distributed import rank_and_size
from noisescale.measure.monitor.averages import Averages
from noisescale.measure.monitor.ddp_norms import CommHook, ReplicaNorms
from noisescale.measure.monitor.fsdp_norms import ShardNorms, is_sharded
from noisescale.measure.monitor.gradients import Gradients
from noisescale.measure.monitor.groups import Grouping, Groups
from noisescale.measure.monitor.live_preconditioner import LivePreconditioner
from noisescale.measure.monitor.micro_batches import (
    MicroBatch,
    ProcessNorms,
    across,
    check_example_losses,
    nested,
)
from noisescale.statistics.display import counted, one_line
from noisescale.statistics.gradient_noise import GradientNoise, under_preconditioner

Reduction = Literal["mean", "sum"]
SCALARS = ("squared_gradient_norm", "gradient_variance", "simple", "simple_low", "simple_high")
UNREAD = 64  # updates on a GPU between two looks at their norms, each of which waits for it
UNSPLIT = 20  # updates of one micro-batch, before any of more, after which a loop is told


class NoiseScaleMonitor:
    """|G|², tr Σ and B_simple along a training loop with micro-batches or several processes.

    Two squared norms per update and no further backward pass: that of the gradient after the first
    of an update's micro-batches, and after the last.

        monitor = NoiseScaleMonitor(model.parameters())
        for batch in batches:
            for inputs, targets in batch:  # two or more micro-batches
                (loss(model(inputs), targets) / len(batch)).backward()
                monitor.micro_batch(len(inputs))
            monitor.update()  # before the gradient is unscaled, clipped or zeroed
            optimizer.step()
            optimizer.zero_grad()
        print(monitor.noise().simple)

    A loop without accumulation hands its losses over, one per example, and `backward` splits them;
    in every tenth update, which takes about a tenth longer on average:

        monitor.backward(losses, every=10)  # instead of losses.mean().backward()
        monitor.update()

    With DistributedDataParallel see `attach`: then one micro-batch per process is enough. With
    mixed precision the gradient holds the scaler's factor, of which both calls must know, before
    `scaler.unscale_`:

        scaler.scale(loss / len(batch)).backward()
        monitor.micro_batch(len(inputs), scale=scaler.get_scale())
        ...
        monitor.update()  # takes the last micro-batch's scale
        scaler.step(optimizer)

    With tensor parallelism (DTensor) over all processes, give the model itself, and as num_examples
    those that all processes see.

    With Accelerate, accelerator.scaler being None but for fp16:

        accelerator.backward(loss)  # inside `with accelerator.accumulate(model)`
        monitor.micro_batch(len(inputs))  # and scale=accelerator.scaler.get_scale() for fp16
        if accelerator.sync_gradients:  # which divides an epoch's shorter last update as all others
            monitor.update(divided_by=accelerator.gradient_accumulation_steps)

    and to log it, with TensorBoard's SummaryWriter or with W&B:

        for name, value in monitor.scalars().items():
            writer.add_scalar(f"noise_scale/{name}", value, step)
        wandb.log({f"noise_scale/{name}": value for name, value in monitor.scalars().items()})

    Under Adam the noise scale that bears on the batch size is B^P_simple = tr(PΣ)/GᵀPG, with P =
    1/(√v̂ + ε) as the optimizer has it before its step (see `preconditioner_of`). Given the
    optimizer, the monitor measures it in place of the plain one:

        monitor = NoiseScaleMonitor(model.parameters(), preconditioner=optimizer)

    Updates before the optimizer's first step, when it has no v̂ yet, are left out.

    The estimates are of the population "training", see `RunningNoise`: of examples that have not
    been used before, that of fresh examples, and of N used again, |G_N|² − tr Σ/N of their own.
    They are unbiased for micro-batches drawn independently or without replacement, of a model that
    treats examples one by one, which batch norm in training mode does not; their errors assume
    independent updates. Left out and counted in `num_skipped` is an update with one micro-batch,
    with a gradient that is not finite, with a last micro-batch so short that all together are
    hardly worth more examples than the first, or one that was broken off: where gradients were set
    to None after a micro-batch, as before a batch is tried again, the update begins anew, and where
    other parameters are trained than before, it is left out. Gradients may be complex (|.|² counts
    both parts) and sparse, and missing in some micro-batches; those left behind by parameters that
    no longer require any do not count.

    Args:
        parameters: a module, or its parameters. Those that require no gradient yet count from when
            they do.
        reduction: what `.grad` is once an update's micro-batches are in. "mean": the mean of the
            micro-batches' mean gradients, equally weighted, as where each mean loss is divided by
            their number. "sum": the mean over examples, as where each summed loss is divided by the
            number of all examples. They differ for uneven micro-batches.
        memory: examples after which an update's weight in the averages has fallen to 1/e; None: 100
            times those of the first update.
        groups: what `noise_by_group` tells apart, of a module: "type", by the type of the layer
            that holds a parameter; "layer", by its name; or the names of groups, each with a
            pattern or several of the names of its parameters, such as {"attention": "*.attn.*"}.
            Those that no pattern matches are the group "other".
        preconditioner: the optimizer of the parameters, such as Adam, AdamW, RMSprop or Adagrad,
            under whose diagonal P norms are taken: |G|² is then GᵀPG, and tr Σ is tr(PΣ). None:
            plain norms.

    Attributes:
        reduction: as given.
        num_skipped: updates that were left out.
        population: "training".
        unmeasured: why the loop gives nothing to compare, where a trainer's callback has found out;
            `noise` says it.

    Raises:
        SettingError: a DistributedDataParallel model, no parameter that requires a gradient,
            another reduction or memory than these, groups that overlap, match nothing, or are
            asked for of parameters without a module, or as preconditioner SGD, another model's
            optimizer, or what is none.

    Examples:
        >>> import torch
        >>> from noisescale import NoiseScaleMonitor
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = torch.nn.Linear(20, 1)
        >>> monitor = NoiseScaleMonitor(model)
        >>> for _ in range(50):
        ...     for _ in range(2):
        ...         inputs = torch.randn(16, 20, generator=generator)
        ...         loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        ...         (loss / 2).backward()
        ...         monitor.micro_batch(len(inputs))
        ...     _ = monitor.update()
        ...     model.zero_grad()
        >>> monitor
        NoiseScaleMonitor(2 parameter tensors, reduction mean, 50 updates)
        >>> monitor.noise().resolved
        True
    """

    population: Literal["training"] = "training"

    def __init__(
        self,
        parameters: nn.Module | Iterable[Tensor],
        *,
        reduction: Reduction = "mean",
        memory: float | None = None,
        groups: Grouping | None = None,
        preconditioner: Optimizer | None = None,
    ) -> None:
        if isinstance(parameters, DistributedDataParallel):
            raise SettingError(
                "a DistributedDataParallel model: give its parameters() and call attach(model)"
            )
        watched = Groups(parameters, groups)
        if not any(parameter.requires_grad for parameter in watched.parameters):
            raise SettingError("no parameter requires a gradient: give model.parameters()")
        if reduction not in get_args(Reduction):
            raise SettingError(
                f"reduction {reduction!r}: give one of {', '.join(get_args(Reduction))}"
            )
        self.reduction = reduction
        self.num_skipped = 0
        self.unmeasured: str | None = None
        self._model = parameters if isinstance(parameters, nn.Module) else None
        self._watched = watched
        self._preconditioner = (
            None
            if preconditioner is None
            else LivePreconditioner(preconditioner, watched.parameters)
        )
        self._gradients = Gradients(watched, self._preconditioner)
        self._averages = Averages(memory=memory, groups=watched.names if groups else [])
        self._first: Tensor | None = None  # |.grad|² (G,) after the first micro-batch
        self._parts: list[MicroBatch] = []  # since the last update
        # of each update, the (small, big) squared norms (2, G) and sizes (2,)
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._processes: ProcessNorms | None = None
        self._since_split = 0  # calls of `backward`
        self._is_left_out = False  # this update, by `backward`
        self._is_spoilt = False  # its micro-batches cannot be compared
        self._has_warned = False  # of an update that was broken off

    def __repr__(self) -> str:
        # those on a GPU are counted unread, since reading them waits for it
        updates = self._averages.whole.num_updates + len(self._unread)
        trained = sum(parameter.requires_grad for parameter in self._watched.parameters)
        return one_line(
            self,
            counted(trained, "parameter tensor"),
            counted(len(self._watched.names), "group") if self._watched.by_group else "",
            f"reduction {self.reduction}",
            f"under {self._preconditioner}" if self._preconditioner is not None else "",
            counted(updates, "update"),
            f"{self.num_skipped:,} left out" if self.num_skipped else "",
        )

    @property
    def memory(self) -> float | None:
        """Examples that the averages remember; None before the first update if none was given."""
        return self._averages.whole.memory

    @property
    def num_updates(self) -> int:
        """Updates that the averages have taken in."""
        self._read()
        return self._averages.whole.num_updates

    @property
    def pending(self) -> tuple[int, ...]:
        """Examples in each micro-batch since the last update."""
        return tuple(part.num_examples for part in self._parts)

    def micro_batch(
        self, num_examples: int, *, weight: float | None = None, scale: float = 1.0
    ) -> None:
        """Takes note of a micro-batch; to be called after each one's backward pass.

        Args:
            num_examples: in the micro-batch.
            weight: its number of tokens, or of other units of the examples, where the loss is a
                mean over those of all micro-batches, 0 where none of them counts. tr Σ is then of
                the examples' shares, w_i g_i over the mean w, which is larger than that of
                `measure_noise` with units by up to |G|²·Var w/(mean w)². None: as `reduction` says.
            scale: a further factor in `.grad`, such as an AMP GradScaler's get_scale().

        Raises:
            SettingError: an argument that is not positive, or a weight that is negative.
            MeasurementError: no parameter has a gradient.
        """
        check_count("examples of a micro-batch", num_examples)
        alike = weight is None and self.reduction == "mean"
        if weight is None:
            weight = 1.0 if alike else num_examples
        _check_positive(weight=1.0 if weight == 0 else weight, scale=scale)
        if self._parts:
            self._look_for_a_break()
        is_first = weight > 0 and not any(part.weight for part in self._parts)
        if is_first and self._processes is None:
            self._check_spread()
            self._first = self._gradients.squared_norms()
        self._parts.append(MicroBatch(num_examples, float(weight), float(scale), alike))
        self._gradients.remember(scaled=scale != 1)

    def backward(
        self,
        losses: Tensor,
        *,
        every: int = 1,
        scaler: Any = None,
        backward: Callable[..., Any] | None = None,
    ) -> None:
        """The backward pass of an update's only batch, in two halves; instead of `micro_batch`.

        Leaves in `.grad` what `losses.mean().backward()` does, up to rounding; `update` follows.
        Both halves go back through the whole graph, so that an update that is split takes about
        twice as long, and with `every=10` the average one about a tenth longer. A loop over two
        halves of the batch, with a forward pass and `micro_batch` for each, lies between.

        Args:
            losses: one per example, (B,), with their graph, the examples in random order.
            every: splits one update in so many; the others are left out and cost nothing.
            scaler: the GradScaler of mixed precision, which scales the losses.
            backward: is called as backward(loss, retain_graph=...) instead of the loss's own, such
                as accelerator.backward; it scales them itself then, by `scaler`.

        Raises:
            SettingError: losses of another shape, a second call in an update, a model that is
                attached, or an `every` below 1.
        """
        check_count("every", every)
        check_example_losses(losses)
        if self._processes is not None:
            raise SettingError(
                "backward() of a model that is attached: its processes are compared; call "
                "losses.mean().backward() and micro_batch()"
            )
        if self._parts:  # of a step that was skipped, or of micro-batches
            self._look_for_a_break()
        if self._parts:
            raise SettingError(
                "backward() after a micro-batch of the same update: where batches are accumulated, "
                "call micro_batch() after each backward pass instead"
            )
        scale = 1.0 if scaler is None else float(scaler.get_scale())

        def send(part: Tensor, *, retain_graph: bool) -> None:
            loss = part.sum() / len(losses)
            if backward is not None:
                backward(loss, retain_graph=retain_graph)
            else:
                (loss if scaler is None else scaler.scale(loss)).backward(retain_graph=retain_graph)

        is_split = self._since_split % every == 0 and len(losses) > 1
        self._since_split += 1
        if not is_split:
            send(losses, retain_graph=False)
            self._is_left_out = True
            return
        first, second = losses.tensor_split(2)
        for half in (first, second):
            send(half, retain_graph=half is first)
            self.micro_batch(len(half), weight=len(half), scale=scale)

    def update(
        self,
        *,
        scale: float | None = None,
        divided_by: float | None = None,
        last: Tensor | None = None,
    ) -> bool:
        """Whether the update is taken in; to be called after its last micro-batch.

        Before the gradient is unscaled, clipped or zeroed, and so before the optimizer's step.
        On a GPU a gradient that is not finite is noticed, and counted in `num_skipped`, later.

        Args:
            scale: the factor in the gradient as it is now; None: the last micro-batch's, and then
                the gradient must not have been changed since, as by clipping.
            divided_by: the sum of weights that losses were divided by, as the usual number of
                micro-batches in an update that has fewer, or 1 where mean losses were not divided
                at all; None: those of this update. With `attach`, all processes must have as many
                micro-batches where those have no weight.
            last: the squared norm of the gradient, where the caller has it; under a preconditioner
                it has none.

        Raises:
            SettingError: gradients that were changed, a scale that is not the micro-batches', a
                module with other parameters than the monitor was made with, several processes
                without `attach`, or an argument that is not positive.
            MeasurementError: no micro-batch since the last update, or other than one reduction.
        """
        parts, first = self._parts, self._first
        self._parts, self._first = [], None
        is_left_out, self._is_left_out = self._is_left_out, False
        is_spoilt, self._is_spoilt = self._is_spoilt, False
        if not parts and is_left_out:
            return False
        if not parts:
            raise MeasurementError(
                "update() before any micro_batch(): call that after each backward pass"
            )
        _check_positive(scale=scale, divided_by=divided_by)
        self._check_same_model()
        if last is not None and self._preconditioner is not None:
            raise SettingError(
                "update(last=...) of a monitor with a preconditioner: a plain norm is of no use to "
                "it; leave last out"
            )
        if last is not None and len(self._watched.names) > 1:
            raise SettingError(
                "update(last=...) of a monitor with groups: one norm says nothing of each; leave "
                "last out"
            )
        if self._processes is None and self._gradients.num_processes < rank_and_size()[1]:
            raise SettingError(
                "several processes: a gradient may be of one of them or reduced over all, which "
                "only attach(model) can tell"
            )
        if scale is None:
            if last is None and not self._gradients.unchanged:
                raise SettingError(
                    "the gradients were changed after the last micro_batch(): call update() before "
                    "they are unscaled, clipped or zeroed"
                )
            scale = parts[-1].scale
        else:
            self._check_scale(scale, parts)
        parts = [part for part in parts if part.weight]  # others have added nothing
        if self._processes is not None:
            scale = math.nan if is_spoilt else scale
            compared = across(self._processes, parts, scale=scale, divided_by=divided_by)
        elif is_spoilt:
            self.num_skipped += 1
            return False
        elif len(parts) < 2:
            self.num_skipped += 1
            self._tell_unsplit()
            return False
        else:
            assert first is not None, "taken at the first micro-batch"
            last = (
                self._gradients.squared_norms()
                if last is None
                else torch.as_tensor(last).reshape(-1)
            )
            undivided = (
                1.0 if divided_by is None else divided_by / sum(part.weight for part in parts)
            )
            squares = torch.stack([first / parts[0].scale ** 2, last / scale**2]) * undivided**2
            if self._gradients.num_processes > 1:
                dist.all_reduce(squares)
            compared = nested(squares, parts)
        self._unread.append(compared)
        if compared[0].device.type == "cpu" or len(self._unread) >= UNREAD:
            skipped = self.num_skipped
            self._read()
            return self.num_skipped == skipped
        return True

    def discard(self) -> None:
        """Forgets the micro-batches since the last update, where that one is not to be made."""
        self._parts, self._first, self._is_spoilt = [], None, False
        if self._processes is not None:
            self._processes.clear()

    def attach(
        self,
        model: nn.Module,
        comm_hook: tuple[Any, CommHook] | None = None,
        *,
        reduce_scatter: Any = None,
    ) -> None:
        """Takes each process's gradient as the small batch and the reduced one as the big batch.

        Of DistributedDataParallel by a communication hook, of `fully_shard` (FSDP2) by
        `set_custom_reduce_scatter`, which see a gradient before and after its reduction; all
        processes get the same numbers, by one further reduction of a few of them per update. Call
        `micro_batch` after each backward pass, and `update` after the last, all others without a
        reduction: under `no_sync()`, or after `set_requires_gradient_sync(False)`.

        Any factors that FSDP divides by are right, as are replicas of shards and a `reduce_dtype`,
        whose rounding the norms share. With replicas, a `set_gradient_divide_factor` must come
        before the first update. Under a preconditioner, of which each process has its shards, they
        are gathered for each reduction, in float32: as many numbers as FSDP gathers of parameters.

        Args:
            model: with the monitor's parameters.
            comm_hook: state and hook of another communication hook of DistributedDataParallel,
                which then does the reduction. What it returns must be the mean over processes up to
                rounding, as that of a half-precision hook is, and PowerSGD's is not.
            reduce_scatter: of FSDP, another custom reduce-scatter, which then does the reduction.

        Raises:
            SettingError: another model, a group of one process, a model that has a hook or a
                custom reduce-scatter already (hand it over here instead), and of FSDP parameters
                that it does not shard, tensor parallelism, or a torch that does not show what
                FSDP reduces (2.6 does not).
        """
        if isinstance(model, DistributedDataParallel):
            self._processes = ReplicaNorms(model, self._watched, comm_hook, self._preconditioner)
        elif is_sharded(model):
            self._processes = ShardNorms(model, self._watched, reduce_scatter, self._preconditioner)
        else:
            raise SettingError(
                f"{type(model).__name__}: give the model wrapped in DistributedDataParallel, or "
                "sharded by fully_shard"
            )

    def noise(self) -> GradientNoise:
        """|G|², tr Σ and B_simple, averaged over the latest updates, with their errors.

        Raises:
            MeasurementError: no update has been taken in yet.
        """
        if self.num_updates == 0:
            skipped = f"; {self.num_skipped} were left out" if self.num_skipped else ""
            needed = "it takes an update of two or more micro-batches with finite gradients"
            if self._preconditioner is not None and not self._preconditioner.is_known:
                needed += f", after a first step of {self._preconditioner}"
            raise MeasurementError(f"no noise scale yet: {self.unmeasured or needed + skipped}")
        return self._averages.whole.noise

    def noise_by_group(self) -> dict[str, GradientNoise]:
        """|G|², tr Σ and B_simple of each of the `groups`, from the same updates.

        |G|² and tr Σ of the groups add up to those of `noise`, so that its B_simple is their ratio
        of sums, and no mean of theirs.

        Raises:
            SettingError: the monitor has no groups.
            MeasurementError: no update has been taken in yet.
        """
        if not self._watched.by_group:
            raise SettingError(
                "no groups: give them to the monitor, NoiseScaleMonitor(model, groups=...)"
            )
        self.noise()  # which says why there is none
        return self._averages.by_group()

    def scalars(self) -> dict[str, float]:
        """The numbers of `noise` and the interval of B_simple, for a logger; nan if unresolved.

        nan too as long as no update has been taken in, of which `noise` says why.

        squared_gradient_norm, |G|²; gradient_variance, tr Σ, both in the unit of the loss squared
        over that of the parameters; simple, B_simple in examples, and simple_low and simple_high,
        its 95 % interval. With `groups` the same of each, as attention/simple. With a
        preconditioner they are preconditioned_squared_gradient_norm, GᵀPG,
        preconditioned_gradient_variance, tr(PΣ), and preconditioned_simple, B^P_simple, with
        preconditioned_simple_low and preconditioned_simple_high.
        """
        names = SCALARS if self._preconditioner is None else under_preconditioner(*SCALARS)
        if self.num_updates == 0:
            groups = self._watched.names if self._watched.by_group else ()
            of_groups = (f"{group}/{name}" for group in groups for name in names)
            return dict.fromkeys([*names, *of_groups], math.nan)
        values = dict(zip(names, _scalars(self.noise()), strict=True))
        if self._watched.by_group:
            for group, noise in self.noise_by_group().items():
                keys = (f"{group}/{name}" for name in names)
                values |= zip(keys, _scalars(noise), strict=True)
        return values

    def state_dict(self) -> dict[str, Any]:
        """The averages between two updates, as plain numbers."""
        self._read()
        of_what = {} if self._preconditioner is None else {"preconditioned": True}
        counts = {"num_skipped": self.num_skipped, "since_split": self._since_split}
        return self._averages.state_dict() | counts | of_what

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from another monitor's state, bit for bit.

        Args:
            state: what `state_dict` gave. Groups that it says nothing of begin anew.

        Raises:
            SettingError: a state of something else, of other groups, or with a preconditioner where
                the monitor has none, or the reverse; the monitor stays as it was.
        """
        is_under = self._preconditioner is not None
        if isinstance(state, dict) and bool(state.get("preconditioned")) != is_under:
            one, other = ("without", "with") if is_under else ("with", "without")
            raise SettingError(
                f"the state is of a monitor {one} a preconditioner, this one is {other}: B_simple "
                "and B^P_simple are two quantities; begin anew, or make the monitor alike"
            )
        self._averages.load_state_dict(state)
        self._unread.clear()
        self.num_skipped = state["num_skipped"]
        self._since_split = int(state.get("since_split", 0))  # which older states lack

    def _check_spread(self) -> None:
        """SettingError where gradients are sharded other than over all processes, by DTensor."""
        sharded = [
            one
            for one in self._watched.parameters
            if isinstance(one, DTensor) and one.device_mesh.size() > 1  # else all of it is here
        ]
        if not sharded:
            return
        model, size = self._model, rank_and_size()[1]
        if model is None or is_sharded(model):
            raise SettingError(
                "sharded parameters (DTensor): of a model sharded by fully_shard call "
                "attach(model); of tensor parallelism give the model itself, "
                "NoiseScaleMonitor(model), and num_examples of the batch that all processes see"
            )
        if any(parameter.device_mesh.size() != size for parameter in sharded):
            raise SettingError(
                f"tensor parallelism over {sharded[0].device_mesh.size()} of {size} processes: "
                "whether the others' batches are reduced cannot be told; only a model spread over "
                "all processes is measured"
            )
        self._gradients.num_processes = size

    def _check_same_model(self) -> None:
        """SettingError where the module's parameters are not those that are watched."""
        if self._model is None or self._processes is not None:  # FSDP puts others there at times
            return
        known = {id(parameter) for parameter in self._watched.parameters}
        if {id(parameter) for parameter in self._model.parameters()} != known:
            raise SettingError(
                "the model has other parameters than when the monitor was made, as where a layer "
                "was replaced or added: make a new monitor, and give it the old one's averages by "
                "load_state_dict(old.state_dict()) if they are to go on"
            )

    def _look_for_a_break(self) -> None:
        """Forgets the micro-batches so far where their update was not brought to its end."""
        if self._processes is not None and self._processes.rounds:
            return  # the reduction itself may put other tensors there
        since = self._gradients.since
        if since == "added to":
            return
        if since == "new":
            self._parts, self._first = [], None
            self.num_skipped += 1
        else:
            self._is_spoilt = True
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "an update was broken off and is left out: gradients were set to None or replaced, "
                "or other parameters are trained, since its last micro_batch(). Where a batch is "
                "given up and tried again, that is as it should be; where you add up gradients by "
                "hand, do so in place",
                stacklevel=3,
            )

    def _check_scale(self, scale: float, parts: list[MicroBatch]) -> None:
        """SettingError where the scale given to `update` is not what the gradient holds."""
        if scale == parts[-1].scale:
            return
        if all(part.scale == 1 for part in parts):
            raise SettingError(
                f"update(scale={scale:g}) after micro_batch() without a scale: give it to every "
                f"micro_batch(..., scale={scale:g}); update() takes it from there"
            )
        # processes were compared before it was unscaled
        if self._gradients.still_scaled or self._processes is not None:
            raise SettingError(
                f"update(scale={scale:g}) after micro_batch(scale={parts[-1].scale:g}), with the "
                "gradient not unscaled in between: leave the scale of update() out"
            )

    def _tell_unsplit(self) -> None:
        """A warning, once, where a loop seems to have one micro-batch in every update."""
        if self.num_skipped == UNSPLIT and self.num_updates == 0:
            warnings.warn(
                f"{UNSPLIT} updates of one micro-batch each leave nothing to compare, so there is "
                "no noise scale: call monitor.backward(losses), one loss per example, instead of "
                "losses.mean().backward(), or micro_batch() after each of two halves of the batch",
                stacklevel=3,
            )

    def _read(self) -> None:
        """Takes the waiting norms into the averages."""
        unread, self._unread = self._unread, []
        for squares, sizes in unread:
            self.num_skipped += not self._averages.add(squares, sizes)


def _scalars(noise: GradientNoise) -> tuple[float, ...]:
    """In the order of SCALARS."""
    simple = noise.simple.value if noise.resolved else math.nan
    values = (noise.squared_gradient_norm.value, noise.gradient_variance.value, simple)
    return (*values, noise.simple.low, noise.simple.high)


def _check_positive(**values: float | None) -> None:
    """SettingError for what is given and is no positive number."""
    for name, value in values.items():
        if value is not None and not (is_real(value) and 0 < value < math.inf):
            raise SettingError(f"{name.replace('_', ' ')} {value!r}: give a positive number")
