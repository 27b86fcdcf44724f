"""A share on a real directory: what each call does, and what it does not let through."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from powervio.errors import LocalError
from powervio.files import calls, handles
from powervio.files.identity import Caller
from powervio.files.locks import READ, UNLOCK, WRITE, LockOwner
from powervio.files.tree import Node, Rename, Set, Tree, TreeOptions
from powervio.memory.abstract import Backing

from .posix_suite import ROOT

pytestmark = pytest.mark.dual
ME = Caller(os.geteuid(), os.getegid())


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Node]:
    folder = tmp_path / "share"
    folder.mkdir()
    with Tree(folder) as tree:
        yield tree.root()


def fails(code: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == code)


def test_create_write_read(share: Node) -> None:
    node, opened = share.create(b"name", os.O_RDWR, 0o640, ME)
    assert opened.pwrite(b"some bytes", 3) == 10
    data = bytearray(20)
    assert opened.pread(data, 0) == 13
    assert data[:13] == b"\0\0\0some bytes"
    assert node.stat().size == 13
    assert node.stat().mode == 0o100640


def test_open_file_goes_on_after_unlink_and_rename(share: Node) -> None:
    node, opened = share.create(b"a", os.O_RDWR, 0o600, ME)
    share.rename(b"a", share, b"b", ME)
    share.unlink(b"b", False, ME)
    assert opened.stat().nlink == 0
    assert node.stat().nlink == 0
    opened.pwrite(b"x", 0)
    opened.truncate(5)
    assert opened.stat().size == 5


def test_parent_of_root_is_root(share: Node) -> None:
    assert share.lookup(b"..", ME).path == share.path
    below = share.mkdir(b"d", 0o755, ME)
    assert below.lookup(b"..", ME).path == share.path


def test_directory_that_was_moved_out_has_no_parent(share: Node, tmp_path: Path) -> None:
    below = share.mkdir(b"d", 0o755, ME)
    os.rename(tmp_path / "share/d", tmp_path / "out")
    with fails(errno.ESTALE):
        below.lookup(b"..", ME)


@pytest.mark.parametrize(
    ("name", "code"),
    [(b"", errno.ENOENT), (b"a/b", errno.EINVAL), (b"a\0b", errno.EINVAL), (b"a" * 256, errno.ENAMETOOLONG)],
)
def test_names(share: Node, name: bytes, code: int) -> None:
    share.mkdir(b"x", 0o755, ME)
    with fails(code):
        share.lookup(name, ME)
    with fails(code):
        share.mkdir(name, 0o755, ME)
    with fails(code):
        share.rename(b"x", share, name, ME)


def test_symbolic_link_is_never_followed(share: Node, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    link = share.symlink(b"link", os.fsencode(tmp_path / "secret"), ME)
    assert link.readlink() == os.fsencode(tmp_path / "secret")
    with fails(errno.ELOOP):
        link.open(os.O_RDONLY, ME)
    with fails(errno.ELOOP):
        share.create(b"link", os.O_RDONLY, 0o600, ME)
    with fails(errno.ENOTDIR):
        link.lookup(b"x", ME)


def test_fifo_is_not_opened(share: Node) -> None:
    fifo = share.mknod(b"fifo", 0o010644, 0, ME)
    with fails(errno.ENXIO):
        fifo.open(os.O_RDONLY, ME)
    with fails(errno.ENXIO):
        share.create(b"fifo", os.O_RDONLY, 0o600, ME)


def test_umask_is_the_clients(share: Node) -> None:
    before = os.umask(0o077)
    try:
        assert share.mkdir(b"d", 0o1777, ME).stat().mode & 0o7777 == 0o1777
        assert share.create(b"f", os.O_RDWR, 0o666, ME)[0].stat().mode & 0o7777 == 0o666
    finally:
        assert os.umask(before) == 0o077


def test_rename_flags(share: Node) -> None:
    one = share.mkdir(b"one", 0o755, ME)
    share.mkdir(b"two", 0o755, ME)
    with fails(errno.EEXIST):
        share.rename(b"one", share, b"two", ME, Rename.NOREPLACE)
    share.rename(b"one", share, b"two", ME, Rename.EXCHANGE)
    assert share.lookup(b"two", ME).path == one.path


def test_readdir_goes_on_where_it_ended_while_names_go(share: Node) -> None:
    for number in range(100):
        share.mkdir(b"%d" % number, 0o755, ME)
    directory = share.open(os.O_RDONLY | os.O_DIRECTORY, ME)
    seen: list[bytes] = []
    offset = 0
    while entries := directory.readdir(offset, 7):
        seen += [entry.name for entry in entries]
        offset = entries[-1].next_offset
        for entry in entries:
            if entry.name not in (b".", b".."):
                share.unlink(entry.name, True, ME)
    assert sorted(seen) == sorted([b".", b"..", *(b"%d" % number for number in range(100))])


def test_setattr(share: Node) -> None:
    node, opened = share.create(b"f", os.O_WRONLY, 0o400, ME)
    node.setattr(Set.SIZE, ME, size=7, opened=opened)
    node.setattr(Set.MODE | Set.ATIME | Set.MTIME, ME, mode=0o444, atime=(5, 6), mtime=(7, 8))
    facts = node.stat()
    assert (facts.size, facts.mode & 0o777, facts.atime, facts.mtime) == (7, 0o444, (5, 6), (7, 8))


def test_readonly_share(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("text")
    with Tree(tmp_path, TreeOptions(readonly=True)) as tree:
        root = tree.root()
        node = root.lookup(b"f", ME)
        data = bytearray(4)
        assert node.open(os.O_RDONLY, ME).pread(data, 0) == 4
        for change in (
            lambda: node.open(os.O_RDWR, ME),
            lambda: node.setattr(Set.MODE, ME, mode=0),
            lambda: node.setxattr(b"user.a", b"", 0, ME),
            lambda: root.mkdir(b"d", 0o755, ME),
            lambda: root.unlink(b"f", False, ME),
            lambda: root.rename(b"f", root, b"g", ME),
            lambda: root.link(node, b"g", ME),
            lambda: root.create(b"g", os.O_RDONLY, 0o600, ME),
            lambda: node.access(os.W_OK, ME),
        ):
            with fails(errno.EROFS):
                change()
        with fails(errno.EEXIST):
            root.mkdir(b"f", 0o755, ME)


def test_descriptors_are_bounded_and_files_are_found_again(tmp_path: Path) -> None:
    for number in range(64):
        (tmp_path / str(number)).write_text(str(number))
    with Tree(tmp_path, TreeOptions(max_held=8)) as tree:
        root = tree.root()
        nodes = [root.lookup(b"%d" % number, ME) for number in range(64)]
        assert len(tree.cache) <= 9
        (tmp_path / "5").rename(tmp_path / "renamed")
        (tmp_path / "6").unlink()
        for number, node in enumerate(nodes):
            if number == 6:
                with fails(errno.ESTALE):
                    node.stat()
                continue
            data = bytearray(2)
            opened = node.open(os.O_RDONLY, ME)
            size = opened.pread(data, 0)
            assert data[:size] == b"%d" % number
        assert len(tree.cache) <= 9
        assert tree.cache.reopened >= 50


def test_file_that_two_open_by_handle_at_a_time_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, the other comes while the first is about to; compiled, `test_threads_that_open_by_handle` has it."""
    for number in range(16):
        (tmp_path / str(number)).touch()
    with Tree(tmp_path, TreeOptions(max_held=4)) as tree:
        root = tree.root()
        nodes = [root.lookup(b"%d" % number, ME) for number in range(16)]
        others: list[int] = []
        before = len(os.listdir("/proc/self/fd"))

        def open_handle(mount: int, handle: memoryview, flags: int) -> int:
            fd = calls.open_handle(mount, handle, flags)
            if not others:
                others.append(fd)
                assert nodes[0].stat().ino == nodes[0].ino
            return fd

        monkeypatch.setattr(handles, "open_handle", open_handle, raising=False)
        assert nodes[0].stat().ino == nodes[0].ino
        assert tree.cache.reopened == 1
        assert len(os.listdir("/proc/self/fd")) == before
        for node in nodes:
            node.close()
        assert len(tree.cache) == 1


