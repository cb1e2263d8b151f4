"""Per-example gradients by every engine against a loop of single-example backward passes."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from noisescale import gradient_rule
from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.gradients.moments import gradient_moments
from noisescale.measure.gradients.rules import RULES
from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples, Problem
from tests.helpers.architectures import architecture
from tests.helpers.models import PROBLEMS, LanguageModel, loop, sequences
from tests.helpers.problems import classification, seeded
from tests.helpers.processes import environment


def agree(problem, *, rtol=1e-10, **options):
    """Checks all statistics against the loop; returns the moments."""
    found = gradient_moments(problem, **options)
    wanted = loop(problem)
    scale = wanted.squared_norms.sum(1).mean().item()
    floor = rtol * scale
    np.testing.assert_allclose(found.squared_norms, wanted.squared_norms, rtol=rtol, atol=floor)
    by_layer = found.projections.ndim == 2
    projections = wanted.projections if by_layer else wanted.projections.sum(1)
    np.testing.assert_allclose(found.projections, projections, rtol=rtol, atol=floor)
    for name, mean in wanted.mean.items():
        torch.testing.assert_close(
            found.mean[name], mean.double(), rtol=rtol, atol=rtol * scale**0.5
        )
    assert list(found.mean) == list(wanted.mean)
    return found


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("engine", ["hooks", "vmap", "auto"])
def test_engines_equal_the_loop(name, engine):
    problem = PROBLEMS[name]()
    found = agree(problem, engine=engine, chunk_size=9 if name == "sorted" else 4)
    expected = "vmap" if engine == "vmap" else "hooks"
    if name == "routed" or (name == "recurrent" and engine == "vmap"):
        expected = "loop"
    assert found.engine == expected
    assert found.projections.ndim == (1 if expected == "vmap" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_engines_equal_the_loop_on_architectures_drawn_at_random(seed):
    problem = architecture(seed)
    for engine in ("auto", "hooks", "vmap", "loop"):
        found = agree(problem, engine=engine, chunk_size=4)
        assert engine in ("auto", "vmap") or found.engine == engine


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_the_compiled_engine_really_compiles_and_equals_the_loop(name):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = agree(PROBLEMS[name](), engine="compiled", chunk_size=4)
    assert found.engine == "compiled"
    assert found.notes == ()
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    )  # the ragged last chunk included
    assert torch._dynamo.utils.counters["inductor"]


@pytest.mark.slow
def test_one_program_after_another_is_compiled_in_a_process():
    """More than the compiler remembers; each with its own loss, none with another's."""
    problem = PROBLEMS["mlp"]()
    for factor in range(1, 11):
        scaled = replace(
            problem,
            loss=lambda outputs, targets, factor=factor: factor * problem.loss(outputs, targets),
        )
        found = gradient_moments(scaled, engine="compiled")
        assert found.engine == "compiled"
        np.testing.assert_allclose(found.squared_norms, loop(scaled).squared_norms, rtol=1e-10)


WITHOUT_A_COMPILER = """
import json
import numpy as np
from torch import nn
from noisescale import gradient_moments
from tests.helpers.architectures import architecture
from tests.helpers.models import loop
from tests.helpers.problems import classification

model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
problem = classification(model, num_examples=9)
found = gradient_moments(problem, engine="compiled")
np.testing.assert_allclose(found.squared_norms, loop(problem).squared_norms, rtol=1e-10)
print(json.dumps([found.engine, *found.notes]))
"""


@pytest.mark.processes
@pytest.mark.slow
def test_without_a_compiler_vmap_takes_over_and_says_so():
    """In a process of its own, since torch remembers of a compiler that it does not work."""
    missing = {"CXX": "no-such-compiler", "TORCHINDUCTOR_FX_GRAPH_CACHE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_COMPILER],
        env=environment() | missing,
        capture_output=True,
        text=True,
        check=True,
    )
    engine, note = json.loads(done.stdout)
    assert engine == "vmap"
    assert "cannot be compiled" in note
    assert "vmap was used instead" in note


