"""Curvature of models as users write them, against dense matrices by plain autograd."""

import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from noisescale.errors import MeasurementError
from noisescale.measure.curvature.example_curvature import ExampleCurvature
from noisescale.measure.curvature.linear_sgd import LinearisedSGD
from noisescale.measure.curvature.products import ggn_matvec, hessian_matvec
from noisescale.measure.objective import Objective
from noisescale.measure.sharpness import SharpnessOptions, measure_sharpness
from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples, Problem
from tests.helpers.dense import dense_hessian, finite_hessian, largest_eigenvalue, matrix_of

NUM_EXAMPLES = 7
CLASSES = torch.tensor([0, 1, 2, 1, 0, 2, 1])


def tokens():
    """(7, 4) of 1 to 6; every other row ends in two of padding, 0."""
    rows = torch.randint(1, 7, (NUM_EXAMPLES, 4))
    rows[::2, 2:] = 0
    return rows


def numbers():
    return torch.randn(NUM_EXAMPLES, 5, dtype=torch.float64)


class Embedded(nn.Module):
    """An embedding, what `run` makes of it, and a linear layer."""

    def __init__(self, run, *, layer=None, **options):
        super().__init__()
        self.embedding = nn.Embedding(7, 4, **options)
        self.layer, self.last, self.run = layer, nn.Linear(4, 3), run

    def forward(self, inputs):
        return self.last(self.run(self, self.embedding(inputs), inputs))


def averaged(model, hidden, inputs):
    return torch.tanh(hidden).mean(1)


def recurrent(model, hidden, inputs):
    return model.layer(hidden)[0][:, -1]


def packed(model, hidden, inputs):
    lengths = (inputs != 0).sum(1).clamp(min=1)
    rows = nn.utils.rnn.pack_padded_sequence(
        hidden, lengths.cpu(), batch_first=True, enforce_sorted=False
    )
    return model.layer(rows)[1][-1]


def masked_attention(model, hidden, inputs):
    attended, _ = model.layer(
        hidden, hidden, hidden, key_padding_mask=inputs == 0, need_weights=False
    )
    return attended.mean(1)