def test_threads_that_open_by_handle(tmp_path: Path) -> None:
    for number in range(16):
        (tmp_path / str(number)).write_text(str(number))
    before = len(os.listdir("/proc/self/fd"))
    with Tree(tmp_path, TreeOptions(max_held=2)) as tree:
        root = tree.root()
        nodes = [root.lookup(b"%d" % number, ME) for number in range(16)]
        start = threading.Barrier(4)
        wrong: list[object] = []

        def work() -> None:
            start.wait()
            for step in range(400):
                node = nodes[step % 16]
                if node.stat().ino != node.ino:
                    wrong.append(node)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert tree.cache.reopened >= 16
        for node in nodes:
            node.close()
        assert len(tree.cache) == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_opened_by_handle_after_the_end(tmp_path: Path) -> None:
    """The number of the share's descriptor may be another's by then."""
    for number in range(8):
        (tmp_path / str(number)).touch()
    with Tree(tmp_path, TreeOptions(max_held=2)) as tree:
        root = tree.root()
        nodes = [root.lookup(b"%d" % number, ME) for number in range(8)]
    other = os.open(tmp_path, os.O_RDONLY)
    for node in nodes:
        with fails(errno.EBADF):
            node.stat()
    os.close(other)
    assert tree.cache.reopened == 0


