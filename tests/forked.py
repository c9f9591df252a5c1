"""Run a function of a test module on several ranks: python forked.py MODULE FUNCTION WORLD_SIZE ARGUMENT ...

The ranks are forked after the imports, which take longer than all the rest.
"""

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path


def run(module: str, function: str, world_size: int, *arguments: object, timeout: float = 300) -> str:
    """Call MODULE.FUNCTION(*arguments as words) on every rank; returns what they printed.

    Raises:
        AssertionError: if a rank fails.
    """
    command = [sys.executable, __file__, module, function, str(world_size), *map(str, arguments)]
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    folders = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, **place, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def main(module: str, function: str, world_size: str, *arguments: str) -> None:
    """Fork the ranks and wait for them."""
    import torch

    task = getattr(importlib.import_module(module), function)
    torch.set_num_threads(1)
    children: list[int] = []
    rank = int(world_size) - 1
    while rank and (child := os.fork()):  # the first process forks all the others
        children.append(child)
        rank -= 1
    if rank:
        children.clear()
    if world_size != "1":
        os.environ.update({"WORLD_SIZE": world_size, "NODE_RANK": "0", "RANK": str(rank), "LOCAL_RANK": str(rank)})
    task(*arguments)
    sys.exit(max((os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), default=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
