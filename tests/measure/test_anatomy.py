"""Who carries the noise, against gradients written out, enumeration and closed forms."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from noisescale import Examples, Problem, measure_noise
from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.estimate import exact
from noisescale.statistics.gradient_noise import noise_anatomy

N = 24


def network(num_examples=N, inputs=5, seed=0, **changes):
    """A small classifier in float64, of three classes, whose first layer is linear."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(inputs, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)
    ).double()
    values = torch.randn(num_examples, inputs, generator=generator, dtype=torch.float64)
    values = values * torch.arange(1, inputs + 1)
    targets = torch.arange(num_examples) % 3
    problem = Problem(
        model=model,
        loss=torch.nn.CrossEntropyLoss(reduction="none"),
        train=Examples(values, targets),
    )
    return replace(problem, **changes)


def example_gradients(problem):
    """Gradients of single examples by a plain loop (N, P)."""
    rows = []
    for value, target in zip(problem.train.inputs, problem.train.targets, strict=True):
        loss = problem.loss(problem.model(value[None]), target[None]).sum()
        parts = torch.autograd.grad(loss, list(problem.model.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows).numpy()


def of(gradients, num_examples=None, *, population="dataset", **parts):
    """The anatomy of gradients (n, P), as of one tensor, out of N."""
    gradients = np.asarray(gradients, dtype=float)
    mean = gradients.mean(0)
    n = len(gradients)
    return noise_anatomy(
        np.square(gradients).sum(1, keepdims=True),
        gradients @ mean,
        np.array([mean @ mean]),
        population=population,
        population_size=num_examples or n,
        names=["w"],
        indices=np.arange(n),
        **parts,
    )


@pytest.fixture(scope="module")
def whole():
    """A problem, its gradients written out (N, P), and the anatomy over all examples."""
    problem = network()
    return problem, example_gradients(problem), measure_noise(problem, anatomy=True).anatomy


def test_shares_are_those_of_the_gradients_written_out(whole):
    problem, gradients, anatomy = whole
    deviations = ((gradients - gradients.mean(0)) ** 2).sum(1)
    assert anatomy.deviations == pytest.approx(deviations)
    ordered = np.sort(deviations)[::-1].cumsum() / deviations.sum()
    counts = (anatomy.lorenz["examples"] * N).round().astype(int)
    assert anatomy.lorenz["variance"].to_numpy() == pytest.approx(ordered[counts - 1])
    assert anatomy.noisiest.tolist() == [deviations.argmax()]
    assert anatomy.effective_examples == pytest.approx(
        deviations.sum() ** 2 / (deviations**2).sum()
    )
    targets = problem.train.targets.numpy()
    predicted = problem.model(problem.train.inputs).argmax(1).numpy()
    wrong = predicted != targets
    assert 0 < wrong.sum() < N
    assert anatomy.misclassified == pytest.approx(
        (wrong.mean(), deviations[wrong].sum() / deviations.sum())
    )
    for row in anatomy.per_class.to_dict("records"):
        own = targets == row["class"]
        assert row["examples"] == pytest.approx(own.mean())
        assert row["variance"] == pytest.approx(deviations[own].sum() / deviations.sum())


def test_the_variance_between_classes_is_that_of_their_means(whole):
    problem, gradients, anatomy = whole
    targets = problem.train.targets.numpy()
    mean = gradients.mean(0)
    between = sum(
        (targets == c).mean() * ((gradients[targets == c].mean(0) - mean) ** 2).sum()
        for c in range(3)
    )
    total = ((gradients - mean) ** 2).sum(1).mean()
    assert anatomy.between_classes.value == pytest.approx(between / total)
    assert anatomy.between_classes.kind == "exact"


def test_layers_share_noise_and_signal(whole):
    problem, gradients, anatomy = whole
    sizes = [param.numel() for param in problem.model.parameters()]
    parts = np.split(gradients, np.cumsum(sizes)[:-1], axis=1)
    variances = np.array([part.var(0).sum() for part in parts])
    signals = np.array([(part.mean(0) ** 2).sum() for part in parts])
    assert anatomy.per_layer["variance"].to_numpy() == pytest.approx(variances / variances.sum())
    assert anatomy.per_layer["signal"].to_numpy() == pytest.approx(signals / signals.sum())


def test_components_are_columns_of_the_first_layer_s_gradient_in_the_inputs_basis(whole):
    problem, gradients, anatomy = whole
    inputs = problem.train.inputs.numpy()
    variances, basis = np.linalg.eigh(np.cov(inputs.T, bias=True))
    weights = gradients[:, : 4 * 5].reshape(N, 4, 5) @ basis[:, ::-1]
    rows = anatomy.components
    assert rows[["first", "last"]].to_numpy().tolist() == [[1, 1], [2, 2], [3, 4], [5, 5]]
    for row in rows.to_dict("records"):
        part = weights[:, :, row["first"] - 1 : row["last"]].reshape(N, -1)
        assert row["gradient_variance"] == pytest.approx(part.var(0).sum())
        assert row["squared_gradient_norm"] == pytest.approx((part.mean(0) ** 2).sum())
        own = variances[::-1][row["first"] - 1 : row["last"]]
        assert row["input_variance"] == pytest.approx(own.sum() / variances.sum())
    whole_layer = measure_noise(problem, per_layer=True).per_layer.iloc[0]
    assert rows["gradient_variance"].sum() == pytest.approx(whole_layer["gradient_variance"])


def test_importance_sampling_is_enumerated(whole):
    _, gradients, anatomy = whole
    norms = np.linalg.norm(gradients, axis=1)
    chances = norms / norms.sum()
    drawn = gradients / (N * chances[:, None])
    mean = gradients.mean(0)
    assert chances @ drawn == pytest.approx(mean)  # unbiased
    variance = chances @ ((drawn - mean) ** 2).sum(1)
    total = ((gradients - mean) ** 2).sum(1).mean()
    assert anatomy.importance.value == pytest.approx(variance / total)
    assert anatomy.importance_simple.value == pytest.approx(variance / (mean @ mean))
    for other in (chances**0.9, np.full(N, 1 / N), chances**1.1):  # no other chances are better
        other = other / other.sum()
        assert other @ ((gradients / (N * other[:, None]) - mean) ** 2).sum(1) > variance


def test_equal_norms_leave_importance_sampling_nothing_to_gain():
    angles = np.linspace(0, 1, 9)
    anatomy = of(np.stack([np.cos(angles), np.sin(angles)], 1))
    assert anatomy.importance.value == pytest.approx(1)


def test_numerators_and_denominators_are_unbiased_over_all_subsets(monkeypatch):
    gradients = np.random.default_rng(1).lognormal(size=(8, 3))
    targets = np.array([0, 1] * 4)
    mean, norms = gradients.mean(0), np.linalg.norm(gradients, axis=1)
    seen = []
    monkeypatch.setattr(
        "noisescale.statistics.gradient_noise.anatomy._ratio",
        lambda values, influences, sample: seen.append(values) or exact(0.0),
    )
    for chosen in map(list, itertools.combinations(range(8), 6)):
        own, classes = gradients[chosen], targets[chosen]
        means = np.stack([own[classes == c].mean(0) for c in (0, 1)])
        within = ((own - means[classes]) ** 2).sum(1)
        of(own, 8, classes=classes, within=within, class_sizes={0: 4, 1: 4})
    between, total = np.mean(seen[0::3], axis=0)
    _, signal = np.mean(seen[1::3], axis=0)
    taken, variance = np.mean(seen[2::3], axis=0)
    of_classes = [gradients[targets == c].mean(0) - mean for c in (0, 1)]
    assert between == pytest.approx(np.mean([(part**2).sum() for part in of_classes]))
    assert taken == pytest.approx(norms.var())
    assert variance == total == pytest.approx(gradients.var(0).sum())
    assert signal == pytest.approx(mean @ mean)


@pytest.mark.statistical
def test_intervals_hold_the_population_s_shares():
    generator = np.random.default_rng(2)
    gradients = generator.standard_normal((4000, 6)) * generator.lognormal(0, 0.5, (4000, 1)) + 1
    targets = generator.integers(3, size=4000)
    gradients[targets == 1] += 0.7

    def deviations(rows):
        own, classes = gradients[rows], targets[rows]
        means = np.stack([own[classes == c].mean(0) for c in range(3)])
        return ((own - means[classes]) ** 2).sum(1)

    def anatomy(rows):
        sizes = {c: int((targets == c).sum()) for c in range(3)}
        return of(
            gradients[rows],
            4000,
            classes=targets[rows],
            within=deviations(rows),
            class_sizes=sizes,
        )

    truth = anatomy(np.arange(4000))
    names = ("importance", "importance_simple", "between_classes")
    held = dict.fromkeys(names, 0)
    for _ in range(400):
        found = anatomy(generator.choice(4000, 500, replace=False))
        for name in names:
            estimate = getattr(found, name)
            held[name] += estimate.low <= getattr(truth, name).value <= estimate.high
    for name, count in held.items():
        assert 0.92 * 400 <= count <= 0.985 * 400, (name, count)


def test_the_noisiest_of_the_same_examples_are_compared(whole):
    problem, _, anatomy = whole
    assert anatomy.overlap(anatomy) == 1
    other = measure_noise(problem, anatomy=True, num_examples=10).anatomy
    with pytest.raises(SettingError, match="different examples"):
        anatomy.overlap(other)
    assert other.noisiest[0] in other.indices


def test_lorenz_of_one_noisy_example():
    gradients = np.zeros((200, 1))
    gradients[3] = 1.0
    gradients -= gradients.mean()
    anatomy = of(gradients)
    assert anatomy.noisiest[0] == 3
    assert anatomy.variance_share(0.01) == pytest.approx((199**2 + 1) / (199**2 + 199))
    assert anatomy.effective_examples == pytest.approx(1.01, abs=0.01)
    for share in (0, -1, 1.1, float("nan")):
        with pytest.raises(SettingError, match="share"):
            anatomy.variance_share(share)


def test_without_classes_or_a_first_linear_layer_the_rest_is_told():
    model = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(6, 1))
    inputs = torch.randn(12, 1, 5, generator=torch.Generator().manual_seed(0))
    problem = Problem(
        model=model,
        loss=lambda outputs, targets: (outputs - targets).square().sum(1),
        train=Examples(inputs, torch.ones(12, 1)),
    )
    anatomy = measure_noise(problem, anatomy=True).anatomy
    assert anatomy.components is None
    assert anatomy.between_classes is None
    assert anatomy.misclassified is None
    assert anatomy.per_class is None
    assert len(anatomy.per_layer) == 4


