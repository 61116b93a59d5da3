#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train the compact network on this machine's NVIDIA GPU for so many minutes, drawing the scenes on the GPU as well; called
# again, it goes on where it stopped. Needs PyTorch with CUDA and a few small packages, and no network.
#
#   scripts/train_gpu.sh [MINUTES] [options of recon train]
#
# Environment:
#   RUN=out/train                the run: checkpoints, logs, samples, network.safetensors
#   START=models/recon_compact.safetensors   what a new run begins from; empty begins anew
#   PYTHON=python3               an interpreter whose PyTorch has CUDA
set -euo pipefail
cd "$(dirname "$0")/.."

MINUTES=${1:-8}
[ $# -gt 0 ] && shift
RUN=${RUN:-out/train}
START=${START-models/recon_compact.safetensors}
PYTHON=${PYTHON:-python3}

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "PyTorch sees no GPU here"'
options=(--run "$RUN" --minutes "$MINUTES" --device cuda --half --batch 32 --frames 2..8)
if [ -d "$RUN/checkpoints" ]; then
  options+=(--resume)
elif [ -n "$START" ]; then
  options+=(--from "$START")
fi
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec "$PYTHON" -m recon_ros.cli.main train "${options[@]}" "$@"
