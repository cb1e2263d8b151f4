"""Per-example gradients of models as users write them, against plain backward passes."""

import copy
import gc

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from noisescale import gradient_moments, measure_noise
from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.gradients import choice
from noisescale.measure.gradients.engine import EngineError
from noisescale.measure.gradients.layers.factors import Dense, Outer
from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples, Problem

NUM_EXAMPLES = 40
ENGINES = ("auto", "vmap", "loop")


class Through(nn.Module):
    """Two layers, and what `run` makes of the first one's output with a third."""

    def __init__(self, run, layer=None, **parts):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.layer = nn.Linear(6, 6) if layer is None else layer
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, inputs):
        return self.last(self.run(self, torch.tanh(self.first(inputs))))


class OfTokens(nn.Module):
    """An embedding, what `run` makes of the hidden sequence, and a head on the mean."""

    def __init__(self, run, layer=None, **options):
        super().__init__()
        self.tokens, self.last = nn.Embedding(9, 4, **options), nn.Linear(4, 3)
        self.layer, self.run = layer, run

    def forward(self, tokens):
        return self.last(self.run(self, self.tokens(tokens), tokens))


def learned_value(model, hidden):
    """In place of one example in ten's first entry: not among the first few."""
    return torch.where(model.is_missing(hidden), model.missing, hidden)


def is_missing(hidden):
    return (hidden[:, :1] > 0.7).expand(-1, 6) & (torch.arange(6) == 0)


def target_of_itself(model, hidden):
    with torch.no_grad():
        target = model.layer(-hidden)
    return model.layer(hidden) - target


def elsewhere_for_some(model, hidden):
    """The layer's weight is used once more, as a function's argument, where an example asks."""
    outputs = model.layer(hidden)
    if (hidden[:, 0] > 0.7).any():
        extra = functional.linear(hidden, model.layer.weight.T.contiguous())
        outputs = outputs + torch.where(hidden[:, :1] > 0.7, extra, 0 * extra)
    return outputs


def experts(model, hidden):
    outputs = torch.zeros_like(hidden)
    chosen = hidden.abs().argmax(1) // 2
    for number, expert in enumerate(model.layer):
        rows = (chosen == number).nonzero()[:, 0]
        if len(rows):
            outputs = outputs.index_add(0, rows, expert(hidden[rows]))
    return outputs


def gradient_inside(model, hidden):
    """A physicist's model: the derivative of a layer's output in its input."""
    with torch.enable_grad():
        if not hidden.requires_grad:
            hidden = hidden.requires_grad_()
        value = torch.tanh(model.layer(hidden)).sum()
        (slope,) = torch.autograd.grad(value, hidden, create_graph=True)
    return slope


def jacobian_inside(model, hidden):
    return torch.func.vmap(torch.func.jacrev(lambda row: torch.tanh(model.layer(row)).sum()))(
        hidden
    )


class OldFunction(torch.autograd.Function):
    """x W, without a `setup_context`, which torch.func takes none of."""

    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs, weight)
        return inputs @ weight

    @staticmethod
    def backward(ctx, gradient):
        inputs, weight = ctx.saved_tensors
        return gradient @ weight.T, inputs.T @ gradient


def counting(model, hidden):
    model.calls = getattr(model, "calls", 0) + 1
    model.kept = model.layer(hidden)  # as for a look at it afterwards
    return model.kept


def in_place(model, hidden):
    outputs = model.layer(hidden)
    outputs += hidden
    outputs *= model.scale
    return outputs.relu_()


def flattened(model, hidden):
    """Two places of each example as so many rows, example by example."""
    return model.layer(hidden.reshape(-1, 3)).reshape(len(hidden), 6)


def flattened_by_place(model, hidden):
    rows = hidden.reshape(-1, 2, 3).transpose(0, 1).reshape(-1, 3)
    return model.layer(rows).reshape(2, -1, 3).transpose(0, 1).reshape(-1, 6)


def autocast(model, hidden):
    with torch.autocast("cpu", torch.bfloat16):
        return model.layer(hidden).float()


