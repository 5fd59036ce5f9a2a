#!/usr/bin/env bash
# libucx-cu13 1.22.0 (PyPI), seen 2026-11.
#
# The wheel installs UCX's libraries and its loadable transports, and a program that uses it works;
# but there is no module for InfiniBand verbs among them (libuct_ib*.so). On a machine with RDMA
# devices UCX from this wheel uses TCP, and says nothing about it. Expected: the transports of
# UCX's own packages (Debian's libucx0 has libuct_ib.so.0), or a word that they are left out.
set -euo pipefail
pin=libucx-cu13==1.22.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps "$pin"
echo "$pin"
modules=$(find "$folder/venv" -name 'libuct_*.so*' -printf '%f\n' | sort -u)
echo "transport modules: $(echo "$modules" | tr '\n' ' ')"
[ -n "$modules" ] || { echo "CHANGED: no transport modules at all"; exit 1; }
if echo "$modules" | grep -q '^libuct_ib'; then
    echo "CHANGED: the wheel has a module for verbs now"
    exit 1
fi
echo "seen: no libuct_ib among them"