@pytest.mark.parametrize("engine", ["hooks", "vmap"])
@pytest.mark.parametrize("name", ["mlp", "residual", "transformer"])
def test_single_precision_agrees_to_1e_4(name, engine):
    problem = PROBLEMS[name]()
    wanted = loop(problem)
    problem.model.float()
    inputs, targets = problem.train
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    found = gradient_moments(replace(problem, train=Examples(inputs, targets)), engine=engine)
    total = wanted.squared_norms.sum(1)
    np.testing.assert_allclose(found.squared_norms.sum(1), total, rtol=1e-4)
    np.testing.assert_allclose(
        found.squared_norms, wanted.squared_norms, rtol=1e-4, atol=1e-4 * total.max()
    )


def test_half_precision_parameters_are_computed_in_single_and_accumulated_in_double():
    problem = classification(num_examples=9)
    problem.model.half()
    examples = Examples(problem.train.inputs.half(), problem.train.targets)
    found = gradient_moments(replace(problem, train=examples))
    wide = copy.deepcopy(problem.model).double()
    wanted = loop(
        replace(problem, model=wide, train=Examples(examples.inputs.double(), examples.targets))
    )
    np.testing.assert_allclose(found.squared_norms, wanted.squared_norms, rtol=1e-4)
    assert all(part.dtype == torch.float64 for part in found.mean.values())


@pytest.mark.parametrize("engine", ["hooks", "vmap"])
def test_chunks_do_not_change_the_result(engine):
    problem = classification(num_examples=50)
    whole = gradient_moments(problem, engine=engine, chunk_size=50)
    for chunk_size in (1, 7, 49):
        found = gradient_moments(problem, engine=engine, chunk_size=chunk_size)
        np.testing.assert_allclose(found.squared_norms, whole.squared_norms, rtol=1e-12)
        np.testing.assert_allclose(found.projections, whole.projections, rtol=1e-12, atol=1e-15)


