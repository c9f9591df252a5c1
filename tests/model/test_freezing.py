import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab_recipes import planning
from deeplab_recipes.model import DeepLab, build_deeplab
from deeplab_recipes.optimization import DecoupledSGDW, ParameterRules

SMALL = {"output_stride": 32, "aspp_channels": 8, "decoder_channels": 8, "aspp_dilations": [1]}


def model(backbone: str = "resnet18", **arguments) -> DeepLab:
    torch.manual_seed(0)
    return build_deeplab(3, backbone=backbone, **SMALL, **arguments)


def changed_by_training(network: DeepLab) -> set[str]:
    """Names of the tensors that two steps with weight decay change."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = ParameterRules().build(
        lambda groups: DecoupledSGDW(groups, lr=0.1, momentum=0.9, weight_decay=0.1), network
    )
    for _ in range(2):
        optimizer.zero_grad()
        network.train()(torch.randn(2, 3, 65, 65)).square().mean().backward()
        optimizer.step()
    after = network.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def of_stages(network: DeepLab, count: int) -> set[str]:
    """Names of the tensors of the first stages."""
    modules = [module for stage in network.backbone.stages()[:count] for module in stage]
    pointers = {tensor.data_ptr() for module in modules for tensor in module.state_dict().values()}
    return {name for name, value in network.state_dict().items() if value.data_ptr() in pointers}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50_v1c", "mobilenet_v2", "xception41", "xception71"])
def test_stages_are_the_backbone_in_its_order(backbone):
    with torch.device("meta"):
        network = model(backbone)
    stages = network.backbone.stages()
    assert len(stages) == 5
    listed = [id(p) for stage in stages for module in stage for p in module.parameters()]
    assert listed == [id(p) for p in network.backbone.parameters()]


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "xception71"])
def test_stages_end_at_the_strides(backbone):
    sizes, network = {}, model(backbone).eval()
    images = torch.zeros(1, 3, 128, 128)
    for stage, number in zip(network.backbone.stages(), range(5), strict=True):
        stage[-1].register_forward_hook(lambda _, __, out, number=number: sizes.update({number: out.shape[-1]}))
    with torch.no_grad():
        network(images)
    assert [sizes[number] for number in range(5)] == [64, 32, 16, 8, 4]


@pytest.mark.parametrize(("given", "count"), [(1, 1), (3, 3), (True, 5)])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_frozen_stages_stay_to_the_last_bit(backbone, given, count):
    network = model(backbone, freeze_backbone=given)
    assert network.arguments["freeze_backbone"] == count
    frozen = of_stages(network, count)
    assert frozen
    changed = changed_by_training(network)
    assert not changed & frozen
    learning = set(network.state_dict()) - frozen
    assert learning - changed <= {name for name in learning if name.endswith(("bias", "num_batches_tracked"))}
    if given is True:
        assert {name.split(".")[0] for name in changed} == {"head"}


EXPECTED = {  # statistics change, affine changes
    "none": (True, True),
    "statistics": (False, True),
    "affine": (True, False),
    "both": (False, False),
}


@pytest.mark.parametrize("choice", EXPECTED)
def test_frozen_batch_norm(choice):
    network = model(freeze_batchnorm=choice)
    assert network.arguments["freeze_batchnorm"] == choice
    changed = changed_by_training(network)
    assert any("running_mean" in name for name in changed) == EXPECTED[choice][0]
    assert ("backbone.bn1.weight" in changed) == EXPECTED[choice][1]
    assert "backbone.conv1.weight" in changed
    assert network.training


@pytest.mark.parametrize(("given", "choice"), [(True, "statistics"), (False, "none")])
def test_switches_mean_what_they_meant(given, choice):
    assert model(freeze_batchnorm=given).arguments["freeze_batchnorm"] == choice


def test_stays_frozen_where_batch_norm_is_synchronised():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(model(freeze_batchnorm="both", freeze_backbone=2)).train()
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert len(layers) > 20
    assert all(isinstance(layer, nn.SyncBatchNorm) and not layer.training for layer in layers)
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())
    half = nn.SyncBatchNorm.convert_sync_batchnorm(model(freeze_backbone=2)).train()
    modes = {name: m.training for name, m in half.backbone.named_modules() if isinstance(m, _BatchNorm)}
    assert [modes[name] for name in ("bn1", "layer1.0.bn1", "layer2.0.bn1")] == [False, False, True]


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_a_frozen_prefix_keeps_nothing_for_the_backward_pass(backbone):
    saved = [planning.saved_bytes(model(backbone, freeze_backbone=n), 128, 128) for n in (False, 2, True)]
    assert saved[1] < 0.7 * saved[0]
    assert saved[2] < 0.35 * saved[0]
    network = model(backbone, freeze_backbone=True).train()
    features = network.backbone(torch.zeros(2, 3, 65, 65))
    assert not any(feature.requires_grad for feature in features)


def test_memory_estimate_counts_gradients_of_what_learns():
    def weights(**arguments) -> int:
        return planning.estimate_memory(model(**arguments), images=0, crop=(65, 65), mixed=False)

    parameters = {name: p.numel() for name, p in model().named_parameters()}
    backbone = sum(n for name, n in parameters.items() if name.startswith("backbone"))
    assert weights() == 12 * sum(parameters.values())
    assert weights(freeze_backbone=True) == weights() - 8 * backbone


def test_evaluation_is_the_same_frozen_or_not():
    images: Tensor = torch.randn(1, 3, 65, 65)
    plain, frozen = model().eval(), model(freeze_backbone=True, freeze_batchnorm="both").eval()
    with torch.no_grad():
        assert torch.equal(plain(images), frozen(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"freeze_backbone": 6}, "freeze_backbone is 6; valid are true, false, or its first 1 to 5 stages"),
        ({"freeze_backbone": -1}, "freeze_backbone is -1"),
        ({"freeze_batchnorm": "statistic"}, "'statistic'; valid are none, statistics, affine, both.*mean 'statistics'"),
    ],
)
def test_wrong_choices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        model(**arguments)
