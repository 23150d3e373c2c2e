"""Linear layers and 1 x 1 convolutions by oneDNN: the same numbers, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lipstream.models.pointwise import PointwiseConv, PointwiseLinear, restore_layers, use_pointwise_layers


@pytest.mark.parametrize("shape", [(512, 12), (2, 16, 16, 12), (3, 7, 12), (1, 12)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_is_the_same(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 20, bias=bias, dtype=dtype))
    x = torch.randn(shape, dtype=dtype)
    with torch.inference_mode():
        expected = network(x)
        use_pointwise_layers(network)
        assert type(network[0]) is PointwiseLinear
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)
        restore_layers(network)
    assert type(network[0]) is nn.Linear


@pytest.mark.parametrize("n", [1, 3, 16])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_a_convolution_is_the_same_and_others_stay(n: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(6, 10, 1), nn.Conv2d(10, 4, 3, padding=1), nn.Conv2d(4, 2, 1, stride=2))
    network.to(memory_format=torch.channels_last)
    x = torch.randn(n, 6, 16, 16).contiguous(memory_format=memory_format)
    with torch.inference_mode():
        expected, state = network(x), network.state_dict()
        use_pointwise_layers(network)
        assert [type(layer) for layer in network] == [PointwiseConv, nn.Conv2d, nn.Conv2d]
        assert network.state_dict().keys() == state.keys()
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)
        restore_layers(network)
    assert type(network[0]) is nn.Conv2d
