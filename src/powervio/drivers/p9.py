"""A client of a 9P2000.L share for programs: `await` what `os` would do, by paths below the share's root.

The channel is whoever made the `P9Core` has: a socket (`attach/p9_socket`), or a virtqueue (`p9_channel.P9Driver`).
Paths are `str` or `bytes`; symbolic links are followed within the share, an absolute one from its root. All errors are
`OSError` with Linux's errno. Everything runs in one event loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

from powervio.drivers import p9_files, p9_nodes
from powervio.drivers.p9_core import Running, Work
from powervio.drivers.p9_nodes import Attributes, Entry, Node, OpenFile
from powervio.drivers.p9_tree import P9Tree

Path: TypeAlias = str | bytes
MOST_LINKS = 40
"""Symbolic links on the way to one file; more are ELOOP."""
LISTING = 64 << 10
"""Bytes of a directory that are asked for at a time."""


class Stat(NamedTuple):
    """What stat(2) says; times are nanoseconds."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    """Units of 512 bytes."""
    atime: int
    mtime: int
    ctime: int
    version: int
    """qid.version: another one when the file was changed; 0 if the server has none."""


class Statfs(NamedTuple):
    """What statfs(2) says; blocks are units of `bsize` bytes."""

    kind: int
    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    fsid: int
    namelen: int


def _stat(attr: Attributes) -> Stat:
    return Stat(
        attr.qid[2],
        attr.mode,
        attr.nlink,
        attr.uid,
        attr.gid,
        attr.rdev,
        attr.size,
        attr.blocks,
        attr.atime * 1_000_000_000 + attr.atime_nsec,
        attr.mtime * 1_000_000_000 + attr.mtime_nsec,
        attr.ctime * 1_000_000_000 + attr.ctime_nsec,
        attr.qid[1],
    )


def _checked(name: bytes) -> bytes:
    """A name that a message can have; what else is wrong with it the server says."""
    if len(name) > 4096:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return name


class P9File:
    """An open file or directory."""

    def __init__(self, client: P9Client, file: OpenFile, way: list[Node]) -> None:
        self._client = client
        self._file: OpenFile | None = file
        self._way = way

    async def __aenter__(self) -> P9File:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _open(self) -> OpenFile:
        if self._file is None:
            raise OSError(errno.EBADF, "the file is closed")
        return self._file

    async def read(self, count: int, offset: int) -> bytes:
        """Up to `count` bytes from `offset`; fewer are there at the end of the file."""
        tree, file = self._client.tree, self._open

        def work() -> Work:
            return bytes((yield from tree.read(file, offset, count)))

        data: bytes = await self._client.run(work())
        return data

    async def write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write all of `data`, which stay as they are until then, at `offset`."""
        count: int = await self._client.run(self._client.tree.write(self._open, offset, memoryview(data).cast("B")))
        return count

    async def stat(self) -> Stat:
        """Also of a file that has no name any more."""
        return _stat(await self._client.run(self._client.tree.getattr(self._open.node, self._client.uid, self._open)))

    async def truncate(self, size: int) -> None:
        """Give it a size in bytes."""
        work = self._client.tree.setattr(
            self._open.node, self._client.uid, p9_nodes.SET_SIZE, size=size, file=self._open
        )
        await self._client.run(work)

    async def fsync(self, *, data_only: bool = False) -> None:
        """Make what was written stable."""
        await self._client.run(self._client.tree.fsync(self._open, data_only=data_only))

    async def lock(self, kind: int, start: int = 0, length: int = 0, *, owner: int = 0, wait: bool = False) -> bool:
        """Take (LOCK_READ, LOCK_WRITE) or give back (LOCK_NONE) a range of bytes; a length of 0 is all behind it.

        Whether it was had. With `wait` it is asked for until it is.
        """
        end = start + length - 1 if length else p9_files.LAST_BYTE
        pause = 0.005
        while True:
            work = self._client.tree.lock(self._open, kind, start, end, owner, block=wait)
            if await self._client.run(work) == p9_files.LOCK_SUCCESS:
                return True
            if not wait:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.25)

    async def listdir(self) -> list[Entry]:
        """All entries of a directory but `.` and `..`."""
        found: list[Entry] = []
        offset = 0
        while part := await self._client.run(self._client.tree.readdir(self._open, offset, LISTING)):
            found += (entry for entry in part if entry.name not in (b".", b".."))
            if part[-1].offset == offset:
                raise OSError(errno.EIO, "the server's directory does not go on")
            offset = part[-1].offset
        return found

    def close(self) -> None:
        """Done with it; what was written is at the server already."""
        if self._file is not None:
            self._client.tree.close(self._file)
            self._file = None
            self._client.let_go(self._way)