class Bags(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.bags, self.last = nn.EmbeddingBag(7, 4, **options), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.last(torch.tanh(self.bags(inputs)))


class Through(nn.Module):
    """A linear layer and what `run` makes of its inputs."""

    def __init__(self, run, size=3):
        super().__init__()
        self.layer, self.run = nn.Linear(5, size), run

    def forward(self, inputs):
        return self.run(self.layer, inputs)


def less_target(layer, inputs):
    with torch.no_grad():
        target = layer(-inputs)
    return layer(inputs) - target


def checked(layer, inputs):
    outputs = torch.tanh(layer(inputs))
    if (outputs > 100).any():
        raise ValueError("too large")
    return outputs


MODELS = {
    "padding row": (lambda: Embedded(averaged, padding_idx=0), tokens),
    "sparse embedding": (lambda: Embedded(averaged, sparse=True), tokens),
    "LSTM": (lambda: Embedded(recurrent, layer=nn.LSTM(4, 4, batch_first=True)), tokens),
    "GRU": (lambda: Embedded(recurrent, layer=nn.GRU(4, 4, batch_first=True)), tokens),
    "packed GRU": (lambda: Embedded(packed, layer=nn.GRU(4, 4, batch_first=True)), tokens),
    "masked attention": (
        lambda: Embedded(
            masked_attention, layer=nn.MultiheadAttention(4, 2, batch_first=True), padding_idx=0
        ),
        tokens,
    ),
    "no_grad target": (lambda: Through(less_target), numbers),
    "check on values": (lambda: Through(checked), numbers),
}


def mean_loss(problem):
    return lambda model: problem.loss(model(problem.train.inputs), problem.train.targets).mean()


def dense_ggn(problem, flat=lambda outputs: outputs):
    """The Gauss–Newton matrices of the examples (n, P, P), a backward pass for every output.

    flat: the outputs that the loss uses, as one tensor (1, C) that it takes as well.
    """
    params = [param for param in problem.model.parameters() if param.requires_grad]
    matrices = []
    for row in range(problem.train.num_examples):
        inputs, targets = problem.train.part(slice(row, row + 1))
        returned = flat(problem.model(inputs))
        outputs = returned.flatten()

        def loss(values, returned=returned, targets=targets):
            return problem.loss(values.view_as(returned), targets).sum()

        jacobian = torch.stack(
            [
                torch.cat(
                    [
                        part.flatten()
                        for part in torch.autograd.grad(
                            output, params, retain_graph=True, materialize_grads=True
                        )
                    ]
                )
                for output in outputs
            ]
        )
        curvature = torch.autograd.functional.hessian(loss, outputs.detach())
        matrices.append(jacobian.T @ curvature @ jacobian)
    return torch.stack(matrices)


@pytest.fixture(params=MODELS)
def problem(request):
    model, inputs = MODELS[request.param]
    return Problem(
        model=model().double().eval(), loss=cross_entropy, train=Examples(inputs(), CLASSES)
    )


def test_the_curvature_of_single_examples_is_that_of_backward_passes(problem):
    for module in problem.model.modules():
        module.sparse = False  # which the dense matrices need
    with sdpa_kernel(SDPBackend.MATH):
        dense = dense_ggn(problem)
    found = ExampleCurvature(Objective(problem))
    vector = torch.randn(dense.shape[1], dtype=torch.float64)
    tolerance = {"rtol": 1e-9, "atol": 1e-12}
    mean = dense.mean(0)
    torch.testing.assert_close(found.matvec(vector), mean @ vector, **tolerance)
    torch.testing.assert_close(ggn_matvec(problem)(vector), mean @ vector, **tolerance)
    torch.testing.assert_close(found.traces(), torch.einsum("npp->n", dense), **tolerance)
    torch.testing.assert_close(
        found.largest_each(), torch.linalg.eigvalsh(dense)[:, -1], rtol=1e-7, atol=1e-9
    )


def test_steps_of_linearised_sgd_are_those_of_backward_passes(problem):
    for module in problem.model.modules():
        module.sparse = False
    with sdpa_kernel(SDPBackend.MATH):
        dense = dense_ggn(problem)
    sgd = LinearisedSGD(Objective(problem))
    points = torch.randn(2, dense.shape[1], dtype=torch.float64)
    named = [sgd.objective.unflatten(point) for point in points]
    stacked = {name: torch.stack([one[name] for one in named]) for name in named[0]}
    batches = torch.tensor([[0, 3, 5], [1, 2, 6]])
    after = sgd.step(stacked, batches, torch.tensor([0.3, 0.7], dtype=torch.float64))
    for replica, (batch, rate) in enumerate(zip(batches, [0.3, 0.7], strict=True)):
        expected = points[replica] - rate * dense[batch].mean(0) @ points[replica]
        found = torch.cat([part[replica].flatten() for part in after.values()])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_hessian_is_that_of_double_backward_passes(problem):
    dense = copy.deepcopy(problem.model)
    for module in dense.modules():
        module.sparse = False  # which has no second derivative
    expected = dense_hessian(dense, mean_loss(problem))
    found = matrix_of(hessian_matvec(problem))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "sparse"),  # torch has no sparse gradient of a maximum
    [("sum", False), ("sum", True), ("mean", False), ("mean", True), ("max", False)],
)
@pytest.mark.parametrize("padding", [None, 0])
def test_bags_of_embeddings_have_curvature(mode, padding, sparse):
    model = Bags(mode=mode, padding_idx=padding, sparse=sparse).double()
    problem = Problem(model=model, loss=cross_entropy, train=Examples(tokens(), CLASSES))
    dense = copy.deepcopy(model)
    dense.bags.sparse = False
    expected = finite_hessian(dense, mean_loss(problem))
    found = matrix_of(hessian_matvec(problem))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_bags_with_offsets_and_weights_have_curvature():
    class Ragged(Bags):
        def forward(self, inputs):
            kept = inputs != 0
            offsets = functional.pad(kept.sum(1).cumsum(0)[:-1], (1, 0))
            weights = inputs[kept].double().sqrt()
            return self.last(torch.tanh(self.bags(inputs[kept], offsets, weights)))

    model = Ragged(mode="sum").double()
    problem = Problem(model=model, loss=cross_entropy, train=Examples(tokens(), CLASSES))
    expected = finite_hessian(copy.deepcopy(model), mean_loss(problem))
    torch.testing.assert_close(matrix_of(hessian_matvec(problem)), expected, rtol=1e-6, atol=1e-8)


