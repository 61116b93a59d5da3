#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# CUT3R-512-dpt at 512x384 on this machine's NVIDIA GPU, by every runtime that is here, in less than ten minutes:
# PyTorch eager in fp32 (the baseline), fp16 and bf16, compiled, as CUDA graphs, both; TensorRT and TensorRT-RTX where
# installed. Weights are drawn by a recipe; answers are compared with fp32. Leaves gpu.md and gpu.json in OUT.
#
#   benchmarks/gpu.sh [--dry-run] [options of benchmarks/gpu.py]
#
# Environment:
#   OUT=out/gpu       where results go
#   PYTHON=python3    an interpreter whose PyTorch has CUDA (default: the first of .venv and python3 that has)
#   WHEELS=folder     take missing packages from there; otherwise pip is tried, for a machine with a network
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-out/gpu}
say() { printf 'gpu.sh: %s\n' "$*"; }
fail() { printf 'gpu.sh: %s\n' "$*" >&2; exit 1; }

dry=
for argument in "$@"; do [ "$argument" = --dry-run ] && dry=1; done
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)

torch_here() { "$1" -c 'import torch, sys; sys.exit(not (torch.cuda.is_available() or bool(sys.argv[1:])))' ${dry:+dry} 2> /dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-.venv/bin/python python3 /usr/bin/python3}; do
    if torch_here "$candidate"; then
      python=$(command -v "$candidate")
      return 0
    fi
  done
  return 1
}

make_environment() {  # a machine with a network, and no PyTorch that sees the GPU
  say "no PyTorch that sees a GPU; trying to install one into $OUT/venv"
  python3 -m venv "$OUT/venv"
  "$OUT/venv/bin/pip" install --quiet ${WHEELS:+--no-index --find-links "$WHEELS"} torch numpy > "$OUT/setup.log" 2>&1 ||
    fail "could not (see $OUT/setup.log); install PyTorch with CUDA, and name its interpreter by PYTHON"
  PYTHON=$OUT/venv/bin/python
  find_python || fail "PyTorch was installed and sees no GPU: look at nvidia-smi; --dry-run needs none"
}

lacking() { "$python" - "$@" << 'END'
import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name.partition(":")[0]) is None))
END
}

add_packages() {  # beside those of the interpreter, which stays as it is
  local site=$OUT/site missing name
  export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
  missing=$(lacking numpy:numpy scipy:scipy yaml:pyyaml filelock:filelock tqdm:tqdm psutil:psutil cv2:opencv-python-headless onnx:onnx onnxscript:onnxscript)
  for name in $missing; do
    say "installing ${name#*:}"
    timeout 60 "$python" -m pip install --quiet --no-deps --target "$site" --retries 0 --timeout 5 \
      ${WHEELS:+--no-index --find-links "$WHEELS"} "${name#*:}" > "$OUT/setup.log" 2>&1 || say "could not install ${name#*:}"
  done
  case " $(lacking cv2) " in *" cv2 "*)
    # The package imports OpenCV; nothing that is measured here calls it.
    say "OpenCV is missing and not called here: an empty one takes its place"
    mkdir -p "$site"
    printf '%s\n' '__version__ = "absent"' 'class _Absent:' '    def __getattr__(self, name): return self' \
      '    def __call__(self, *args, **kwargs): return self' '    def __or__(self, other): return self' \
      'def __getattr__(name): return _Absent()' > "$site/cv2.py" ;;
  esac
  missing=$(lacking numpy scipy yaml filelock tqdm psutil)
  [ -z "$missing" ] || fail "these packages are missing and could not be installed: $missing (WHEELS=folder takes them from there)"
  missing=$(lacking onnx onnxscript)
  [ -z "$missing" ] || say "not here: $missing; nothing can be exported, so TensorRT has nothing to run"
}

find_python || make_environment
say "$("$python" -c 'import sys, torch; print("Python", sys.version.split()[0], "PyTorch", torch.__version__)') ($python)"
[ -n "$dry" ] || nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader || true
add_packages
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$OUT/files/inductor}
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$OUT/files/cache}
exec "$python" -m benchmarks.gpu --out "$OUT" "$@"
