"""A 9P session over a share: every message, what is refused, and what has a bound."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.files.p9_client import P9Failure, SessionClient

from powervio.files import p9_codec as p9
from powervio.files import p9_operations
from powervio.files.p9_fids import FidBudget
from powervio.files.p9_session import Session
from powervio.files.tree import Tree, TreeOptions
from powervio.memory.abstract import Backing

pytestmark = pytest.mark.dual
WRONLY, RDWR, CREATE, EXCL, TRUNC, DIRECTORY = 1, 2, 0o100, 0o200, 0o1000, 0o200000
NONBLOCK, DSYNC = 0o4000, 0o10000
SET_SIZE = 0x8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


@pytest.fixture
def tree(folder: Path) -> Iterator[Tree]:
    with Tree(folder) as tree:
        yield tree


@pytest.fixture
def client(tree: Tree) -> Iterator[SessionClient]:
    client = SessionClient(Session(tree))
    client.attach()
    yield client
    client.session.close()


def fails(code: int) -> pytest.RaisesExc[P9Failure]:
    return pytest.raises(P9Failure, check=lambda error: error.errno == code)


# -- beginning


def test_version_agrees_on_the_smaller_msize(tree: Tree) -> None:
    client = SessionClient(Session(tree, msize=65536))
    assert client.call(p9.TVERSION, 1 << 20, b"9P2000.L") == (65536, b"9P2000.L")
    assert client.call(p9.TVERSION, 8192, b"9P2000.L") == (8192, b"9P2000.L")


@pytest.mark.parametrize("name", [b"9P2000", b"9P2000.u", b"9P2000.Lx", b"unknown", b""])
def test_version_of_another_protocol_is_unknown_and_begins_nothing(tree: Tree, name: bytes) -> None:
    client = SessionClient(Session(tree))
    assert client.call(p9.TVERSION, 8192, name)[1] == b"unknown"
    with fails(errno.EPROTO):
        client.call(p9.TATTACH, 0, p9.NO_FID, b"", b"", 0)


def test_version_with_an_extension_is_offered_what_is_there(tree: Tree) -> None:
    client = SessionClient(Session(tree))
    assert client.call(p9.TVERSION, 8192, b"9P2000.L.Google.1") == (8192, b"9P2000.L")


def test_version_clunks_all_fids(client: SessionClient) -> None:
    client.walk(0, 1)
    assert client.call(p9.TVERSION, 8192, p9.VERSION) == (8192, p9.VERSION)
    for fid in (0, 1):
        with fails(errno.EBADF):
            client.call(p9.TGETATTR, fid, 0)


def test_version_with_no_room_for_answers(tree: Tree) -> None:
    client = SessionClient(Session(tree))
    with fails(errno.EMSGSIZE):
        client.call(p9.TVERSION, 100, p9.VERSION)


def test_auth_is_not_wanted(client: SessionClient) -> None:
    with fails(errno.ENOENT):
        client.call(p9.TAUTH, 9, b"root", b"", 0)
    with fails(errno.EINVAL):
        client.call(p9.TATTACH, 9, 8, b"", b"", 0)


def test_attach_names_a_directory_below(client: SessionClient, folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (inside,) = client.walk(0, 1, b"a", b"b")[1:]
    for fid, name in enumerate((b"a/b", b"/a/b/", b"a/./b", os.fsencode(folder) + b"/a/b"), 2):
        (qid,) = client.call(p9.TATTACH, fid, p9.NO_FID, b"", name, 0)
        assert (qid[0], qid[2]) == (inside[0], inside[2])
    for name in (b"c", b"/etc", b"a/../../etc"):
        with fails(errno.ENOENT):
            client.call(p9.TATTACH, 99, p9.NO_FID, b"", name, 0)


def test_attach_user_by_name(client: SessionClient) -> None:
    client.call(p9.TATTACH, 1, p9.NO_FID, b"root", b"", p9.NO_UID)
    client.call(p9.TATTACH, 2, p9.NO_FID, b"", b"", p9.NO_UID)
    with fails(errno.EPERM):
        client.call(p9.TATTACH, 3, p9.NO_FID, b"nobody-has-this-name", b"", p9.NO_UID)
    assert client.session.fid(1).caller.uid == 0
    assert client.session.fid(2).caller.uid == 65534


# -- walking


def test_walk_of_many_names_and_of_one_that_is_missing(client: SessionClient, folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "f").write_bytes(b"x")
    qids = client.walk(0, 1, b"a", b"b", b"f")
    assert [qid[0] for qid in qids] == [0x80, 0x80, 0]
    assert len(client.walk(0, 2, b"a", b"none", b"f")) == 1
    with fails(errno.EBADF):
        client.call(p9.TCLUNK, 2)
    with fails(errno.ENOENT):
        client.walk(0, 2, b"none")
    with fails(errno.ENOTDIR):
        client.walk(1, 2, b"x")
    assert client.walk(1, 1) == []


def test_walk_fids(client: SessionClient, folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    client.walk(0, 1, b"f")
    for number in (1, p9.NO_FID):
        with fails(errno.EINVAL):
            client.walk(0, number)
    client.call(p9.TLOPEN, 1, 0)
    client.walk(1, 2)
    with fails(errno.EINVAL):
        client.walk(1, 1)
    with fails(errno.EINVAL):
        client.call(p9.TWALK, 0, 3, [b"x"] * 17)


def test_walk_up_ends_at_the_root(client: SessionClient, folder: Path) -> None:
    (folder / "a").mkdir()
    root = client.walk(0, 1, b"..", b"..")[1]
    assert client.walk(0, 2, b"a", b"..", b"..")[2][2] == root[2] == folder.stat().st_ino


@pytest.mark.parametrize(
    ("name", "code"),
    [(b"a\0b", errno.EINVAL), (b"a/b", errno.EINVAL), (b"", errno.ENOENT), (b"n" * 4096, errno.ENAMETOOLONG)],
)
def test_names_that_are_none(client: SessionClient, name: bytes, code: int) -> None:
    with fails(code):
        client.walk(0, 1, name)
    with fails(code):
        client.call(p9.TMKDIR, 0, name, 0o755, 0)


# -- files


def test_create_write_read_and_what_a_fid_is_then(client: SessionClient, folder: Path) -> None:
    client.walk(0, 1)
    qid, iounit = client.call(p9.TLCREATE, 1, b"new", RDWR | CREATE | EXCL, 0o640, p9.NO_FID)
    assert (qid[0], iounit) == (0, (1 << 20) - 24)
    assert client.call(p9.TWRITE, 1, 3, b"some bytes") == (10,)
    assert client.call(p9.TREAD, 1, 0, 100) == (b"\0\0\0some bytes",)
    assert client.call(p9.TREAD, 1, 13, 100) == (b"",)
    assert (folder / "new").stat().st_mode == 0o100640
    with fails(errno.EINVAL):
        client.call(p9.TLOPEN, 1, 0)
    with fails(errno.EINVAL):
        client.call(p9.TLCREATE, 1, b"x", RDWR, 0o600, 0)
    client.call(p9.TFSYNC, 1, 1)
    client.call(p9.TCLUNK, 1)
    with fails(errno.EBADF):
        client.call(p9.TREAD, 1, 0, 1)


def test_lopen_flags_are_those_of_the_protocol(client: SessionClient, folder: Path) -> None:
    (folder / "f").write_bytes(b"contents")
    client.walk(0, 1, b"f")
    with fails(errno.ENOTDIR):
        client.call(p9.TLOPEN, 1, DIRECTORY)
    client.call(p9.TLOPEN, 1, RDWR | TRUNC | 0o100000 | 0o2000000)
    assert (folder / "f").stat().st_size == 0
    client.walk(0, 2, b"f")
    client.call(p9.TLOPEN, 2, 0)
    with fails(errno.EBADF):
        client.call(p9.TWRITE, 2, 0, b"x")


def test_read_is_cut_to_msize(tree: Tree, folder: Path) -> None:
    (folder / "f").write_bytes(bytes(100_000))
    client = SessionClient(Session(tree))
    client.attach(msize=8192)
    client.walk(0, 1, b"f")
    assert client.call(p9.TLOPEN, 1, 0)[1] == 8192 - 24
    assert len(client.call(p9.TREAD, 1, 0, 0xFFFF_FFFF)[0]) == 8192 - 11
    for offset in (1 << 63, (1 << 64) - 1):
        with fails(errno.EINVAL):
            client.call(p9.TREAD, 1, offset, 1)


def test_unlinked_file_stays_open(client: SessionClient) -> None:
    client.walk(0, 1)
    client.call(p9.TLCREATE, 1, b"f", RDWR, 0o600, 0)
    client.call(p9.TUNLINKAT, 0, b"f", 0)
    client.call(p9.TWRITE, 1, 0, b"abc")
    assert client.call(p9.TREAD, 1, 0, 9) == (b"abc",)
    assert attributes(client, 1)["nlink"] == 0
    client.call(p9.TSETATTR, 1, 8, 0, 0, 0, 1, 0, 0, 0, 0)
    assert attributes(client, 1)["size"] == 1


def attributes(client: SessionClient, fid: int) -> dict[str, Any]:
    names = [name for name, _ in p9.MESSAGES[p9.TGETATTR + 1].fields]
    return dict(zip(names, client.call(p9.TGETATTR, fid, 0x3FFF), strict=True))


def test_getattr_says_what_stat_says(client: SessionClient, folder: Path) -> None:
    (folder / "f").write_bytes(b"12345")
    os.utime(folder / "f", ns=(1_500_000_001, -2_000_000_001))
    client.walk(0, 1, b"f")
    facts, told = (folder / "f").stat(), attributes(client, 1)
    for name in ("mode", "uid", "gid", "nlink", "size", "blksize", "blocks"):
        assert told[name] == getattr(facts, f"st_{name}")
    assert (told["atime_sec"], told["atime_nsec"]) == (1, 500_000_001)
    assert (told["mtime_sec"], told["mtime_nsec"]) == ((1 << 64) - 3, 999_999_999)
    assert told["qid"][2] == facts.st_ino
    assert told["qid"][1] == told["data_version"]
    assert told["valid"] & 0x7FF == 0x7FF


def test_setattr(client: SessionClient, folder: Path) -> None:
    (folder / "f").write_bytes(b"12345")
    client.walk(0, 1, b"f")
    client.call(p9.TSETATTR, 1, 0x1 | 0x8 | 0x10 | 0x80 | 0x20 | 0x100, 0o600, 0, 0, 3, 7, 8, (1 << 64) - 1, 9)
    facts = (folder / "f").stat()
    assert (facts.st_mode & 0o7777, facts.st_size) == (0o600, 3)
    assert (facts.st_atime_ns, facts.st_mtime_ns) == (7_000_000_008, -999_999_991)
    for valid, nanoseconds in ((0x200, 0), (0x90, 1_000_000_000), (0x90, (1 << 30) - 1)):
        with fails(errno.EINVAL):
            client.call(p9.TSETATTR, 1, valid, 0, 0, 0, 0, 0, nanoseconds, 0, 0)


def test_links_nodes_and_names(client: SessionClient, folder: Path) -> None:
    (qid,) = client.call(p9.TSYMLINK, 0, b"s", b"over/there", 0)
    assert qid[0] == 0x02
    client.walk(0, 1, b"s")
    assert client.call(p9.TREADLINK, 1) == (b"over/there",)
    with fails(errno.ELOOP):
        client.call(p9.TLOPEN, 1, 0)
    client.call(p9.TMKNOD, 0, b"p", 0o10644, 0, 0, 0)
    client.walk(0, 2, b"p")
    with fails(errno.ENXIO):
        client.call(p9.TLOPEN, 2, 0)
    client.call(p9.TMKDIR, 0, b"d", 0o711, p9.NO_FID)
    client.walk(0, 3, b"d")
    client.call(p9.TLINK, 3, 2, b"q")
    client.call(p9.TRENAMEAT, 3, b"q", 0, b"r")
    assert sorted(os.listdir(folder)) == ["d", "p", "r", "s"]
    with fails(errno.EISDIR):
        client.call(p9.TUNLINKAT, 0, b"d", 0)
    with fails(errno.EINVAL):
        client.call(p9.TUNLINKAT, 0, b"d", 0x100)
    client.call(p9.TUNLINKAT, 0, b"d", 0x200)
    assert client.call(p9.TSTATFS, 0)[1] > 0


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
def test_nothing_waits_for_the_other_end_of_a_fifo_or_socket(client: SessionClient, folder: Path, kind: str) -> None:
    """Nor is there one: what is neither file nor directory is never opened, whoever put it there, and when."""

    def put(name: str) -> None:
        if kind == "FIFO":
            os.mkfifo(folder / name)
        else:
            os.mknod(folder / name, stat.S_IFSOCK | 0o600)

    put("p")
    client.walk(0, 1, b"p")
    for flags in (0, WRONLY, RDWR, RDWR | TRUNC, NONBLOCK, WRONLY | NONBLOCK, DSYNC):
        with fails(errno.ENXIO):
            client.call(p9.TLOPEN, 1, flags)
    for flags in (RDWR, RDWR | CREATE, WRONLY | NONBLOCK):
        client.walk(0, 2)
        with fails(errno.ENXIO):
            client.call(p9.TLCREATE, 2, b"p", flags, 0o600, p9.NO_FID)
        client.call(p9.TCLUNK, 2)
    with fails(errno.EINVAL):
        client.call(p9.TSETATTR, 1, SET_SIZE, 0, 0, 0, 0, 0, 0, 0, 0)
    for message in ((p9.TREAD, 1, 0, 100), (p9.TWRITE, 1, 0, b"x"), (p9.TFSYNC, 1, 0), (p9.TREADDIR, 1, 0, 1000)):
        with fails(errno.EBADF):
            client.call(*message)
    with fails(errno.EBADF):
        client.call(p9.TLOCK, 1, 1, 0, 0, 0, 1, b"me")
    assert client.call(p9.TXATTRWALK, 1, 3, b"") == (0,)
    assert stat.S_IFMT(client.call(p9.TGETATTR, 1, 0x7FF)[2]) == stat.S_IFMT((folder / "p").lstat().st_mode)
    (folder / "f").write_bytes(b"the file that was found")
    client.walk(0, 4, b"f")
    (folder / "f").unlink()
    put("f")
    client.call(p9.TLOPEN, 4, 0)
    assert client.call(p9.TREAD, 4, 0, 100) == (b"the file that was found",)


def test_rename_and_remove_by_fid_find_the_name(client: SessionClient, folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "f").write_bytes(b"x")
    client.walk(0, 1, b"f")
    client.walk(0, 2, b"d")
    client.call(p9.TRENAMEAT, 0, b"f", 0, b"g")
    client.call(p9.TRENAME, 1, 2, b"h")
    assert os.listdir(folder / "d") == ["h"]
    with fails(errno.ENOTEMPTY):
        client.call(p9.TREMOVE, 2)
    with fails(errno.EBADF):  # gone all the same
        client.call(p9.TCLUNK, 2)
    client.call(p9.TREMOVE, 1)
    assert os.listdir(folder / "d") == []
    with fails(errno.EBUSY):
        client.call(p9.TREMOVE, 0)


def test_remove_of_what_was_made_finds_it_wherever_it_is_now(client: SessionClient, folder: Path) -> None:
    """Where it was made is a hint: what has the name by now is another file, and stays."""
    (folder / "d").mkdir()

    def make(fid: int) -> Path:
        client.walk(0, fid, b"d")
        client.call(p9.TLCREATE, fid, b"f", RDWR | CREATE | EXCL, 0o600, p9.NO_FID)
        return folder / "d" / "f"

    assert make(1).exists()
    client.call(p9.TREMOVE, 1)
    assert os.listdir(folder / "d") == []
    made = make(1)
    made.rename(folder / "elsewhere")
    made.write_bytes(b"another file")
    client.call(p9.TREMOVE, 1)
    assert sorted(os.listdir(folder)) == ["d"]
    assert made.read_bytes() == b"another file"
    made.unlink()
    made = make(1)
    made.unlink()
    made.symlink_to(folder)
    with fails(errno.ESTALE):
        client.call(p9.TREMOVE, 1)
    assert made.is_symlink()
    made.unlink()
    made = make(1)
    (folder / "d").rename(folder / "e")
    client.walk(0, 2)
    client.call(p9.TRENAME, 1, 2, b"g")
    assert sorted(os.listdir(folder)) == ["e", "g"]
    client.call(p9.TREMOVE, 1)
    assert sorted(os.listdir(folder)) == ["e"]


def test_remove_of_a_file_without_a_name(client: SessionClient, folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    client.walk(0, 1, b"f")
    (folder / "f").unlink()
    (folder / "f (deleted)").write_bytes(b"another file")
    with fails(errno.ESTALE):
        client.call(p9.TREMOVE, 1)
    assert os.listdir(folder) == ["f (deleted)"]


def test_readdir_in_pieces(client: SessionClient, folder: Path) -> None:
    names = {f"{'n' * (index % 60)}{index}".encode() for index in range(500)}
    for name in names:
        (folder / os.fsdecode(name)).mkdir()
    client.walk(0, 1)
    with fails(errno.EBADF):
        client.call(p9.TREADDIR, 1, 0, 1000)
    client.call(p9.TLOPEN, 1, DIRECTORY)
    for count in (300, 4096, 1 << 20):
        found = client.readdir(1, count)
        assert {name for _, _, _, name in found} == names | {b".", b".."}
        assert len(found) == 502
        by_name = {name: (qid, kind) for qid, _, kind, name in found}
        assert by_name[b"n1"] == ((0x80, 0, (folder / "n1").stat().st_ino), 4)
        assert by_name[b".."][0][2] == folder.stat().st_ino
    with fails(errno.EINVAL):
        client.call(p9.TREADDIR, 1, 0, 20)
    with fails(errno.EISDIR):
        client.call(p9.TREAD, 1, 0, 20)


# -- attributes and locks


def test_extended_attributes(client: SessionClient, folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    client.walk(0, 1, b"f")
    value = os.urandom(3000)
    set_attribute(client, b"user.a", value)
    assert os.getxattr(folder / "f", "user.a") == value
    assert client.call(p9.TXATTRWALK, 1, 3, b"user.a") == (3000,)
    assert client.call(p9.TREAD, 3, 0, 4000) == (value,)
    assert client.call(p9.TREAD, 3, 2999, 4000) == (value[-1:],)
    assert client.call(p9.TREAD, 3, 3000, 4000) == (b"",)
    with fails(errno.EBADF):
        client.call(p9.TWRITE, 3, 0, b"x")
    assert client.call(p9.TXATTRWALK, 1, 4, b"") == (7,)
    assert client.call(p9.TREAD, 4, 0, 4000) == (b"user.a\0",)
    with fails(errno.ENODATA):
        client.call(p9.TXATTRWALK, 1, 5, b"user.b")
    set_attribute(client, b"user.a", b"")
    assert os.getxattr(folder / "f", "user.a") == b""
    set_attribute(client, b"user.a", b"", os.XATTR_REPLACE)
    assert os.listxattr(folder / "f") == []


def set_attribute(client: SessionClient, name: bytes, value: bytes, flags: int = 0) -> None:
    client.walk(1, 2)
    client.call(p9.TXATTRCREATE, 2, name, len(value), flags)
    for at in range(0, len(value), 1000):
        client.call(p9.TWRITE, 2, at, value[at : at + 1000])
    client.call(p9.TCLUNK, 2)


def test_attribute_of_which_not_all_came_is_not_set(client: SessionClient, folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    client.walk(0, 1, b"f")
    client.walk(1, 2)
    client.call(p9.TXATTRCREATE, 2, b"user.a", 10, 0)
    client.call(p9.TWRITE, 2, 0, b"12345")
    with fails(errno.EINVAL):
        client.call(p9.TWRITE, 2, 6, b"78")
    with fails(errno.ENOSPC):
        client.call(p9.TWRITE, 2, 5, b"678901")
    with fails(errno.EBADF):
        client.call(p9.TREAD, 2, 0, 10)
    with fails(errno.EINVAL):
        client.call(p9.TCLUNK, 2)
    assert os.listxattr(folder / "f") == []
    client.walk(1, 2)
    with fails(errno.E2BIG):
        client.call(p9.TXATTRCREATE, 2, b"user.a", 65537, 0)


def test_locks_between_sessions(client: SessionClient, tree: Tree) -> None:
    client.walk(0, 1)
    client.call(p9.TLCREATE, 1, b"f", RDWR, 0o600, 0)
    other = SessionClient(Session(tree))
    other.attach()
    other.walk(0, 1, b"f")
    other.call(p9.TLOPEN, 1, RDWR)
    assert client.call(p9.TLOCK, 1, 1, 1, 10, 20, 7, b"host") == (0,)
    assert other.call(p9.TLOCK, 1, 0, 1, 29, 0, 7, b"host") == (1,)
    assert other.call(p9.TLOCK, 1, 0, 1, 30, 0, 7, b"host") == (0,)
    assert other.call(p9.TGETLOCK, 1, 1, 0, 0, 8, b"me") == (1, 10, 20, 7, b"host")
    assert other.call(p9.TGETLOCK, 1, 1, 0, 5, 8, b"me") == (2, 0, 5, 8, b"me")
    client.session.close()
    assert other.call(p9.TLOCK, 1, 1, 1, 0, 0, 7, b"host") == (0,)
    with fails(errno.EINVAL):
        other.call(p9.TLOCK, 1, 9, 0, 0, 0, 7, b"host")
    other.session.close()


def test_lock_clients_have_a_bound(client: SessionClient) -> None:
    client.walk(0, 1)
    client.call(p9.TLCREATE, 1, b"f", RDWR, 0o600, 0)
    for number in range(1024):
        client.call(p9.TLOCK, 1, 2, 0, 0, 0, 7, b"%d" % number)
    with fails(errno.ENOLCK):
        client.call(p9.TLOCK, 1, 1, 0, 0, 0, 7, b"one more")


def test_client_id_of_a_lock_is_no_book(client: SessionClient) -> None:
    """Each lock keeps one, and there are tens of thousands."""
    client.walk(0, 1)
    client.call(p9.TLCREATE, 1, b"f", RDWR, 0o600, 0)
    assert client.call(p9.TLOCK, 1, 1, 0, 0, 0, 7, b"x" * 255) == (0,)
    with fails(errno.EINVAL):
        client.call(p9.TLOCK, 1, 1, 0, 0, 0, 7, b"x" * 256)


def test_processes_that_lock_are_counted_while_they_do(
    client: SessionClient, monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    monkeypatch.setattr(p9_operations, "MOST_LOCK_OWNERS", 3)
    client.walk(0, 1)
    client.call(p9.TLCREATE, 1, b"f", RDWR, 0o600, 0)
    client.walk(0, 2, b"f")
    client.call(p9.TLOPEN, 2, RDWR)
    for process in range(10):  # one after the other, as those of a server that goes on and on
        for _ in range(2):
            assert client.call(p9.TLOCK, 1, 1, 0, 0, 10, process, b"a") == (0,)
        client.call(p9.TLOCK, 1, 1, 0, 20, 10, process, b"a")
        client.call(p9.TLOCK, 1, 2, 0, 0, 10, process, b"a")
        assert client.session.lock_owners == 1
        client.call(p9.TLOCK, 1, 2, 0, 0, 0, process, b"a")
        assert client.session.lock_owners == 0
    for process, fid in ((1, 1), (2, 2), (3, 2)):
        assert client.call(p9.TLOCK, fid, 1, 0, 10 * process, 10, process, b"a") == (0,)
    assert client.call(p9.TLOCK, 2, 1, 0, 50, 10, 3, b"a") == (0,)  # it is one already
    with fails(errno.ENOLCK):
        client.call(p9.TLOCK, 1, 1, 0, 50, 10, 4, b"a")
    client.call(p9.TCLUNK, 2)
    assert client.session.lock_owners == 1
    assert client.call(p9.TLOCK, 1, 1, 0, 50, 10, 4, b"a") == (0,)
    client.session.close()
    assert (client.session.lock_owners, tree.locks.count) == (0, 0)


def test_locks_are_given_up_with_the_fid(client: SessionClient, tree: Tree) -> None:
    client.walk(0, 1)
    client.call(p9.TLCREATE, 1, b"f", RDWR, 0o600, 0)
    client.walk(0, 2, b"f")
    client.call(p9.TLOPEN, 2, RDWR)
    assert client.call(p9.TLOCK, 1, 1, 0, 0, 10, 7, b"a") == (0,)
    assert client.call(p9.TLOCK, 2, 1, 0, 10, 10, 8, b"a") == (0,)
    client.call(p9.TCLUNK, 1)
    assert client.call(p9.TGETLOCK, 2, 1, 0, 0, 9, b"a") == (1, 10, 10, 8, b"a")
    assert client.call(p9.TGETLOCK, 2, 2, 0, 0, 9, b"a") == (1, 10, 10, 8, b"a")  # as Linux asks
    client.call(p9.TCLUNK, 2)
    assert tree.locks.count == 0


# -- what is no message, and bounds


def test_attributes_that_are_held_have_a_bound(client: SessionClient, folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    client.walk(0, 1, b"f")
    for number in range(100, 228):
        client.walk(1, number)
        client.call(p9.TXATTRCREATE, number, b"user.a", 65536, 0)
    client.walk(1, 2)
    with fails(errno.ENOMEM):
        client.call(p9.TXATTRCREATE, 2, b"user.a", 1, 0)
    with fails(errno.EINVAL):
        client.call(p9.TCLUNK, 100)
    client.call(p9.TXATTRCREATE, 2, b"user.a", 1, 0)


def test_groups_that_a_client_says(client: SessionClient) -> None:
    client.call(p9.TATTACH, 1, p9.NO_FID, b"groups=30,31,32", b"", 1234)
    caller = client.session.fid(1).caller
    assert (caller.uid, caller.gid, caller.groups) == (1234, 30, (31, 32))
    for name in (b"groups=", b"groups=-1", b"groups=4294967295", b"groups=1,99999999999", b"groups=x"):
        with fails(errno.EPERM):
            client.call(p9.TATTACH, 2, p9.NO_FID, name, b"", 1234)


def test_messages_that_are_none(client: SessionClient) -> None:
    handle = client.session.handle
    assert handle(b"", None, None) == b""
    assert handle(b"\x07\0\0\0\x78\0", None, None) == b""
    for message, code in (
        (p9.pack(p9.TCLUNK, 5, 0)[:-1], errno.EPROTO),
        (p9.pack(p9.TCLUNK, 5, 0) + b"x", errno.EPROTO),
        (b"\x08\0\0\0" + p9.pack(p9.TCLUNK, 5, 0)[4:], errno.EPROTO),
        (struct.pack("<IBH", 7, 255, 5), errno.EOPNOTSUPP),
        (struct.pack("<IBH", 7, 6, 5), errno.EOPNOTSUPP),
        (struct.pack("<IBH", 7, 107, 5), errno.EOPNOTSUPP),
        (p9.pack(p9.TWALK + 1, 5, []), errno.EOPNOTSUPP),
        (p9.pack(p9.TWRITE, 5, 0, 0, b"abc")[:-1], errno.EPROTO),
    ):
        assert handle(message, None, None) == p9.pack(p9.RLERROR, 5, code)
    assert handle(p9.pack(p9.TFLUSH, 5, 77), None, None) == p9.pack(p9.RFLUSH, 5)


def test_fids_have_a_bound(tree: Tree) -> None:
    client = SessionClient(Session(tree, most_fids=100))
    client.attach()
    for number in range(1, 100):
        client.walk(0, number)
    with fails(errno.ENFILE):
        client.walk(0, 100)
    client.call(p9.TCLUNK, 50)
    client.walk(0, 100)


def test_fids_of_all_sessions_of_a_server_have_a_bound(tree: Tree) -> None:
    budget = FidBudget(10)
    clients = [SessionClient(Session(tree, budget=budget)) for _ in range(2)]
    for client in clients:
        client.attach()
    for number in range(1, 9):
        clients[number % 2].walk(0, number)
    for client in clients:
        with fails(errno.ENFILE):
            client.walk(0, 9)
    clients[0].session.close()
    assert budget.left == 5
    clients[1].walk(0, 9)
    clients[1].session.close()
    clients[1].session.close()
    assert budget.left == 10


def test_attributes_of_all_sessions_of_a_server_have_a_bound(tree: Tree, folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    budget = FidBudget(100, attributes=1000)
    clients = [SessionClient(Session(tree, budget=budget)) for _ in range(2)]
    for client in clients:
        client.attach()
        client.walk(0, 1, b"f")
        client.walk(1, 2)
    clients[0].call(p9.TXATTRCREATE, 1, b"user.a", 600, 0)
    with fails(errno.ENOMEM):
        clients[1].call(p9.TXATTRCREATE, 1, b"user.a", 401, 0)
    clients[1].call(p9.TXATTRCREATE, 1, b"user.a", 400, 0)
    assert budget.attributes == 0
    with fails(errno.EINVAL):  # not all of it has come
        clients[0].call(p9.TCLUNK, 1)
    assert budget.attributes == 600
    clients[1].session.close()
    assert budget.attributes == 1000


def test_read_only_share(folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    with Tree(folder, TreeOptions(readonly=True)) as tree:
        client = SessionClient(Session(tree))
        client.attach()
        client.walk(0, 1, b"f")
        with fails(errno.EROFS):
            client.call(p9.TLOPEN, 1, RDWR)
        with fails(errno.EROFS):
            client.call(p9.TMKDIR, 0, b"d", 0o755, 0)
        client.call(p9.TLOPEN, 1, 0)
        assert client.call(p9.TREAD, 1, 0, 1) == (b"x",)


class MemoryPayload:
    """A run of bytes, as a driver's buffer."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.length = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def fill_from(self, backing: Backing, position: int, offset: int, length: int) -> None:
        backing.read_into(position, memoryview(self.data)[offset : offset + length])

    def drain_to(self, backing: Backing, position: int, offset: int, length: int) -> None:
        backing.write_from(position, memoryview(self.data)[offset : offset + length])


