"""Who acts on a share's files. What needs to be root runs in a process that is."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from powervio.errors import LocalError
from powervio.files import acl, mapped
from powervio.files.identity import Caller, Identity, IdRange
from powervio.files.tree import Node, Set, Tree, TreeOptions

pytestmark = pytest.mark.dual
ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]
ALICE = Caller(10001, 10001, (10003,))
BOB = Caller(10002, 10002)
SUPERUSER = Caller(0, 0)
CHECKS: dict[str, Callable[[Path], None]] = {}


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    """A test that wants to be root."""
    CHECKS[function.__name__] = function
    return function


def fails(code: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == code)


@contextmanager
def shared(folder: Path, **options: object) -> Iterator[Node]:
    folder.chmod(0o777)
    with Tree(folder, TreeOptions(**options)) as tree:  # type: ignore[arg-type]
        yield tree.root()


def own_identity() -> list[str]:
    with open("/proc/thread-self/status", encoding="ascii") as status:
        return [line for line in status if line.startswith(("Uid", "Gid", "Groups", "CapEff"))]


@check
def files_belong_to_who_made_them(folder: Path) -> None:
    before = own_identity()
    with shared(folder) as root:
        node, _ = root.create(b"f", os.O_RDWR, 0o600, ALICE)
        below = root.mkdir(b"d", 0o700, ALICE, gid=10003)
        link = root.symlink(b"l", b"f", BOB)
        assert [(node.stat().uid, node.stat().gid), (below.stat().uid, below.stat().gid)] == [
            (10001, 10001),
            (10001, 10003),
        ]
        assert link.stat().uid == 10002
    assert own_identity() == before


@check
def kernel_decides_who_may(folder: Path) -> None:
    with shared(folder) as root:
        node, _ = root.create(b"f", os.O_RDWR, 0o640, ALICE)
        below = root.mkdir(b"d", 0o700, ALICE)
        for denied in (
            lambda: node.open(os.O_RDONLY, BOB),
            lambda: node.access(os.R_OK, BOB),
            lambda: below.lookup(b"x", BOB),
            lambda: below.mkdir(b"x", 0o755, BOB),
            lambda: below.open(os.O_RDONLY | os.O_DIRECTORY, BOB),
            lambda: node.setattr(Set.SIZE, BOB, size=0),
        ):
            with fails(errno.EACCES):
                denied()
        for denied in (
            lambda: node.setattr(Set.MODE, BOB, mode=0o777),
            lambda: node.setattr(Set.UID, ALICE, uid=10002),
            lambda: root.mknod(b"sda", stat.S_IFBLK | 0o600, os.makedev(8, 0), ALICE),
        ):
            with fails(errno.EPERM):
                denied()
        node.setattr(Set.GID, ALICE, gid=10003)  # a supplementary group
        node.open(os.O_RDONLY, Caller(10002, 10002, (10003,))).close()
        node.open(os.O_RDONLY, SUPERUSER).close()
        node.setattr(Set.UID, SUPERUSER, uid=10002)
        assert node.stat().uid == 10002


@check
def server_groups_are_not_the_callers(folder: Path) -> None:
    os.setgroups([10009])
    with shared(folder) as root:
        node, _ = root.create(b"f", os.O_RDWR, 0o640, SUPERUSER)
        node.setattr(Set.GID, SUPERUSER, gid=10009)
        with fails(errno.EACCES):
            node.open(os.O_RDONLY, ALICE)
    assert os.getgroups() == [10009]


@check
def identity_is_the_threads_and_is_kept_within_a_scope(folder: Path) -> None:
    before = own_identity()
    with shared(folder) as root:
        with root.tree.identity.held():
            root.create(b"f", os.O_RDWR, 0o600, ALICE)
            assert own_identity() != before
            root.create(b"g", os.O_RDWR, 0o600, BOB)
            seen: list[list[str]] = []

            def look() -> None:
                root.lookup(b"f", SUPERUSER).close()
                seen.append(own_identity())

            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        assert own_identity() == before
        assert seen == [before]  # although the thread was born as BOB
        assert [root.lookup(name, SUPERUSER).stat().uid for name in (b"f", b"g")] == [10001, 10002]


@check
def evicted_files_are_found_again_whoever_asks(folder: Path) -> None:
    with shared(folder, max_held=4) as root:
        nodes = [root.mkdir(b"%d" % number, 0o755, ALICE) for number in range(16)]
        with root.tree.identity.held():
            for node in nodes:
                node.mkdir(b"below", 0o755, ALICE)
        assert root.tree.cache.reopened > 0


@check
def a_write_takes_set_user_id_away(folder: Path) -> None:
    with shared(folder) as root:
        node, opened = root.create(b"f", os.O_RDWR, 0o666, ALICE)
        for who, kept in ((BOB, False), (SUPERUSER, True)):
            node.setattr(Set.MODE, ALICE, mode=0o4766)
            node.open(os.O_WRONLY, who).pwrite(b"x", 0)
            assert bool(node.stat().mode & stat.S_ISUID) is kept
        opened.close()


@check
def who_cuts_a_file_stamps_it_and_says_that_set_user_id_is_gone(folder: Path) -> None:
    with shared(folder) as root:
        node, _ = root.create(b"f", os.O_RDWR, 0o666, ALICE)
        cut = Set.SIZE | Set.MODE
        for valid, mode, code in (
            (cut | Set.MTIME, 0o766, 0),
            (cut, 0o4766, errno.EPERM),
            (cut, 0o777, errno.EPERM),
            (Set.SIZE | Set.MTIME | Set.ATIME, 0, 0),
            (Set.MODE, 0o766, errno.EPERM),
            (Set.MTIME, 0, errno.EPERM),
        ):
            node.setattr(Set.MODE | Set.MTIME, ALICE, mode=0o4766, mtime=(1, 0))
            with fails(code) if code else nullcontext():
                node.setattr(valid, BOB, mode=mode, size=3)
            assert bool(node.stat().mode & stat.S_ISUID) is not bool(valid & Set.SIZE)
            assert (node.stat().mtime_sec == 1) is (code != 0 and not valid & Set.SIZE)
        node.setattr(Set.MODE | Set.MTIME, ALICE, mode=0o644, mtime=(1, 0))
        for valid, time in ((Set.SIZE | Set.MTIME, None), (Set.SIZE | Set.MTIME, (2, 0))):
            with fails(errno.EACCES):
                node.setattr(valid, BOB, size=3, mtime=time)
        node.setattr(Set.MODE, ALICE, mode=0o666)
        with fails(errno.EPERM):
            node.setattr(Set.SIZE | Set.MTIME, BOB, size=3, mtime=(2, 0))
        assert node.stat().mtime_sec != 2


@check
def rights_of_root_are_no_callers(folder: Path) -> None:
    with shared(folder) as root:
        node, _ = root.create(b"f", os.O_RDWR, 0o777, ALICE)
        rights = b"\1\0\0\2" + b"\xff" * 16  # all of them, effective
        for name, value in ((b"trusted.a", b"x"), (b"security.capability", rights)):
            with fails(errno.EPERM):
                node.setxattr(name, value, 0, ALICE)
            node.setxattr(name, value, 0, SUPERUSER)
        with fails(errno.ENODATA):
            node.getxattr(b"trusted.a", ALICE)
        assert node.listxattr(ALICE) == [b"security.capability"]
        assert b"trusted.a" in node.listxattr(SUPERUSER)


@check
def squash(folder: Path) -> None:
    with shared(folder, identity="squash", squash_uid=10001, squash_gid=10003) as root:
        node, _ = root.create(b"f", os.O_RDWR, 0o600, SUPERUSER)
        assert (node.stat().uid, node.stat().gid) == (10001, 10003)
        node.open(os.O_RDONLY, BOB).close()
        with fails(errno.EPERM):
            node.setattr(Set.UID, SUPERUSER, uid=0)
    with shared(folder, identity="squash") as root:
        assert root.mkdir(b"d", 0o755, SUPERUSER).stat().uid == 65534


@check
def translation(folder: Path) -> None:
    rows = [IdRange(0, 100000, 1000)]
    with shared(folder, translate_uid=rows, translate_gid=rows) as root:
        node, _ = root.create(b"f", os.O_RDWR, 0o600, SUPERUSER)
        host = (folder / "f").stat()
        assert (host.st_uid, host.st_gid) == (100000, 100000)
        assert (node.stat().uid, node.stat().gid) == (0, 0)
        assert root.stat().uid == 65534  # the server's root is nobody there
        with fails(errno.EINVAL):
            node.setattr(Set.UID, SUPERUSER, uid=1000)
        assert root.mkdir(b"d", 0o700, ALICE).stat().uid == 65534
        value = acl_of(5)
        node.setxattr(b"system.posix_acl_access", value, 0, SUPERUSER)
        assert node.getxattr(b"system.posix_acl_access", SUPERUSER) == value
        assert os.getxattr(folder / "f", b"system.posix_acl_access") == acl_of(100005)
        with fails(errno.EINVAL):
            node.setxattr(b"system.posix_acl_access", acl_of(1000), 0, SUPERUSER)


def acl_of(user: int) -> bytes:
    entries = [(1, 6, 0xFFFFFFFF), (2, 4, user), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
    return b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + mode.to_bytes(2, "little") + number.to_bytes(4, "little")
        for tag, mode, number in entries
    )


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_as_root(name: str, tmp_path: Path) -> None:
    keep = [f"{name}={os.environ[name]}" for name in ("PYTHONPATH", "POWERVIO_INTERPRETED") if name in os.environ]
    command = [*ROOT, "env", *keep, sys.executable, __file__, name]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr


def test_acl_is_checked() -> None:
    for value in (b"", b"\2\0\0", b"\2\0\0\0\1"):
        with fails(errno.EINVAL):
            acl.translated(value, int, int)
    with fails(errno.EOPNOTSUPP):
        acl.translated(b"\3\0\0\0", int, int)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "nobody"},
        {"kind": "squash", "translate_uid": [IdRange(0, 0, 1)]},
        {"kind": "passthrough", "squash_uid": 5},
        {"translate_uid": [IdRange(0, 0, 10), IdRange(9, 20, 1)]},
        {"translate_gid": [IdRange(0, 5, 10), IdRange(20, 14, 1)]},
        {"translate_gid": [IdRange(0, 0, 0)]},
        {"translate_gid": [IdRange(0, 1, 0xFFFF_FFFF)]},
    ],
)
def test_options_that_contradict_themselves(options: dict[str, object]) -> None:
    with pytest.raises(LocalError):
        Identity(**options)  # type: ignore[arg-type]


# -- mapped


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Node]:
    with Tree(tmp_path, TreeOptions(identity="mapped")) as tree:
        yield tree.root()


def test_mapped_owner_and_mode(share: Node, tmp_path: Path) -> None:
    node, opened = share.create(b"f", os.O_RDWR, 0o4755, ALICE)
    assert opened.pwrite(b"text", 0) == 4
    facts = node.stat()
    assert (facts.mode, facts.uid, facts.gid, facts.size) == (0o104755, 10001, 10001, 4)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
    node.setattr(Set.UID | Set.GID, SUPERUSER, uid=10002, gid=10003)
    assert (node.stat().mode, node.stat().uid, node.stat().gid) == (0o100755, 10002, 10003)
    node.setattr(Set.MODE, SUPERUSER, mode=0o0)
    assert node.stat().mode == 0o100000
    assert opened.stat().mode == 0o100000
    assert share.lookup(b"f", BOB).stat().uid == 10002


def test_mapped_kinds(share: Node, tmp_path: Path) -> None:
    fifo = share.mknod(b"fifo", stat.S_IFIFO | 0o640, 0, ALICE)
    disk = share.mknod(b"disk", stat.S_IFBLK | 0o600, os.makedev(8, 1), ALICE)
    link = share.symlink(b"link", b"/any/where", ALICE)
    plain = share.mknod(b"plain", stat.S_IFREG | 0o600, 0, ALICE)
    assert [node.stat().mode for node in (fifo, disk, link, plain)] == [0o010640, 0o060600, 0o120777, 0o100600]
    assert disk.stat().rdev == os.makedev(8, 1)
    assert link.readlink() == b"/any/where"
    assert share.lookup(b"link", ALICE).kind == stat.S_IFLNK
    assert all(stat.S_ISREG(path.lstat().st_mode) for path in tmp_path.iterdir())
    for node, code in ((fifo, errno.ENXIO), (disk, errno.ENXIO), (link, errno.ELOOP)):
        with fails(code):
            node.open(os.O_RDONLY, ALICE)
    plain.open(os.O_RDWR, ALICE).close()
    kinds = {entry.name: entry.kind for entry in share.open(os.O_RDONLY | os.O_DIRECTORY, ALICE).readdir()}
    assert kinds[b"fifo"] == kinds[b"plain"] == 0


def test_mapped_directories(share: Node) -> None:
    below = share.mkdir(b"d", 0o2755, ALICE)
    inner = below.mkdir(b"e", 0o711, BOB)
    assert (inner.stat().uid, inner.stat().gid, inner.stat().mode) == (10002, 10001, 0o042711)
    with fails(errno.EACCES):
        inner.access(os.R_OK, ALICE)
    inner.access(os.R_OK | os.W_OK, BOB)
    inner.access(os.X_OK, ALICE)


def test_mapped_attribute_is_ours(share: Node) -> None:
    node, _ = share.create(b"f", os.O_RDWR, 0o600, ALICE)
    node.setxattr(b"user.a", b"1", 0, ALICE)
    assert node.listxattr(ALICE) == [b"user.a"]
    with fails(errno.ENODATA):
        node.getxattr(mapped.OWNER_ATTRIBUTE, ALICE)
    with fails(errno.EPERM):
        node.setxattr(mapped.OWNER_ATTRIBUTE, b"0:0:104777:0", 0, ALICE)
    with fails(errno.EPERM):
        node.removexattr(mapped.OWNER_ATTRIBUTE, ALICE)
    with fails(errno.EOPNOTSUPP):
        node.setxattr(b"trusted.a", b"", 0, SUPERUSER)


@pytest.mark.parametrize(
    "text",
    [b"", b"1:2:3", b"1:2:100644:0:0", b"-1:2:100644:0", b"1:2:40755:0", b"4294967295:2:100644:0", b"1:2:999:0"],
)
def test_mapped_attribute_that_makes_no_sense(share: Node, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "f").write_text("text")
    os.setxattr(tmp_path / "f", mapped.OWNER_ATTRIBUTE, text)
    facts = share.lookup(b"f", ALICE).stat()
    assert (facts.uid, facts.mode) == (os.geteuid(), (tmp_path / "f").stat().st_mode)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="powervio-test-") as place:
        os.chmod(place, 0o755)
        (Path(place) / "share").mkdir()
        CHECKS[sys.argv[1]](Path(place) / "share")
