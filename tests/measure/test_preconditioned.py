"""Noise scales under a diagonal preconditioner P: those of √P g_i."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from noisescale import (
    Examples,
    Problem,
    linear_regression,
    measure_noise,
    noisy_quadratic,
    preconditioner_of,
)
from noisescale.errors import CheckpointError, SettingError
from noisescale.measure.gradients.hooks import LayerEngine
from tests.helpers.small_networks import gradients_of, network


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_diagonal(model):
    generator = seeded(7)
    return {
        name: 0.1 + torch.rand(param.shape, generator=generator, dtype=torch.float64)
        for name, param in model.named_parameters()
    }


@pytest.mark.parametrize("engine", ["hooks", "vmap", "loop"])
@pytest.mark.parametrize("kind", ["mlp", "cnn", "gpt"])
def test_weighted_norms_and_projections_are_those_of_a_plain_loop(kind, engine):
    problem = network(kind)
    diagonal = random_diagonal(problem.model)
    noise = measure_noise(problem, preconditioner=diagonal, engine=engine, per_layer=True)
    assert noise.engine == engine
    flat = torch.cat([diagonal[name].flatten() for name, _ in problem.model.named_parameters()])
    scaled = flat.sqrt() * gradients_of(problem, range(40))
    mean, count = scaled.mean(0), len(scaled)
    trace = (scaled - mean).square().sum() / count
    under = noise.preconditioned
    assert under.squared_gradient_norm.value == pytest.approx(float(mean @ mean), rel=1e-10)
    assert under.gradient_variance.value == pytest.approx(float(trace), rel=1e-10)
    columns = scaled.split([param.numel() for param in problem.model.parameters()], 1)
    by_hand = [float((part - part.mean(0)).square().sum() / count) for part in columns]
    assert under.per_layer["gradient_variance"].tolist() == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_compiled_engine_knows_weights_too(kind):
    """With a short last chunk, which is filled up."""
    problem = network(kind)
    diagonal = random_diagonal(problem.model)
    found, wanted = (
        measure_noise(
            problem, preconditioner=diagonal, engine=engine, num_examples=37, chunk_size=16
        )
        for engine in ("compiled", "loop")
    )
    assert found.engine == "compiled"
    for name in ("squared_gradient_norm", "gradient_variance", "simple"):
        for part in ("value", "stderr", "low", "high"):
            expected = getattr(getattr(wanted.preconditioned, name), part)
            assert getattr(getattr(found.preconditioned, name), part) == pytest.approx(expected)


@pytest.mark.parametrize("shows_at", [1, 3])
def test_wrong_norms_under_it_alone_are_found(shows_at, monkeypatch):
    """At once, or only of other examples than the first two."""
    wrong = LayerEngine.statistics

    def statistics(engine, chunk, weights=None):
        given = wrong(engine, chunk, weights)
        if given.weighted is None or chunk.num_examples < shows_at:
            return given
        return given._replace(weighted=2 * given.weighted)

    problem = network("mlp")
    diagonal = random_diagonal(problem.model)
    wanted = measure_noise(problem, preconditioner=diagonal, engine="loop").preconditioned
    monkeypatch.setattr(LayerEngine, "statistics", statistics)
    noise = measure_noise(problem, preconditioner=diagonal)
    assert noise.engine != "hooks"
    assert any("used instead" in note for note in noise.notes)
    found = noise.preconditioned.gradient_variance.value
    assert found == pytest.approx(wanted.gradient_variance.value)
    assert measure_noise(problem).engine == "hooks"


@pytest.mark.parametrize("hessian", [False, True])
def test_an_even_preconditioner_gives_the_plain_noise_scale(hessian):
    problem = network("mlp")
    even = {name: torch.ones_like(param) for name, param in problem.model.named_parameters()}
    options = {"num_examples": 25, "hessian": hessian, "num_probes": 4}
    noise = measure_noise(problem, preconditioner=even, **options)
    plain = measure_noise(problem, **options)
    assert noise.simple == plain.simple
    for part in ("value", "stderr", "low", "high"):
        for name in ("squared_gradient_norm", "gradient_variance", "simple"):
            found = getattr(getattr(noise.preconditioned, name), part)
            assert found == pytest.approx(getattr(getattr(plain, name), part), rel=1e-12)
    # a factor of all of P leaves the scale as it is
    tripled = dict.fromkeys(even, 3.0)
    same = measure_noise(problem, preconditioner=tripled, num_examples=25).preconditioned
    assert same.simple.high == pytest.approx(plain.simple.high, rel=1e-12)
    if hessian:  # whose probes are others, and whose mean is the same
        under = noise.preconditioned.curvature.covariance_trace
        assert abs(under.value - plain.curvature.covariance_trace.value) < 4 * math.hypot(
            under.stderr, plain.curvature.covariance_trace.stderr
        )


class Rescaled(nn.Module):
    """A linear regression in the coordinates θ' = P^(−½)θ."""

    def __init__(self, root, weight):
        super().__init__()
        self.root, self.weight = root, nn.Parameter(weight / root)

    def forward(self, inputs):
        return inputs @ (self.root * self.weight)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("num_examples", [60, 200])