def test_other_parameters_than_the_models_and_nothing_disturbed():
    problem = classification(num_examples=9)
    other = {name: 0.5 * param.detach() for name, param in problem.model.named_parameters()}
    before, state = copy.deepcopy(problem.model.state_dict()), torch.random.get_rng_state()
    found = gradient_moments(problem, other)
    assert all(torch.equal(problem.model.state_dict()[name], before[name]) for name in before)
    assert all(param.grad is None for param in problem.model.parameters())
    assert all(not module._forward_hooks for module in problem.model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    problem.model.load_state_dict(other)
    np.testing.assert_allclose(found.squared_norms, loop(problem).squared_norms, rtol=1e-10)


def test_a_subset_is_random_and_its_indices_are_the_splits():
    problem = classification()
    found = gradient_moments(problem, num_examples=20, generator=seeded(3))
    whole = gradient_moments(problem)
    assert (found.num_examples, found.population_size) == (20, 50)
    assert not np.array_equal(found.indices, np.arange(20))
    np.testing.assert_allclose(found.squared_norms, whole.squared_norms[found.indices], rtol=1e-12)
    np.testing.assert_allclose(found.losses, whole.losses[found.indices], rtol=1e-12)


def test_what_hooks_cannot_reach_is_named():
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(6, 5)
            self.head = nn.Parameter(torch.randn(5, 3))

        def forward(self, inputs):
            return torch.einsum("bi,io->bo", torch.tanh(self.hidden(inputs)), self.head)

    found = agree(classification(Product(), num_examples=9))
    assert "head: used in an operation that no rule covers" in found.notes[0]
    assert "hidden.weight" not in found.notes[0]


class Packed(nn.Module):
    """An LSTM over sequences of different lengths, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 11)

    def forward(self, tokens):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.tokens(tokens), tokens[:, 0] % 5 + 1, batch_first=True, enforce_sorted=False
        )
        outputs, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=tokens.shape[1]
        )
        return self.head(outputs)


def test_what_went_otherwise_than_asked_is_noted():
    (note,) = gradient_moments(PROBLEMS["sorted"](), engine="hooks").notes
    assert note.startswith("hidden.bias, hidden.weight: ")
    (note,) = agree(sequences(Packed())).notes
    assert note.startswith("lstm.bias_hh_l0, ")
    assert note.endswith("by gradients of the whole model, one by one")
    (note,) = gradient_moments(PROBLEMS["recurrent"](), engine="vmap").notes
    assert "the engine vmap does not work on Recurrent" in note
    assert "loop was used instead" in note


def test_a_batch_that_is_reordered_where_it_is_large_is_noticed():
    class SortsMany(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, inputs):
            order = inputs[:, 0].argsort() if len(inputs) > 4 else torch.arange(len(inputs))
            return self.head(torch.tanh(self.hidden(inputs[order]))[order.argsort()])

    found = agree(classification(SortsMany(), num_examples=40), engine="hooks", chunk_size=40)
    assert found.engine == "vmap"
    assert "reorders its batch" in found.notes[0]


def test_one_parameter_tensor_has_errors_per_layer():
    model = nn.Linear(6, 3, bias=False)
    assert gradient_moments(classification(model)).projections.shape == (50, 1)


def test_a_rule_of_the_users_own_is_used_and_a_wrong_one_is_found_out():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(6))

        def forward(self, inputs):
            return inputs * self.scale

    factor, calls = 1.0, []

    def rule(module, inputs, gradient):
        calls.append(len(inputs))
        return {"scale": factor * inputs * gradient}

    model = nn.Sequential(Scale(), nn.Linear(6, 3))
    try:
        gradient_rule(Scale)(rule)
        assert agree(classification(model, num_examples=9), engine="hooks").notes == ()
        assert 9 in calls
        factor = 1.1
        found = agree(classification(model, num_examples=9), engine="hooks")
        assert "0.scale" in found.notes[0]
    finally:
        del RULES[Scale]


def test_examples_that_are_no_batch_of_their_own_are_refused():
    batch_norm = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(SettingError, match=r"1 \(BatchNorm1d\).*model.eval\(\).*GroupNorm"):
        gradient_moments(classification(batch_norm))
    never = nn.Sequential(
        nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)
    )
    with pytest.raises(SettingError, match="normalises over the batch"):
        gradient_moments(classification(never.eval()))
    for dropout in (nn.Dropout(0.5), nn.LSTM(6, 6, 2, dropout=0.1)):
        with pytest.raises(SettingError, match=r"active dropout.*model.eval\(\)"):
            gradient_moments(classification(nn.Sequential(nn.Linear(6, 6), dropout)))
    gradient_moments(classification(batch_norm.eval()))

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, inputs):
            return self.layer(inputs - inputs.mean(0))

    with pytest.raises(MeasurementError, match="depends on which others are in the batch"):
        gradient_moments(classification(Centred()))

    class Noisy(Centred):
        def forward(self, inputs):
            return self.layer(nn.functional.dropout(inputs, 0.5, training=True))

    with pytest.raises(MeasurementError, match="random at fixed parameters"):
        gradient_moments(classification(Noisy()))


def test_bad_input_is_named():
    problem = classification()
    examples = problem.train
    for options, message in (
        ({"num_examples": 1}, r"1 example: "),
        ({"num_examples": 51}, "the train split has 50"),
        ({"engine": "fast"}, "engine 'fast': give one of auto, hooks, compiled, vmap, loop"),
        ({"split": "validation"}, "this problem has train, test"),
        ({"chunk_size": 0}, "chunk size 0"),
    ):
        with pytest.raises(SettingError, match=message):
            gradient_moments(problem, **options)
    with pytest.raises(MeasurementError, match=r"Target \d+ is out of bounds"):
        gradient_moments(replace(problem, train=Examples(examples.inputs, examples.targets + 9)))
    with pytest.raises(MeasurementError, match="does not depend on the parameters"):
        gradient_moments(replace(problem, loss=lambda outputs, targets: targets.double()))
    with pytest.raises(SettingError, match=r"dtype torch.int64: give"):
        gradient_moments(problem, dtype=torch.int64)
    for option, value in {"max_norm": 1.0, "scale_grad_by_freq": True}.items():
        embedding = nn.Sequential(nn.Embedding(9, 3, **{option: value}), nn.Flatten())
        with pytest.raises(SettingError, match=f"has {option}"):
            gradient_moments(classification(embedding))
    with pytest.raises(SettingError, match="lazy parameters"):
        gradient_moments(replace(problem, model=nn.LazyLinear(3)))
    with pytest.raises(MeasurementError, match="return one loss per example"):
        gradient_moments(replace(problem, loss=nn.CrossEntropyLoss()))
    with pytest.raises(MeasurementError, match="mat1 and mat2 shapes cannot be multiplied"):
        gradient_moments(replace(problem, train=Examples(examples.inputs[:, :4], examples.targets)))
    inputs = examples.inputs.clone()
    inputs[17] = torch.nan
    with pytest.raises(
        MeasurementError, match=r"1 of 50 examples is not finite \(first index 17\)"
    ):
        gradient_moments(replace(problem, train=Examples(inputs, examples.targets)))
    broken = {name: param.detach().clone() for name, param in problem.model.named_parameters()}
    broken["2.bias"][1] = torch.nan
    with pytest.raises(MeasurementError, match=r"2\.bias are not finite"):
        gradient_moments(problem, broken)


def test_map_style_datasets_serve_and_only_chosen_items_are_read():
    class Squares(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.read = []

        def __len__(self):
            return 40

        def __getitem__(self, index):
            self.read.append(index)
            return torch.full((6,), index / 40, dtype=torch.float64), index % 3

    data = Squares()
    problem = replace(classification(), train=data)
    found = gradient_moments(problem, num_examples=12)
    assert set(data.read) == set(found.indices.tolist())
    inputs = torch.stack([data[index][0] for index in found.indices])
    same = replace(problem, train=Examples(inputs, torch.from_numpy(found.indices) % 3))
    np.testing.assert_allclose(
        found.squared_norms, gradient_moments(same).squared_norms, rtol=1e-12
    )


def test_long_sequences_take_bounded_memory_whichever_form_is_smaller():
    problem = sequences(LanguageModel())
    tokens = torch.randint(0, 11, (4, 5))
    agree(replace(problem, train=Examples(tokens, tokens.roll(1, 1))))
    layer = nn.Linear(6, 5).double()
    inputs = torch.randn(
        4, 40, 6, dtype=torch.float64
    )  # 40 places: written out; 2 places: by Gram matrices
    for length in (40, 2):
        agree(
            Problem(
                model=layer,
                loss=lambda outputs, targets: outputs.square().sum((1, 2)),
                train=Examples(inputs[:, :length], torch.zeros(4)),
            )
        )


def test_a_single_class_of_losses_without_gradient_is_zero_not_an_error():
    layer = nn.Linear(6, 3).double()
    examples = Examples(torch.zeros(5, 6, dtype=torch.float64), torch.zeros(5, dtype=torch.int64))
    found = gradient_moments(Problem(model=layer, loss=cross_entropy, train=examples))
    assert (found.squared_norms[:, 0] == 0).all()
    assert (found.squared_norms[:, 1] > 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["hooks", "vmap", "compiled"])
def test_a_gpu_gives_what_the_cpu_gives(engine):
    problem = PROBLEMS["cnn"]()
    wanted = loop(problem)
    problem.model.cuda()
    found = gradient_moments(problem, engine=engine)  # examples on the CPU go along chunk by chunk
    np.testing.assert_allclose(found.squared_norms, wanted.squared_norms, rtol=1e-8)
    assert found.engine == engine
