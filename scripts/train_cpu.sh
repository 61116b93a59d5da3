#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train the compact network on the cores of this machine: one process a core, each with batches of its own, averaged every
# few minutes. Called again, it goes on where it stopped.
#
#   scripts/train_cpu.sh MINUTES DATA HELDOUT [options of recon train]
#
# MINUTES are those of the whole training, over all calls. DATA and HELDOUT are folders of shards (recon_ros.training.shell).
#
# Environment:
#   RUN=out/train     runs are RUN-0, RUN-1, …; the result is RUN-0/network.safetensors
#   PROCESSES=2       one a core
#   ROUND=360         seconds between averages
#   START=            weights that a new training begins from, such as models/recon_compact.safetensors
set -euo pipefail
cd "$(dirname "$0")/.."

MINUTES=$1 DATA=$2 HELDOUT=$3
shift 3
RUN=${RUN:-out/train} PROCESSES=${PROCESSES:-2} ROUND=${ROUND:-360} START=${START:-}
RECON=${RECON:-.venv/bin/recon}
export OMP_NUM_THREADS=1  # threads that wait for each other spin
runs=()
for i in $(seq 0 $((PROCESSES - 1))); do runs+=("$RUN-$i"); done

# A training that is told to end writes a checkpoint; `timeout` says 124 then.
ended() {
  local status=0
  wait "$1" || status=$?
  [ "$status" = 0 ] || [ "$status" = 124 ] || { echo "$2 failed: see $2.log" >&2; exit 1; }
}
training() {  # RUN, then options
  local run=$1
  shift
  timeout -s TERM "$ROUND" "$RECON" train --run "$run" --data "$DATA" --heldout "$HELDOUT" --minutes "$MINUTES" \
    --half --validate-minutes 1000 "$@" >"$run.log" 2>&1
}

mkdir -p "$(dirname "$RUN")"
# The first round is one process's alone: all others begin from its checkpoint.
if [ ! -d "${runs[0]}/checkpoints" ]; then
  training "${runs[0]}" ${START:+--from "$START"} "$@" &
  ended $! "${runs[0]}"
fi
for run in "${runs[@]:1}"; do
  mkdir -p "$run"
  [ -d "$run/checkpoints" ] || cp -r "${runs[0]}/checkpoints" "$run/checkpoints"
done

round=0
until grep -q "^done" "${runs[0]}.log"; do  # a training that is over says so
  round=$((round + 1))
  pids=()
  for i in "${!runs[@]}"; do
    training "${runs[$i]}" --resume --seed $((1000 * i + round)) "$@" &
    pids+=($!)
  done
  for i in "${!runs[@]}"; do ended "${pids[$i]}" "${runs[$i]}"; done
  "$RECON" train average "${runs[@]}"
  tail -n 1 "${runs[0]}.log"
done
# The last average has no network file yet; a training that is over writes it, validates and ends.
"$RECON" train --resume --run "${runs[0]}" --data "$DATA" --heldout "$HELDOUT" --minutes "$MINUTES" --half "$@"