def test_the_rescaled_parametrisation_measured_plainly_gives_the_same(weighted, num_examples):
    """Errors and intervals too, B_noise under the same random choices included."""
    generator = seeded()
    inputs = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    targets = targets + torch.randn(200, generator=generator, dtype=torch.float64)
    diagonal = torch.tensor([1.0, 9.0, 0.04, 2.0], dtype=torch.float64)
    start = torch.full((4,), 0.1, dtype=torch.float64)

    def problem(root):
        return Problem(
            model=Rescaled(root, start),
            loss=lambda outputs, targets: 0.5 * (outputs - targets) ** 2,
            train=Examples(inputs, targets),
            weights=(lambda targets: 1 + targets.abs()) if weighted else None,
        )

    options = {"num_examples": num_examples, "hessian": True, "num_probes": 8}
    plain = measure_noise(problem(diagonal.sqrt()), **options)
    given = {"weight": diagonal}
    # the probes' draws would go on where plain ones ended: so the plain Hessian is left out
    options["geometry"] = "optimizer"
    found = measure_noise(problem(torch.ones(4).double()), preconditioner=given, **options)
    assert found.curvature is None
    under = found.preconditioned
    for name in ("squared_gradient_norm", "gradient_variance", "simple"):
        found, wanted = getattr(under, name), getattr(plain, name)
        for part in ("value", "stderr", "low", "high"):
            assert getattr(found, part) == pytest.approx(getattr(wanted, part), rel=1e-9)
    for name in ("covariance_trace", "gradient_curvature", "full", "max_learning_rate"):
        found, wanted = getattr(under.curvature, name), getattr(plain.curvature, name)
        for part in ("value", "stderr", "low", "high"):
            expected = pytest.approx(getattr(wanted, part), rel=1e-9, nan_ok=True)
            assert getattr(found, part) == expected, (name, part)


def exact_scales(moments, diagonal):
    """B^P_simple and B^P_noise of known G, Σ and H."""
    gradient, covariance, hessian = moments.gradient, moments.covariance, moments.hessian
    metric = torch.diag(diagonal)
    simple = (metric @ covariance).trace() / (gradient @ metric @ gradient)
    full = (metric @ hessian @ metric @ covariance).trace() / (
        gradient @ metric @ hessian @ metric @ gradient
    )
    return float(simple), float(full)


def test_a_linear_regression_has_its_closed_form():
    weights = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    made = linear_regression(
        input_variances=torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64),
        weights=weights,
        noise=1.0,
        num_examples=4000,
        generator=seeded(),
    )
    diagonal = torch.tensor([10.0, 1.0, 0.1], dtype=torch.float64)
    noise = measure_noise(
        made.problem, preconditioner={"0.weight": diagonal[None]}, hessian=True
    ).preconditioned
    simple, full = exact_scales(made.moments(torch.zeros(3).double(), "dataset"), diagonal)
    assert noise.simple.value == pytest.approx(simple, rel=1e-9)
    assert noise.full.low < full < noise.full.high
    truth, _ = exact_scales(made.moments(torch.zeros(3).double(), "distribution"), diagonal)
    fresh = measure_noise(
        made.problem, preconditioner={"0.weight": diagonal[None]}, population="distribution"
    ).preconditioned
    assert abs(fresh.simple.value - truth) < 4 * fresh.simple.stderr


