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
#   ROUND=360         seconds between averages; a process takes some twenty to begin
#   START=            weights that a new training begins from, such as models/recon_compact.safetensors
set -euo pipefail

MINUTES=$1 DATA=$(realpath "$2") HELDOUT=$(realpath "$3")
shift 3
RUN=$(realpath -m "${RUN:-out/train}") PROCESSES=${PROCESSES:-2} ROUND=${ROUND:-360}
START=${START:+$(realpath "$START")}
cd "$(dirname "$0")/.."
RECON=${RECON:-$PWD/.venv/bin/recon}
export OMP_NUM_THREADS=1  # threads that wait for each other spin
runs=()
for i in $(seq 0 $((PROCESSES - 1))); do runs+=("$RUN-$i"); done
mkdir -p "$(dirname "$RUN")"

# Two of these in one folder would write each other's checkpoints.
exec 9>"$RUN.lock"
flock -n 9 || { echo "$RUN is being trained already" >&2; exit 1; }
# Whoever ends this ends its trainings, and each writes a checkpoint.
trap 'trap - EXIT; jobs -p | xargs -r kill -TERM 2>/dev/null; wait' EXIT
trap 'exit 130' INT TERM

training() {  # RUN, then options; a training that is told to end writes a checkpoint and says 0
  local run=$1
  shift
  exec timeout --preserve-status -s TERM "$ROUND" "$RECON" train --run "$run" --data "$DATA" --heldout "$HELDOUT" \
    --minutes "$MINUTES" --half --validate-minutes 1000 "$@" >"$run.log" 2>&1 9>&-
}
ended() {  # process, RUN
  wait "$1" || { echo "$2 failed: see $2.log" >&2; exit 1; }
}
newest() {
  ls "$1/checkpoints" 2>/dev/null | tail -n 1
}

# The first round is one process's alone: all others begin from its checkpoint.
if [ -z "$(newest "${runs[0]}")" ]; then
  training "${runs[0]}" ${START:+--from "$START"} "$@" &
  ended $! "${runs[0]}"
fi
for run in "${runs[@]:1}"; do
  [ -n "$(newest "$run")" ] && continue
  rm -rf "$run/checkpoints.part"
  mkdir -p "$run"
  cp -r "${runs[0]}/checkpoints" "$run/checkpoints.part"
  rm -rf "$run/checkpoints"
  mv "$run/checkpoints.part" "$run/checkpoints"
done

round=0 over=
while [ -z "$over" ]; do
  round=$((round + 1)) before=$(newest "${runs[0]}")
  pids=()
  for i in "${!runs[@]}"; do
    training "${runs[$i]}" --resume "$@" --seed $((1000 * i + round)) &
    pids+=($!)
  done
  for i in "${!runs[@]}"; do ended "${pids[$i]}" "${runs[$i]}"; done
  if grep -q "^done" "${runs[0]}.log"; then
    over=yes  # a training that is over says so
  elif [ "$(newest "${runs[0]}")" = "$before" ]; then
    echo "nothing was learned in $ROUND seconds: raise ROUND" >&2
    exit 1
  fi
  [ "$PROCESSES" -lt 2 ] || "$RECON" train average "${runs[@]}"
  tail -n 1 "${runs[0]}.log"
done
# The last average has no network file yet; a training that is over writes it, validates and ends.
"$RECON" train --resume --run "${runs[0]}" --data "$DATA" --heldout "$HELDOUT" --minutes "$MINUTES" --half "$@"
