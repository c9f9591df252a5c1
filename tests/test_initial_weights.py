import re
from pathlib import Path
from typing import Any

import pytest
import torch

from deeplab_recipes.initial_weights import check_choice, load_initial_weights
from deeplab_recipes.model import DeepLab, build_deeplab, zoo

CLASSES = ("road", "car", "sky")
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SMALL = {"backbone": "resnet18", "output_stride": 32, "aspp_channels": 8, "decoder_channels": 8, "aspp_dilations": [1]}
CONV_SEG = {"head.conv_seg.weight", "head.conv_seg.bias"}


def network(classes: int = 3, *, seed: int = 0, **arguments: Any) -> DeepLab:
    torch.manual_seed(seed)
    built = build_deeplab(classes, **{**SMALL, **arguments})
    for head in filter(None, (built.head, built.auxiliary_head)):
        torch.nn.init.constant_(head.conv_seg.bias, seed)  # 0 whatever the seed, otherwise
    return built


def checkpoint(folder: Path, model: DeepLab, **changes: Any) -> str:
    card = {"format_version": 1, "classes": list(CLASSES), "model": model.arguments, "mean": MEAN, "std": STD}
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "deeplab": {**card, **changes}}, folder / "theirs.ckpt")
    return str(folder / "theirs.ckpt")


def taken(model: DeepLab, before: dict, theirs: DeepLab) -> tuple[set[str], set[str]]:
    """Names of the tensors that are the file's now, and of those that are as they were (where the two differ)."""
    now, given = model.state_dict(), theirs.state_dict()
    differ = {n for n in now if n not in given or given[n].shape != before[n].shape or not given[n].equal(before[n])}
    same = {n for n in differ if n in given and given[n].shape == now[n].shape and given[n].equal(now[n])}
    return same, {n for n in differ if now[n].equal(before[n])}


def copied(model: DeepLab) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_transfer_learning_takes_all_but_the_last_layer(tmp_path):
    theirs, ours = network(seed=1), network(5, output_stride=16, dropout=0.5, freeze_backbone=2)
    before = copied(ours)
    loaded = load_initial_weights(
        ours, checkpoint(tmp_path, theirs), init="transfer_learning", classes=("a", "b", "c", "d", "e")
    )
    same, kept = taken(ours, before, theirs)
    assert kept == CONV_SEG
    assert "backbone.layer1.0.conv1.weight" in same
    assert "head.sep_bottleneck.0.pointwise_conv.conv.weight" in same
    assert set(loaded.left_out) == set(loaded.fresh) == CONV_SEG
    assert loaded.taken == len(theirs.state_dict()) - 2
    assert any("left out head.conv_seg.weight, head.conv_seg.bias: the last layer" in note for note in loaded.notes())
    assert loaded.record()["left_out"] == loaded.left_out
    assert len(loaded.record()["sha256"]) == 64


def test_continue_training_takes_all(tmp_path):
    theirs, ours = network(seed=1), network()
    loaded = load_initial_weights(ours, checkpoint(tmp_path, theirs), init="continue_training", classes=CLASSES)
    assert all(value.equal(theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert not loaded.left_out
    assert not loaded.fresh
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("road", "car"), "missing here: sky$"),
        ((*CLASSES, "tree"), "extra here: tree$"),
        (("car", "road", "sky"), "moved: road 0 -> 1, car 1 -> 0$"),
        (("sky", "car", "bus"), "missing here: road; extra here: bus; moved: sky 2 -> 0$"),
    ],
)
def test_continue_training_shows_how_classes_differ(classes, words, tmp_path):
    file, ours = checkpoint(tmp_path, network()), network(len(classes))
    with pytest.raises(ValueError, match=r"theirs\.ckpt was trained on, in their order") as refusal:
        load_initial_weights(ours, file, init="continue_training", classes=classes)
    shown = str(refusal.value).split("in their order: ")[1].split(". init=")[0]
    assert re.search(words, shown), shown


@pytest.mark.parametrize("init", ["transfer_learning", "continue_training"])
def test_auxiliary_head_of_the_file_alone_is_left_out(init, tmp_path):
    theirs, ours = network(seed=1, auxiliary_head=True), network()
    loaded = load_initial_weights(ours, checkpoint(tmp_path, theirs), init=init, classes=CLASSES)
    auxiliary = {name for name in theirs.state_dict() if name.startswith("auxiliary_head.")}
    assert {n for n, why in loaded.left_out.items() if why == "model.auxiliary_head is false"} == auxiliary


def test_auxiliary_heads_last_layer_is_a_last_layer(tmp_path):
    theirs, ours = network(seed=1, auxiliary_head=True), network(auxiliary_head=True)
    before = copied(ours)
    load_initial_weights(ours, checkpoint(tmp_path, theirs), init="transfer_learning", classes=CLASSES)
    same, kept = taken(ours, before, theirs)
    assert kept == {*CONV_SEG, "auxiliary_head.conv_seg.weight", "auxiliary_head.conv_seg.bias"}
    assert "auxiliary_head.convs.0.conv.weight" in same


