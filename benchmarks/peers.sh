#!/usr/bin/env bash
# Make an environment beside the present one that has the peers we measure against:
#   bash benchmarks/peers.sh DIR && DIR/bin/python benchmarks/faults.py --peers
#   bash benchmarks/peers.sh DIR && python benchmarks/speed.py --peers DIR/bin/python
# It reads the packages of the python that is on the PATH (torch among them) and adds what it lacks; nothing of that one is changed.
set -euo pipefail
into=${1:?"give the directory of the new environment"}
packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
versions=$(mktemp)
trap 'rm -f "$versions"' EXIT
python -m pip freeze --exclude-editable | grep -E '^(torch|numpy)==' > "$versions"
python -m venv "$into"
echo "$packages" > "$("$into/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
add() { "$into/bin/pip" install --quiet "$@" || echo "${*: -1} does not install here: what needs it is left out" >&2; }
add --no-deps torchvision  # its own operators are missing beside another torch, and are not needed
add --constraint "$versions" dill avalanche-lib==0.6.0
add --constraint "$versions" clarena==1.1.0
