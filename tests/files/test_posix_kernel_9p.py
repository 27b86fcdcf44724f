"""The POSIX table on a mount by Linux's own 9P client: what is not as on the file system below, and why. Needs root."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.files.kernel_9p import HERE, kernel_client, make_network, mounting
from tests.files.posix_suite import ACTORS, CASES
from tests.network.namespace import isolated

PROJECT = Path(__file__).parents[2]
PORT = 5640
DIFFERENT = {
    # 9P2000.L has no message for it
    "a hole reads as zeroes": ["alice seek 1 0 DATA -> = 0", "alice seek 1 0 HOLE -> = 100001"],
    "fallocate": [
        "alice fallocate 1 ALLOCATE 0 10000 -> ENOTSUP",
        "alice fstat 1 size -> = 0",
        "alice fallocate 1 KEEP_SIZE 10000 10000 -> ENOTSUP",
        "alice fstat 1 size -> = 0",
        "alice fallocate 1 PUNCH_HOLE 2 4 -> ENOTSUP",
        "alice fread 1 8 0 -> = xxxxxxxx",
        "alice fallocate 1 ZERO_RANGE 0 1 -> ENOTSUP",
        "alice fread 1 2 0 -> = xx",
    ],
    "renameat2 with NOREPLACE": ["alice renameat2 f h NOREPLACE -> EINVAL", "alice ls . -> = f,g"],
    "renameat2 with EXCHANGE": [
        "alice renameat2 f d EXCHANGE -> EINVAL",
        "alice stat f type -> = f",
        "alice stat d type -> = d",
        "alice renameat2 f f/x EXCHANGE -> ENOTDIR",
    ],
    # the client looks for the file of a directory that is gone by its name
    "a working directory that was removed": ["alice stat . nlink -> ENOENT"],
    # the client cuts times to seconds that are not before 1970
    "chown and times of a link are its own": ["alice stat l mtime -> = 2000000000"],
    "utime sets both times, to the nanosecond": [
        "alice stat f atime,mtime -> = 1000000000,2000000000",
        "alice stat f atime,mtime -> = 1000000000,1500000000000000000",
        "alice stat f atime,mtime -> = 0,1500000000000000000",
        "alice stat f mtime -> = 0",
    ],
}
"""The cases, and what their calls do; docs/mount-9p.md says the same."""
LOOSE = {
    # the client does not ask for what it has
    "a write stamps the file, a read does not": ["alice changed f -> = -"],
    "setting an attribute stamps the file": ["alice changed f -> = -"],
    # and takes set-user-ID away itself, before it writes, as who writes
    "a write of somebody else takes set-user-ID and set-group-ID away": [
        "bob write f x -> EPERM",
        "alice stat f mode -> = 6777",
        "bob write f x -> EPERM",
    ],
}
"""What is different besides with cache=loose."""
GROUPS = {
    "open by group and by supplementary group": ["alice open f O_RDWR -> EACCES"],
    "chmod by one who is not in the group takes set-group-ID away": ["alice stat f mode -> = 0755"],
    "chown is root's, and groups are the owner's": [
        "alice chown f -1 10003 -> EPERM",
        "alice stat f uid,gid -> = 10001,10001",
    ],
    "chown stamps": ["alice chown f -1 10003 -> EPERM", "alice changed f -> = -"],
    "chown takes set-user-ID and set-group-ID away": [
        "alice chown f -1 10003 -> EPERM",
        "alice stat f mode -> = 6755",
        "alice chown d -1 10003 -> EPERM",
    ],
}
"""And where the server's machine does not know the users: 9P does not say who is in which group."""
KNOWN = """
mount --bind passwd /etc/passwd && mount --bind group /etc/group && exec "$@"
"""
SCRIPT = """
mkdir /host
mount -t hostfs -o ro,/ none /host
mount -t proc none /host/proc
mount -t devtmpfs none /host/dev
mount -t tmpfs none /host/run
mkdir /host/run/share
MOUNT_IT
chmod 755 /host/run/share/files
timeout 60 chroot /host /usr/bin/env -C PROJECT PYTHONPATH=. INTERPRETER -S -m tests.files.posix_suite /run/share/files
"""


@contextmanager
def served(folder: Path, knows_users: bool) -> Iterator[None]:
    """`powervio serve-9p`, on this machine or on one that knows the table's users and their groups."""
    share = folder / "share"
    (share / "files").mkdir(parents=True)
    prefix: list[str] = []
    if knows_users:
        prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", KNOWN, "sh"]
        users, groups = Path("/etc/passwd").read_text().splitlines(), Path("/etc/group").read_text().splitlines()
        for name, (uid, gid, others) in ACTORS.items():
            if uid:
                users.append(f"{name}:x:{uid}:{gid}::/:/bin/sh")
                groups.append(f"{name}:x:{gid}:")
            if others != "-":
                groups.append(f"also-{name}:x:{others}:{name}")
        (folder / "passwd").write_text("\n".join([*users, ""]))
        (folder / "group").write_text("\n".join([*groups, ""]))
    command = [*prefix, sys.executable, "-m", "powervio", "serve-9p", str(share), "--listen", f"tcp:{HERE}:{PORT}"]
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            deadline = time.monotonic() + 20
            while not _answers():
                assert process.poll() is None
                assert time.monotonic() < deadline, "the server does not listen"
                time.sleep(0.02)
            yield
        finally:
            process.kill()


def _answers() -> bool:
    try:
        socket.create_connection((HERE, PORT), timeout=20).close()
    except ConnectionRefusedError:
        return False
    return True


def differences(folder: Path, options: str, knows_users: bool = True) -> dict[str, list[str]]:
    """The cases of the table that are not as it says, each with the calls that did something else."""
    make_network()
    script = SCRIPT.replace("MOUNT_IT", mounting(PORT, f"msize=1048576,{options}", "/host/run/share"))
    script = script.replace("PROJECT", str(PROJECT)).replace("INTERPRETER", sys.executable)
    with served(folder, knows_users), kernel_client(folder, script) as guest:
        console = guest.finish()
    lines = console.replace("\r", "").splitlines()
    assert "END" in lines, console
    found = [json.loads(line) for line in lines if line.startswith('{"case"')]
    assert [each["case"] for each in found] == [case.title for case in CASES]
    return {
        each["case"]: [problem.rpartition(", not ")[0] for problem in each["problems"]]
        for each in found
        if each["problems"]
    }


@isolated
def test_kernels_9p(tmp_path: Path) -> None:
    assert differences(tmp_path, "cache=none,access=client,posixacl") == DIFFERENT


@pytest.mark.slow
@pytest.mark.parametrize("options", ["cache=none,access=user", "cache=mmap,access=client,posixacl"])
@isolated
def test_other_options_change_nothing(tmp_path: Path, options: str) -> None:
    assert differences(tmp_path, options) == DIFFERENT


@pytest.mark.slow
@isolated
def test_cache_that_does_not_ask(tmp_path: Path) -> None:
    assert differences(tmp_path, "cache=loose,access=client,posixacl") == DIFFERENT | LOOSE


@pytest.mark.slow
@isolated
def test_users_that_the_server_does_not_know(tmp_path: Path) -> None:
    assert differences(tmp_path, "cache=none,access=client,posixacl", knows_users=False) == DIFFERENT | GROUPS
