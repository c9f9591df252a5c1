"""asahi417's SemanticSegmentation: its command lines.

What the flags leave out comes from PRESETS (source: parameter_manager/deeplab/{pascal,ade20k}.py). The recipe
voc_minimal holds what they have in common with the README's command line.
"""

import argparse
import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NoReturn

from deeplab_recipes.legacy import kinds
from deeplab_recipes.legacy.tables import Choice, Key, Refused, Table, Translation, apply

SYSTEM = "asahi417's command line"
TRAIN, BUILD = "train.py", "build_tfrecord.py"
SCRIPTS = re.compile(r"(^|[\s/])(train|build_tfrecord)\.py(\s|$)")
BASE = ("+recipe=voc_minimal",)
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "pascal": {
        "learning_rate": 1e-3,
        "weight_decay": 4e-5,
        "batch_size": 8,
        "crop_size": 513,
        "aspp_depth": 128,
        "output_stride": 16,
        "backbone": "xception_65_coco",
        "off_decoder": False,
        "off_fine_tune_batch_norm": False,
    },
    "ade20k": {
        "learning_rate": 1e-8,
        "weight_decay": 4e-5,
        "batch_size": 3,
        "crop_size": 513,
        "aspp_depth": 256,
        "output_stride": 16,
        "backbone": "xception_65",
        "off_decoder": False,
        "off_fine_tune_batch_norm": True,
    },
}
# ADE20k's data with what voc_tensorflow has
AS_TENSORFLOW = (
    "data=ade20k_keep_ratio ~data.source.training_list data.base_size=[513,513] "
    "data.evaluate_sizes.keep_ratio=[513,513] data.scale_step=0.25 data.max_class_share=1.0 "
    "data.photometric=none data.mean=[127.5,127.5,127.5] data.std=[127.5,127.5,127.5]"
)
NO_CHECKPOINT = Refused(
    "it is a folder of TensorFlow's: deeplab import source=tensorflow file=... output=model.ckpt makes it one of ours, "
    "and then weights=model.ckpt init=continue_training"
)
TABLE: Table = {
    "data": Choice(
        {
            "pascal": "data=voc_tensorflow trainer.max_steps=30000",
            "ade20k": f"{AS_TENSORFLOW} trainer.max_steps=300000",
        }
    ),
    "model": Choice({"deeplab": ""}),
    "batch_size": Key(kinds.COUNT, "batch_size={}"),
    "learning_rate": Key(kinds.POSITIVE, "optimizer.lr={}"),
    "weight_decay": Key(kinds.NOT_NEGATIVE, "optimizer.weight_decay={}"),
    "aspp_depth": Key(kinds.COUNT, "model.aspp_channels={}"),
    "crop_size": Key(kinds.COUNT, lambda side, values: f"data.crop_size=[{side},{side}]"),
    "output_stride": Choice({8: "model.output_stride=8", 16: "model.output_stride=16"}),
    "off_decoder": Choice({False: "model.decoder=true", True: "model.decoder=false"}),
    "off_fine_tune_batch_norm": Choice(
        {False: "model.freeze_batchnorm=none", True: "model.freeze_batchnorm=statistics"}
    ),
    "backbone": Choice(
        {
            "xception_41": "model.backbone=xception41",
            "xception_65": "model.backbone=xception65",
            "xception_65_coco": "model.backbone=xception65",
            "xception_71": "model.backbone=xception71",
            "resnet_v1_101": "model.backbone=resnet101 data.mean=[123.15,115.9,103.06] data.std=[1.0,1.0,1.0]",
        }
    ),
    "checkpoint": NO_CHECKPOINT,
}
DATA_SETS = {"pascal": "voc", "ade20k": "ade20k"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}; its flags are {', '.join(sorted(self._option_string_actions))}")


def _parser(script: str) -> argparse.ArgumentParser:
    parser = _Parser(script, add_help=False, allow_abbrev=False)
    default = "pascal" if script == TRAIN else "ade20k"
    parser.add_argument("-d", "--data", default=default)
    if script == BUILD:
        return parser
    parser.add_argument("-m", "--model")
    parser.add_argument("-b", "--batch_size", type=int)
    parser.add_argument("-l", "--learning_rate", type=float)
    parser.add_argument("-w", "--weight_decay", type=float)
    for name in ("aspp_depth", "crop_size", "output_stride"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("off_decoder", "off_fine_tune_batch_norm"):
        parser.add_argument(f"--{name}", action="store_true", default=None)
    for name in ("backbone", "checkpoint"):
        parser.add_argument(f"--{name}")
    return parser


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the script and the flags of each command line; a backslash joins lines, # begins a comment.

    Raises:
        ValueError: for a line that starts neither script.
    """
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ValueError(f"line {line!r}: {error}") from None
        words = words[1:] if words and re.fullmatch(r"python[\d.]*", PurePosixPath(words[0]).name) else words
        if not words:
            continue
        script = PurePosixPath(words[0]).name
        if script not in (TRAIN, BUILD):
            raise ValueError(f"line {line!r}: it takes command lines of bin/{TRAIN} and bin/{BUILD}")
        found.append((script, words[1:]))
    return found


def translate(text: str) -> Translation:
    """Translate command lines: one of train.py, perhaps after one of build_tfrecord.py.

    Raises:
        ValueError: for an unknown flag, a value that it does not take, or no training.
    """
    lines = commands(text)
    built = [vars(_parser(BUILD).parse_args(flags))["data"] for script, flags in lines if script == BUILD]
    trained = [vars(_parser(TRAIN).parse_args(flags)) for script, flags in lines if script == TRAIN]
    instead = [_instead_of_records(name) for name in built]
    if len(trained) != 1:
        raise ValueError(
            "; ".join([f"it holds {len(trained)} command lines of {TRAIN}, where one is needed", *instead])
        )
    translation = Translation(SYSTEM, list(BASE), instead)
    given = {key: value for key, value in trained[0].items() if value is not None}
    apply(TABLE, given, PRESETS.get(given["data"], {}), translation)
    return translation


def _instead_of_records(name: str | None) -> str:
    if name not in DATA_SETS:
        raise ValueError(f"{BUILD}: --data is {name!r}; it takes {', '.join(DATA_SETS)}")
    ours = DATA_SETS[name]
    return (
        f"{BUILD} -d {name} is not needed: deeplab download set={ours} root=DIR fetches it, and training reads it "
        "as it is; records that exist are read by data=tfrecord"
    )
