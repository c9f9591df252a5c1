import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from deeplab_recipes.optimization import DecoupledSGDW

Settings = dict[str, Any]


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def steps(optimizer: DecoupledSGDW, parameter: nn.Parameter, gradients: list[float]) -> list[float]:
    """Take steps with the given gradients; returns the parameter after each."""
    seen = []
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        seen.append(parameter.item())
    return seen


def steps_by_hand(start: float, gradients: list[float], lrs: list[float], **settings: float) -> list[float]:
    """FACTS 4, one number at a time."""
    momentum, dampening = settings.get("momentum", 0), settings.get("dampening", 0)
    value, buffer, seen = start, None, []
    for gradient, lr in zip(gradients, lrs, strict=True):
        buffer = gradient if buffer is None else momentum * buffer + (1 - dampening) * gradient
        direction = gradient + momentum * buffer if settings.get("nesterov") else buffer
        if not momentum:
            direction = gradient
        value *= 1 - lr / lrs[0] * settings.get("weight_decay", 0)
        value -= lr * direction
        seen.append(value)
    return seen


def test_published_values():
    parameter = weight(1)
    optimizer = DecoupledSGDW([parameter], lr=0.1, momentum=0.9, weight_decay=0.01)
    assert steps(optimizer, parameter, [0.5]) == pytest.approx([0.94])
    optimizer.param_groups[0]["lr"] = 0.05
    assert steps(optimizer, parameter, [0.5]) == pytest.approx([0.94 * (1 - 0.005) - 0.05 * 0.95])
    assert parameter.item() == pytest.approx(0.8878, abs=1e-10)


GRADIENTS = [0.5, -1.0, 0.25, 3.0, 0.0, -0.125]
LRS = [0.1, 0.08, 0.05, 0.02, 0.01, 0.0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.02},
        {"momentum": 0.9, "weight_decay": 0.02},
        {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.02},
        {"momentum": 0.9, "dampening": 1.0},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
    ],
    ids=str,
)
def test_against_a_loop_under_a_schedule(settings):
    parameter = weight(1.5)
    optimizer = DecoupledSGDW([parameter], lr=LRS[0], **settings)
    schedule = LambdaLR(optimizer, lambda step: LRS[step] / LRS[0] if step < len(LRS) else 0.0)
    seen = []
    for gradient in GRADIENTS:
        seen += steps(optimizer, parameter, [gradient])
        schedule.step()
    assert seen == pytest.approx(steps_by_hand(1.5, GRADIENTS, LRS, **settings), rel=1e-12)


def test_first_step_takes_the_whole_gradient_despite_dampening():
    parameter = weight(0)
    optimizer = DecoupledSGDW([parameter], lr=0.1, momentum=0.9, dampening=0.75)
    assert steps(optimizer, parameter, [1, 1]) == pytest.approx([-0.1, -0.1 - 0.1 * (0.9 + 0.25)])


def test_groups_have_their_own_settings_and_reference():
    first, second = weight(1), weight(1)
    optimizer = DecoupledSGDW(
        [{"params": [first]}, {"params": [second], "lr": 0.02, "momentum": 0.5, "weight_decay": 0.1}],
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
    )
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    seen: tuple[list[float], list[float]] = ([], [])
    for gradient in (0.5, 0.25, -1.0):
        first.grad, second.grad = torch.full_like(first, gradient), torch.full_like(second, gradient)
        optimizer.step()
        schedule.step()
        seen[0].append(first.item())
        seen[1].append(second.item())
    gradients = [0.5, 0.25, -1.0]
    assert seen[0] == pytest.approx(steps_by_hand(1, gradients, [0.1, 0.05, 0.025], momentum=0.9, weight_decay=0.01))
    assert seen[1] == pytest.approx(steps_by_hand(1, gradients, [0.02, 0.01, 0.005], momentum=0.5, weight_decay=0.1))


def test_a_group_added_later_takes_its_own_lr_as_reference():
    optimizer = DecoupledSGDW([weight(1)], lr=0.1, momentum=0.9, weight_decay=0.01)
    late = weight(1)
    optimizer.add_param_group({"params": [late], "lr": 0.05})
    assert steps(optimizer, late, [0.5, 0.5]) == pytest.approx(
        steps_by_hand(1, [0.5, 0.5], [0.05, 0.05], momentum=0.9, weight_decay=0.01)
    )


