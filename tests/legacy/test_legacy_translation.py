"""Older configurations: which key becomes which setting, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from legacy_blocks import (
    ASAHI417,
    BONLIME_CALL,
    COMPOSER_CALL,
    COMPOSER_OWN,
    COMPOSER_TYPICAL,
    FILES,
    SUPERVISELY,
    SUPERVISELY_INFERENCE,
    TONANDR,
    changed,
    leaves,
)

from deeplab_recipes.config import literal, quoted
from deeplab_recipes.legacy import asahi417, bonlime, composer, supervisely, tonandr, translate, translate_file


def refusal(content: dict[str, Any] | str) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        translate(content if isinstance(content, str) else json.dumps(content))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("supervisely", supervisely.SYSTEM),
        ("tonandr", tonandr.SYSTEM),
        ("composer_typical", composer.SYSTEM),
        ("composer_own", composer.SYSTEM),
        ("composer_call", composer.CALL_SYSTEM),
        ("bonlime", bonlime.SYSTEM),
        ("bonlime_any_size", bonlime.SYSTEM),
        ("asahi417", asahi417.SYSTEM),
        ("asahi417_every_flag", asahi417.SYSTEM),
    ],
)
def test_a_file_is_recognised_by_its_content(name: str, system: str) -> None:
    assert translate(FILES[name]).system == system


WRONG = [
    (SUPERVISELY, "lr", 0, "lr is 0; it takes a number above 0"),
    (SUPERVISELY, "lr", "fast", "lr is 'fast'; it takes a number above 0"),
    (SUPERVISELY, "epochs", 1.5, "epochs is 1.5; it takes a whole number of at least 1"),
    (SUPERVISELY, "val_every", -1, "val_every is -1; it takes a number above 0"),
    (SUPERVISELY, "batch_size.train", True, "batch_size.train is True; it takes a whole number of at least 1"),
    (SUPERVISELY, "batch_size", 8, "batch_size is 8; it takes keys: train, val"),
    (SUPERVISELY, "input_size.width", 0, "input_size.width is 0"),
    (SUPERVISELY, "gpu_devices", [], "gpu_devices is []; it takes a list of values that are each a whole number"),
    (
        SUPERVISELY,
        "gpu_devices",
        [0, 0],
        "gpu_devices is [0, 0]; it takes a list of values that are each a whole number",
    ),
    (SUPERVISELY, "dataset_tags.val", "", "dataset_tags.val is ''; it takes a word"),
    (SUPERVISELY, "weights_init_type", "scratch", "it takes transfer_learning, continue_training"),
    (SUPERVISELY, "backbone", "resnet", "backbone is 'resnet'; it takes xception_65, mobilenet_v2"),
    (SUPERVISELY, "output_stride", 4, "output_stride is 4; it takes 8, 16, 32"),
    (SUPERVISELY, "learning_rate", 0.1, "unknown key learning_rate; "),
    (SUPERVISELY, "batch_size.test", 1, "unknown key batch_size.test; Valid are train, val"),
    (TONANDR, "mode", "evaluate", "mode=evaluate cannot be had here: training reads mode=train only"),
    (TONANDR, "mode", "infer", "mode is 'infer'; it takes train"),
    (TONANDR, "hps.beta_1", 1.0, "hps.beta_1 is 1.0; it takes a number of at least 0 and below 1"),
    (TONANDR, "hps.bn_scale", 1, "hps.bn_scale is 1; it takes true or false"),
    (TONANDR, "hps.decay", 1e-4, "there is one schedule at a time here, and reduce_lr_factor is another"),
    (TONANDR, "hps.reduce_lr_factor", 2, "hps.reduce_lr_factor is 2; it takes a number above 0 and at most 1"),
    (TONANDR, "nn_arch.num_classes", 2, "nn_arch.num_classes is 2; it takes 21, as VOC has"),
    (TONANDR, "nn_arch.encoder_middle_conf", [], "nn_arch.encoder_middle_conf is []; it takes a list of branches"),
    (TONANDR, "nn_arch.kernel", 3, "unknown key nn_arch.kernel; "),
    (TONANDR, "base_model", "mobilenetv2", "unknown key base_model; "),
]


@pytest.mark.parametrize(("content", "key", "value", "message"), WRONG, ids=lambda v: str(v)[:24])
def test_wrong_values_name_key_value_and_what_is_valid(
    content: dict[str, Any], key: str, value: Any, message: str
) -> None:
    assert message in refusal(changed(content, key, value))


COMPOSER_WRONG = {
    "model.deeplabv3.backbone_arch": ("resnet18", "backbone_arch is 'resnet18'; it takes resnet50, resnet101"),
    "model.deeplabv3.initializers": (["xavier"], "it takes a list of kaiming_normal, bn_ones"),
    "model.deeplabv3.pretrained": (True, "model.deeplabv3: unknown key pretrained; "),
    "model.deeplabv3.backbone_weights": ("IMAGENET1K_V1", "backbone_weights replaces is_backbone_pretrained"),
    "model.deeplabv3.backbone_url": ("https://a.b/c.pth", "backbone_url=https://a.b/c.pth is none of resnet101-63fe"),
    "optimizer": ({"adam": {"lr": 1}}, "optimizer is adam; it takes one of sgd, decoupled_sgdw"),
    "optimizer.sgd": ({"momentum": 0.9}, "optimizer.sgd lacks lr"),
    "optimizer.sgd.lr": (-1, "optimizer.sgd: lr is -1; it takes a number above 0"),
    "schedulers ": ([{"polynomial": {"alpha_f": 0.01}}], "schedulers.polynomial lacks power"),
    "schedulers": ([{"cosine_decay": {"t_max": "10ep"}}], "schedulers.cosine_decay: t_max is '10ep'; it takes 1dur"),
    "max_duration": ("2h", "max_duration is '2h'; it takes epochs as 127ep, or batches as 90000ba"),
    "precision": ("fp8", "precision is 'fp8'; it takes amp, "),
    "grad_accum": (2, "grad_accum=2 cannot be had here: microbatch_size=IMAGES says"),
    "callbacks": ([], "unknown key callbacks; "),
}


@pytest.mark.parametrize("key", COMPOSER_WRONG)
def test_composer_refuses(key: str) -> None:
    value, message = COMPOSER_WRONG[key]
    assert message in refusal(yaml.dump(changed(yaml.safe_load(COMPOSER_TYPICAL), key.strip(), value)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("Deeplabv3(classes=n)", "Deeplabv3: classes is n, which only running it would tell"),
        ("Deeplabv3(**settings)", "write them out"),
        ("Deeplabv3(klasses=4)", "unknown key klasses; did you mean classes"),
        ("Deeplabv3(input_shape=(384, 384))", "input_shape is [384, 384]; it takes (height, width, 3)"),
        ("Deeplabv3(OS=32, backbone='xception')", "OS is 32; it takes 8 or 16"),
        ("Deeplabv3(activation='softmax')", "predictor.logits(image).softmax(0) gives probabilities"),
        ("Deeplabv3(weights='imagenet')", "weights is 'imagenet'; it takes 'pascal_voc', 'cityscapes' or None"),
        ("Deeplabv3(alpha=0.5)", "weights exist for alpha=1 only"),
        ("Deeplabv3()\nDeeplabv3()", "it builds 2 networks (Deeplabv3 in line 1, Deeplabv3 in line 2)"),
        ("m = Deeplabv3()\nm.fit(x)", "line 2, 'm.fit(x)', does not build a network"),
        ("Deeplabv3(4, weights=None)", "weights stands there twice"),
        ("composer_deeplabv3()", "composer_deeplabv3 lacks num_classes"),
        ("composer_deeplabv3(150, 'resnet50')", "by their place it takes num_classes"),
        ("composer_deeplabv3(150, backbone_url='a/resnet50-11ad3fa6.pth')", "does not hold a resnet101's weights"),
        ("composer_deeplabv3(num_classes=0)", "num_classes is 0; it takes a whole number of at least 1"),
    ],
)
def test_calls_are_refused(call: str, message: str) -> None:
    assert message in refusal(call)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python bin/train.py --batch 4", "train.py: unrecognized arguments: --batch 4; its flags are "),
        ("python bin/train.py -b four", "argument -b/--batch_size: invalid int value: 'four'"),
        ("python bin/train.py -d coco", "data is 'coco'; it takes pascal, ade20k"),
        ("python bin/train.py --output_stride 4", "output_stride is 4; it takes 8, 16"),
        ("python bin/train.py --backbone vgg", "backbone is 'vgg'; it takes xception_41, xception_65, "),
        ("python bin/train.py --checkpoint abc", "deeplab import source=tensorflow"),
        ("python bin/train.py -w -1", "weight_decay is -1.0; it takes a number of at least 0"),
        ("python bin/build_tfrecord.py -d pascal", "it holds 0 command lines of train.py"),
        ("python bin/build_tfrecord.py -d pascal", "deeplab download set=voc root=DIR"),
        ("python bin/train.py\npython bin/vis.py", "'python bin/vis.py': it takes command lines of bin/train.py and"),
        ("python bin/train.py\npython bin/train.py", "it holds 2 command lines of train.py"),
    ],
)
def test_command_lines_are_refused(line: str, message: str) -> None:
    assert message in refusal(line)


@pytest.mark.parametrize("text", ["", "{}", "hello", "[1, 2]", '{"a": 1}', "x = 1", "model: {resnet: {}}", "a: [b"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    message = refusal(text)
    assert "Supervisely's training JSON" in message


def test_broken_files_name_the_file_and_the_place(tmp_path: Any) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"lr": 0.1,,}')
    with pytest.raises(ValueError, match=r"broken\.json: this is not JSON: .* line 1 column 12"):
        translate_file(path)
    path.write_text('{"lr": 0.1, "lr": 0.2}')
    with pytest.raises(ValueError, match="key lr stands there twice"):
        translate_file(path)
    with pytest.raises(FileNotFoundError, match=r"none\.json is no file; it takes Supervisely"):
        translate_file(tmp_path / "none.json")


UNUSABLE: dict[str, tuple[bytes, str]] = {  # a file -> what is said of it
    "deep": (b'{"lr":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested more deeply than those of any configuration"),
    "deep_keys": (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "nested more deeply than those of any configuration"),
    "deep_list": (b"[" * 50_000 + b"]" * 50_000, "nested more deeply than those of any configuration"),
    "deep_yaml": (b"a: " + b"{a: " * 500 + b"1" + b"}" * 500, "nested more deeply than those of any configuration"),
    "deep_call": (b"Deeplabv3(" * 3000 + b")" * 3000, "no configuration that is known here"),
    "shallower": (b'{"lr":' + b"[" * 300 + b"]" * 300 + b"}", f"lr is {'[' * 100}...; it takes a number above 0"),
    "empty": (b"", "it is empty; it takes Supervisely's"),
    "blank": (b" \n\t\n", "it is empty; it takes Supervisely's"),
    "binary": (bytes(range(256)), "is no text in UTF-8 (byte 128); save it as that"),
    "utf16": ('{"lr": 1}'.encode("utf-16"), "is no text in UTF-8 (byte 0); save it as that"),
    "list": (json.dumps([SUPERVISELY]).encode(), "no configuration that is known here"),
    "number": (b"5", "no configuration that is known here"),
    "large": (b'{"lr": 1, "x": "' + b"y" * 300_000 + b'"}', "300,018 bytes, far more than a configuration has"),
    "trailing_comma": (b'{"lr": 1,}', "this is not JSON: "),
    "digits": (b'{"epochs": ' + b"9" * 5000 + b"}", "999999999999999999... is no number that a setting can have"),
    "capitals": (b'{"LR": 1, "epochs": 2}', "unknown key LR; did you mean lr?"),
    "dotted": (b'{"batch_size": {"train": 8}, "batch_size.train": 4}', "unknown key batch_size.train; did you mean ba"),
    "line_break": (b'{"special_classes": {"neutral": "a\\nb"}}', "it takes a word of printable characters"),
    "half_character": (b'{"special_classes": {"neutral": "\\ud800"}}', "it takes a word of printable characters"),
    "variable": (b'{"special_classes": {"neutral": "${oc.env:HOME}"}}', "without ${"),
    "alias": (b"a: &a [1]\nb: *a\n", "line 2: *a is an alias; write it out"),
    "alias_of_itself": (b"a: &a {b: *a}\n", "line 1: *a is an alias; write it out"),
    "twice": (b"a: 1\na: 2\n", "(found duplicate key a, line 2, column 1)"),
    "quote": (b"python bin/train.py -d 'pascal\n", "'pascal\": No closing quotation"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_files_that_are_no_configuration_get_one_message(name: str, tmp_path: Path) -> None:
    content, message = UNUSABLE[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{re.escape(message)}") as caught:
        translate_file(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no file; it takes Supervisely"):
        translate_file(tmp_path)


def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "config"
    for text in (json.dumps(SUPERVISELY, indent=1), COMPOSER_OWN, ASAHI417):
        for content in (text.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + text.encode()):
            path.write_bytes(content)
            assert translate_file(path) == translate(text)


def said_of(text: str, *, if_taken: str) -> str:
    try:
        translate(text)
    except ValueError as error:
        return str(error)
    return if_taken


STRANGE = (None, "x", "", -1, 0, 1.5, 10**17, float("nan"), True, [], [1], ["x"], [None], {}, {"x": 1}, [[[]]])


@pytest.mark.parametrize("content", [SUPERVISELY, SUPERVISELY_INFERENCE, TONANDR], ids=["training", "inference", "hps"])
def test_no_value_of_a_key_is_a_defect(content: dict[str, Any]) -> None:
    """Whatever a key has, it is taken or refused by name; sections too."""
    keys = {*leaves(content), *(key.rpartition(".")[0] for key in leaves(content) if "." in key)}
    for key in sorted(keys):
        for value in STRANGE:
            assert key.partition(".")[0] in said_of(json.dumps(changed(content, key, value)), if_taken=key)


@pytest.mark.parametrize("text", [COMPOSER_TYPICAL, COMPOSER_OWN], ids=["typical", "own"])
def test_no_value_of_a_composer_key_is_a_defect(text: str) -> None:
    content = yaml.safe_load(text)
    for key in sorted({*leaves(content), "model", "model.deeplabv3", "optimizer"}):
        for value in STRANGE:
            said = said_of(yaml.safe_dump(changed(content, key, value)), if_taken=key)
            assert key.partition(".")[0] in said or "no configuration that is known" in said


def test_inference_is_for_another_verb() -> None:
    message = refusal(SUPERVISELY_INFERENCE)
    assert "for the verb predict" in message
    for key in leaves(SUPERVISELY_INFERENCE):
        assert f"\n  {key}=" in message
    assert "load_predictor(CHECKPOINT" in message
    assert "unknown key mode.names; did you mean name" in refusal(changed(SUPERVISELY_INFERENCE, "mode.names", "roi"))
    assert "mode.name is 'tiles'; it takes full_image, roi" in refusal(
        changed(SUPERVISELY_INFERENCE, "mode.name", "tiles")
    )


def test_gpus_multiply_the_batch_of_one() -> None:
    overrides = translate(json.dumps(changed(SUPERVISELY, "gpu_devices", [0, 2, 3]))).overrides
    assert {"batch_size=36", "evaluate_batch_size=6", "trainer.devices=[0,2,3]"} <= {*overrides}


def test_further_keys_of_the_plugin() -> None:
    content = {
        **SUPERVISELY,
        "data_workers": {"train": 3, "val": 1},
        "backbone": "mobilenet_v2",
        "weight_decay": 4e-5,
        "allow_corrupted_samples": {"train": 2, "val": 0},
    }
    found = translate(json.dumps(content))
    assert {"data.workers=3", "model=tensorflow_mobilenet_v2", "data.on_corrupt=skip"} <= {*found.overrides}
    assert [o for o in found.overrides if o.startswith("optimizer.weight_decay")][-1] == "optimizer.weight_decay=4e-05"
    assert {note.split("=")[0] for note in found.notes} == {
        "data_workers.val",
        "weight_decay",
        "allow_corrupted_samples.train",
        "allow_corrupted_samples.val",
    }
    assert "leave it out: mobilenet_v2 has no atrous branches" in refusal({**content, "atrous_rates": [6, 12]})


def test_tonandr_with_more_gpus_weights_and_a_decay() -> None:
    content = changed(changed(TONANDR, "multi_gpu", True), "model_loading", True)
    content = changed(changed(content, "hps.decay", 1e-4), "hps.reduce_lr_factor", 1)
    found = translate(json.dumps(content))
    assert {"trainer.devices=4", "init=continue_training", "schedule=inverse_time"} <= {*found.overrides}
    assert "schedule.decay=0.0001" in found.overrides
    assert "weights=FILE" in found.needed["weights"]


def test_composer_variants() -> None:
    def overrides(text: str) -> set[str]:
        return {*translate(text).overrides}

    assert "model.backbone_weights=none" in overrides(COMPOSER_CALL.replace("pretrained=True", "pretrained=False"))
    by_name = "composer_deeplabv3(150, backbone_weights='IMAGENET1K_V2', dice_weight=1.125, use_plus=False)"
    assert {"model.backbone_weights=imagenet1k_v2", "loss.dice=1.125", "model.head=deeplabv3"} <= overrides(by_name)
    steps = COMPOSER_OWN.replace("128ep", "80000ba").replace("precision: amp", "precision: bf16")
    assert {"trainer.max_epochs=null", "trainer.max_steps=80000", "trainer.precision=bf16-mixed"} <= overrides(steps)
    assert "weight_decay=0" not in " ".join(overrides(COMPOSER_OWN))
    assert "optimizer.weight_decay=0" in overrides(COMPOSER_OWN.replace("    weight_decay: 2.0e-5\n", ""))
    short = translate(COMPOSER_OWN.replace("max_duration: 128ep\n", "").replace("precision: amp\n", ""))
    assert short.notes == ["max_duration, precision: not given, so as ade20k_composer has it"]
    other = translate(COMPOSER_OWN.replace("150", "21"))
    assert "ADE20k has 150: data=NAME" in other.needed["data"]
    assert other.notes == ["model.deeplabv3.num_classes=21: the data bring their classes, whatever their number"]


def test_bonlime_variants() -> None:
    xception = translate("model.Deeplabv3(None, None, (512, 769, 3), 19, 'xception', 8)").overrides
    assert {"model=tensorflow_xception65", "model.output_stride=8", "weights=null"} <= {*xception}
    assert "data.crop_size=[512,769]" in xception
    assert not any("width" in override for override in xception)
    narrow = translate("Deeplabv3(weights=None, alpha=0.35)").overrides
    assert "model.width_multiplier=0.35" in narrow
    assert "model.freeze_batchnorm=none" in narrow  # without weights there are no statistics to keep
    assert not any("freeze_batchnorm" in override for override in translate(BONLIME_CALL).overrides)
    assert not any("crop_size" in o for o in translate(FILES["bonlime_any_size"]).overrides)
    assert "data=NAME data.root=DIR" in translate(BONLIME_CALL).needed["data"]


def test_asahi417_takes_what_is_left_out_from_its_presets() -> None:
    ade20k = translate("train.py -d ade20k").overrides
    assert {"data=ade20k_keep_ratio", "batch_size=3", "optimizer.lr=1e-08", "trainer.max_steps=300000"} <= {*ade20k}
    assert "model.freeze_batchnorm=statistics" in ade20k
    pascal = translate(ASAHI417).overrides
    assert {"optimizer.lr=0.001", "optimizer.weight_decay=4e-05", "trainer.max_steps=30000"} <= {*pascal}
    notes = translate(FILES["asahi417_every_flag"]).notes
    assert notes[0].startswith("build_tfrecord.py -d pascal is not needed: deeplab download set=voc")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "0.0001"),
        (True, "true"),
        (None, "null"),
        ([1, [2]], "[1,[2]]"),
        ({"a": "b c"}, "{a:b c}"),
        ("true", "'true'"),
        ("12", "'12'"),
        ("1e3", "'1e3'"),
        ("a,b", "'a,b'"),
        ("it's", "'it\\'s'"),
    ],
)
def test_literals(value: Any, text: str) -> None:
    assert literal(value) == text
    if isinstance(value, str):
        assert quoted(value) == text
