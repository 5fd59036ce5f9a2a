#!/usr/bin/env bash
# qemu-user 7.2 (Debian 12, 1:7.2+dfsg-7+deb12u18+b3), seen 2026-11.
#
# A program under qemu-user sets TCP_CONGESTION by name. Four bytes of the name reach the kernel,
# whatever its length: "cubic", which the kernel has, is refused as unknown, and "reno" with more
# letters behind it is taken. Expected: what the same program sees without qemu-user, where "cubic"
# is set and "renoo" refused. Other options of TCP are whole numbers of four bytes.
set -euo pipefail
version=1:7.2+dfsg-7+deb12u18+b3
pin=qemu-user==$version
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder" && apt-get download -q "qemu-user=$version" && dpkg -x qemu-user_*.deb .) >/dev/null
echo "$pin: $("$folder/usr/bin/qemu-x86_64" --version | head -n 1)"
python=$(python3 -c 'import sys; print(sys.executable)')
cat >"$folder/names.py" <<'PROGRAM'
import socket

for name in (b"cubic", b"renoo"):
    with socket.socket() as one:
        try:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
            print(name.decode(), "set")
        except OSError:
            print(name.decode(), "refused")
PROGRAM
plainly=$("$python" -S "$folder/names.py" | tr '\n' ' ')
emulated=$("$folder/usr/bin/qemu-x86_64" "$python" -S "$folder/names.py" | tr '\n' ' ')
echo "without: $plainly"
echo "under qemu-user: $emulated"
[ "$plainly" = "cubic set renoo refused " ] || { echo "this kernel has no cubic"; exit 1; }
[ "$emulated" = "cubic refused renoo set " ] || { echo "CHANGED"; exit 1; }
echo "seen: four bytes of the name"
