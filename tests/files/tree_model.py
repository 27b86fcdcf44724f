"""Random file calls of three users, made on a share's tree and, by processes of theirs, on a real directory beside it.

Run as root, with the number of examples: `tree_model.py 100`. What a call gives, and what is there in the end, has to
be the same. Symbolic links are made and removed; where a path would lead through one, which is for the client's kernel
to follow and not for a tree, it leads nowhere (a link to itself).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from powervio.files.identity import Caller
from powervio.files.tree import Node, Set, Tree, TreeOptions
from powervio.files.tree_open import OpenFile

_ROOT = Path(__file__).resolve().parents[2]
_LETTERS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
}
CALLERS = {"root": Caller(0, 0), "alice": Caller(10001, 10001, (10003,)), "bob": Caller(10002, 10002)}

NAMES = st.sampled_from(["a", "b", "c", "n" * 255, "n" * 256])
PATHS = st.one_of(NAMES, st.tuples(NAMES, NAMES).map("/".join), st.tuples(NAMES, NAMES, NAMES).map("/".join))
MODES = st.sampled_from(["0755", "0700", "0644", "0600", "0000", "0777", "1777", "2775", "4755", "0066"])
FLAGS = st.sampled_from(
    [
        "O_RDONLY",
        "O_WRONLY",
        "O_RDWR",
        "O_RDWR|O_TRUNC",
        "O_RDWR|O_CREAT",
        "O_WRONLY|O_CREAT|O_EXCL",
        "O_RDONLY|O_CREAT|O_TRUNC",
        "O_WRONLY|O_APPEND",
        "O_RDONLY|O_DIRECTORY",
    ]
)
SLOTS = st.sampled_from(["1", "2", "3"])
IDS = st.sampled_from(["0", "10001", "10002", "10003", "-1"])
NUMBERS = st.sampled_from(["0", "1", "3", "4095", "100000"])
TEXTS = st.sampled_from(["x", "text", "t" * 5000])
TIMES = st.sampled_from(["now", "omit", "0", "1234567890123456789", "-5000000000"])
ATTRIBUTES = st.sampled_from(["user.a", "user.b", "trusted.a", "nonsense"])


def calls(name: str, *arguments: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.tuples(st.just(name), *arguments)


CALLS = st.one_of(
    calls("mkdir", PATHS, MODES),
    calls("mkdir", NAMES, st.just("0777")),
    calls("create", PATHS, MODES),
    calls("open", PATHS, FLAGS, MODES),
    calls("openas", SLOTS, PATHS, FLAGS, MODES),
    calls("fread", SLOTS, st.just("9"), NUMBERS),
    calls("fwrite", SLOTS, TEXTS, NUMBERS),
    calls("fstat", SLOTS, st.just("type,mode,nlink,uid,gid")),
    calls("ftruncate", SLOTS, NUMBERS),
    calls("close", SLOTS),
    calls("unlink", PATHS),
    calls("rmdir", PATHS),
    calls("rename", PATHS, PATHS),
    calls("renameat2", PATHS, PATHS, st.sampled_from(["NOREPLACE", "EXCHANGE"])),
    calls("link", PATHS, PATHS),
    calls("symlink", st.just("x"), PATHS),
    calls("mknod", PATHS, st.sampled_from(["p", "f"]), MODES),
    calls("chmod", PATHS, MODES),
    calls("chown", PATHS, IDS, IDS),
    calls("truncate", PATHS, NUMBERS),
    calls("utime", PATHS, TIMES, TIMES),
    calls("access", PATHS, st.sampled_from(["r", "w", "x", "rwx", "f"])),
    calls("setx", PATHS, ATTRIBUTES, st.sampled_from(["one", "two"]), st.sampled_from(["any", "create", "replace"])),
    calls("getx", PATHS, ATTRIBUTES),
    calls("rmx", PATHS, ATTRIBUTES),
    calls("ls", PATHS),
    calls("readlink", PATHS),
)
STEPS = st.lists(st.tuples(st.sampled_from(["root", "alice", "alice", "bob"]), CALLS), min_size=5, max_size=60)


class TreeSide:
    """The calls of `posix_actor` as calls of a tree."""

    def __init__(self, tree: Tree) -> None:
        self._root = tree.root()
        self._opened: dict[tuple[str, str], OpenFile] = {}

    def call(self, actor: str, name: str, *arguments: str) -> str:
        self._actor, self._caller = actor, CALLERS[actor]
        try:
            value = getattr(self, name)(*arguments)
        except KeyError:
            return "KeyError"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return f"= {value}" if isinstance(value, str) else "ok"

    def _walk(self, parts: list[str]) -> Node:
        node = self._root.duplicate()
        for number, part in enumerate(parts):
            try:
                found = node.lookup(part.encode(), self._caller)
            finally:
                node.close()
            node = found
            if node.kind == stat.S_IFLNK and number < len(parts) - 1:
                node.close()
                raise OSError(errno.ELOOP, "a link to itself")
        return node

    def _node(self, path: str) -> Node:
        return self._walk(path.split("/"))

    def _place(self, path: str) -> tuple[Node, bytes]:
        *parts, name = path.split("/")
        node = self._walk([*parts])
        if node.kind == stat.S_IFLNK:
            raise OSError(errno.ELOOP, "a link to itself")
        return node, name.encode()

    def _flags(self, text: str) -> int:
        flags = 0
        for name in text.split("|"):
            flags |= getattr(os, name)
        return flags

    def _open(self, path: str, text: str, mode: str) -> OpenFile:
        flags = self._flags(text)
        if flags & os.O_CREAT:
            node, name = self._place(path)
            return node.create(name, flags, int(mode, 8), self._caller)[1]
        return self._node(path).open(flags, self._caller)

    def mkdir(self, path: str, mode: str) -> None:
        node, name = self._place(path)
        node.mkdir(name, int(mode, 8), self._caller)

    def create(self, path: str, mode: str) -> None:
        self._open(path, "O_WRONLY|O_CREAT|O_EXCL", mode).close()

    def open(self, path: str, flags: str, mode: str) -> None:
        self._open(path, flags, mode).close()

    def openas(self, slot: str, path: str, flags: str, mode: str) -> None:
        opened = self._open(path, flags, mode)
        if (self._actor, slot) in self._opened:
            self.close(slot)
        self._opened[self._actor, slot] = opened

    def fread(self, slot: str, count: str, offset: str) -> str:
        buffer = bytearray(int(count))
        size = self._opened[self._actor, slot].pread(buffer, int(offset))
        return buffer[:size].decode() or "-"

    def fwrite(self, slot: str, text: str, offset: str) -> str:
        return str(self._opened[self._actor, slot].pwrite(text.encode(), int(offset)))

    def fstat(self, slot: str, _: str) -> str:
        facts = self._opened[self._actor, slot].stat()
        kind = _LETTERS[facts.kind]
        return f"{kind},{stat.S_IMODE(facts.mode):04o},{facts.nlink},{facts.uid},{facts.gid}"

    def ftruncate(self, slot: str, size: str) -> None:
        self._opened[self._actor, slot].truncate(int(size))

    def close(self, slot: str) -> None:
        self._opened.pop((self._actor, slot)).close()

    def unlink(self, path: str) -> None:
        node, name = self._place(path)
        node.unlink(name, False, self._caller)

    def rmdir(self, path: str) -> None:
        node, name = self._place(path)
        node.unlink(name, True, self._caller)

    def rename(self, one: str, other: str, flags: int = 0) -> None:
        node, name = self._place(one)
        node.lookup(b".", self._caller).close()  # who resolves paths looks first whether the one can be searched
        node.access(os.X_OK, self._caller)
        new_node, new_name = self._place(other)
        node.rename(name, new_node, new_name, self._caller, flags)

    def renameat2(self, one: str, other: str, flags: str) -> None:
        self.rename(one, other, {"NOREPLACE": 1, "EXCHANGE": 2}[flags])

    def link(self, one: str, other: str) -> None:
        node = self._node(one)
        new_node, new_name = self._place(other)
        new_node.link(node, new_name, self._caller)

    def symlink(self, target: str, path: str) -> None:
        node, name = self._place(path)
        node.symlink(name, path.encode(), self._caller)

    def mknod(self, path: str, kind: str, mode: str) -> None:
        node, name = self._place(path)
        node.mknod(name, {"p": stat.S_IFIFO, "f": stat.S_IFREG}[kind] | int(mode, 8), 0, self._caller)

    def _target(self, path: str) -> Node:
        node = self._node(path)
        if node.kind == stat.S_IFLNK:
            raise OSError(errno.ELOOP, "a link to itself")
        return node

    def chmod(self, path: str, mode: str) -> None:
        self._target(path).setattr(Set.MODE, self._caller, mode=int(mode, 8))

    def chown(self, path: str, uid: str, gid: str) -> None:
        valid = (Set.UID if uid != "-1" else 0) | (Set.GID if gid != "-1" else 0)
        node = self._node(path)
        if valid:
            node.setattr(valid, self._caller, uid=max(0, int(uid)), gid=max(0, int(gid)))

    def truncate(self, path: str, size: str) -> None:
        self._target(path).setattr(Set.SIZE, self._caller, size=int(size))

    def utime(self, path: str, atime: str, mtime: str) -> None:
        valid = 0
        times: list[tuple[int, int] | None] = []
        for bit, when in ((Set.ATIME, atime), (Set.MTIME, mtime)):
            valid |= 0 if when == "omit" else bit
            times.append(None if when in ("now", "omit") else divmod(int(when), 1_000_000_000))
        if valid:  # Linux looks for nothing then
            node = self._node(path)
            node.setattr(valid, self._caller, atime=times[0], mtime=times[1])

    def access(self, path: str, wanted: str) -> None:
        mode = sum({"r": 4, "w": 2, "x": 1, "f": 0}[letter] for letter in wanted)
        self._target(path).access(mode, self._caller)

    def setx(self, path: str, name: str, value: str, flag: str) -> None:
        flags = {"any": 0, "create": os.XATTR_CREATE, "replace": os.XATTR_REPLACE}[flag]
        self._node(path).setxattr(name.encode(), value.encode(), flags, self._caller)

    def getx(self, path: str, name: str) -> str:
        return self._node(path).getxattr(name.encode(), self._caller).decode()

    def rmx(self, path: str, name: str) -> None:
        self._node(path).removexattr(name.encode(), self._caller)

    def ls(self, path: str) -> str:
        directory = self._target(path).open(os.O_RDONLY | os.O_DIRECTORY, self._caller)
        names: list[str] = []
        offset = 0
        while entries := directory.readdir(offset, 2):
            offset = entries[-1].next_offset
            names += [entry.name.decode() for entry in entries]
        directory.close()
        return ",".join(sorted(name for name in names if name not in (".", ".."))) or "-"

    def readlink(self, path: str) -> None:
        self._node(path).readlink()


def contents(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that is there; not what differs by time or place."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        text = path.read_bytes() if stat.S_ISREG(facts.st_mode) else b""
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        found[str(path.relative_to(folder))] = (
            facts.st_mode, facts.st_nlink, facts.st_uid, facts.st_gid, text, attributes,
        )  # fmt: skip
    return found


def play(actors: Callable[..., str], place: Path, steps: list[tuple[str, tuple[str, ...]]]) -> None:
    """Make the calls on both sides."""
    case, twin = place / "twin/case", place / "share"
    for folder in (case, twin):
        folder.mkdir()
        folder.chmod(0o777)
    for actor in CALLERS:
        actors(actor, "case", "case")
        actors(actor, "umask", "0")
    try:
        with Tree(twin, TreeOptions(max_held=6)) as tree:
            side = TreeSide(tree)
            for actor, call in steps:
                if call[0] == "symlink":
                    call = ("symlink", call[2].rsplit("/", 1)[-1], call[2])
                if call[0] in ("open", "openas"):
                    call = (*call[:-2], call[-2] + "|O_NOFOLLOW|O_NONBLOCK", call[-1])
                expected, result = actors(actor, *call), side.call(actor, *call)
                if call[0] in ("open", "openas", "create", "truncate") and expected in ("ok", "ENXIO", "EACCES"):
                    # a FIFO, which a tree does not open, and whose permissions it does not look at
                    expected = result if result == "ENXIO" else expected
                if call[0] == "readlink" and expected.startswith("= "):
                    expected = "ok"
                if expected.startswith("KeyError"):
                    expected = "KeyError"
                assert result == expected, f"{actor} {call}: {result}, not {expected}"
            assert tree.open_count == len(side._opened)
        assert contents(twin) == contents(case)
    finally:
        for actor in CALLERS:
            actors(actor, "leave")
        for folder in (case, twin):
            shutil.rmtree(folder)


def main(examples: int) -> None:
    with tempfile.TemporaryDirectory(prefix="powervio-model-") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "twin").mkdir(mode=0o755)
        with Actors(place / "twin") as actors:
            check = given(STEPS)(lambda steps: play(actors.call, place, steps))
            settings(max_examples=examples, deadline=None, database=None, print_blob=True)(check)()


if __name__ == "__main__":
    sys.path.insert(0, str(_ROOT))
    from tests.files.posix_suite import Actors

    main(int(sys.argv[1]))