@dataclasses.dataclass
class Answer:
    """What a model of one's own may return."""

    logits: torch.Tensor
    hidden: torch.Tensor
    name: str = "answer"


OUTPUTS = {
    "dict": (lambda h, z: {"hidden": h, "logits": z}, lambda outputs: outputs["logits"]),
    "tuple": (lambda h, z: (z, (h, None)), lambda outputs: outputs[0]),
    "dataclass": (lambda h, z: Answer(z, h), lambda outputs: outputs.logits),
    "distribution": (
        lambda h, z: torch.distributions.Categorical(logits=z),
        lambda outputs: outputs.logits,
    ),
}


@pytest.mark.parametrize(("returned", "used"), OUTPUTS.values(), ids=OUTPUTS)
def test_the_gauss_newton_matrix_is_of_what_the_loss_uses(returned, used):
    def run(layer, inputs):
        hidden = torch.tanh(layer(inputs))
        return returned(hidden, functional.log_softmax(hidden * hidden, 1))

    model = Through(run).double()

    def loss(outputs, targets):
        logits = outputs if isinstance(outputs, torch.Tensor) else used(outputs)
        return cross_entropy(logits, targets)

    problem = Problem(model=model, loss=loss, train=Examples(numbers(), CLASSES))
    dense = dense_ggn(problem, flat=used)
    found = matrix_of(ggn_matvec(problem))
    torch.testing.assert_close(found, dense.mean(0), rtol=1e-9, atol=1e-12)
    traces = ExampleCurvature(Objective(problem)).traces()
    torch.testing.assert_close(traces, torch.einsum("npp->n", dense), rtol=1e-9, atol=1e-12)


def test_outputs_of_one_dimension_and_complex_ones_have_a_gauss_newton_matrix():
    inputs, values = numbers(), torch.randn(NUM_EXAMPLES, dtype=torch.float64)
    flat = Through(lambda layer, x: torch.tanh(layer(x))[:, 0], size=1)
    fourier = Through(lambda layer, x: torch.fft.rfft(torch.tanh(layer(x))), size=4)
    losses = {
        flat: lambda outputs, targets: (outputs - targets) ** 4,
        fourier: lambda outputs, targets: (outputs.abs() - targets[:, None]).square().sum(1),
    }
    for model, loss in losses.items():
        problem = Problem(model=model.double(), loss=loss, train=Examples(inputs, values))

        def real(outputs):
            return torch.view_as_real(outputs).flatten(1) if outputs.is_complex() else outputs

        def of_real(outputs, targets, loss=loss):
            if outputs.ndim == 2:
                outputs = torch.complex(*outputs.unflatten(1, (-1, 2)).unbind(-1))
            return loss(outputs, targets)

        dense = dense_ggn(dataclasses.replace(problem, loss=of_real), flat=real)
        found = matrix_of(ggn_matvec(problem))
        torch.testing.assert_close(found, dense.mean(0), rtol=1e-9, atol=1e-12)


