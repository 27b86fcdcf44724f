"""File descriptors: how many a system needs, and the limit that they are taken from (getrlimit(2), RLIMIT_NOFILE).

The usual soft limit of 1024 is there for programs that use select(2), which powervio does not: a system that needs more
raises it to the hard one.
"""

from __future__ import annotations

import os
import resource

from powervio.errors import LocalError
from powervio.storage.open import is_uri
from powervio.system.config import Config
from powervio.system.doors import vectors_of

PARTITION = 5
"""Of a partition: its memory and the mapping of that, its interrupt line at both ends, what wakes it."""
DISK = 2
"""Of a disk: its image, and the mapping of one that is in memory (tmpfs)."""
HELPED_DISK = 3
"""Of a disk whose image another process has: the connection to it, the image's lock, what that process has to say."""
DOOR = 6
"""Of a guest's door beside its vectors: the socket, the guest's connection, region and doorbell, and those who wait."""
PROCESS = 6
"""Of a VIO server in a process of its own: its door, both ends of the socket to it, and the process itself."""
SOCKET = 1
"""Of a socket on which the system listens."""
PROGRAM = 2
"""Of a program on a terminal of its own."""
SPARE = 128
"""For what every process has, starting programs, and some who connect."""


def needed(config: Config) -> int:
    """Descriptors that a system takes when it runs, with some for those who will connect to its sockets."""
    disks = [disk for _, _, disk in config.disks()]
    count = PARTITION * (len(config.vios) + len(config.lpar)) + SPARE
    count += sum(PROCESS + DOOR for vios in config.vios if vios.process)
    count += sum(DOOR + vectors_of(lpar) for lpar in config.lpar if lpar.guest is not None)
    for disk in disks:
        helped = disk.format not in (None, "raw") or is_uri(disk.image)
        count += HELPED_DISK if helped else DISK
        count += 0 if disk.nbd is None else SOCKET
    for _, _, _, device in config.devices():
        ends = [device, *getattr(device, "port", ())]
        count += sum(PROGRAM if getattr(end, "exec", None) else SOCKET for end in ends)
    return count


def make_room(config: Config) -> None:
    """Raise the soft limit to the hard one if this system needs it. Raises `LocalError` when that is not enough."""
    count = needed(config) + len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    if hard != resource.RLIM_INFINITY and count > hard:
        raise LocalError(
            f"{config.file}: {len(config.vios) + len(config.lpar)} partitions and their disks need about {count} file"
            f" descriptors; this process may have {hard} (`ulimit -Hn`, LimitNOFILE= of a systemd unit)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
