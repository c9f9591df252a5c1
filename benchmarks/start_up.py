"""How long does the command line take to answer? Compared with importing torch, in one run.

python benchmarks/start_up.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "train.py --help": ["train.py", "--help"],
    "train.py +recipe=ade20k_composer --cfg job": ["train.py", "+recipe=ade20k_composer", "--cfg", "job"],
}
ROUNDS = 5


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    # In turns, so that a machine that slows down does so for all.
    rounds = [{name: seconds(arguments) for name, arguments in COMMANDS.items()} for _ in range(ROUNDS)]
    print(f"{'command':<46}{'seconds':>9}{'of import torch':>17}")
    for name in COMMANDS:
        median = statistics.median(r[name] for r in rounds)
        ratio = statistics.median(r[name] / r["import torch"] for r in rounds)
        print(f"{name:<46}{median:>9.2f}{ratio:>17.2f}")


if __name__ == "__main__":
    main()