class Physics(nn.Module):
    """u″ + u of a network u, by derivatives taken inside the forward pass."""

    def __init__(self, *, functional_grad):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        self.functional_grad = functional_grad

    def forward(self, x):
        if self.functional_grad:

            def u(t):
                return self.net(t.view(1, 1)).squeeze()

            second = torch.func.vmap(torch.func.grad(torch.func.grad(u)))
            return second(x[:, 0]).unsqueeze(1) + self.net(x)
        x = x.detach().requires_grad_()
        u = self.net(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return bend + u


def physics(**options):
    model = Physics(**options).double()
    inputs = torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    return Problem(
        model=model,
        loss=lambda outputs, targets: (outputs[:, 0] - targets[:, 0]) ** 2,
        train=Examples(inputs, inputs.cos()),
    )


@pytest.mark.parametrize("functional_grad", [False, True])
def test_derivatives_inside_the_model_are_differentiated(functional_grad):
    problem = physics(functional_grad=functional_grad)
    expected = dense_hessian(problem.model, mean_loss(problem))
    for chunk_size in (None, 4):
        found = matrix_of(hessian_matvec(problem, chunk_size=chunk_size))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert measure_sharpness(problem).largest.value.value == pytest.approx(
        largest_eigenvalue(expected), rel=1e-3
    )


WRAPPED = {
    "old weight norm": lambda model: model.append(nn.utils.weight_norm(nn.Linear(3, 3))),
    "old spectral norm": lambda model: model.append(nn.utils.spectral_norm(nn.Linear(3, 3))),
    "scripted": torch.jit.script,
    "scripted part": lambda model: nn.Sequential(torch.jit.script(model), nn.Linear(3, 3)),
    "traced": lambda model: torch.jit.trace(model, numbers()),
    "fx": torch.fx.symbolic_trace,
    "parallel": nn.DataParallel,
    "parallel part": lambda model: nn.Sequential(nn.DataParallel(model), nn.Linear(3, 3)),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled": functools.partial(torch.compile, backend="aot_eager"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_models_have_the_curvature_of_what_they_wrap(wrap):
    plain = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    model = wrap(plain.double()).double().eval()
    problem = Problem(model=model, loss=cross_entropy, train=Examples(numbers(), CLASSES))
    model(problem.train.inputs)  # leaves what the layer has computed behind
    of_model = plain if wrap is WRAPPED["compiled"] else model
    expected = dense_hessian(of_model, mean_loss(problem))
    elsewhere = {name: param.detach() + 0.1 for name, param in model.named_parameters()}
    objective = Objective(problem, elsewhere)
    before = [param.clone() for param in model.parameters()]
    objective.value_and_gradient()
    torch.testing.assert_close(matrix_of(hessian_matvec(problem)), expected, rtol=1e-9, atol=1e-12)
    assert all(map(torch.equal, model.parameters(), before))


class Shared(nn.Module):
    """A module under two names, its weight tied to another's, and once more in a list."""

    def __init__(self):
        super().__init__()
        embedding = nn.Embedding(7, 4)
        self.encoder, self.decoder = (
            nn.ModuleDict({"e": embedding}),
            nn.ModuleDict({"e": embedding}),
        )
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = embedding.weight
        self.scale = nn.Parameter(torch.ones(4))
        self.listed = [self.scale]

    def forward(self, inputs):
        hidden = torch.tanh(self.encoder["e"](inputs)).mean(1) * self.listed[0]
        return self.head(hidden + self.decoder["e"](inputs[:, 0]))


def test_a_shared_module_counts_once_and_stays_as_it_is():
    problem = Problem(
        model=Shared().double(), loss=cross_entropy, train=Examples(tokens(), CLASSES)
    )
    expected = dense_hessian(problem.model, mean_loss(problem))
    objective = Objective(problem)
    first, second = objective.value_and_gradient(), objective.value_and_gradient()
    assert first[0] == second[0] == pytest.approx(mean_loss(problem)(problem.model).item())
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(matrix_of(hessian_matvec(problem)), expected, rtol=1e-9, atol=1e-12)
    instance = objective.instance(objective.params())
    assert instance.listed[0] is instance.scale
    assert instance.head.weight is instance.decoder["e"].weight


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.round(decimals=1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def reversing(layer, inputs):
    hidden = layer(inputs)
    return torch.tanh(hidden) * Reversed.apply(hidden).exp()


def rounding(layer, inputs):
    return torch.tanh(Rounded.apply(layer(inputs)))


@pytest.mark.parametrize("run", [reversing, rounding, less_target])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_of_no_one_function_has_no_largest_eigenvalue(run, dtype):
    problem = Problem(
        model=Through(run).to(dtype), loss=cross_entropy, train=Examples(numbers(), CLASSES)
    )
    with pytest.raises(MeasurementError, match="its gradient is not that of one function"):
        measure_sharpness(problem)
    assert measure_sharpness(problem, options=SharpnessOptions(ggn=True)).largest.converged


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Softplus(beta=50.0)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_a_gradient_of_one_function_is_taken_for_one(activation, scale):
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Embedding(7, 16, padding_idx=0),
            nn.Flatten(),
            nn.Linear(64, 64),
            activation,
            nn.LayerNorm(64),
            nn.Linear(64, 3),
        )
        with torch.no_grad():
            model[2].weight *= scale
        problem = Problem(model=model, loss=cross_entropy, train=Examples(tokens(), CLASSES))
        assert measure_sharpness(problem).largest.value.value > 0


PARTS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative errors, some units of rounding


@pytest.mark.parametrize("part", PARTS)
def test_a_part_in_low_precision_is_no_lack_of_symmetry(part):
    def run(layer, inputs):
        hidden = layer(inputs).to(part)
        return torch.tanh(hidden * hidden).to(inputs.dtype)

    model = Through(run).double()
    plain = Through(lambda layer, x: torch.tanh(layer(x).square())).double()
    plain.load_state_dict(model.state_dict())
    examples = Examples(numbers(), CLASSES)
    problem = Problem(model=model, loss=cross_entropy, train=examples)
    expected = largest_eigenvalue(
        dense_hessian(plain, mean_loss(Problem(model=plain, loss=cross_entropy, train=examples)))
    )
    options = SharpnessOptions(trace=True, bottom=1)
    found = measure_sharpness(problem, options=options).largest.value.value
    assert found == pytest.approx(expected, rel=PARTS[part])


def test_a_loss_module_is_cast_as_the_model_is():
    weights = torch.tensor([1.0, 2.0, 0.5])
    loss = nn.CrossEntropyLoss(weight=weights, reduction="none")
    model = nn.Linear(5, 3)
    problem = Problem(model=model, loss=loss, train=Examples(numbers(), CLASSES))
    double = Problem(
        model=copy.deepcopy(model).double(),
        loss=nn.CrossEntropyLoss(weight=weights.double(), reduction="none"),
        train=problem.train,
    )
    expected = dense_hessian(double.model, mean_loss(double))
    found = matrix_of(hessian_matvec(problem, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert loss.weight.dtype == torch.float32


def test_a_body_in_single_and_a_head_in_double_precision_compute_in_double():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3).double()

        def forward(self, inputs):
            return self.head(torch.tanh(self.body(inputs)).double())

    problem = Problem(model=Mixed(), loss=cross_entropy, train=Examples(numbers().float(), CLASSES))
    assert Objective(problem).dtype == torch.float64
    precise = copy.deepcopy(problem.model).double()
    inputs = problem.train.inputs.double()
    expected = dense_hessian(precise, lambda model: cross_entropy(model(inputs), CLASSES).mean())
    torch.testing.assert_close(matrix_of(hessian_matvec(problem)), expected, rtol=1e-9, atol=1e-12)


def test_a_model_without_a_gradient_is_refused_in_a_sentence():
    def run(layer, inputs):
        return functional.relu(layer(inputs)).mul_(2.0)  # overwrites what the gradient takes

    problem = Problem(
        model=Through(run).double(), loss=cross_entropy, train=Examples(numbers(), CLASSES)
    )
    for options in (SharpnessOptions(), SharpnessOptions(ggn=True)):
        with pytest.raises(MeasurementError, match=r"cannot be differentiated.*inplace"):
            measure_sharpness(problem, options=options)


@pytest.mark.parametrize("first", [1, 5])
def test_a_model_that_late_examples_alone_train_has_its_curvature(first):
    def run(layer, inputs):
        rows = [layer(row) if row[0] == row[1] else row[:3] for row in inputs]
        return torch.stack(rows)

    inputs = numbers()
    inputs[first:, 0] = inputs[first:, 1]
    problem = Problem(
        model=Through(run).double(), loss=cross_entropy, train=Examples(inputs, CLASSES)
    )
    expected = dense_hessian(problem.model, mean_loss(problem))
    for chunk_size in (None, 2):
        found = matrix_of(hessian_matvec(problem, chunk_size=chunk_size))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        found = matrix_of(ggn_matvec(problem, chunk_size=chunk_size))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    traces = ExampleCurvature(Objective(problem, chunk_size=2)).traces()
    assert traces[:first].tolist() == [0.0] * first
    assert float(traces.mean()) == pytest.approx(float(expected.trace()))
