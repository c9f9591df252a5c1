import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from deeplab_recipes.model import build_deeplab
from deeplab_recipes.optimization import DecoupledSGDW, ParameterRules

TENSORFLOW = ("norms", "biases", "depthwise")


class Tiny(nn.Module):
    """One parameter of each kind, with the names of a DeepLab."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, groups=4))
        self.head = nn.ModuleDict({"middle": nn.Conv2d(4, 4, 1), "conv_seg": nn.Conv2d(4, 2, 1)})
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.head["conv_seg"](self.head["middle"](self.backbone(images)))


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.05)


def names(model: nn.Module, rules: ParameterRules) -> dict[tuple[float, bool], set[str]]:
    """Names of the parameters by their factor and whether they decay."""
    known = {id(p): name for name, p in model.named_parameters()}
    return {
        (group["lr_multiplier"], group.get("weight_decay") is None): {known[id(p)] for p in group["params"]}
        for group in rules.groups(model)
    }


def test_without_rules_there_is_one_group_of_all_in_their_order():
    model = Tiny()
    (group,) = ParameterRules().groups(model)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert set(group) == {"params", "lr_multiplier"}


def test_groups_of_tensorflow():
    rules = ParameterRules(bias_lr=2, last_layers_lr=10, no_weight_decay=TENSORFLOW)
    assert names(Tiny(), rules) == {
        (1, True): {"backbone.0.weight", "head.middle.weight"},
        (1, False): {"backbone.1.weight", "backbone.1.bias", "backbone.2.weight"},
        (2, False): {"backbone.0.bias", "backbone.2.bias", "head.middle.bias"},
        (10, True): {"head.conv_seg.weight"},
        (20, False): {"head.conv_seg.bias"},
    }


def test_last_layers_may_be_the_whole_head_and_the_backbone_slower():
    found = names(Tiny(), ParameterRules(backbone_lr=0.1, last_layers_lr=5, last_layers="head"))
    assert found[(5, True)] == {
        f"head.{layer}.{kind}" for layer in ("middle", "conv_seg") for kind in ("weight", "bias")
    }
    assert all(name.startswith("backbone.") for name in found[(0.1, True)])


def test_what_is_frozen_is_in_no_group():
    model = Tiny()
    model.backbone.requires_grad_(False)
    assert len(ParameterRules().groups(model)[0]["params"]) == 4


def test_a_deeplab_has_its_layers_under_the_rules():
    model = build_deeplab(3, backbone="mobilenet_v2", output_stride=16, aspp_channels=8, auxiliary_head=True)
    found = names(model, ParameterRules(last_layers_lr=10, bias_lr=2, no_weight_decay=TENSORFLOW))
    assert found[(10, True)] == {"head.conv_seg.weight", "auxiliary_head.conv_seg.weight"}
    assert found[(20, False)] == {"head.conv_seg.bias", "auxiliary_head.conv_seg.bias"}
    assert set(found) == {(1, True), (1, False), (10, True), (20, False)}
    assert sum(map(len, found.values())) == len(list(model.parameters()))
    decayed = dict(model.named_parameters())
    assert all(decayed[name].ndim == 4 for name in found[(1, True)])
    assert "backbone.features.2.conv.1.0.weight" in found[(1, False)]  # depthwise


def tensorflow_steps(model: nn.Module, batches: list[Tensor], factors: dict[str, float], decayed: set[str]) -> None:
    """A momentum optimizer on multiplied gradients of the loss and its L2 penalty, as research/deeplab takes steps."""
    buffers = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for step, images in enumerate(batches):
        lr = 0.1 * (1 - step / len(batches)) ** 0.9
        penalty = sum(p.square().sum() / 2 for name, p in model.named_parameters() if name in decayed)
        loss = model(images).square().mean() + 0.05 * penalty
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
                buffers[name].mul_(0.9).add_(factors.get(name, 1) * gradient)
                p.sub_(lr * buffers[name])


def test_sgd_takes_tensorflows_steps():
    torch.manual_seed(1)
    batches = [torch.randn(2, 3, 5, 5, dtype=torch.float64) for _ in range(6)]
    ours, theirs = Tiny(), Tiny()
    biases = {"backbone.0.bias": 2, "backbone.2.bias": 2, "head.middle.bias": 2}
    factors = {**biases, "head.conv_seg.weight": 10, "head.conv_seg.bias": 20}
    tensorflow_steps(theirs, batches, factors, {"backbone.0.weight", "head.middle.weight", "head.conv_seg.weight"})
    optimizer = ParameterRules(bias_lr=2, last_layers_lr=10, no_weight_decay=TENSORFLOW).build(sgd, ours)
    schedule = LambdaLR(optimizer, lambda step: (1 - step / len(batches)) ** 0.9)
    for images in batches:
        optimizer.zero_grad()
        ours(images).square().mean().backward()
        optimizer.step()
        schedule.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


OPTIMIZERS = {
    "sgd": sgd,
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.1, weight_decay=0.05),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.05),
    "decoupled": lambda groups: DecoupledSGDW(groups, lr=0.1, momentum=0.9, weight_decay=0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_and_its_schedule(name):
    rules = ParameterRules(backbone_lr=0.5, last_layers_lr=4, no_weight_decay=["norms"])
    optimizer = rules.build(OPTIMIZERS[name], Tiny())
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    assert sorted(g["initial_lr"] for g in optimizer.param_groups) == pytest.approx([0.05, 0.05, 0.1, 0.4])
    assert sorted(g["weight_decay"] for g in optimizer.param_groups) == [0, 0.05, 0.05, 0.05]
    optimizer.step()
    schedule.step()
    assert [g["lr"] / g["lr_multiplier"] for g in optimizer.param_groups] == pytest.approx([0.05] * 4)


def test_decoupled_decay_does_not_depend_on_the_factor():
    model = Tiny()
    optimizer = ParameterRules(last_layers_lr=4).build(OPTIMIZERS["decoupled"], model)
    before = copy.deepcopy(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(p, old * 0.95)


def test_a_resumed_optimizer_goes_on():
    rules = ParameterRules(backbone_lr=0.5, bias_lr=2, no_weight_decay=["norms"])
    images, model = torch.randn(2, 3, 5, 5, dtype=torch.float64), Tiny()
    optimizer = rules.build(sgd, model)

    def step(network: nn.Module, taken: torch.optim.Optimizer) -> None:
        taken.zero_grad()
        network(images).square().mean().backward()
        taken.step()

    step(model, optimizer)
    again = copy.deepcopy(model)
    other = rules.build(sgd, again)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer)
    step(again, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone_lr": 0}, "backbone_lr is 0; .*model.freeze_backbone=true"),
        ({"last_layers_lr": -1}, "last_layers_lr is -1"),
        ({"bias_lr": float("inf")}, "bias_lr is inf"),
        ({"last_layers": "last"}, "'last'; valid are logits, head"),
        ({"no_weight_decay": ["bias"]}, "holds 'bias'; valid are norms, biases, depthwise"),
    ],
)
def test_wrong_rules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParameterRules(**arguments)


def test_a_factor_on_a_backbone_that_does_not_learn_is_refused():
    model, rules = Tiny(), ParameterRules(backbone_lr=0.1)
    rules.require_acting(model)
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r"parameters\.backbone_lr=0\.1 has no effect: model\.freeze_backbone"):
        rules.require_acting(model)
    ParameterRules(last_layers_lr=10, bias_lr=2).require_acting(model)
    assert ParameterRules(last_layers="head").notes() != []
    assert ParameterRules(last_layers="head", last_layers_lr=10).notes() == []
