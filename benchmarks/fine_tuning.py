"""What do output stride, head, and freezing make of ImageNet weights? The same short training, one setting changed.

    python benchmarks/fine_tuning.py data.root=DIR model.backbone_weights=FILE [--epochs 4] [--output RESULT.md]

Each row is a run of `train.py +recipe=camvid_mobilenet_v2` by a process of its own, one after the other; its settings
stand in the last column. Rows are of one seed (two seeds of a full training differ by a few tenths of a point).
"""

import argparse
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

RECIPE = "camvid_mobilenet_v2"
REPOSITORY = Path(__file__).resolve().parents[1]
VARIANTS = {
    "DeepLabv3+, output stride 16": [],
    "output stride 32": ["model.output_stride=32"],
    "no decoder (DeepLabv3)": ["model.head=deeplabv3"],
    "dense prediction cell for ASPP": ["model.head=dense_prediction_cell"],
    "batch norm's statistics frozen": ["model.freeze_batchnorm=statistics"],
    "backbone frozen": ["model.freeze_backbone=true"],
    "no ImageNet weights": ["model.backbone_weights=none"],
}


def run(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train, or go on with what was begun; return result.json.

    Raises:
        subprocess.CalledProcessError: if the command fails.
    """
    command = [sys.executable, "train.py", f"+recipe={RECIPE}", *overrides, f"run_dir={folder.resolve()}"]
    result = folder / "result.json"
    if not result.exists() or json.loads(result.read_text())["status"] != "finished":
        subprocess.run([*command, "resume=auto"], cwd=REPOSITORY, check=True)
    return json.loads(result.read_text())


def row(name: str, result: dict[str, Any], settings: list[str]) -> str:
    """Return a line of the table; mIoU is that of the last weights."""
    last = next(e for e in result["evaluations"] if e["checkpoint"] == "last")
    shown = " ".join(settings) or "as the recipe"
    return f"| {name} | {last['miou']:.2f} | `{shown}` |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "settings", nargs="*", help="data.root=DIR model.backbone_weights=FILE and others, for every run"
    )
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs/fine_tuning")
    parser.add_argument("--only", help="rows whose name holds this")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    length = [f"trainer.max_epochs={options.epochs:g}", f"trainer.evaluate_every={options.epochs:g}", "pictures=0"]
    results = {}
    for number, (name, changes) in enumerate(VARIANTS.items()):
        if options.only is None or options.only in name:
            results[name] = run([*options.settings, *length, *changes], options.runs / str(number))
    text = report(results, options.epochs)
    print(text)
    if options.output:
        options.output.write_text(text)


def report(results: dict[str, dict[str, Any]], epochs: float) -> str:
    """Return the table with what it was measured on."""
    some = next(iter(results.values()))
    hardware, versions = some["hardware"], some["versions"]
    return "\n".join(
        [
            f"# Fine-tuning on CamVid, {epochs:g} epoch{'' if epochs == 1 else 's'} of the {RECIPE} recipe",
            "",
            f"{date.today()}, {hardware}, torch {versions['torch']}, {some['precision']}, commit {some['commit'][:10]}",
            "",
            "| variant | mIoU (keep_ratio) | settings |",
            "|---|---|---|",
            *(row(name, result, VARIANTS[name]) for name, result in results.items()),
            "",
        ]
    )


if __name__ == "__main__":
    main()
