import math

import pytest
import torch
import torch.nn.functional as F

from noisescale import ProblemConfig, build_problem, gpt, gradient_moments
from noisescale.errors import NotEnoughMemoryError, SettingError
from noisescale.problems.models import chance_loss, sequence_cross_entropy
from tests.helpers.datasets import single_gradients


@pytest.fixture(params=[False, True], ids=["apart", "tied"])
def model(request):
    torch.manual_seed(0)
    return gpt(11, context=6, width=8, depth=2, heads=2, tied=request.param).double()


def test_no_symbol_is_seen_before_its_time(model):
    symbols = torch.randint(0, 11, (3, 6))
    changed = symbols.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    before, after = model(symbols), model(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])
    assert not torch.allclose(model(symbols)[:, 5], model(symbols.roll(1, 1))[:, 5])  # positions


def test_a_block_is_attention_and_a_network_each_behind_a_layer_norm(model):
    """By a plain loop over heads and places."""
    block, x = model.blocks[0], torch.randn(1, 6, 8, dtype=torch.float64)
    query, key, value = block.qkv(block.norm1(x))[0].split(8, 1)  # (T, W) each
    mixed = torch.zeros(6, 8, dtype=torch.float64)
    for head in (slice(0, 4), slice(4, 8)):
        for place in range(6):
            scores = key[: place + 1, head] @ query[place, head] / math.sqrt(4)
            mixed[place, head] = scores.softmax(0) @ value[: place + 1, head]
    attended = x + block.out(mixed)[None]
    wanted = attended + block.down(F.gelu(block.up(block.norm2(attended))))
    torch.testing.assert_close(block(x), wanted)


def test_a_tied_model_has_one_table_and_begins_near_chance():
    tied, apart = gpt(40, tied=True), gpt(40)
    assert tied.head.weight is tied.token.weight
    size = [sum(param.numel() for param in model.parameters()) for model in (tied, apart)]
    assert size[1] - size[0] == 40 * 64
    symbols = torch.randint(0, 40, (20, 65))
    for model in (tied, apart):
        loss = sequence_cross_entropy(model(symbols[:, :-1]), symbols[:, 1:]).mean()
        assert abs(loss.item() - math.log(40)) < 0.05


def test_the_loss_of_a_sequence_is_the_mean_over_its_symbols():
    outputs, targets = torch.randn(2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
    by_hand = [
        sum(-outputs[row, place].log_softmax(0)[targets[row, place]] for place in range(3)) / 3
        for row in range(2)
    ]
    torch.testing.assert_close(sequence_cross_entropy(outputs, targets), torch.stack(by_hand))
    shares = torch.tensor([1, 2, 1, 1, 1]) / 6
    assert chance_loss("cross_entropy", targets) == pytest.approx(-float(shares @ shares.log()))


def test_its_gradients_are_those_of_single_sequences_without_vmap():
    problem = build_problem(
        ProblemConfig(dataset="markov", model="gpt", width=8, depth=1, heads=2, context=5)
    )
    moments = gradient_moments(problem, num_examples=4, dtype=torch.float64)
    assert moments.engine == "hooks"
    assert moments.notes == ()
    examples = problem.train.part(torch.from_numpy(moments.indices))
    model = problem.model.double()
    losses = (
        problem.loss(model(symbols[None]), targets[None])[0]
        for symbols, targets in zip(*examples, strict=True)
    )
    gradients = single_gradients(model, losses)
    assert moments.squared_norms.sum(1) == pytest.approx((gradients**2).sum(1).tolist())


def test_what_cannot_be_made_says_so(monkeypatch):
    with pytest.raises(SettingError, match="heads 3 of a gpt of width 64: give a number that div"):
        gpt(5, heads=3)
    with pytest.raises(NotEnoughMemoryError, match="a gpt of width 10,000,000 and depth 4 has"):
        gpt(5, width=10**7)
    model = gpt(5, context=9, width=8, depth=3, heads=1)
    matrices = sum(param.numel() for param in model.parameters() if param.ndim == 2)
    monkeypatch.setattr("noisescale.errors.available_memory", lambda: 4 * matrices)
    gpt(5, context=9, width=8, depth=3, heads=1)
    monkeypatch.setattr("noisescale.errors.available_memory", lambda: 4 * matrices - 1)
    with pytest.raises(NotEnoughMemoryError):
        gpt(5, context=9, width=8, depth=3, heads=1)
