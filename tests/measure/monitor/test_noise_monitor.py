"""The monitor in a training loop: closed forms over all orders, MNIST, and what it refuses."""

import itertools
import json
import math
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.monitor.gradients import squared_norm
from noisescale.measure.monitor.live_preconditioner import under
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
from noisescale.measure.noise import measure_noise
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.statistics.estimate import Estimate, undefined
from noisescale.training.config import TrainConfig
from noisescale.training.trainer import train
from tests.helpers.closed_forms import exact, regression


def every_digit(noise):
    """The estimates as text, in which nan equals nan; that of `str` is rounded."""
    return str([*map(astuple, noise[:3]), *noise[3:]])


def feed(monitor, model, inputs, targets, order, sizes, *, scale=1.0):
    """One update's micro-batches, divided as the monitor's reduction says, times `scale`."""
    model.zero_grad()
    for part in torch.tensor(order[: sum(sizes)]).split(sizes):
        losses = 0.5 * (model(inputs[part])[:, 0] - targets[part]) ** 2
        loss = (
            losses.mean() / len(sizes) if monitor.reduction == "mean" else losses.sum() / sum(sizes)
        )
        (scale * loss).backward()
        monitor.micro_batch(len(part), scale=scale)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [[2, 2], [1, 3], [3, 1, 1]])
def test_it_is_unbiased_over_all_orders_of_the_examples(reduction, sizes):
    model, inputs, targets, gradients = regression()
    monitor = NoiseScaleMonitor(model, reduction=reduction, memory=1e12)
    for order in itertools.permutations(range(5)):
        feed(monitor, model, inputs, targets, order, sizes)
        assert monitor.update()
    noise = monitor.noise()
    squared_norm, variance = exact(gradients)
    assert noise.squared_gradient_norm.value == pytest.approx(squared_norm, rel=1e-9)
    assert noise.gradient_variance.value == pytest.approx(variance, rel=1e-9)
    assert monitor.num_updates == 120