def test_a_noisy_quadratic_has_its_closed_form():
    curvatures = torch.tensor([1.0, 4.0, 25.0], dtype=torch.float64)
    start = torch.tensor([3.0, 1.0, 0.3], dtype=torch.float64)
    made = noisy_quadratic(
        hessian=torch.diag(curvatures),
        covariance=torch.diag(torch.tensor([4.0, 1.0, 9.0], dtype=torch.float64)),
        start=start,
        num_examples=3000,
        generator=seeded(),
    )
    diagonal = 1 / curvatures
    (name,) = dict(made.problem.model.named_parameters())
    noise = measure_noise(
        made.problem, preconditioner={name: diagonal}, hessian=True
    ).preconditioned
    simple, full = exact_scales(made.moments(start, "dataset"), diagonal)
    assert noise.simple.value == pytest.approx(simple, rel=1e-9)
    # with P = H⁻¹ both are one scale
    assert full == pytest.approx(simple, rel=1e-9)
    assert noise.full.value == pytest.approx(full, rel=1e-9)  # every group of H is H itself


@pytest.mark.parametrize(
    ("make", "bias_corrected"),
    [
        (lambda params: torch.optim.Adam(params, betas=(0.9, 0.95), eps=1e-3), True),
        (lambda params: torch.optim.AdamW(params, betas=(0.9, 0.95), eps=1e-3), True),
        (lambda params: torch.optim.RMSprop(params, alpha=0.95, eps=1e-3), False),
    ],
)
def test_an_optimizers_diagonal_follows_from_the_gradients_it_has_seen(make, bias_corrected):
    model = nn.Linear(3, 1, bias=False).double()
    optimizer = make(model.parameters())
    moment = torch.zeros(1, 3, dtype=torch.float64)
    for step in range(1, 4):
        gradient = torch.tensor([[1.0, -2.0, 0.5 * step]], dtype=torch.float64)
        model.weight.grad = gradient.clone()
        optimizer.step()
        moment = 0.95 * moment + 0.05 * gradient**2
    if bias_corrected:
        moment = moment / (1 - 0.95**3)
    wanted = 1 / (moment.sqrt() + 1e-3)
    for given in (optimizer, optimizer.state_dict()):
        torch.testing.assert_close(preconditioner_of(given, model)["weight"], wanted)


def test_a_centred_mean_square_and_rates_by_group_are_in_it():
    model = nn.Linear(2, 1).double()
    groups = [
        {"params": [model.weight], "lr": 1e-3},
        {"params": [model.bias], "lr": 4e-3},
    ]
    optimizer = torch.optim.RMSprop(groups, alpha=0.9, eps=1e-3, centered=True)
    mean = square = 0.0
    for step in range(1, 4):
        gradient = torch.tensor([[1.0, -2.0 * step]], dtype=torch.float64)
        before = model.weight.detach().clone()
        model.weight.grad, model.bias.grad = gradient.clone(), gradient[0, :1].clone()
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.9 * square + 0.1 * gradient**2
    found = preconditioner_of(optimizer, model)
    wanted = 1 / ((square - mean**2).sqrt() + 1e-3)
    torch.testing.assert_close(found["weight"], wanted / 4)  # over the largest rate
    torch.testing.assert_close(found["bias"], wanted[0, :1])
    # and the step itself, by which no formula is needed
    torch.testing.assert_close(before - model.weight.detach(), 4e-3 * found["weight"] * gradient)


def test_what_is_no_inverse_root_of_second_moments_is_refused():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.Adadelta(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(SettingError, match="of Adadelta, of which no preconditioner is known"):
        preconditioner_of(optimizer, model)
    model = nn.Linear(2, 1, bias=False, dtype=torch.complex64)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2, dtype=torch.complex64)).abs().sum().backward()
    optimizer.step()
    with pytest.raises(SettingError, match="of complex numbers"):
        preconditioner_of(optimizer, model)


class Decayed(nn.Module):
    """A model with norms and biases, whose parameters of like shapes must not be exchanged."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, inputs):
        return self.last(self.norm(self.first(inputs).relu()))


def as_in_transformers(model):
    """The groups that Hugging Face's Trainer makes: weights that decay, then biases and norms."""
    decays = ["first.weight", "last.weight"]
    named = dict(model.named_parameters())
    return [
        {"params": [named[name] for name in decays], "weight_decay": 0.1},
        {"params": [named[name] for name in named if name not in decays], "weight_decay": 0.0},
    ]