class P9Client:
    """A share, as one user."""

    def __init__(self, tree: P9Tree, *, uid: int | None = None, gid: int | None = None) -> None:
        """The user and group of what is made; those of this process if not given."""
        self.tree = tree
        self.uid = os.geteuid() if uid is None else uid
        self.gid = os.getegid() if gid is None else gid

    async def run(self, work: Work) -> Any:
        """What a generator of `P9Tree` returns. When the waiting task is cancelled, the server is told (Tflush)."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(value: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        running = Running(work, done)
        try:
            return await future
        except asyncio.CancelledError:
            running.cancel()
            raise

    def let_go(self, way: list[Node]) -> None:
        """The nodes on a way are not needed by whom they were looked up for."""
        for node in reversed(way):
            node.lookups -= 1
            if node.lookups <= 0:
                self.tree.forget(node)

    # Paths

    def _find(self, path: Path, way: list[Node], *, follow: bool = True) -> Work:
        """The node of a path; what is met is put on the way."""
        names = [name for name in os.fsencode(path).split(b"/") if name and name != b"."]
        names.reverse()
        stack = [self.tree.root]
        links = 0
        while names:
            name = names.pop()
            if name == b"..":
                if len(stack) > 1:
                    stack.pop()
                continue
            node, attr = yield from self.tree.lookup(stack[-1], _checked(name), self.uid)
            node.lookups += 1
            way.append(node)
            if stat.S_ISLNK(attr.mode) and (names or follow):
                links += 1
                if links > MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = yield from self.tree.readlink(node, self.uid)
                if target.startswith(b"/"):
                    stack = stack[:1]
                names += [part for part in reversed(target.split(b"/")) if part and part != b"."]
                continue
            stack.append(node)
        return stack[-1]

    def _find_parent(self, path: Path, way: list[Node]) -> Work:
        """The node of the directory, and the last name."""
        above, _, name = os.fsencode(path).rstrip(b"/").rpartition(b"/")
        if not name or name in (b".", b".."):
            raise OSError(errno.EINVAL, f"{path!r} ends with no name")
        return (yield from self._find(above, way)), _checked(name)

    async def _with_way(self, work: Callable[[list[Node]], Work]) -> Any:
        way: list[Node] = []
        try:
            return await self.run(work(way))
        finally:
            self.let_go(way)

    def _at(self, path: Path, action: Callable[[Node], Work], *, follow: bool = True) -> Coroutine[Any, Any, Any]:
        def work(way: list[Node]) -> Work:
            node = yield from self._find(path, way, follow=follow)
            return (yield from action(node))

        return self._with_way(work)

    def _in(self, path: Path, action: Callable[[Node, bytes], Work]) -> Coroutine[Any, Any, Any]:
        def work(way: list[Node]) -> Work:
            parent, name = yield from self._find_parent(path, way)
            return (yield from action(parent, name))

        return self._with_way(work)

    async def stat(self, path: Path, *, follow: bool = True) -> Stat:
        """What a file is; with `follow` what a symbolic link leads to."""
        return _stat(await self._at(path, lambda node: self.tree.getattr(node, self.uid), follow=follow))

    async def open(self, path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> P9File:
        """Open a file or directory; flags are open(2)'s. The mode is used as it is, without a umask."""
        way: list[Node] = []

        def work() -> Work:
            if flags & os.O_CREAT:
                parent, name = yield from self._find_parent(path, way)
                try:
                    node, _, file = yield from self.tree.create(
                        parent, name, flags | os.O_EXCL, mode, self.uid, self.gid
                    )
                except OSError as error:
                    if error.errno != errno.EEXIST or flags & os.O_EXCL:
                        raise
                else:
                    node.lookups += 1
                    way.append(node)
                    return file
            node = yield from self._find(path, way, follow=not flags & os.O_NOFOLLOW)
            return (yield from self.tree.open(node, flags & ~(os.O_CREAT | os.O_EXCL), self.uid))

        try:
            return P9File(self, await self.run(work()), way)
        except BaseException:
            self.let_go(way)
            raise

    async def read(self, path: Path) -> bytes:
        """All of a file."""
        async with await self.open(path) as file:
            data = bytearray()
            while part := await file.read(self.tree.core.msize, len(data)):
                data += part
            return bytes(data)

    async def write(self, path: Path, data: bytes, mode: int = 0o666) -> None:
        """Make a file, or replace what is in one."""
        async with await self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as file:
            await file.write(data, 0)

    async def listdir(self, path: Path = b"") -> list[Entry]:
        """All entries of a directory but `.` and `..`."""
        async with await self.open(path, os.O_RDONLY | os.O_DIRECTORY) as file:
            return await file.listdir()

    async def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """Make a directory."""
        await self._in(path, lambda at, name: self.tree.mkdir(at, name, mode, self.uid, self.gid))

    async def mknod(self, path: Path, mode: int, device: int = 0) -> None:
        """Make a file of any type; `device` is of `os.makedev`."""
        major, minor = os.major(device), os.minor(device)
        await self._in(path, lambda at, name: self.tree.mknod(at, name, mode, major, minor, self.uid, self.gid))

    async def symlink(self, target: Path, path: Path) -> None:
        """Make a symbolic link to `target` at `path`."""
        to = os.fsencode(target)
        await self._in(path, lambda at, name: self.tree.symlink(at, name, to, self.uid, self.gid))

    async def readlink(self, path: Path) -> bytes:
        """What a symbolic link says."""
        target: bytes = await self._at(path, lambda node: self.tree.readlink(node, self.uid), follow=False)
        return target

    async def link(self, path: Path, new_path: Path) -> None:
        """Give a file one more name."""

        def work(way: list[Node]) -> Work:
            node = yield from self._find(path, way, follow=False)
            parent, name = yield from self._find_parent(new_path, way)
            yield from self.tree.link(node, parent, name, self.uid)

        await self._with_way(work)

    async def rename(self, path: Path, new_path: Path) -> None:
        """Give a file another name, which replaces what is there."""

        def work(way: list[Node]) -> Work:
            parent, name = yield from self._find_parent(path, way)
            new_parent, new_name = yield from self._find_parent(new_path, way)
            yield from self.tree.rename(parent, name, new_parent, new_name, self.uid)

        await self._with_way(work)

    async def unlink(self, path: Path) -> None:
        """Take the name of a file away."""
        await self._in(path, lambda at, name: self.tree.unlink(at, name, self.uid, directory=False))

    async def rmdir(self, path: Path) -> None:
        """Take an empty directory away."""
        await self._in(path, lambda at, name: self.tree.unlink(at, name, self.uid, directory=True))

    async def chmod(self, path: Path, mode: int) -> None:
        """Change permissions."""
        await self._at(path, lambda node: self.tree.setattr(node, self.uid, p9_nodes.SET_MODE, mode=mode))

    async def chown(self, path: Path, uid: int, gid: int, *, follow: bool = True) -> None:
        """Change owner and group; -1 leaves one as it is."""
        valid = (p9_nodes.SET_UID if uid >= 0 else 0) | (p9_nodes.SET_GID if gid >= 0 else 0)
        owner, group = max(uid, 0), max(gid, 0)
        await self._at(
            path, lambda node: self.tree.setattr(node, self.uid, valid, owner=owner, group=group), follow=follow
        )

    async def utime(self, path: Path, atime: int, mtime: int, *, follow: bool = True) -> None:
        """Set times, in nanoseconds."""
        valid = (
            p9_nodes.SET_ATIME | p9_nodes.SET_ATIME_GIVEN | p9_nodes.SET_MTIME | p9_nodes.SET_MTIME_GIVEN
        )  # fmt: skip
        at, mt = divmod(atime, 1_000_000_000), divmod(mtime, 1_000_000_000)
        await self._at(path, lambda node: self.tree.setattr(node, self.uid, valid, atime=at, mtime=mt), follow=follow)

    async def truncate(self, path: Path, size: int) -> None:
        """Give a file a size in bytes."""
        await self._at(path, lambda node: self.tree.setattr(node, self.uid, p9_nodes.SET_SIZE, size=size))

    async def statfs(self, path: Path = b"") -> Statfs:
        """What statfs(2) says of the file system under a path."""
        return Statfs._make(await self._at(path, lambda node: self.tree.statfs(node, self.uid)))

    async def getxattr(self, path: Path, name: bytes, *, follow: bool = True) -> bytes:
        """The value of an extended attribute."""
        value: bytes = await self._at(path, lambda node: self.tree.getxattr(node, name, self.uid), follow=follow)
        return value

    async def listxattr(self, path: Path, *, follow: bool = True) -> list[bytes]:
        """The names of extended attributes."""
        names: bytes = await self._at(path, lambda node: self.tree.getxattr(node, b"", self.uid), follow=follow)
        return names.split(b"\0")[:-1]

    async def setxattr(self, path: Path, name: bytes, value: bytes, flags: int = 0, *, follow: bool = True) -> None:
        """Set an extended attribute; flags are `os.XATTR_CREATE` and `os.XATTR_REPLACE`."""
        await self._at(path, lambda node: self.tree.setxattr(node, name, value, flags, self.uid), follow=follow)

    async def removexattr(self, path: Path, name: bytes, *, follow: bool = True) -> None:
        """Take an extended attribute away."""
        await self._at(path, lambda node: self.tree.removexattr(node, name, self.uid), follow=follow)
