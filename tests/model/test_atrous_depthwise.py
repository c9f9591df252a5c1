"""Gradients of atrous depthwise convolutions, beside torch's own."""

import pytest
import torch
from torch import nn

from deeplab_recipes.model import build_deeplab
from deeplab_recipes.model.layers import AtrousDepthwise, _AtrousDepthwise, ease_atrous_depthwise


def pair(rate: tuple[int, int], *, channels: int = 6) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The same convolution twice: torch's own, and the one with other gradients."""
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, groups=channels, bias=False).double()
    eased = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, groups=channels, bias=False))
    ease_atrous_depthwise(eased)
    eased[0].double().load_state_dict(plain.state_dict())
    return plain, eased[0]


@pytest.fixture
def used(monkeypatch) -> list[tuple[int, int]]:
    """The rates of convolutions whose gradients went the other way."""
    rates, apply = [], _AtrousDepthwise.apply
    monkeypatch.setattr(_AtrousDepthwise, "apply", lambda *given: rates.append(given[2]) or apply(*given))
    return rates


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("size", "rate"), [((9, 8), (2, 2)), ((17, 33), (4, 4)), ((12, 25), (3, 12)), ((7, 7), (1, 3))]
)
def test_output_and_gradients_are_torchs(size, rate, layout, used):
    plain, eased = pair(rate)
    results = []
    for convolution in (plain, eased):
        torch.manual_seed(1)
        maps = torch.randn(3, 6, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
        output = convolution(maps)
        output.backward(torch.randn(3, 6, *size, dtype=torch.float64))
        results.append((output.detach(), maps.grad, convolution.weight.grad))
    assert used == [rate]
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradients_by_small_differences(used):
    _, eased = pair((2, 2), channels=2)
    maps = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, w: eased._conv_forward(m, w, None), (maps, eased.weight))
    assert set(used) == {(2, 2)}


@pytest.mark.parametrize("frozen", ["maps", "weight"])
def test_only_what_is_wanted_gets_a_gradient(frozen, used):
    plain, eased = pair((2, 2))
    for convolution in (plain, eased):
        convolution.weight.requires_grad_(frozen != "weight")
    maps = torch.randn(1, 6, 9, 9, dtype=torch.float64)
    both = [maps.clone().requires_grad_(frozen != "maps") for _ in range(2)]
    for convolution, values in zip((plain, eased), both, strict=True):
        convolution(values).square().sum().backward()
    assert used == [(2, 2)]
    if frozen == "maps":
        assert both[1].grad is None
        torch.testing.assert_close(eased.weight.grad, plain.weight.grad, rtol=0, atol=1e-12)
    else:
        assert eased.weight.grad is None
        torch.testing.assert_close(both[1].grad, both[0].grad, rtol=0, atol=1e-12)


def test_small_maps_and_inference_take_torchs_own(used):
    _, eased = pair((4, 4))
    eased(torch.randn(1, 6, 7, 20, dtype=torch.float64, requires_grad=True)).sum().backward()
    with torch.no_grad():
        eased(torch.randn(1, 6, 20, 20, dtype=torch.float64))
    eased.requires_grad_(False)
    eased(torch.randn(1, 6, 20, 20, dtype=torch.float64))
    assert used == []


def test_autocast_decides_the_precision(used):
    plain, eased = (convolution.float() for convolution in pair((2, 2)))
    maps = torch.randn(2, 6, 16, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = eased(maps), plain(maps)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    found.float().square().sum().backward()
    ours = maps.grad.clone()
    maps.grad = None
    expected.float().square().sum().backward()
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, maps.grad, rtol=0.02, atol=0.02 * float(maps.grad.abs().max()))
    torch.testing.assert_close(
        eased.weight.grad, plain.weight.grad, rtol=0.02, atol=0.02 * float(plain.weight.grad.abs().max())
    )
    assert used == [(2, 2)]


@pytest.mark.parametrize(
    ("convolution", "eased"),
    [
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False), True),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), False),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False), False),
        (nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4, bias=False), False),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), False),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, stride=2, bias=False), False),
        (nn.Conv2d(4, 4, 3, padding=1, dilation=2, groups=4, bias=False), False),
        (nn.Conv2d(4, 4, 5, padding=2, dilation=2, groups=4, bias=False), False),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False, padding_mode="reflect"), False),
    ],
    ids=["depthwise", "rate 1", "dense", "wider", "bias", "stride", "padding", "kernel", "reflect"],
)
def test_which_convolutions_are_eased(convolution, eased):
    ease_atrous_depthwise(convolution)
    assert isinstance(convolution, AtrousDepthwise) == eased


def test_models_have_them_where_a_stride_became_a_rate():
    def counts(**settings: object) -> dict[str, int]:
        model = build_deeplab(3, aspp_channels=8, **settings)
        parts = {"backbone": model.backbone, "head": model.head}
        return {k: sum(isinstance(m, AtrousDepthwise) for m in p.modules()) for k, p in parts.items()}

    assert {stride: counts(backbone="mobilenet_v2", output_stride=stride) for stride in (8, 16, 32)} == {
        8: {"backbone": 10, "head": 3},
        16: {"backbone": 3, "head": 3},
        32: {"backbone": 0, "head": 3},
    }
    # 8 blocks of 3 in the middle flow, 3 and 3 in the exit flow.
    assert counts(backbone="xception41", output_stride=8, head="tensorflow") == {"backbone": 30, "head": 3}