def test_name_of_another_file_with_the_number_of_one_that_is_gone_is_not_taken_for_its(tmp_path: Path) -> None:
    """A file that is held by no descriptor keeps its number from nobody: ext4 gives it away at once."""
    for number in range(16):
        (tmp_path / str(number)).touch()
    with Tree(tmp_path, TreeOptions(max_held=4)) as tree:
        root = tree.root()
        nodes = [root.lookup(b"%d" % number, ME) for number in range(16)]
        assert root.has(b"3", nodes[3], ME)
        assert not root.has(b"4", nodes[3], ME)
        assert not root.has(b"none", nodes[3], ME)
        for number, node in enumerate(nodes):
            if number != 3:
                node.stat()
        evicted = tree.cache.evicted
        (tmp_path / "3").unlink()
        for _ in range(100):
            (tmp_path / "3").touch()
            if (tmp_path / "3").stat().st_ino == nodes[3].ino:
                break
            (tmp_path / "3").rename(tmp_path / "other")
        else:
            (tmp_path / "other").rename(tmp_path / "3")
        with fails(errno.ESTALE):
            root.has(b"3", nodes[3], ME)
        assert tree.cache.evicted >= evicted > 0


def test_locks(share: Node) -> None:
    _, opened = share.create(b"f", os.O_RDWR, 0o600, ME)
    one, two = LockOwner("client", 1), LockOwner("client", 2)
    assert opened.lock(WRITE, 0, 10, one)
    assert not opened.lock(READ, 9, 1, two)
    assert opened.lock(READ, 10, 0, two)
    other = opened.getlock(WRITE, 0, 0, two)
    assert other is not None
    assert (other.kind, other.start, other.length, other.owner) == (WRITE, 0, 10, one)
    assert opened.lock(UNLOCK, 0, 0, one)
    assert opened.lock(READ, 9, 1, two)