def test_a_new_auxiliary_head_begins_anew_in_transfer_learning_only(tmp_path):
    file, ours = checkpoint(tmp_path, network(seed=1)), network(auxiliary_head=True)
    loaded = load_initial_weights(ours, file, init="transfer_learning", classes=CLASSES)
    assert loaded.fresh["auxiliary_head.convs.0.conv.weight"] == "the file has no auxiliary head"
    with pytest.raises(ValueError, match=r"none of an auxiliary head: model\.auxiliary_head=false"):
        load_initial_weights(ours, file, init="continue_training", classes=CLASSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backbone": "resnet34"},
            r"model.backbone is 'resnet18' there and 'resnet34' here\. .*model.backbone=resnet18",
        ),
        ({"head": "deeplabv3", "decoder_channels": 48}, "model.head is 'deeplabv3plus' there and 'deeplabv3' here, "),
        ({"aspp_channels": 16}, r"Build that one: \+\+model.aspp_channels=8"),
        (
            {"align_corners": True, "batchnorm_epsilon": 1e-3},
            r"one: \+\+model.align_corners=null \+\+model.ba.*=null",
        ),
        ({"aspp_dilations": [1, 2]}, r"does not fit the model: tensors 12 missing \(head.aspp_modules.1"),
    ],
)
@pytest.mark.parametrize("init", ["transfer_learning", "continue_training"])
def test_another_model_is_refused(init, arguments, message, tmp_path):
    ours = network(**arguments)
    before = copied(ours)
    with pytest.raises(ValueError, match=message):
        load_initial_weights(ours, checkpoint(tmp_path, network()), init=init, classes=CLASSES)
    assert all(value.equal(before[name]) for name, value in ours.state_dict().items())


def test_what_to_build_instead_is_written_as_on_the_command_line(tmp_path):
    ours = network(head="tensorflow", decoder=True)
    with pytest.raises(ValueError, match=r"Build that one: \+\+model\.head=deeplabv3plus \+\+model\.decoder=null$"):
        load_initial_weights(ours, checkpoint(tmp_path, network()), init="transfer_learning", classes=CLASSES)


def test_a_model_written_in_another_way_is_the_same(tmp_path):
    """As an importer writes TensorFlow's models, and their YAML files do."""
    settings = {"backbone": "mobilenet_v2", "width_multiplier": 0.35, "head": "tensorflow", "aspp_dilations": [1]}
    theirs = network(seed=1, **settings, decoder=True, batchnorm_epsilon={"backbone": 1e-5, "head": 1e-5})
    file = checkpoint(tmp_path, theirs)
    loaded = load_initial_weights(network(**settings), file, init="continue_training", classes=CLASSES)
    assert loaded.taken == len(theirs.state_dict())
    ours = network(**settings, batchnorm_epsilon=1e-3)
    with pytest.raises(ValueError, match=r"one: .*'\+\+model\.batchnorm_epsilon=\{backbone:1e-05,head:1e-05\}'$"):
        load_initial_weights(ours, file, init="continue_training", classes=CLASSES)


def test_another_normalisation_is_remarked_on(tmp_path):
    file = checkpoint(tmp_path, network(), mean=[127.5] * 3)
    loaded = load_initial_weights(
        network(), file, init="continue_training", classes=CLASSES, card={"mean": MEAN, "std": STD}
    )
    assert loaded.notes()[-1].endswith("normalised with data.mean=[127.5, 127.5, 127.5], this run has another")


@pytest.mark.parametrize("card", [{}, {"mean": MEAN, "std": STD}])
def test_the_same_normalisation_is_not(card, tmp_path):
    file = checkpoint(tmp_path, network())
    assert not load_initial_weights(network(), file, init="continue_training", classes=CLASSES, card=card).remarks


def test_the_zoo_is_asked_for_its_names(monkeypatch, tmp_path):
    file = checkpoint(tmp_path, network(seed=1))
    monkeypatch.setattr(zoo, "fetch", {"zoo:voc_tiny": Path(file)}.__getitem__)
    loaded = load_initial_weights(network(), "zoo:voc_tiny", init="continue_training", classes=CLASSES)
    assert loaded.file == Path(file)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_initial_weights(network(), f"{tmp_path}/none.ckpt", init="transfer_learning", classes=CLASSES)


def test_choices():
    check_choice(None, "transfer_learning")
    check_choice("a.ckpt", "continue_training")
    with pytest.raises(ValueError, match="there are none: weights=FILE or weights=zoo:NAME"):
        check_choice(None, "continue_training")
    with pytest.raises(ValueError, match="'all'; valid are transfer_learning, continue_training"):
        check_choice("a.ckpt", "all")
