"""What does a recipe reach, and how fast, on this machine? Runs the real command and compares it with the goal.

    python benchmarks/small_machine.py quickstart
    python benchmarks/small_machine.py camvid_mobilenet_v2 ade20k_mini --data DIR --output benchmarks/results/NAME.md

    python benchmarks/small_machine.py --read RUN_DIR ...        the table of runs that are finished already

`--data` is a folder with camvid/, ade20k_mini/ and weights/mobilenet_v2_imagenet_features.pth. What is printed can be
kept with --output. Arguments after `--` go to every command (to try the script at toy size: `-- trainer.max_steps=2`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Question:
    """A command, and the mIoU and minutes it is to reach (None: no goal)."""

    overrides: tuple[str, ...]
    miou: float | None
    minutes: float | None


def questions(data: Path) -> dict[str, Question]:
    weights = f"model.backbone_weights={data}/weights/mobilenet_v2_imagenet_features.pth"
    camvid = ("+recipe=camvid_mobilenet_v2", f"data.root={data}/camvid", weights)
    # The CamVid recipe's net and optimizer on 150 classes: no recipe of its own, the set is no benchmark.
    mini = (
        "+recipe=camvid_mobilenet_v2", "data=ade20k_keep_ratio", f"data.root={data}/ade20k_mini", weights,
        "name=ade20k_mini", "data.crop_size=[257,257]", "data.base_size=[1024,256]",
        "data.evaluate_sizes.keep_ratio=[1024,256]",
        "loss.dice=0", "evaluate_batch_size=1", "trainer.max_epochs=4", "trainer.evaluate_every=4",
    )  # fmt: skip
    return {
        "quickstart": Question(("+recipe=quickstart",), miou=80.0, minutes=3.0),
        "camvid_mobilenet_v2": Question(camvid, miou=60.0, minutes=20.0),
        "ade20k_mini": Question(mini, miou=None, minutes=None),
    }


def run(question: Question, folder: Path, extra: list[str]) -> dict:
    command = [sys.executable, "train.py", *question.overrides, f"run_dir={folder}", *extra]
    print("$ python", " ".join(command[1:]), flush=True)
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return json.loads((folder / "result.json").read_text())


def row(name: str, question: Question, result: dict) -> str:
    last, best = result["evaluations"]
    goal = f">= {question.miou:g} in {question.minutes:g} min" if question.miou else "none"
    commit = f"{result['commit'][:10]}{'+' if result['dirty'] else ''}" if result["commit"] else "unknown"
    minutes = result["hours"] * 60
    return (
        f"| {name} | {goal} | {last['miou']:.2f} (best {best['miou']:.2f}) | {minutes:.1f} | "
        f"{result['images_per_second']:.1f} | {result['precision']} | {result['steps']} | {commit} |"
    )


def table(rows: list[str], result: dict, extra: list[str]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if k in ("python", "torch", "torchvision"))
    return "\n".join(
        [
            f"{date.today()}, {result['hardware']}, {versions}{'; with ' + ' '.join(extra) if extra else ''}",
            "",
            "| run | goal | mIoU (keep_ratio, validation) | minutes, training and evaluation, start-up not counted | "
            "images/s | precision | steps | commit |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(questions(Path())))
    parser.add_argument("--read", nargs="*", type=Path, default=[], metavar="RUN_DIR")
    parser.add_argument("--data", type=Path, default=Path("."))
    parser.add_argument("--output", type=Path)
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    arguments, extra = parser.parse_args(given[:split]), given[split + 1 :]
    known = questions(arguments.data.resolve())
    results = [json.loads((folder / "result.json").read_text()) for folder in arguments.read]
    with tempfile.TemporaryDirectory() as folder:
        results += [run(known[name], Path(folder) / name, extra) for name in arguments.names]
    text = table([row(result["recipe"], known[result["recipe"]], result) for result in results], results[0], extra)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
