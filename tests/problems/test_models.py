import pytest
import torch
from torch import nn

from noisescale.errors import SettingError
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
