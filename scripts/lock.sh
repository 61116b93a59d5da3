#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Write requirements/*.txt: exact versions with hashes, one lock for Python 3.10 to 3.13 on Linux, from the
# ranges in setup.cfg. Versions already locked are kept; `scripts/lock.sh --upgrade` takes newer ones.
# Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {  # NAME [UV OPTIONS]: locks the requirements read from stdin
  local name=$1
  shift
  uv pip compile - --quiet --universal --python-version 3.10 --generate-hashes --no-annotate --no-header \
    --output-file "requirements/$name.txt" "$@"
  sed -i -e '1i # SPDX-License-Identifier: Apache-2.0' \
    -e '1i # Written by scripts/lock.sh from setup.cfg; do not edit.' "requirements/$name.txt"
}

ranges() {  # SECTION KEY: one list of requirements from setup.cfg
  python3 - "$1" "$2" <<'PYTHON'
import configparser, sys
config = configparser.ConfigParser()
config.read("setup.cfg")
lines = config[sys.argv[1]][sys.argv[2]].splitlines()
print("\n".join(line for line in lines if not line.strip().startswith("#")))
PYTHON
}

# One setuptools in all locks: colcon's; and a numpy that NNCF takes.
{ ranges options install_requires; echo 'setuptools<80'; echo 'numpy<2.5'; } | compile core "$@"
ranges options.extras_require ros | compile ros --constraint requirements/core.txt "$@"
ranges options.extras_require dev | compile dev --constraint requirements/core.txt \
  --constraint requirements/ros.txt "$@"
{ ranges options.extras_require export; ranges options.extras_require rtx; } | compile engines \
  --constraint requirements/core.txt "$@"
wc -l requirements/*.txt