def test_a_mean_over_tokens_is_unbiased_whatever_tokens_an_example_has():
    """Of the examples' shares w_i g_i over the mean w, over all orders of the examples."""
    model, inputs, targets, gradients = regression()
    tokens = torch.tensor([3.0, 1.0, 2.0, 9.0, 1.0])
    sizes = [1, 2, 2]
    monitor = NoiseScaleMonitor(model, memory=1e12)
    for order in itertools.permutations(range(5)):
        model.zero_grad()
        for part in torch.tensor(order).split(sizes):
            losses = 0.5 * (model(inputs[part])[:, 0] - targets[part]) ** 2
            ((tokens[part] * losses).sum() / tokens.sum()).backward()
            monitor.micro_batch(len(part), weight=float(tokens[part].sum()))
        monitor.update()
    noise = monitor.noise()
    shares = (tokens / tokens.mean()).numpy()[:, None] * gradients
    assert (noise.squared_gradient_norm.value, noise.gradient_variance.value) == pytest.approx(
        exact(shares), rel=1e-6
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_micro_batch_in_which_nothing_counts_changes_nothing(place):
    model, inputs, targets, _ = regression()
    plain, other = NoiseScaleMonitor(model), NoiseScaleMonitor(model)
    weights = [1.0, 2.0]
    for monitor, given in ((plain, weights), (other, [*weights[:place], 0.0, *weights[place:]])):
        model.zero_grad()
        rows = iter(([0, 1], [2, 3]))
        for weight in given:
            losses = losses_of(model, inputs, targets, next(rows) if weight else [4])
            (losses.mean() * weight / sum(weights)).backward()
            monitor.micro_batch(2, weight=weight)
        assert monitor.update()
    assert plain.state_dict() == other.state_dict()


def test_an_update_in_which_nothing_counts_is_left_out():
    model, inputs, _, _ = regression()
    monitor = NoiseScaleMonitor(model)
    for _ in range(2):
        (0 * model(inputs)).sum().backward()
        monitor.micro_batch(5, weight=0)
    assert not monitor.update()
    assert (monitor.num_updates, monitor.num_skipped) == (0, 1)
    with pytest.raises(SettingError, match="give a positive number"):
        monitor.micro_batch(5, weight=-1)


def test_losses_divided_by_something_else_are_put_right():
    model, inputs, targets, _ = regression()
    plain, other, none = (NoiseScaleMonitor(model) for _ in range(3))
    for order in itertools.islice(itertools.permutations(range(5)), 4):
        feed(plain, model, inputs, targets, order, [2, 2])
        plain.update()
        for monitor, divided_by in ((other, 4), (none, 1)):
            model.zero_grad()
            for part in torch.tensor(order[:4]).split(2):
                losses = 0.5 * (model(inputs[part])[:, 0] - targets[part]) ** 2
                (losses.mean() / divided_by).backward()
                monitor.micro_batch(2)
            monitor.update(divided_by=divided_by)
    assert plain.noise() == other.noise() == none.noise()


def test_what_is_discarded_is_not_seen():
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    feed(monitor, model, inputs, targets, range(5), [1, 1, 1])
    assert monitor.pending == (1, 1, 1)
    monitor.discard()
    feed(monitor, model, inputs, targets, range(5), [2, 2])
    monitor.update()
    once = NoiseScaleMonitor(model)
    feed(once, model, inputs, targets, range(5), [2, 2])
    once.update()
    assert monitor.state_dict() == once.state_dict()


def test_scalars_for_a_logger():
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    feed(monitor, model, inputs, targets, range(5), [2, 2])
    monitor.update()
    found = monitor.scalars()
    assert found["gradient_variance"] == monitor.noise().gradient_variance.value
    assert math.isnan(found["simple"])  # of one update: no error, so not resolved
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("trained", [0, pytest.param(100, marks=pytest.mark.slow)])
def test_it_agrees_with_the_exact_measurement_on_mnist(trained, mnist_dir):
    problem = build_problem(ProblemConfig(dataset="mnist", width=128), data_dir=mnist_dir)
    if trained:
        config = TrainConfig(batch_size=128, learning_rate=0.1, max_steps=trained)
        *_, last = train(problem, config)
        problem.model.load_state_dict(last.params)
    model, examples = problem.model, problem.train
    truth = measure_noise(problem, population="distribution")
    monitor = NoiseScaleMonitor(model, memory=1e9)
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))
    for batch in order[:59_904].split(512):
        model.zero_grad()
        for part in batch.split(32):
            outputs = model(examples.inputs[part])
            (problem.loss(outputs, examples.targets[part]).mean() / 16).backward()
            monitor.micro_batch(32)
        monitor.update()
    found = monitor.noise()
    assert found.simple.stderr < 0.1 * found.simple.value
    for name in ("squared_gradient_norm", "gradient_variance", "simple"):
        one, other = getattr(found, name), getattr(truth, name)
        assert abs(one.value - other.value) < 3 * math.hypot(one.stderr, other.stderr), name


def test_an_amp_scale_divides_out():
    model, inputs, targets, _ = regression()
    plain, scaled = NoiseScaleMonitor(model), NoiseScaleMonitor(model)
    for number, order in enumerate(itertools.islice(itertools.permutations(range(5)), 6)):
        feed(plain, model, inputs, targets, order, [2, 2])
        plain.update()
        feed(scaled, model, inputs, targets, order, [2, 2], scale=2.0**number)
        scaled.update()
    assert plain.noise() == scaled.noise()
    # unscaled before it is looked at, as in Lightning
    feed(scaled, model, inputs, targets, order, [2, 2], scale=8.0)
    for parameter in model.parameters():
        parameter.grad /= 8
    scaled.update(scale=1.0)
    feed(plain, model, inputs, targets, order, [2, 2])
    plain.update()
    assert plain.noise() == scaled.noise()


def test_it_looks_and_does_not_touch():
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    feed(monitor, model, inputs, targets, range(5), [2, 2])
    before, rng = model.weight.grad.clone(), torch.get_rng_state()
    monitor.update()
    assert torch.equal(model.weight.grad, before)
    assert torch.equal(torch.get_rng_state(), rng)


def test_clipping_before_the_update_is_noticed():
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    for change in (
        lambda: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
        lambda: nn.utils.clip_grad_value_(model.parameters(), 1e-3),
        lambda: model.zero_grad(),
        lambda: model.zero_grad(set_to_none=False),
    ):
        feed(monitor, model, inputs, targets, range(5), [2, 2])
        change()
        with pytest.raises(SettingError, match="before they are unscaled, clipped or zeroed"):
            monitor.update()
    feed(monitor, model, inputs, targets, range(5), [2, 2])  # and the next update is a clean one
    assert monitor.update()


