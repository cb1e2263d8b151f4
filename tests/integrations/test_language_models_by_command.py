"""The command line on language models of the real library, built from its configurations."""

import importlib.util
import math

import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

transformers = pytest.importorskip("transformers")

from noisescale import TrainConfig, train
from tests.helpers.command_line import run, strict

pytestmark = [
    pytest.mark.peers,
    # the library's own, on its first forward pass
    pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

# As a user writes it: the model as it is, dicts for batches, and a loss that takes what it returns.
SOURCE = """
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
)
from noisescale import Examples, Problem

WORDS, LENGTH, NUM_EXAMPLES, PAD = 23, 7, 12, 0
SMALL = dict(
    vocab_size=WORDS, attn_implementation="eager", pad_token_id=PAD, bos_token_id=1, eos_token_id=2
)


def mean_over_counted(logits, labels):
    losses = F.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=-100, reduction="none"
    )
    return losses.sum(1) / (labels != -100).sum(1)


def causal(output, labels):
    return mean_over_counted(output.logits[:, :-1], labels[:, 1:])


def masked(output, labels):
    return mean_over_counted(output.logits, labels)


def batch(generator, *, counted):
    lengths = torch.randint(3, LENGTH + 1, (NUM_EXAMPLES, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    ids = torch.randint(1, WORDS, (NUM_EXAMPLES, LENGTH), generator=generator) * mask
    is_counted = torch.rand(ids.shape, generator=generator) < counted
    is_counted[:, 1] = True  # of each sequence at least one
    labels = ids.masked_fill((mask == 0) | ~is_counted, -100)
    return {"input_ids": ids, "attention_mask": mask}, labels


def problem(model, loss, *, counted):
    examples = Examples(*batch(torch.Generator().manual_seed(0), counted=counted))
    return Problem(model=model.eval(), loss=loss, train=examples)


def gpt2():
    torch.manual_seed(1)
    config = GPT2Config(n_positions=16, n_embd=12, n_layer=2, n_head=3, **SMALL)
    return problem(GPT2LMHeadModel(config), causal, counted=0.8)


def llama():
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=16, **SMALL,
    )
    return problem(LlamaForCausalLM(config), causal, counted=0.8)


def bert():
    torch.manual_seed(1)
    config = BertConfig(
        hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=16, **SMALL,
    )
    return problem(BertForMaskedLM(config), masked, counted=0.4)
"""
MODELS = ("gpt2", "llama", "bert")


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """The module of the file's factories."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "language.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("language", tmp_path / "language.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_loop(problem):
    """|G|², tr Σ and the mean loss of a problem in float64, from one sequence after the other."""
    model = problem.model.double()
    params = [param for param in model.parameters() if param.requires_grad]
    inputs, labels = problem.train
    gradients, losses = [], []
    for row in range(len(labels)):
        sequence = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        loss = problem.loss(model(**sequence), labels[row : row + 1]).sum()
        parts = torch.autograd.grad(loss, params, allow_unused=True)
        flat = [
            torch.zeros_like(param) if part is None else part
            for param, part in zip(params, parts, strict=True)
        ]
        gradients.append(torch.cat([part.flatten() for part in flat]))
        losses.append(loss.item())
    gradients = torch.stack(gradients)  # (N, P)
    square = gradients.mean(0).square().sum()
    variance = gradients.var(0, correction=0).sum()
    return float(square), float(variance), math.fsum(losses) / len(losses)


def largest_eigenvalue(problem):
    """Of the mean loss's Hessian, by ARPACK on central differences of the gradient."""
    model = problem.model.double()
    params = [param for param in model.parameters() if param.requires_grad]
    inputs, labels = problem.train
    point = parameters_to_vector(params).detach()

    def gradient(vector):
        vector_to_parameters(vector, params)
        loss = problem.loss(model(**inputs), labels).mean()
        parts = torch.autograd.grad(loss, params, allow_unused=True)
        return torch.cat(
            [
                torch.zeros(param.numel()) if part is None else part.flatten()
                for param, part in zip(params, parts, strict=True)
            ]
        )

    def product(values):
        direction = torch.from_numpy(values.ravel())
        step = 1e-4 / direction.norm()
        ends = [gradient(point + sign * step * direction) for sign in (1, -1)]
        return ((ends[0] - ends[1]) / (2 * step)).numpy()

    operator = LinearOperator((len(point), len(point)), matvec=product, dtype="float64")
    (largest,) = eigsh(operator, k=1, which="LA", tol=1e-6, return_eigenvectors=False)
    return largest


def check(entry, problem):
    square, variance, loss = plain_loop(problem)
    assert entry["loss"]["value"] == pytest.approx(loss, rel=1e-9)
    assert entry["squared_gradient_norm"]["value"] == pytest.approx(square, rel=1e-7)
    assert entry["gradient_variance"]["value"] == pytest.approx(variance, rel=1e-7)
    assert entry["simple"]["value"] == pytest.approx(variance / square, rel=1e-7)


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("name", MODELS)
def test_the_noise_scale_as_its_factory_makes_it(name, engine, problems):
    arguments = ["--problem", f"language.py:{name}", "--dtype", "float64", "--json"]
    result = run("measure-noise", *arguments, "--engine", engine)
    assert result.exit_code == 0, result.output
    (entry,) = strict(result.stdout)
    check(entry, getattr(problems, name)())


@pytest.mark.parametrize("name", MODELS)
def test_the_noise_scale_at_what_save_pretrained_left(name, problems):
    """In a folder, whose file lacks what is tied; and in several files."""
    saved = getattr(problems, name)()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for param in saved.model.parameters():
            param.add_(0.3 * torch.randn(param.shape, generator=generator))
    saved.model.save_pretrained("whole")
    saved.model.save_pretrained("sharded", max_shard_size="4KB")
    arguments = ["--problem", f"language.py:{name}", "--dtype", "float64", "--json"]
    for folder in ("whole", "sharded"):
        result = run("measure-noise", folder, *arguments)
        assert result.exit_code == 0, result.output
        (entry,) = strict(result.stdout)
        check(entry, saved)


@pytest.mark.parametrize("name", MODELS)
def test_the_sharpness_as_its_factory_makes_it(name, problems):
    arguments = ["--problem", f"language.py:{name}", "--dtype", "float64", "--rtol", "1e-5"]
    result = run("sharpness", *arguments, "--json")
    assert result.exit_code == 0, result.output
    (entry,) = strict(result.stdout)
    (largest,) = entry["eigenvalues"]
    assert largest["converged"]
    # the differences are right to about h² = 1e-8 of the third derivative
    expected = largest_eigenvalue(getattr(problems, name)())
    assert largest["value"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_training_is_that_of_a_plain_loop(name, problems):
    """From the same factory; a sequence's loss counts as one example's."""
    problem, plain = (getattr(problems, name)() for _ in range(2))
    problem.model.double()
    model = plain.model.double().train()
    for module in (problem.model, model):
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    config = TrainConfig(batch_size=4, learning_rate=0.1, epochs=2, seed=3)
    *_, end = train(problem, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = plain.train
    order = torch.Generator().manual_seed(3)
    for _ in range(2):
        for rows in torch.randperm(len(labels), generator=order).split(4):
            part = {name: tensor[rows] for name, tensor in inputs.items()}
            plain.loss(model(**part), labels[rows]).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, param in model.named_parameters():
        torch.testing.assert_close(end.params[name], param.detach(), rtol=1e-9, atol=1e-11)