def wanting_gradients():
    embedding = OfTokens(lambda model, hidden, tokens: hidden.mean(1))
    embedding.tokens.register_forward_hook(lambda module, given, output: output.requires_grad_())
    return embedding


def packed(model, hidden, tokens):
    rows = nn.utils.rnn.pack_padded_sequence(
        hidden, (tokens != 0).sum(1).clamp(min=1), batch_first=True, enforce_sorted=False
    )
    return model.layer(rows)[1][-1]


def sequence_first(model, hidden, tokens):
    turned = hidden.transpose(0, 1)
    return model.layer(turned, turned, turned, key_padding_mask=tokens == 8)[0].mean(0)


def cross_attention(model, hidden, tokens):
    return model.layer(hidden[:, :2], hidden, hidden * 2)[0].mean(1)


class LearnedBias(nn.Module):
    """Attention with a bias of the distance, from a table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 1)

    def forward(self, hidden):
        length = hidden.shape[1]
        distance = torch.arange(length)[:, None] - torch.arange(length) + 4  # (T, T)
        bias = self.table(distance).permute(2, 0, 1).unsqueeze(0)  # (1, 1, T, T)
        heads = hidden.unsqueeze(1)
        return functional.scaled_dot_product_attention(heads, heads, heads, bias).squeeze(1)


class Complex(nn.Module):
    """A filter of complex weights, before or after a real parameter."""

    def __init__(self, *, first):
        super().__init__()
        weight = nn.Parameter(torch.randn(4, dtype=torch.complex128))
        bias = nn.Parameter(torch.randn(6))
        for name, param in (("a", weight), ("b", bias)) if first else (("a", bias), ("b", weight)):
            setattr(self, name, param)
        self.first = first

    def forward(self, hidden):
        weight, bias = (self.a, self.b) if self.first else (self.b, self.a)
        return torch.fft.irfft(torch.fft.rfft(hidden) * weight, n=6) + bias


def old_norm(norm):
    return Through(lambda model, hidden: model.layer(hidden), norm(nn.Linear(6, 6)))


def call_layer(model, hidden):
    return model.layer(hidden)


def shared_under_two_names():
    model = OfTokens(lambda model, hidden, tokens: model.again(tokens).mean(1) + hidden.sum(1))
    model.again = model.tokens
    model.head = nn.Linear(4, 9, bias=False)
    model.head.weight = model.tokens.weight
    inner = model.run
    model.run = lambda m, hidden, tokens: inner(m, hidden, tokens) @ m.head.weight.T[:, :4]
    return model


MODELS = {
    "a parameter that few examples use": lambda: Through(
        learned_value, missing=nn.Parameter(torch.randn(6)), is_missing=is_missing
    ),
    "a target by the same layer": lambda: Through(target_of_itself),
    "a weight used once more for some": lambda: Through(elsewhere_for_some),
    "experts that examples are sent to": lambda: Through(
        experts, nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
    ),
    "a gradient inside": lambda: Through(gradient_inside),
    "a Jacobian inside": lambda: Through(jacobian_inside),
    "an old function": lambda: Through(
        lambda model, hidden: OldFunction.apply(hidden, model.layer.weight)
    ),
    "counters": lambda: Through(counting),
    "one parameter for two arguments": lambda: Through(
        lambda model, hidden: functional.layer_norm(hidden, (6,), model.both, model.both),
        both=nn.Parameter(torch.rand(6)),
    ),
    "changes in place": lambda: Through(in_place, scale=nn.Parameter(torch.rand(6))),
    "rows of examples": lambda: Through(flattened, nn.Linear(3, 3)),
    "rows of places": lambda: Through(flattened_by_place, nn.Linear(3, 3)),
    "a checkpoint": lambda: Through(
        lambda model, hidden: checkpoint(model.layer, hidden, use_reentrant=False)
    ),
    "a reentrant checkpoint": lambda: Through(
        lambda model, hidden: checkpoint(model.layer, hidden, use_reentrant=True)
    ),
    "outputs made to want gradients": wanting_gradients,
    "old weight norm": lambda: old_norm(torch.nn.utils.weight_norm),
    "old spectral norm": lambda: old_norm(torch.nn.utils.spectral_norm),
    "a scripted part": lambda: Through(call_layer, torch.jit.script(nn.Linear(6, 6))),
    "a wrapped part": lambda: Through(call_layer, nn.DataParallel(nn.Linear(6, 6))),
    "a compiled part": lambda: Through(call_layer, torch.compile(nn.Linear(6, 6), backend="eager")),
    "packed sequences": lambda: OfTokens(packed, nn.GRU(4, 4, batch_first=True)),
    "attention, sequence first": lambda: OfTokens(
        sequence_first, nn.MultiheadAttention(4, 2, add_bias_kv=True)
    ),
    "cross attention": lambda: OfTokens(
        cross_attention, nn.MultiheadAttention(4, 2, batch_first=True)
    ),
    "attention with a bias": lambda: OfTokens(
        lambda model, hidden, tokens: model.layer(hidden).mean(1), LearnedBias()
    ),
    "sparse gradients": lambda: OfTokens(
        lambda model, hidden, tokens: hidden.mean(1), sparse=True, padding_idx=0
    ),
    "bags": lambda: OfTokens(
        lambda model, hidden, tokens: hidden.mean(1) + model.layer(tokens),
        nn.EmbeddingBag(9, 4, mode="mean", padding_idx=0),
    ),
    "a module under two names": shared_under_two_names,
    "a complex parameter": lambda: Through(call_layer, Complex(first=False)),
    "a complex parameter first": lambda: Through(call_layer, Complex(first=True)),
}
HOOKS_REACH = {
    "a parameter that few examples use",
    "a target by the same layer",
    "counters",
    "one parameter for two arguments",
    "rows of examples",
    "rows of places",
    "a checkpoint",
    "a reentrant checkpoint",
    "outputs made to want gradients",
    "a wrapped part",
    "a compiled part",
    "attention, sequence first",
    "cross attention",
    "attention with a bias",
    "sparse gradients",
    "bags",
    "a module under two names",
    "old spectral norm",
    "old weight norm",
}


def problem_of(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]()
        inputs = torch.randn(NUM_EXAMPLES, 6, dtype=torch.float64)
        if isinstance(model, OfTokens):
            inputs = torch.randint(0, 9, (NUM_EXAMPLES, 5))
        targets = torch.randint(0, 3, (NUM_EXAMPLES,))
    return Problem(model=model.double().eval(), loss=cross_entropy, train=Examples(inputs, targets))


def plain_gradients(problem):
    """The gradients of the single examples (N, L) tensors, complex ones as pairs; no torch.func."""
    names, params = zip(*problem.model.named_parameters(), strict=True)
    rows = []
    for index in range(NUM_EXAMPLES):
        example = problem.train.part(slice(index, index + 1))
        problem.model.zero_grad()
        problem.loss(problem.model(example.inputs), example.targets).sum().backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        rows.append(
            [
                torch.view_as_real(part) if part.is_complex() else part
                for part in (g.to_dense() if g.is_sparse else g for g in gradients)
            ]
        )
    problem.model.zero_grad()
    return {
        name: torch.stack(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)
    }


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler's
@pytest.mark.parametrize("name", MODELS)
def test_every_engine_gives_the_gradients_of_plain_backward_passes(name):
    problem = problem_of(name)
    wanted = plain_gradients(problem)
    norms = np.stack([part.flatten(1).square().sum(1).numpy() for part in wanted.values()], 1)
    means = {key: part.mean(0) for key, part in wanted.items()}
    on_mean = [(part * means[key]).flatten(1).sum(1).numpy() for key, part in wanted.items()]
    floor = 1e-10 * norms.sum(1).mean()
    for engine in ENGINES:
        found = gradient_moments(problem, engine=engine, chunk_size=16)
        np.testing.assert_allclose(found.squared_norms, norms, rtol=1e-9, atol=floor)
        np.testing.assert_allclose(
            found.total_projections, np.sum(on_mean, 0), rtol=1e-9, atol=floor
        )
        for key, mean in means.items():
            torch.testing.assert_close(found.mean[key], mean, rtol=1e-9, atol=floor**0.5)
        if engine == "auto" and name in HOOKS_REACH:
            assert (found.engine, found.notes) == ("hooks", ())


def test_hooks_reach_what_only_later_chunks_use():
    """And see there what they cannot reach, the chunks before it having been right."""
    problem = problem_of("a weight used once more for some")
    order = problem.model.first(problem.train.inputs).tanh()[:, 0].argsort()
    sorted_problem = Problem(
        model=problem.model, loss=problem.loss, train=problem.train.part(order)
    )
    found = gradient_moments(sorted_problem, engine="hooks", chunk_size=8)
    assert found.engine == "hooks"
    assert found.notes[0].startswith("layer.weight: ")
    norms = sum(
        part.flatten(1).square().sum(1) for part in plain_gradients(sorted_problem).values()
    )
    np.testing.assert_allclose(found.squared_norms.sum(1), norms.numpy(), rtol=1e-9)


def test_gradients_of_a_layer_used_twice_are_gone_with_their_chunk():
    """Without Python's collector, which may come after many chunks of what does not fit twice."""
    problem = problem_of("a module under two names")

    def held():
        return sum(type(each) in (Dense, Outer) for each in gc.get_objects())

    gradient_moments(problem, engine="hooks")
    gc.collect()
    before = held()
    gc.disable()
    try:
        gradient_moments(problem, engine="hooks")
        assert held() == before
    finally:
        gc.enable()