def test_what_is_not_finite_is_left_out():
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    feed(monitor, model, inputs, targets, range(5), [2, 2])
    assert monitor.update()
    noise = monitor.noise()
    for broken in (math.nan, math.inf):
        spoilt = inputs.clone()
        spoilt[3] = broken
        feed(monitor, model, spoilt, targets, range(5), [2, 2])
        assert not monitor.update()
    assert monitor.num_skipped == 2
    assert every_digit(monitor.noise()) == every_digit(noise)


def test_one_micro_batch_has_no_noise():
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    with pytest.raises(MeasurementError, match="two or more micro-batches"):
        monitor.noise()
    feed(monitor, model, inputs, targets, range(5), [4])
    assert not monitor.update()
    with pytest.raises(MeasurementError, match="1 were left out"):
        monitor.noise()


def test_the_state_goes_on_bit_for_bit():
    model, inputs, targets, _ = regression()
    orders = list(itertools.islice(itertools.permutations(range(5)), 20))
    whole, first, second = (NoiseScaleMonitor(model) for _ in range(3))
    for order in orders:
        feed(whole, model, inputs, targets, order, [2, 3])
        whole.update()
    for order in orders[:7]:
        feed(first, model, inputs, targets, order, [2, 3])
        first.update()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for order in orders[7:]:
        feed(second, model, inputs, targets, order, [2, 3])
        second.update()
    assert second.state_dict() == whole.state_dict()
    assert whole.memory == 100 * 2**2 / (1 / 2 + 1 / 3)  # of the first update, at equal weights


def test_sparse_and_missing_gradients():
    embedding = nn.Embedding(10, 4, sparse=True, dtype=torch.float64)
    unused = nn.Linear(2, 2)
    monitor = NoiseScaleMonitor([*embedding.parameters(), *unused.parameters()])
    dense = nn.Embedding(10, 4, dtype=torch.float64)
    dense.load_state_dict(embedding.state_dict())
    other = NoiseScaleMonitor(dense)
    for words in (torch.tensor([1, 1, 2]), torch.tensor([3, 1, 2])):
        for model, one in ((embedding, monitor), (dense, other)):
            model.zero_grad()
            for part in words.split([1, 2]):
                (model(part).square().sum() / 3).backward()
                one.micro_batch(len(part))
            one.update()
    found, expected = monitor.noise().gradient_variance, other.noise().gradient_variance
    assert (found.value, found.stderr) == pytest.approx((expected.value, expected.stderr), rel=1e-9)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "4", None])
def test_a_wrong_number_of_examples_is_refused(wrong):
    model, *_ = regression()
    with pytest.raises(SettingError, match="whole number of 1 or more"):
        NoiseScaleMonitor(model).micro_batch(wrong)


def test_misuse_is_named():
    model, *_ = regression()
    monitor = NoiseScaleMonitor(model)
    with pytest.raises(MeasurementError, match="after backward"):
        monitor.micro_batch(4)
    with pytest.raises(MeasurementError, match="before any micro_batch"):
        monitor.update()
    with pytest.raises(SettingError, match="scale 0"):
        monitor.micro_batch(4, scale=0)
    with pytest.raises(SettingError, match="memory -1"):
        NoiseScaleMonitor(model, memory=-1)
    with pytest.raises(SettingError, match="reduction 'max'"):
        NoiseScaleMonitor(model, reduction="max")
    with pytest.raises(SettingError, match="no parameter"):
        NoiseScaleMonitor(model.requires_grad_(False))
    with pytest.raises(SettingError, match="DistributedDataParallel"):
        NoiseScaleMonitor(nn.Linear(2, 2)).attach(model)


