"""Parameters of every kind as one real vector: complex, tied, filtered, of mixed dtypes."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.errors import SettingError
from noisescale.measure.curvature.products import hessian_matvec
from noisescale.measure.gradients.moments import gradient_moments
from noisescale.measure.noise import measure_noise
from noisescale.measure.objective import Objective
from noisescale.measure.sharpness import SharpnessOptions, measure_sharpness
from noisescale.problems.problem import Examples, Problem
from tests.helpers.dense import dense_hessian, largest_eigenvalue, matrix_of
from tests.helpers.problems import classification


class Spectral(nn.Module):
    """A complex weight, before or after a real one, behind which everything is real again."""

    def __init__(self, *, complex_first):
        super().__init__()
        weight = nn.Parameter(torch.randn(6, 3, dtype=torch.complex128))
        bias = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.first, self.second = (weight, bias) if complex_first else (bias, weight)

    def forward(self, x):
        weight, bias = (
            (self.first, self.second) if self.first.is_complex() else (self.second, self.first)
        )
        return (
            torch.tanh((x.to(weight.dtype) @ weight).imag)
            + (x.to(weight.dtype) @ weight).abs()
            + bias
        )


def mean_loss(problem):
    return lambda model: problem.loss(model(problem.train.inputs), problem.train.targets).mean()


@pytest.fixture(params=[False, True], ids=["complex last", "complex first"])
def spectral(request):
    examples = classification(num_examples=9).train
    model = Spectral(complex_first=request.param)
    return Problem(model=model, loss=classification().loss, train=examples)


def test_a_complex_parameter_has_the_gradient_of_its_real_and_imaginary_parts(spectral):
    objective = Objective(spectral)
    assert objective.dim == 2 * 18 + 3
    mean_loss(spectral)(spectral.model).backward()
    expected = {
        name: torch.view_as_real(param.grad) if param.is_complex() else param.grad
        for name, param in spectral.model.named_parameters()
    }
    found = objective.unflatten(objective.value_and_gradient()[1])
    assert found.keys() == expected.keys()
    for name, part in found.items():
        torch.testing.assert_close(part, expected[name], rtol=1e-12, atol=1e-14)


def test_a_complex_parameter_has_the_curvature_of_its_real_and_imaginary_parts(spectral):
    expected = dense_hessian(spectral.model, mean_loss(spectral))
    found = matrix_of(hessian_matvec(spectral))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_an_instance_takes_real_leaves_for_a_complex_parameter(spectral):
    objective = Objective(spectral)
    leaves = objective.params()
    outputs = objective.instance(leaves)(objective.examples.inputs)
    torch.testing.assert_close(outputs, spectral.model(objective.examples.inputs))
    gradients = torch.autograd.grad(outputs.sum(), list(leaves.values()))
    assert all(gradient.any() and not gradient.is_complex() for gradient in gradients)


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_noise_counts_the_imaginary_parts(spectral, engine):
    moments = gradient_moments(spectral, engine=engine)
    for row, (example, target) in enumerate(zip(*spectral.train, strict=True)):
        loss = spectral.loss(spectral.model(example[None]), target[None]).sum()
        gradients = torch.autograd.grad(loss, list(spectral.model.parameters()))
        expected = [gradient.abs().square().sum().item() for gradient in gradients]
        assert moments.squared_norms[row] == pytest.approx(expected, rel=1e-10)


def test_complex_single_precision_computes_in_the_dtype_asked_for(spectral):
    single = copy.deepcopy(spectral.model)
    for param in single.parameters():
        param.data = param.data.to(torch.complex64 if param.is_complex() else torch.float32)
    problem = Problem(model=single, loss=spectral.loss, train=spectral.train)
    assert Objective(problem).dtype == torch.float32
    expected = Objective(spectral).value_and_gradient()[1]
    single_gradient = Objective(problem).value_and_gradient()[1]
    double_gradient = Objective(problem, dtype=torch.float64).value_and_gradient()[1]
    torch.testing.assert_close(single_gradient.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(double_gradient, expected, rtol=1e-5, atol=1e-6)
    assert double_gradient.dtype == torch.float64


def test_complex_values_do_not_go_into_a_real_parameter():
    problem = classification()
    params = dict(problem.model.named_parameters())
    params["0.weight"] = params["0.weight"].to(torch.complex128)
    with pytest.raises(SettingError, match=r"0.weight \(8, 6\) complex instead of \(8, 6\)"):
        Objective(problem, params)


@pytest.mark.parametrize("patterns", [("2.*",), ("2.weight", "2.bias"), ["*2.[wb]*"]])
def test_the_curvature_of_chosen_parameters_is_a_block_of_the_whole(patterns):
    problem = classification()
    block = dense_hessian(problem.model, mean_loss(problem))[-27:, -27:]
    found = matrix_of(hessian_matvec(problem, param_filter=patterns))
    torch.testing.assert_close(found, block, rtol=1e-10, atol=1e-14)


def test_options_choose_parameters_for_sharpness_and_noise():
    problem = classification()
    block = dense_hessian(problem.model, mean_loss(problem))[:48, :48]
    options = SharpnessOptions(param_filter=("0.weight",), phi=True)
    sharpness = measure_sharpness(problem, options=options)
    assert sharpness.largest.value.value == pytest.approx(largest_eigenvalue(block), rel=1e-3)
    noise = measure_noise(problem, param_filter=("0.weight",), per_layer=True)
    whole = measure_noise(problem, per_layer=True)
    assert noise.per_layer["parameter"].tolist() == ["0.weight"]
    assert noise.gradient_variance.value == pytest.approx(
        whole.per_layer["gradient_variance"][0], rel=1e-9
    )


@pytest.mark.parametrize("patterns", [("head.*",), ("0.*", "3.*"), ()])
def test_a_pattern_that_chooses_nothing_names_what_there_is(patterns):
    with pytest.raises(SettingError, match=r"param filter .*0.weight, 0.bias, 2.weight, 2.bias"):
        Objective(classification(), param_filter=patterns)


def test_chosen_parameters_are_of_those_that_require_a_gradient():
    problem = classification()
    problem.model[0].weight.requires_grad_(False)
    with pytest.raises(SettingError, match=r"'0.weight': no parameter that requires a gradient"):
        Objective(problem, param_filter=("0.weight",))


class Margin(nn.Module):
    """Classes by their distance from centres of its own, scaled by a buffer."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(3, 3))
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, outputs, targets):
        scores = -self.scale * (outputs.unsqueeze(1) - self.centres).square().sum(2)
        return nn.functional.cross_entropy(scores, targets, reduction="none")