def test_data_of_reads_and_writes_go_straight_to_payloads(client: SessionClient, folder: Path) -> None:
    client.walk(0, 1)
    client.call(p9.TLCREATE, 1, b"f", RDWR, 0o600, 0)
    handle = client.session.handle
    whole = p9.pack(p9.TWRITE, 3, 1, 0, b"some bytes")
    source, target = MemoryPayload(bytearray(whole)), MemoryPayload(bytearray(15))
    assert handle(whole[:23], source, target) == p9.pack(p9.TWRITE + 1, 3, 10)
    assert handle(p9.pack(p9.TREAD, 4, 1, 0, 100), source, target) == struct.pack("<IBHI", 15, 117, 4, 4)
    assert target.data == bytes(11) + b"some"
    # behind the end of the file: the size is what there was
    assert handle(p9.pack(p9.TREAD, 4, 1, 8, 100), source, target)[:4] == b"\x0d\0\0\0"
    assert target.data[11:13] == b"es"
    short = MemoryPayload(bytearray(whole[:-1]))
    assert handle(whole[:23], short, target) == p9.pack(p9.RLERROR, 3, errno.EPROTO)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_bytes_have_an_answer_of_the_protocol(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    with Tree(tmp_path_factory.mktemp("share")) as tree:
        client = SessionClient(Session(tree, most_fids=8))
        client.attach(msize=4096)
        client.walk(0, 1)
        client.call(p9.TLCREATE, 1, b"f", RDWR, 0o600, 0)
        for _ in range(data.draw(st.integers(1, 8))):
            message = data.draw(messages())
            answer = client.session.handle(message, None, None)
            if len(message) < 7:
                assert answer == b""
                continue
            kind, tag = p9.head(answer)
            assert tag == int.from_bytes(message[5:7], "little")
            assert kind in (p9.RLERROR, message[4] + 1)
            assert int.from_bytes(answer[:4], "little") == len(answer) <= 4096
            p9.unpack(kind, answer)
        assert len(client.session.fids) <= 8
        client.session.close()
        assert not client.session.fids


small = st.integers(0, 3) | st.sampled_from([0xFFFF_FFFF, 1 << 31])
fields = {
    "B": st.integers(0, 3) | st.integers(0, 255),
    "H": st.integers(0, 0xFFFF),
    "I": small | st.integers(0, 0xFFFF_FFFF),
    "Q": small | st.integers(0, (1 << 64) - 1),
    "s": st.sampled_from([b"f", b"g", b"d", b".", b"..", b"", b"9P2000.L", b"user.x", b"x" * 300])
    | st.binary(max_size=9),
    "d": st.binary(max_size=40),
    "q": st.just((0, 0, 0)),
    "N": st.lists(st.sampled_from([b"f", b"g", b"d", b"..", b"a/b"]), max_size=18),
    "L": st.just([]),
}  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Good ones, cut ones, changed ones, and noise."""
    kind = draw(st.sampled_from([kind for kind in p9.MESSAGES if not kind & 1 or draw(st.integers(0, 9)) == 0]))
    row = p9.MESSAGES[kind]
    message = bytearray(p9.pack(kind, draw(st.integers(0, 0xFFFF)), *(draw(fields[code]) for _, code in row.fields)))
    form = draw(st.integers(0, 9))
    if form == 0:
        return draw(st.binary(max_size=60))
    if form == 1:
        return bytes(message[: draw(st.integers(0, len(message)))])
    if form == 2:
        message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    return bytes(message)