def test_a_parameter_without_gradient_is_left_alone():
    used, unused = weight(1), weight(1)
    optimizer = DecoupledSGDW([used, unused], lr=0.1, momentum=0.9, weight_decay=0.5)
    steps(optimizer, used, [1, 1])
    assert unused.item() == 1
    assert unused not in optimizer.state
    # Its first gradient comes later and is its first step; meanwhile the other one has none.
    used.grad, before = None, used.item()
    assert steps(optimizer, unused, [1]) == pytest.approx([1 * 0.5 - 0.1])
    assert used.item() == before


def test_no_norm_or_bias_is_exempt_from_decay():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = copy.deepcopy(network.state_dict())
    optimizer = DecoupledSGDW(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.25)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.data, 0.75 * before[name])


def random_steps(optimizer: DecoupledSGDW, parameters: list[nn.Parameter], seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def trained(seed: int = 0) -> tuple[DecoupledSGDW, list[nn.Parameter]]:
    torch.manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    optimizer = DecoupledSGDW(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    return optimizer, parameters


def test_saved_state_continues_identically(tmp_path):
    optimizer, parameters = trained()
    random_steps(optimizer, parameters, seed=1, count=3)
    optimizer.param_groups[0]["lr"] = 0.03  # by now a schedule has moved it; the reference stays 0.1
    torch.save({"optimizer": optimizer.state_dict(), "values": [p.detach() for p in parameters]}, tmp_path / "state")

    again, restored = trained(seed=5)
    saved = torch.load(tmp_path / "state", weights_only=True)
    again.load_state_dict(saved["optimizer"])
    for parameter, value in zip(restored, saved["values"], strict=True):
        parameter.data.copy_(value)
    random_steps(optimizer, parameters, seed=2, count=3)
    random_steps(again, restored, seed=2, count=3)
    assert all(torch.equal(a, b) for a, b in zip(parameters, restored, strict=True))
    assert again.param_groups[0]["initial_lr"] == 0.1


def test_gradients_are_not_changed_and_not_kept():
    """They may be reused in place for the next step's."""
    optimizer, parameters = trained()
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(2):
        gradients = [torch.randn_like(p) for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad.copy_(gradient)
        optimizer.step()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert torch.equal(parameter.grad, gradient)
            assert optimizer.state[parameter]["momentum_buffer"].data_ptr() != parameter.grad.data_ptr()


def test_channels_last_weights_give_the_same_result():
    def result(memory_format: torch.memory_format) -> Tensor:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=memory_format))
        optimizer = DecoupledSGDW([parameter], lr=0.1, momentum=0.9, weight_decay=0.01)
        random_steps(optimizer, [parameter], seed=1, count=3)
        return parameter.detach()

    torch.testing.assert_close(result(torch.channels_last), result(torch.contiguous_format))


def test_closure_is_run_with_gradients():
    parameter = weight(1)
    optimizer = DecoupledSGDW([parameter], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 1
    assert parameter.item() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0}, "lr is 0"),
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": 0.1, "momentum": 1}, "momentum=1"),
        ({"lr": 0.1, "momentum": -0.1}, "momentum=-0.1"),
        ({"lr": 0.1, "momentum": 0.9, "dampening": 1.5}, "dampening=1.5"),
        ({"lr": 0.1, "weight_decay": -1e-4}, "weight_decay=-0.0001"),
        ({"lr": 0.1, "weight_decay": 1}, "weight_decay=1"),
        ({"lr": 0.1, "nesterov": True}, "nesterov"),
        ({"lr": 0.1, "nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov"),
    ],
)
def test_wrong_values_are_refused(settings: Settings, message: str):
    with pytest.raises(ValueError, match=message):
        DecoupledSGDW([weight(1)], **settings)
    with pytest.raises(ValueError, match=message):  # in a group of its own too
        DecoupledSGDW([{"params": [weight(1)], **settings}], lr=0.1)