def with_margin():
    problem = classification(num_examples=12)
    return replace(problem, loss=Margin())


def test_parameters_of_the_loss_count_as_those_of_the_model():
    problem = with_margin()
    double = copy.deepcopy(problem.loss).double()
    params = [*problem.model.parameters(), *double.parameters()]

    def total(model):
        return double(model(problem.train.inputs), problem.train.targets).mean()

    expected = dense_hessian(problem.model, total, params)
    objective = Objective(problem, dtype=torch.float64)
    assert list(objective.params())[-1] == "loss.centres"
    found = matrix_of(hessian_matvec(problem, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    of_model = dict(problem.model.named_parameters())  # as a checkpoint has them
    torch.testing.assert_close(Objective(problem, of_model).point, objective.point)


@pytest.mark.parametrize("engine", ["auto", "hooks", "vmap", "loop"])
def test_noise_counts_the_parameters_of_the_loss(engine):
    problem = with_margin()
    problem.loss.double()
    params = [*problem.model.parameters(), *problem.loss.parameters()]
    gradients = []
    for example, target in zip(*problem.train, strict=True):
        loss = problem.loss(problem.model(example[None]), target[None]).sum()
        gradients.append([part.double() for part in torch.autograd.grad(loss, params)])
    moments = gradient_moments(problem, engine=engine)
    norms = [[part.square().sum().item() for part in row] for row in gradients]
    assert moments.squared_norms == pytest.approx(np.array(norms), rel=1e-9, abs=1e-12)
    mean = torch.stack([row[-1] for row in gradients]).mean(0)
    torch.testing.assert_close(moments.mean["loss.centres"], mean, rtol=1e-9, atol=1e-12)


def test_a_loss_that_holds_the_model_shares_its_parameters():
    class Decayed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, outputs, targets):
            decay = sum(param.square().sum() for param in self.model.parameters())
            return nn.functional.cross_entropy(outputs, targets, reduction="none") + 0.1 * decay

    problem = classification()
    decayed = replace(problem, loss=Decayed(problem.model))
    expected = Objective(problem).value_and_gradient()[1] + 0.2 * Objective(problem).point
    found = Objective(decayed)
    assert list(found.params()) == list(Objective(problem).params())
    torch.testing.assert_close(found.value_and_gradient()[1], expected, rtol=1e-9, atol=1e-12)


def test_inputs_that_require_a_gradient_are_taken_as_they_are_or_differentiated_by():
    problem = classification()
    inputs = problem.train.inputs.clone().requires_grad_()
    required = replace(problem, train=Examples(inputs, problem.train.targets))
    expected = gradient_moments(problem).squared_norms
    for engine in ("auto", "hooks", "vmap"):
        found = gradient_moments(required, engine=engine).squared_norms
        assert found == pytest.approx(expected, rel=1e-9)

    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))

        def forward(self, inputs):
            outputs = self.net(inputs)
            (slope,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
            return outputs + slope[:, :3]

    slope = replace(required, model=Slope().double())
    matrix = dense_hessian(slope.model, mean_loss(slope))
    torch.testing.assert_close(matrix_of(hessian_matvec(slope)), matrix, rtol=1e-9, atol=1e-12)