def test_a_file_of_transformers_is_matched_by_its_groups(tmp_path):
    model = Decayed()
    optimizer = torch.optim.AdamW(as_in_transformers(model))
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    live = preconditioner_of(optimizer, model)
    stored = preconditioner_of(tmp_path / "optimizer.pt", model)
    assert list(stored) == [name for name, _ in model.named_parameters()]
    for name in live:
        torch.testing.assert_close(stored[name], live[name])


def test_groups_that_may_have_changed_places_are_refused():
    """Layers of one shape in another order than the model's: P would be permuted in silence."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = torch.optim.Adam([{"params": layer.parameters()} for layer in reversed(model)])
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    with pytest.raises(SettingError, match="not in a known order"):
        preconditioner_of(optimizer.state_dict(), model)
    preconditioner_of(optimizer, model)
    apart = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))  # no shape is in both groups
    optimizer = torch.optim.Adam([{"params": layer.parameters()} for layer in apart])
    apart(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    stored = preconditioner_of(optimizer.state_dict(), apart)
    for name, values in preconditioner_of(optimizer, apart).items():
        torch.testing.assert_close(stored[name], values)


@pytest.mark.parametrize("named", [True, False])
def test_a_state_that_has_frozen_parameters_too_is_matched(named):
    """As of an optimizer of all parameters, the first layer frozen before or after it was made."""
    model = Decayed()
    model.first.requires_grad_(False)
    parameters = model.named_parameters() if named else model.parameters()
    optimizer = torch.optim.AdamW(parameters)
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    if named and "param_names" not in state["param_groups"][0]:
        pytest.skip("this torch keeps no names")
    live, stored = preconditioner_of(optimizer, model), preconditioner_of(state, model)
    assert list(stored) == ["norm.weight", "norm.bias", "last.weight", "last.bias"]
    for name in live:
        torch.testing.assert_close(stored[name], live[name])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": torch.ones(1, 3)}, "lacks bias: give a tensor for each of the 2"),
        ({"weight": torch.ones(2, 3), "bias": 1.0}, r"weight has the shape \(2, 3\): give \(1, 3"),
        ({"weight": torch.zeros(1, 3), "bias": 1.0}, "weight is not positive and finite"),
        ({"weight": math.nan, "bias": 1.0}, "weight is not positive and finite"),
        (3, "a preconditioner of an int"),
    ],
)
def test_a_preconditioner_that_is_none_is_refused(given, message):
    with pytest.raises(SettingError, match=message):
        preconditioner_of(given, nn.Linear(3, 1))


def test_an_optimizer_that_preconditions_nothing_is_refused(tmp_path):
    model = nn.Linear(3, 1)
    for optimizer in (torch.optim.SGD(model.parameters()), torch.optim.Adam(model.parameters())):
        for given in (optimizer, optimizer.state_dict()):
            with pytest.raises(SettingError, match="no second moments"):
                preconditioner_of(given, model)
    other = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(other.parameters())
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(SettingError, match="the optimizer has no parameter weight"):
        preconditioner_of(optimizer, model)
    with pytest.raises(SettingError, match="of 2 parameters that are not"):
        preconditioner_of(optimizer.state_dict(), model)
    with pytest.raises(CheckpointError, match="there is no"):
        preconditioner_of(tmp_path / "none.pt", model)
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="holds no optimizer's state"):
        preconditioner_of(tmp_path / "weights.pt", model)
    (tmp_path / "text.pt").write_text("not a file of torch's")
    with pytest.raises(CheckpointError, match="cannot be read as an optimizer's state"):
        preconditioner_of(tmp_path / "text.pt", model)


def test_the_record_has_it_in_strict_json():
    problem = network("mlp")
    noise = measure_noise(problem, preconditioner=random_diagonal(problem.model))
    stored = noise.to_dict()["preconditioned"]
    assert stored["simple"]["value"] == noise.preconditioned.simple.value
    assert np.isfinite(stored["gradient_variance"]["value"])
    assert "B^P_simple" in repr(noise)
    assert measure_noise(problem).to_dict()["preconditioned"] is None


def test_radams_first_steps_have_no_preconditioner():
    """They are not divided by second moments until these are known well enough."""
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.RAdam(model.parameters())
    for step in range(1, 8):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        if step < 6:
            with pytest.raises(SettingError, match="of RAdam's first steps"):
                preconditioner_of(optimizer, model)
    assert preconditioner_of(optimizer, model)["weight"].shape == (1, 2)
