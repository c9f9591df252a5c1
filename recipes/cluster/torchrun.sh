#!/usr/bin/env bash
# One node, all of its GPUs, started by torchrun. Everything after the run directory goes to train.py:
#   recipes/cluster/torchrun.sh runs/composer_17 +recipe=ade20k_composer data.root=/data/ADEChallengeData2016
# in an environment where `pip install .` was done (. .venv/bin/activate).
# SIGTERM and Ctrl-C save after a step; torchrun itself then reports its own exit code, not train.py's 75.
# Started again with the same run directory it goes on from the newest checkpoint.
set -euo pipefail
run_dir=$1
shift
exec torchrun --standalone --nproc-per-node=gpu train.py "$@" run_dir="$run_dir" resume=auto