def test_low_precision_inside_is_measured_as_it_is():
    problem = problem_of("counters")
    problem.model.float().run = autocast
    inputs, targets = problem.train
    problem = Problem(
        model=problem.model, loss=cross_entropy, train=Examples(inputs.float(), targets)
    )
    wanted = plain_gradients(copy.deepcopy(problem))
    norms = sum(part.flatten(1).double().square().sum(1) for part in wanted.values())
    found = gradient_moments(problem)
    np.testing.assert_allclose(found.squared_norms.sum(1), norms.numpy(), rtol=2e-2)


def test_inputs_that_require_a_gradient_are_constants():
    problem = problem_of("counters")
    inputs, targets = problem.train
    same = Problem(
        model=problem.model,
        loss=problem.loss,
        train=Examples(inputs.clone().requires_grad_(), targets),
    )
    for engine in ENGINES:
        wanted = gradient_moments(problem, engine=engine).squared_norms
        found = gradient_moments(same, engine=engine).squared_norms
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_small_parameters_share_is_measured_in_single_precision(scale):
    """Its squares are 1e-10 of the whole, below the rounding of the whole's."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
            self.gamma = nn.Parameter(torch.full((6,), 0.5))

        def forward(self, inputs):
            hidden = torch.tanh(self.first(inputs))
            return self.last(hidden + scale * self.gamma * hidden**2)

    torch.manual_seed(0)
    examples = Examples(torch.randn(NUM_EXAMPLES, 6), torch.randint(0, 3, (NUM_EXAMPLES,)))
    problem = Problem(model=Small(), loss=cross_entropy, train=examples)
    row = measure_noise(problem, per_layer=True).per_layer.set_index("parameter").loc["gamma"]
    double = Problem(
        model=copy.deepcopy(problem.model).double(),
        loss=cross_entropy,
        train=Examples(examples.inputs.double(), examples.targets),
    )
    gradients = plain_gradients(double)["gamma"]
    variance = gradients.var(0, correction=0).sum().item()
    assert row["gradient_variance"] == pytest.approx(variance, rel=1e-3)


def test_a_failure_of_the_models_own_is_one_sentence():
    def fails(model, hidden):
        if (hidden[:, 0] > 0.7).any():
            raise ValueError("more than four")
        return model.layer(hidden)

    problem = problem_of("counters")
    problem.model.run = fails
    with pytest.raises(MeasurementError, match="ValueError: more than four"):
        gradient_moments(problem, engine="hooks")


def test_a_loss_that_holds_the_model_is_refused():
    """Its weight decay would count as constant: the measured parameters are a copy's."""
    problem = problem_of("counters")

    def decayed(outputs, targets):
        squares = sum(param.square().sum() for param in problem.model.parameters())
        return cross_entropy(outputs, targets) + 0.1 * squares

    with pytest.raises(MeasurementError, match=r"uses first\.weight, .* as weight decay"):
        measure_noise(Problem(model=problem.model, loss=decayed, train=problem.train))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_switched_off_are_said_to_be(mode):
    problem = problem_of("counters")
    with mode(), pytest.raises(SettingError, match="switched off here"):
        measure_noise(problem)


class WritesIntoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        x.sub_(0.1307).div_(0.3081)
        return self.layer(x)


def writes_into_targets(outputs, targets):
    targets[targets < 0] = 0
    return cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("engine", "model", "loss"),
    [
        ("auto", WritesIntoInputs, writes_into_targets),
        ("loop", WritesIntoInputs, writes_into_targets),
        ("vmap", lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)), cross_entropy),
    ],
)
def test_what_a_model_or_loss_writes_into_stays_as_it_was(engine, model, loss):
    inputs = torch.randn(20, 4)
    targets = torch.arange(20) % 3 - int(loss is writes_into_targets)
    before = inputs.clone(), targets.clone()
    problem = Problem(model=model(), loss=loss, train=Examples(inputs, targets))
    gradient_moments(problem, engine=engine)
    assert torch.equal(inputs, before[0])
    assert torch.equal(targets, before[1])


class Padded(nn.Module):
    """An encoder whose padded places count in the mean."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        found = self.encoder(self.words(x), src_key_padding_mask=x == 0)
        return self.head(found.mean(1))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_frozen_encoder_is_the_same_function():
    torch.manual_seed(0)
    words = torch.randint(1, 11, (12, 6))
    words[::2, 3:] = 0
    model = Padded().eval()
    problem = Problem(
        model=model,
        loss=nn.CrossEntropyLoss(reduction="none"),
        train=Examples(words, torch.arange(12) % 3),
    )
    whole = gradient_moments(problem)
    for part in (model.words, model.encoder):
        part.requires_grad_(False)
    frozen = gradient_moments(problem)
    assert frozen.losses == pytest.approx(whole.losses, rel=1e-5)
    head = [name.startswith("head") for name in whole.mean]
    assert frozen.squared_norms == pytest.approx(whole.squared_norms[:, head], rel=1e-4)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Parameter(torch.randn(7, 5)), nn.Linear(5, 3)

    def forward(self, index):
        return self.layer(self.table[index])


def test_an_index_beyond_a_table_is_no_row_of_it():
    index = torch.randint(-7, 7, (400,))
    problem = Problem(
        model=Table(),
        loss=nn.CrossEntropyLoss(reduction="none"),
        train=Examples(index, torch.arange(400) % 3),
    )
    hooks, loop = (gradient_moments(problem, engine=name) for name in ("hooks", "loop"))
    assert hooks.squared_norms == pytest.approx(loop.squared_norms, rel=1e-4)
    index[300] = 7
    with pytest.raises(MeasurementError, match=r"out of (range|bounds)"):
        gradient_moments(problem)


class Uncompilable(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.layer = nn.Parameter(torch.randn(3, 4)), nn.Linear(3, 2)

    def forward(self, x):
        if float(x.abs().sum()) < 0:
            raise ValueError
        return self.layer(torch.einsum("bi,oi->bo", x, self.weight).tanh())


def test_a_compiler_that_fails_is_tried_once(monkeypatch):
    monkeypatch.setattr(choice, "WORTH_COMPILING", 0)
    tried = []

    def fails(objective):
        tried.append(objective)
        raise EngineError("the engine compiled does not work on the model")

    monkeypatch.setattr(choice, "CompiledEngine", fails)
    problem = Problem(
        model=Uncompilable(),
        loss=nn.CrossEntropyLoss(reduction="none"),
        train=Examples(torch.randn(200, 4), torch.arange(200) % 2),
    )
    assert gradient_moments(problem).engine != "compiled"
    assert len(tried) == 1
