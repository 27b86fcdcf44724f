"""What is in a guest's root file system: busybox, modules, and the script that is its first process.

Packages are beside it in an archive of their own (`software`), which is unpacked before: so what is here stays as it
is. All programs and libraries are below /usr; /bin, /lib64 and so on are links.

The host speaks with it over virtio-console ports, which carry any bytes on every architecture, beside the console with
the kernel's messages:

    powervio.control    the guest says `ready` and `status N`, or `disks N` if it misses some; the host says `end`, or
                        `size LINES COLUMNS`
    powervio.output     what the command writes to its standard output, then a token
    powervio.errors     the same for its standard error
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from powervio.boot import software
from powervio.boot.initramfs import Node, character_device, file, folder, link

CONTROL = "powervio.control"
OUTPUT = "powervio.output"
ERRORS = "powervio.errors"

DISKS_LIMIT = 30
"""Seconds that the guest waits for the adapters of its disks to connect."""
_END_LIMIT = 60
"""Seconds that the guest waits until the host has read everything."""

_BEGIN = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin HOME=/root PS1='\\h:\\w\\$ '
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
for number in 0 1 2; do ln -s fd/$number /dev/$(echo stdin stdout stderr | cut -d ' ' -f $((number + 1))); done
ln -s /proc/mounts /etc/mtab
hostname guest
ip link set lo up
for module in /modules/*; do
    case $module in
        *-virtio_blk.ko) blk=$module ;;
        *-virtio_vio.ko) insmod $module @OPTIONS@ ;;
        *) insmod $module ;;
    esac
done
port() { # NAME: where it is, as soon as it is there
    for tries in $(seq 200); do
        for port in /sys/class/virtio-ports/*; do
            if [ "$(cat $port/name 2>/dev/null)" = "$1" ]; then echo /dev/${port##*/}; return; fi
        done
        sleep 0.05
    done
    echo "no port $1" >&2
    echo /dev/null
}
exec 5<>$(port powervio.control)
cd /root
"""

_LOAD = """\
if [ -n "$blk" ]; then insmod $blk; fi
"""

_NAME = f"""\
disks() {{ grep -lx 0x0002 /sys/bus/virtio_vio/devices/*/virtio*/device 2>/dev/null; }}
count=0
for tries in $(seq {DISKS_LIMIT * 20}); do
    count=$(disks | wc -l)
    [ $count -ge @ ] && break
    sleep 0.05
done
[ $count -ge @ ] || echo "disks $count" >&5
echo 0 >/sys/bus/virtio/drivers_autoprobe
{_LOAD}for file in $(disks); do
    device=${{file%/device}}
    echo ${{device##*/}} >/sys/bus/virtio/drivers/virtio_blk/bind
done
echo 1 >/sys/bus/virtio/drivers_autoprobe
"""
"""Adapters connect in any order; disks are to have their names in the order of the adapters' slots."""

_COMMAND = f"""\
mkfifo /run/output /run/errors
exec 3<>/run/output 4<>/run/errors
cat /run/output >$(port {OUTPUT}) &
cat /run/errors >$(port {ERRORS}) &
echo ready >&5
sh -c '. /etc/profile; . /run/command' </dev/null >/run/output 2>/run/errors 3>&- 4>&- 5>&-
status=$?
while [ -e /run/ending ]; do sleep 60; done
cat /run/token >&3
cat /run/token >&4
echo "status $status" >&5
read -r -t {_END_LIMIT} word <&5
"""

_SHELL = """\
console=/dev/$(sed 's/.* //' /sys/class/tty/console/active)
obey() {
    case $1 in
        size) stty -F $console rows $2 columns $3 ;;
        end) /sbin/poweroff ;;
    esac
}
echo ready >&5
read -r words <&5 && obey $words
while read -r words <&5; do obey $words; done &
setsid sh -c "exec sh -l <>$console >&0 2>&1 5>&-"
while [ -e /run/ending ]; do sleep 60; done
"""

_POWEROFF = """\
#!/bin/busybox sh
trap '' HUP
: >/run/ending
cd /
kill -9 -1
grep '^/dev/' /proc/mounts | cut -d ' ' -f 2 | sort -r | while read -r place; do
    umount "$place" 2>/dev/null || mount -o remount,ro "$place"
done
sync
exec /bin/busybox poweroff -f
"""

_ENDS = ("poweroff", "halt", "reboot")
_PROFILE = f"[ -f /{software.ALIASES} ] && . /{software.ALIASES}\nunalias {' '.join(_ENDS)} 2>/dev/null\n" + "".join(
    f"{name}() {{ /sbin/poweroff; }}\n" for name in _ENDS
)
"""The shell of busybox takes its own applets before any file, and those ask a first process that is an `init`."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a guest is to do."""

    token: bytes
    """What follows the command's output; nobody can guess it."""
    command: str | None = None
    """For its shell; None is an interactive shell on its console."""
    terminal: str = "dumb"
    """TERM, what kind of terminal the console is."""
    adapters: int = 0
    """How many disks it waits for that are adapters of `virtio_vio`."""
    driver_options: tuple[str, ...] = ()
    """Parameters that `virtio_vio` is loaded with, NAME=VALUE."""


def init(task: Task) -> str:
    """The script of the first process."""
    terminal = f"export TERM={shlex.quote(task.terminal)}\n"
    disks = _NAME.replace("@", str(task.adapters)) if task.adapters else _LOAD
    begin = _BEGIN.replace("@OPTIONS@", shlex.join(task.driver_options))
    return f"{begin}{disks}{terminal}{_SHELL if task.command is None else _COMMAND}/sbin/poweroff\n"


def nodes(
    task: Task, busybox: bytes, modules: Iterable[tuple[str, bytes]], programs: Iterable[tuple[str, bytes]] = ()
) -> list[Node]:
    """The root file system; `modules` are names and contents in an order in which they can be loaded, `programs` those
    of more files in /bin."""
    made = [folder(name) for name in ("dev", "etc", "mnt", "modules", "proc", "run", "sys", "usr")]
    for name in software.MERGED:
        made += [folder(f"usr/{name}"), link(name, f"usr/{name}")]
    made += [folder("root", 0o700), folder("tmp", 0o1777)]
    made += [character_device("dev/console", 5, 1), character_device("dev/null", 1, 3, 0o666)]
    made += [file("bin/busybox", busybox, 0o755), file("init", init(task).encode(), 0o755)]
    made += [file(f"sbin/{name}", _POWEROFF.encode(), 0o755) for name in _ENDS]
    made.append(file("etc/profile", _PROFILE.encode()))
    made += [file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n"), file("etc/group", b"root:x:0:\n")]
    made += [file(f"modules/{number:02}-{name}", content) for number, (name, content) in enumerate(modules)]
    made += [file(f"bin/{name}", content, 0o755) for name, content in programs]
    made += [file("run/token", task.token, 0o600)]
    if task.command is not None:
        made.append(file("run/command", task.command.encode(errors="surrogateescape") + b"\n", 0o600))
    return made