def test_an_activation_in_place_changes_nothing():
    plain = network()
    layers = list(plain.model)
    rows, others = (
        measure_noise(
            replace(plain, model=torch.nn.Sequential(layers[0], torch.nn.ReLU(inplace), layers[2])),
            anatomy=True,
        ).anatomy.components
        for inplace in (False, True)
    )
    pd.testing.assert_frame_equal(others, rows)


def test_a_layer_used_twice_has_no_components():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, inputs):
            return self.layer(self.layer(inputs))

    problem = network(inputs=3, model=Twice().double())
    assert measure_noise(problem, anatomy=True).anatomy.components is None


class Tied(torch.nn.Module):
    """A linear layer whose weight leads back too, without another call of the layer."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5, 3)

    def forward(self, inputs):
        hidden = torch.tanh(self.layer(inputs))
        return torch.nn.functional.linear(hidden, self.layer.weight.T)


def test_a_weight_that_is_used_elsewhere_too_has_no_components():
    def error(outputs, targets):
        return (outputs - 1).square().sum(1)

    tied = network(model=Tied().double(), loss=error)
    assert measure_noise(tied, anatomy=True).anatomy.components is None


def test_other_draws_of_an_item_are_of_that_item():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return torch.randn(3) + index, float(index)

    problem = Problem(
        model=torch.nn.Linear(3, 1),
        loss=lambda outputs, targets: (outputs[:, 0] - targets).square(),
        train=Noisy(),
    )
    noise = measure_noise(problem, anatomy=True, augmentations=4)
    assert noise.num_examples == 40
    assert noise.anatomy.noisiest[0] == noise.top_examples["index"][0]
    assert set(noise.anatomy.indices) == set(range(10))


def test_shares_of_a_signal_that_is_not_resolved_are_not_told():
    gradients = np.random.default_rng(3).standard_normal((50, 4))
    assert of(gradients, population="distribution").per_layer["signal"].isna().all()
    assert of(gradients + 9, population="distribution").per_layer["signal"].tolist() == [1]


def test_bad_input_is_named():
    with pytest.raises(SettingError, match="1 example: a variance takes at least 2"):
        of(np.ones((1, 2)), 5)
    with pytest.raises(SettingError, match="give within and class_sizes"):
        of(np.eye(4), classes=np.arange(4))
    with pytest.raises(MeasurementError, match="not finite"):
        of(np.array([[1.0], [np.nan], [2.0]]))


def test_what_has_no_anatomy_is_refused():
    weighted = network(weights=lambda targets: targets + 1.0)
    with pytest.raises(SettingError, match="anatomy of a problem with weights"):
        measure_noise(weighted, anatomy=True)
    alike = network(train=Examples(torch.ones(4, 5, dtype=torch.float64), torch.zeros(4).long()))
    noise = measure_noise(alike, anatomy=True)
    assert noise.anatomy is None
    assert any("all gradients are one" in note for note in noise.notes)
    with pytest.raises(MeasurementError, match="all gradients are one"):
        of(np.ones((4, 2)))


@pytest.mark.parametrize(("num_classes", "num_examples"), [(20, 40), (100, 200)])
def test_classes_of_which_one_example_was_drawn_do_not_look_apart(num_classes, num_examples):
    """All classes alike: nothing lies between them, whatever was drawn of each."""
    rng = np.random.default_rng(num_classes)
    found = []
    for _ in range(40):
        gradients = rng.normal(size=(num_examples, 30)) + 0.2
        classes = rng.integers(num_classes, size=num_examples)
        mean = gradients.mean(0)
        own = np.stack([gradients[classes == number].mean(0) for number in classes])
        anatomy = noise_anatomy(
            np.square(gradients).sum(1, keepdims=True),
            gradients @ mean,
            np.array([mean @ mean]),
            population_size=1000 * num_classes,
            population="distribution",
            names=["weight"],
            indices=np.arange(num_examples),
            classes=classes,
            within=np.square(gradients - own).sum(1),
            class_sizes=dict.fromkeys(range(num_classes), 1000),
        )
        found.append(anatomy.between_classes.value)
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found)) + 0.005