@pytest.mark.gpu
def test_on_a_gpu_norms_wait_to_be_read():
    model, inputs, targets, _ = regression()
    on_gpu = NoiseScaleMonitor(model.cuda())
    for order in itertools.islice(itertools.permutations(range(5)), 70):
        feed(on_gpu, model, inputs.cuda(), targets.cuda(), order, [2, 2])
        on_gpu.update()
    assert len(on_gpu._unread) == 6
    on_cpu = NoiseScaleMonitor(model.cpu())
    for order in itertools.islice(itertools.permutations(range(5)), 70):
        feed(on_cpu, model, inputs, targets, order, [2, 2])
        on_cpu.update()
    gpu, cpu = on_gpu.noise(), on_cpu.noise()
    # where |G|² is not resolved, B_simple has no value, and nan is not equal to itself
    for found, expected in zip(gpu[:3], cpu[:3], strict=True):
        wanted = pytest.approx(astuple(expected), rel=1e-9, nan_ok=True)
        assert astuple(found) == wanted
    assert np.isfinite([gpu.gradient_variance.value, gpu.gradient_variance.stderr]).all()


@pytest.mark.parametrize("sizes", [[4, 1], [1, 1, 3]])
def test_a_very_short_last_micro_batch_is_no_error(sizes):
    """Equally weighted, [4, 1] is worth 3.2 examples: fewer than its first part."""
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    feed(monitor, model, inputs, targets, range(5), sizes)
    taken = sizes != [4, 1]
    assert monitor.update() is taken
    assert (monitor.num_updates, monitor.num_skipped) == ((1, 0) if taken else (0, 1))


def test_unscaling_before_the_update_is_noticed():
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    feed(monitor, model, inputs, targets, range(5), [2, 2], scale=1024.0)
    gradients = [one.grad for one in model.parameters()]
    torch._amp_foreach_non_finite_check_and_unscale_(
        gradients, torch.zeros(1), torch.tensor([1 / 1024.0])
    )
    with pytest.raises(SettingError, match="before they are unscaled"):
        monitor.update()


def test_an_overflow_of_mixed_precision_is_left_out_and_no_error():
    """Its gradients are nan or infinite, and nan is not equal to itself."""
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    for broken in (math.nan, math.inf):
        spoilt = inputs.clone()
        spoilt[3] = broken
        feed(monitor, model, spoilt, targets, range(5), [2, 2], scale=1024.0)
        assert not monitor.update()
    assert monitor.num_skipped == 2


def test_every_scale_is_its_own_micro_batchs():
    """A scale that changes within an update, as no GradScaler does but a user may."""
    model, inputs, targets, _ = regression()
    one, other = NoiseScaleMonitor(model), NoiseScaleMonitor(model)
    feed(one, model, inputs, targets, range(5), [2, 2])
    one.update()
    feed(other, model, inputs, targets, range(5), [2, 2])
    first = 0.5 * (model(inputs[:2])[:, 0] - targets[:2]) ** 2
    model.zero_grad()
    other.discard()
    (8 * first.mean() / 2).backward()
    other.micro_batch(2, scale=8.0)
    model.weight.grad /= 8
    (0.5 * (model(inputs[2:4])[:, 0] - targets[2:4]) ** 2).mean().div(2).backward()
    other.micro_batch(2)
    other.update()
    assert one.noise().gradient_variance.value == pytest.approx(
        other.noise().gradient_variance.value
    )


@pytest.mark.parametrize("broken", [0, 3])
def test_a_first_or_last_norm_that_is_not_finite_is_left_out(broken):
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    inputs = inputs.clone()
    inputs[broken] = math.inf
    feed(monitor, model, inputs, targets, range(5), [2, 2])
    assert not monitor.update()
    again = NoiseScaleMonitor(model)
    again.load_state_dict(monitor.state_dict())
    assert again.num_skipped == 1


def test_a_tied_parameter_counts_once_and_small_gradients_are_not_lost():
    weight = nn.Parameter(torch.zeros(200_000))
    values = torch.full((200_000,), 1e-4)
    values[0] = 1000.0
    assert "1 parameter tensor" in repr(NoiseScaleMonitor([weight, weight]))
    expected = float(values.double().square().sum())
    assert float(squared_norm([values])) == pytest.approx(expected, rel=1e-9)
    assert float(squared_norm([values.to(torch.bfloat16)])) == pytest.approx(expected, rel=1e-2)
    assert float(squared_norm([torch.ones(3), torch.zeros(0)])) == 3