class TwoPieces:
    """A payload whose memory is in two places."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        self.pieces = [memoryview(bytearray(b"?" * size)) for size in sizes]
        self.length = sum(sizes)

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(self.pieces)[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        raise NotImplementedError

    def fill_from(self, backing: Backing, position: int, offset: int, length: int) -> None:
        backing.read_vector(position, self.pieces)

    def drain_to(self, backing: Backing, position: int, offset: int, length: int) -> None:
        for piece in self.pieces:
            backing.write_from(position, piece)
            position += len(piece)


def test_payload_is_filled_as_far_as_the_file_goes(share: Node) -> None:
    _, opened = share.create(b"f", os.O_RDWR, 0o600, ME)
    opened.pwrite(b"0123456", 0)
    payload = TwoPieces((4, 8))
    assert opened.fill(payload, 0, 12, 0) == 7
    assert payload.read(0, 12) == b"0123456" + bytes(5)
    assert opened.fill(payload, 0, 12, 100) == 0
    assert opened.drain(payload, 0, 12, 0) == 12
    assert opened.stat().size == 12


def test_payload_and_a_file_that_is_not_open_for_that(share: Node) -> None:
    node, opened = share.create(b"f", os.O_WRONLY, 0o600, ME)
    with fails(errno.EBADF):
        opened.fill(TwoPieces((4, 4)), 0, 8, 0)
    with fails(errno.EBADF):
        node.open(os.O_RDONLY, ME).drain(TwoPieces((4, 4)), 0, 8, 0)
    with fails(errno.EINVAL):
        opened.drain(TwoPieces((4, 4)), 0, 8, (1 << 63) - 4)


def test_full_file_system_takes_what_it_can(memory_folder: Path) -> None:
    with small_file_system(memory_folder) as folder, Tree(folder) as tree:
        root = tree.root()
        _, opened = root.create(b"f", os.O_RDWR, 0o600, ME)
        data = bytes(1 << 20)
        assert opened.pwrite(data, 0) < len(data)
        with fails(errno.ENOSPC):
            opened.pwrite(data, 1 << 20)
        payload = TwoPieces((1 << 19, 1 << 19))
        with fails(errno.ENOSPC):
            opened.drain(payload, 0, 1 << 20, 1 << 20)
        opened.close()


@contextmanager
def small_file_system(place: Path) -> Iterator[Path]:
    subprocess.run([*ROOT, "mount", "-t", "tmpfs", "-o", "size=256k,mode=777", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run([*ROOT, "umount", "-l", str(place)], check=True)


def test_files_of_another_device_have_numbers_of_their_own(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with small_file_system(inner), Tree(tmp_path, TreeOptions(max_held=2)) as tree:
        root = tree.root()
        below = root.lookup(b"inner", ME)
        made = [below.mkdir(b"%d" % number, 0o755, ME) for number in range(8)]
        assert below.path >> 56 == 1
        assert len({root.path, below.path, *(node.path for node in made)}) == 10
        assert below.lookup(b"..", ME).path == root.path
        with fails(errno.EXDEV):
            root.rename(b"inner", below, b"x", ME)
        for number, node in enumerate(made):  # they are on another mount, and so stay open
            below.rename(b"%d" % number, below, b"new%d" % number, ME)
            assert node.stat().ino == node.ino
        for node in (*made, below):
            node.close()


def test_entries_of_the_root_say_nothing_of_what_is_above(share: Node) -> None:
    share.mkdir(b"d", 0o755, ME)
    entries = {entry.name: entry for entry in share.open(os.O_RDONLY, ME).readdir()}
    assert entries[b".."].path == entries[b"."].path == share.path
    assert entries[b"d"].kind == 4
    assert entries[b"d"].path == share.lookup(b"d", ME).path


def test_version_changes_with_every_change(share: Node) -> None:
    node, opened = share.create(b"f", os.O_RDWR, 0o600, ME)
    seen = set()
    for number in range(50):
        opened.pwrite(b"x", number)
        seen.add(node.stat().version)
    assert len(seen) == 50
    os.utime(opened.fd, (1, 1))
    time.sleep(0.05)
    assert node.stat().version == opened.stat().version == share.lookup(b"f", ME).version


def test_open_files_are_bounded(tmp_path: Path) -> None:
    with Tree(tmp_path, TreeOptions(max_open=2)) as tree:
        root = tree.root()
        opened = [root.open(os.O_RDONLY, ME) for _ in range(2)]
        with fails(errno.EMFILE):
            root.open(os.O_RDONLY, ME)
        with fails(errno.EMFILE):
            root.create(b"f", os.O_RDWR, 0o600, ME)
        opened[0].close()
        opened[0].close()
        root.create(b"f", os.O_RDWR, 0o600, ME)[1].close()


def test_process_without_descriptors_lets_go_of_some(tmp_path: Path) -> None:
    for number in range(64):
        (tmp_path / str(number)).write_text(str(number))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Tree(tmp_path, TreeOptions(max_held=1000)) as tree:
        root = tree.root()
        fd = os.open(tmp_path, os.O_RDONLY)
        os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 20, hard))
        try:
            nodes = [root.lookup(b"%d" % number, ME) for number in range(64)]
            for node in nodes:
                node.open(os.O_RDONLY, ME).close()
            root.create(b"new", os.O_RDWR, 0o600, ME)[1].close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert tree.cache.evicted > 0
        assert [node.stat().size for node in nodes] == [len(str(number)) for number in range(64)]


def test_nodes_end_with_their_last_reference(share: Node) -> None:
    node = share.mkdir(b"d", 0o755, ME)
    assert node.duplicate() is node
    node.close()
    node.stat()
    node.close()
    node.close()
    for use in (node.stat, node.duplicate, lambda: node.open(os.O_RDONLY, ME), lambda: node.lookup(b"x", ME)):
        with fails(errno.EBADF):
            use()


def test_closed_tree(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    root = tree.root()
    node, opened = root.create(b"f", os.O_RDWR, 0o600, ME)
    tree.close()
    tree.close()
    with fails(errno.EBADF):
        tree.root()
    for left in (root, node):
        with fails(errno.EBADF):
            left.stat()
        left.close()
    assert len(tree.cache) == 0
    assert opened.pwrite(b"x", 0) == 1
    opened.close()
    with fails(errno.EBADF):
        opened.pread(bytearray(1), 0)


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_what_cannot_be_shared(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="cannot be shared"):
        Tree(tmp_path / name)


def test_every_call_of_the_header_has_a_stand_in() -> None:
    declared = set(re.findall(r'(\w+) "fs_\w+"', Path(calls.__file__).with_suffix(".pxd").read_text()))
    header = set(re.findall(r"\bfs_(\w+)\(", Path(calls.__file__).with_suffix(".h").read_text()))
    assert declared
    assert declared <= set(dir(calls))
    assert declared <= header
