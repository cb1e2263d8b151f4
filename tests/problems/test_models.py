import pytest
import torch
from torch import nn

from noisescale.errors import NotEnoughMemoryError, SettingError
from noisescale.problems.config import ProblemConfig
from noisescale.problems.models import build_model, cnn, mlp


def test_the_studys_network_has_its_published_number_of_parameters():
    model = build_model(ProblemConfig(), (1, 28, 28), 10)
    assert sum(param.numel() for param in model.parameters()) == 1_863_690


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("input_shape", [(1, 28, 28), (1, 8, 8)])
def test_sizes_follow_the_data_and_the_configuration(name, norm, input_shape):
    model = build_model(ProblemConfig(model=name, width=5, depth=3, norm=norm), input_shape, 7)
    assert model(torch.randn(4, *input_shape)).shape == (4, 7)
    kind = nn.Linear if name == "mlp" else nn.Conv2d
    assert [layer.weight.shape[0] for layer in model if isinstance(layer, kind)][:3] == (
        [5, 5, 5] if name == "mlp" else [5, 10, 20]
    )
    norms = [
        layer
        for layer in model
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
    ]
    assert len(norms) == (0 if norm == "none" else 3)


@pytest.mark.parametrize(
    "model", [mlp((1, 8, 8), 3, width=6, norm="layer"), cnn((1, 8, 8), 3, width=4, norm="layer")]
)
def test_layer_norm_treats_every_example_alone(model):
    inputs = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(model(inputs)[:2], model(inputs[:2]))


def test_batch_norm_does_not():
    model, inputs = mlp((1, 8, 8), 3, width=6, norm="batch"), torch.randn(5, 1, 8, 8)
    assert not torch.allclose(model(inputs)[:2], model(inputs[:2]))


def test_a_cnn_too_deep_for_its_images_says_how_deep_it_may_be():
    with pytest.raises(SettingError, match="at most 3"):
        cnn((1, 8, 8), 10, depth=4)


def test_a_model_larger_than_the_memory_is_refused_before_a_layer_is_made(monkeypatch):
    """The bound is of the weights alone, so that it never refuses a model that fits."""
    made = []
    monkeypatch.setattr("torch.nn.Linear", lambda *sizes: made.append(sizes))
    monkeypatch.setattr("torch.nn.Conv2d", lambda *sizes, **options: made.append(sizes))
    for make in (mlp, cnn):
        with pytest.raises(NotEnoughMemoryError, match=r"width 1[0,]+ and depth 2 has .* GB"):
            make((1, 28, 28), 10, width=10**20)
    assert made == []
    # one byte less than its weights take, and as many
    for make in (mlp, cnn):
        monkeypatch.undo()
        model = make((1, 8, 8), 10, width=5)
        weights = sum(param.numel() for param in model.parameters() if param.dim() > 1)
        if make is cnn:  # whose last layer, linear, is left out of the bound
            weights -= model[-1].weight.numel()
        monkeypatch.setattr("noisescale.errors.available_memory", lambda size=weights: 4 * size)
        make((1, 8, 8), 10, width=5)
        monkeypatch.setattr("noisescale.errors.available_memory", lambda size=weights: 4 * size - 1)
        with pytest.raises(NotEnoughMemoryError):
            make((1, 8, 8), 10, width=5)


def test_layers_by_the_million_are_refused():
    assert ProblemConfig(depth=10_000).depth == 10_000
    with pytest.raises(SettingError, match="depth 1000000000: give 10,000 layers at most"):
        ProblemConfig(depth=10**9)
