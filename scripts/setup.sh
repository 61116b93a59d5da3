#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Make .venv with everything the demo and the tests need. Safe to run again: when nothing changed it ends
# at once. Environment:
#   PYTHON=python3.12   the interpreter to use (3.10 to 3.13; default: the first suitable one)
#   RECON_NO_APT=1      never call apt, only say what is missing
set -euo pipefail
cd "$(dirname "$0")/.."

readonly VENV=.venv STAMP=.venv/.setup-stamp LOG=out/setup.log STEPS=6
# Left behind by a Python with the ROS wheels; a child Python would then not find their libraries.
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

begin=$SECONDS
number=0
notes=()

step() {
  number=$((number + 1))
  printf '[%d/%d] %4d s  %s\n' "$number" "$STEPS" "$((SECONDS - begin))" "$*"
}
say() { printf '              %s\n' "$*"; }
note() { notes+=("$*"); say "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

logged() {  # run quietly; show the end of the log only when it fails
  printf '\n$ %s\n' "$*" >> "$LOG"
  "$@" >> "$LOG" 2>&1 && return
  tail -n 20 "$LOG" >&2
  return 1
}

suitable() {  # a Python from 3.10 to 3.13 (open3d and the ROS wheels exist for these)
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null
}

find_python() {
  local candidate
  local candidates=(python3 /usr/bin/python3 python3.12 python3.11 python3.13 python3.10)
  [ -n "${PYTHON:-}" ] && candidates=("$PYTHON")
  if [ -n "${ROS_DISTRO:-}" ]; then
    for candidate in "${candidates[@]}"; do
      if suitable "$candidate" && "$candidate" -c 'import rclpy.node' 2> /dev/null; then
        python=$candidate ros=$ROS_DISTRO
        return
      fi
    done
  fi
  for candidate in "${candidates[@]}"; do
    if suitable "$candidate"; then
      python=$candidate ros=wheels
      return
    fi
  done
  fail "no Python 3.10 to 3.13 found (tried: ${candidates[*]}); install python3 or set PYTHON=…"
}

key() {  # changes when an installation from scratch would give something else
  {
    cat requirements/*.txt setup.py setup.cfg pyproject.toml scripts/setup.sh scripts/build_tf2_msgs.py
    "$python" -c 'import pathlib, sys, sysconfig
print(sys.version, sys.base_prefix)
print(pathlib.Path(sysconfig.get_paths()["include"], "Python.h").is_file())'
    printf '%s\n' "$PWD" "$ros" "${AMENT_PREFIX_PATH:-}" "${RECON_TORCH:-}${CI:-}"
    command -v "${CC:-cc}" "${CXX:-c++}" || true  # with a compiler, tf2_msgs is built
  } 2> /dev/null | sha256sum | cut -d ' ' -f 1
}

missing_packages() {  # one Debian/Ubuntu package a line; empty when all is there
  local version
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -c 'import ensurepip, venv' 2> /dev/null || echo "python$version-venv"
  # What libOpen3D.so links against; asking the loader is right on every distribution.
  "$python" - <<'PYTHON'
import ctypes

LIBRARIES = {
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libX11.so.6": "libx11-6",
    "libgomp.so.1": "libgomp1",
    "libudev.so.1": "libudev1",
}
for library, package in LIBRARIES.items():
    try:
        ctypes.CDLL(library)
    except OSError:
        print(package)
PYTHON
  if [ "$ros" = wheels ]; then  # tf2_msgs is compiled
    command -v "${CC:-cc}" > /dev/null || echo gcc
    command -v "${CXX:-c++}" > /dev/null || echo g++
    "$python" -c 'import pathlib, sysconfig
raise SystemExit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").is_file())' \
      || echo "python$version-dev"
  fi
}

system_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  if [ ${#missing[@]} -eq 0 ]; then
    say "all there"
    return
  fi
  say "missing: ${missing[*]}"
  if [ -n "${RECON_NO_APT:-}" ] || [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
    note "to install them, type: sudo apt install ${missing[*]}"
    return
  fi
  local install=(apt-get install -y --no-install-recommends "${missing[@]}")
  export DEBIAN_FRONTEND=noninteractive
  # The package lists may be absent (containers) or too old.
  if "${install[@]}" >> "$LOG" 2>&1 || { apt-get update >> "$LOG" 2>&1; logged "${install[@]}"; }; then
    say "installed with apt"
  else
    note "apt could not install them (see $LOG); going on without"
  fi
}

make_venv() {
  local wanted=false
  [ "$ros" = wheels ] || wanted=true  # a sourced ROS lives in the system's packages
  if "$VENV/bin/python" -m pip --version > /dev/null 2>&1 \
    && grep -q "include-system-site-packages = $wanted" "$VENV/pyvenv.cfg" \
    && [ "$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')" = \
      "$("$VENV/bin/python" -c 'import sys; print(sys.version, sys.base_prefix)')" ]; then
    say "kept"
    return
  fi
  local options=(--clear)
  [ "$wanted" = true ] && options+=(--system-site-packages)
  "$python" -c 'import ensurepip, venv' 2> /dev/null || fail "cannot make $VENV without python3-venv"
  logged "$python" -m venv "${options[@]}" "$VENV" || fail "cannot make $VENV"
}

python_packages() {
  local pip=("$VENV/bin/python" -m pip install --quiet)
  if [ "$ros" != wheels ]; then
    # The messages of a ROS distribution are compiled against the system's numpy, so its version stays and
    # the rest is resolved around it, from wheels (empy has none). uv, because pip had not ended
    # after ten minutes.
    local uv extras=dev
    [ -n "${RECON_TORCH:-}${CI:-}" ] && extras=dev,torch,export
    uv=$(grep -oE '^uv==[0-9.]+' requirements/dev.txt)
    "$python" -c 'import numpy; print("numpy==" + numpy.__version__)' > "$VENV/constraints.txt"
    logged "${pip[@]}" "$uv" 'setuptools>=64,<80' || fail "pip failed, see $LOG"
    logged "$VENV/bin/uv" pip install --system-certs --python "$VENV/bin/python" \
      --constraint "$VENV/constraints.txt" --only-binary :all: --no-binary empy --no-binary recon-ros \
      --no-build-isolation --editable ".[$extras]" || fail "uv failed, see $LOG"
    say "$(cat "$VENV/constraints.txt") as in the system"
    return
  fi
  local lock
  for lock in core ros dev; do
    if [ "$lock" = ros ] && [ "$(uname -m)" != x86_64 ]; then
      note "no ROS wheels for $(uname -m): install ROS 2 and source it for the node and the demo"
      continue
    fi
    # The locks are complete, so there is nothing to resolve.
    logged "${pip[@]}" --no-deps --require-hashes -r "requirements/$lock.txt" \
      || fail "pip failed on requirements/$lock.txt, see $LOG"
    say "$lock: $(grep -c '==' "requirements/$lock.txt") packages locked, done after $((SECONDS - begin)) s"
  done
  torch_packages
  # With the locked setuptools: nothing is fetched without a hash.
  logged "${pip[@]}" --no-deps --no-build-isolation --editable . || fail "pip failed on recon_ros, see $LOG"
}

torch_packages() {
  # On most machines PyPI's PyTorch brings gigabytes of CUDA, which nobody should get without asking.
  if [ -n "${RECON_TORCH:-}${CI:-}" ]; then
    logged "$VENV/bin/python" -m pip install --quiet -r requirements/torch.txt || fail "pip failed on PyTorch, see $LOG"
    # Networks to ONNX graphs, and TensorRT-RTX, which builds engines without a GPU.
    logged "${pip[@]}" --no-deps --require-hashes -r requirements/engines.txt \
      || fail "pip failed on requirements/engines.txt, see $LOG"
    say "torch, ONNX, TensorRT-RTX: installed, done after $((SECONDS - begin)) s"
  else
    say "torch: left out; RECON_TORCH=1 make setup installs it for the learned networks and their tests"
  fi
}

tf2_messages() {
  if [ "$ros" != wheels ] || [ "$(uname -m)" != x86_64 ]; then
    say "from ROS"
    return
  fi
  local text status=0
  text=$("$VENV/bin/python" scripts/build_tf2_msgs.py 2>&1) || status=$?
  printf '%s\n' "$text" >> "$LOG"
  if [ "$status" -eq 0 ]; then
    say "$text"
  else
    note "$(head -n 1 <<< "$text"); the demo runs without TF"
  fi
}

check() {
  local module
  for module in numpy cv2 open3d small_gicp gtsam openvino rosbags rclpy recon_ros; do
    [ "$module" = rclpy ] && [ "$ros" = wheels ] && [ "$(uname -m)" != x86_64 ] && continue
    "$VENV/bin/python" -c "import $module" 2>> "$LOG" || note "import $module fails: $(tail -n 1 "$LOG")"
  done
}

exec 9< . && { flock 9 2> /dev/null || true; }  # one setup at a time
find_python
wanted=$(key)
if [ -x "$VENV/bin/recon" ] && [ "$(cat "$STAMP" 2> /dev/null)" = "$wanted" ]; then
  echo "setup: $VENV is up to date"
  exit 0
fi
mkdir -p "$(dirname "$LOG")"
: > "$LOG"
rm -f "$STAMP"

step "Python: $("$python" --version) ($(command -v "$python")); ROS: $ros"
[ -n "${ROS_DISTRO:-}" ] && [ "$ros" = wheels ] \
  && note "ROS $ROS_DISTRO is sourced, but no suitable Python here can import rclpy: taking the wheels"
step "system packages"
system_packages
step "virtual environment $VENV"
make_venv
step "Python packages (the first time about 300 MB to download)"
python_packages
step "tf2_msgs (TF)"
tf2_messages
step "check"
check
key > "$STAMP"  # again: a compiler may have come meanwhile
printf 'setup: done in %d s' "$((SECONDS - begin))"
[ ${#notes[@]} -gt 0 ] && printf ', with %d note(s) above' "${#notes[@]}"
printf '\n'