@pytest.mark.parametrize(
    "wrong",
    [{"scale": 0}, {"scale": -2.0}, {"scale": "a"}, {"divided_by": 0}, {"divided_by": math.inf}],
)
def test_wrong_factors_are_refused(wrong):
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    feed(monitor, model, inputs, targets, range(5), [2, 2])
    with pytest.raises(SettingError, match="give a positive number"):
        monitor.update(**wrong)
    with pytest.raises(SettingError, match="give a positive number"):
        monitor.micro_batch(2, weight="a")


def losses_of(model, inputs, targets, order):
    rows = torch.tensor(order)
    return 0.5 * (model(inputs[rows])[:, 0] - targets[rows]) ** 2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("size", [4, 5])
def test_a_batch_that_is_not_accumulated_is_split(reduction, size):
    """Unbiased over all orders of the examples, and the gradient is that of the mean."""
    model, inputs, targets, gradients = regression()
    monitor = NoiseScaleMonitor(model, reduction=reduction, memory=1e12)
    for order in itertools.permutations(range(5)):
        model.zero_grad()
        losses_of(model, inputs, targets, order[:size]).mean().backward()
        whole = model.weight.grad.clone()
        model.zero_grad()
        monitor.backward(losses_of(model, inputs, targets, order[:size]))
        torch.testing.assert_close(model.weight.grad, whole, rtol=1e-14, atol=1e-14)
        assert monitor.pending == (size - size // 2, size // 2)
        assert monitor.update()
    noise = monitor.noise()
    assert (noise.squared_gradient_norm.value, noise.gradient_variance.value) == pytest.approx(
        exact(gradients), rel=1e-9
    )


def test_one_update_in_so_many_is_split():
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    passes = []

    def send(loss, *, retain_graph):
        passes.append(retain_graph)
        loss.backward(retain_graph=retain_graph)

    taken = []
    for _ in range(7):
        model.zero_grad()
        monitor.backward(losses_of(model, inputs, targets, range(5)), every=3, backward=send)
        taken.append(monitor.update())
    assert taken == [True, False, False, True, False, False, True]
    assert passes == [True, False, False, False] * 2 + [True, False]
    assert (monitor.num_updates, monitor.num_skipped) == (3, 0)
    monitor.backward(losses_of(model, inputs, targets, [2]))  # one example: nothing to split
    assert not monitor.update()


def test_a_grad_scaler_divides_out_of_what_is_split():
    model, inputs, targets, _ = regression()
    plain, scaled = NoiseScaleMonitor(model), NoiseScaleMonitor(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for monitor, options in ((plain, {}), (scaled, {"scaler": scaler})):
        model.zero_grad()
        monitor.backward(losses_of(model, inputs, targets, range(5)), **options)
        monitor.update()
    assert plain.state_dict() == scaled.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler.step(optimizer)  # which knows of the losses that it scaled
    scaler.update()


def test_what_cannot_be_split_is_refused():
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    losses = losses_of(model, inputs, targets, range(5))
    with pytest.raises(SettingError, match="every 0: give a whole number"):
        monitor.backward(losses, every=0)
    for wrong in (losses.mean(), losses[:0], losses[:, None]):
        with pytest.raises(SettingError, match="give one loss per example"):
            monitor.backward(wrong)
    feed(monitor, model, inputs, targets, range(5), [2])
    with pytest.raises(SettingError, match="after a micro-batch of the same update"):
        monitor.backward(losses)


def test_a_loop_without_accumulation_is_told_once():
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    for _ in range(19):
        feed(monitor, model, inputs, targets, range(5), [4])
        monitor.update()
    feed(monitor, model, inputs, targets, range(5), [4])
    with pytest.warns(UserWarning, match=r"call monitor.backward\(losses\)"):
        monitor.update()
    feed(monitor, model, inputs, targets, range(5), [4])
    assert not monitor.update()


@pytest.mark.parametrize("scaled_micro_batches", [True, False])
def test_a_scale_of_which_one_call_alone_knows_is_refused(scaled_micro_batches):
    """|G|² would be 4e9 times too small or too large beside the micro-batch's."""
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    scale = 65536.0
    model.zero_grad()
    for part in ([0, 1], [2, 3]):
        (scale * losses_of(model, inputs, targets, part).mean() / 2).backward()
        monitor.micro_batch(2, **({"scale": scale} if scaled_micro_batches else {}))
    if scaled_micro_batches:
        with pytest.raises(SettingError, match=r"update\(scale=1\) after micro_batch\(scale=65536"):
            monitor.update(scale=1.0)
    else:
        with pytest.raises(SettingError, match=r"give it to every micro_batch\(..., scale=65536\)"):
            monitor.update(scale=scale)
    plain = NoiseScaleMonitor(model)  # and the next update is a clean one
    feed(plain, model, inputs, targets, range(4), [2, 2])
    plain.update()
    feed(monitor, model, inputs, targets, range(4), [2, 2], scale=scale)
    assert monitor.update(scale=scale)
    assert monitor.state_dict() == plain.state_dict()


def test_a_monitor_that_goes_on_splits_the_same_updates_and_keeps_its_memory():
    model = torch.nn.Linear(3, 1)

    def train(monitor, count):
        for _ in range(count):
            model.zero_grad()
            monitor.backward(model(torch.randn(4, 3)).square().mean(1), every=10)
            monitor.update()
        return monitor

    first = train(NoiseScaleMonitor(model), 15)
    again = NoiseScaleMonitor(model)
    again.load_state_dict(first.state_dict())
    assert train(again, 15).num_updates == 3
    given = NoiseScaleMonitor(model, memory=1000)
    given.load_state_dict(NoiseScaleMonitor(model).state_dict())
    assert given.memory == 1000


def test_a_step_that_is_skipped_after_backward_begins_anew():
    model, inputs, targets, _ = regression()
    monitor, plain = NoiseScaleMonitor(model), NoiseScaleMonitor(model)
    monitor.backward(losses_of(model, inputs, targets, [0, 1]))
    model.zero_grad()  # and no update
    with pytest.warns(UserWarning, match="broken off"):
        monitor.backward(losses_of(model, inputs, targets, [2, 3, 4]))
    assert monitor.update()
    assert (monitor.num_updates, monitor.num_skipped) == (1, 1)
    model.zero_grad()
    plain.backward(losses_of(model, inputs, targets, [2, 3, 4]))
    plain.update()
    assert plain.noise().gradient_variance == monitor.noise().gradient_variance


def test_the_last_norm_is_of_all_parameters():
    model, inputs = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), torch.randn(4, 3)
    plain, grouped = NoiseScaleMonitor(model), NoiseScaleMonitor(model, groups="layer")
    for part in inputs.split(2):
        (model(part).mean() / 2).backward()
        plain.micro_batch(2)
        grouped.micro_batch(2)
    assert plain.update(last=sum(float(param.grad.square().sum()) for param in model.parameters()))
    with pytest.raises(SettingError, match="one norm says nothing of each; leave last out"):
        grouped.update(last=1.0)


def test_no_gradient_is_none_under_a_preconditioner_that_is_not_known():
    """As of a parameter that is never used, in a bucket of DistributedDataParallel."""
    root = torch.tensor([math.nan, 2.0, math.nan])
    assert under(root, torch.tensor([0.0, 3.0, 0.0])).tolist() == [0.0, 6.0, 0.0]
    assert under(root, torch.ones(3)).isnan().tolist() == [True, False, True]


@pytest.mark.parametrize("groups", [None, "layer"])
def test_a_logger_gets_nan_as_long_as_there_is_nothing(groups):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    monitor = NoiseScaleMonitor(model, groups=groups)
    before = monitor.scalars()
    assert all(math.isnan(value) for value in before.values())
    for part in torch.randn(4, 3).split(2):
        (model(part).square().mean() / 2).backward()
        monitor.micro_batch(2)
    monitor.update()
    assert list(monitor.scalars()) == list(before)


def test_a_signal_far_below_zero_is_told_as_misuse():
    """Not as one that more examples would resolve."""
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    for order in itertools.islice(itertools.permutations(range(5)), 4):
        feed(monitor, model, inputs, targets, order, [2, 2])
        monitor.update()
    below = Estimate(value=-9.0, stderr=0.5, low=-10.0, high=-8.0, num_samples=4)
    noise = monitor.noise()._replace(squared_gradient_norm=below, simple=undefined(num_samples=4))
    assert "|G|² comes out below zero by more" in repr(noise)
    above = noise._replace(squared_gradient_norm=replace(below, high=1.0))
    assert "|G|² cannot be told from zero" in repr(above)
