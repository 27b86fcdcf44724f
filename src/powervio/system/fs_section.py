"""`[[lpar.fs]]`: a folder of the host in a client partition, from its options to the device and to its mount."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeAlias

from msgspec import Meta, field

from powervio.attach.mount_p9 import MountOptions, P9Mount
from powervio.attach.p9_device import P9Device
from powervio.devices import p9 as device
from powervio.drivers.p9_channel import P9Driver
from powervio.drivers.p9_core import P9Core
from powervio.errors import LocalError
from powervio.files.identity import IdRange, checked
from powervio.files.sizes import MOST_FIDS
from powervio.files.tree import Tree, TreeOptions
from powervio.system.section import AdapterSection
from powervio.virtio import p9

Id = Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)]
Identity: TypeAlias = Literal["passthrough", "squash", "mapped"]
IDENTITIES: tuple[Identity, ...] = ("passthrough", "squash", "mapped")
CLIENT_MEMORY = 8 << 20
"""Bytes: slots and large buffers of `drivers/p9_channel`, and rings."""
SERVER_MEMORY = 384 * 1024


class ShareOptions(Protocol):
    """What is said of a share, wherever it is said."""

    dir: str
    readonly: bool
    identity: Identity
    squash_uid: int | None
    squash_gid: int | None
    translate_uid: Sequence[str]
    translate_gid: Sequence[str]
    fids: int


class Fs(AdapterSection):
    """`[[lpar.fs]]`: a folder of the host that the client mounts by a tag, with 9P (VirtFS). Several are several
    devices."""

    paths: ClassVar[tuple[str, ...]] = ("dir", "mount", "socket")
    """See `AdapterSection`."""

    dir: str
    """The folder, relative to the system file. Nothing outside of it can be reached, whatever links it has."""
    tag: Annotated[str, Meta(min_length=1, max_length=p9.MAX_TAG_BYTES)]
    """What the client calls it: in a guest `mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 TAG /mnt`."""
    readonly: bool = False
    """Whether nothing can be changed in it."""
    identity: Identity = "passthrough"
    """Who acts in the folder. "passthrough": users are whom they are in the client, which takes root (without it, all
    are the system's user). "squash": all are one user. "mapped": all are the system's user, and owner and mode
    are kept in an attribute of each file."""
    squash_uid: Id | None = None
    """With "squash", the user that all are; nobody if it is not given, or the system's user where that is not root."""
    squash_gid: Id | None = None
    """The same of the group."""
    translate_uid: list[str] = field(default_factory=list)
    """With "passthrough", ranges "CLIENT:HOST:COUNT" such as "0:100000:65536": users of the client from the first
    number on are those of the host from the second on; users in none are nobody."""
    translate_gid: list[str] = field(default_factory=list)
    """The same of groups."""
    fids: Annotated[int, Meta(ge=1, le=1 << 30)] = MOST_FIDS
    """How many files the client may have in hand at a time, open or by name, beyond which there is ENFILE. A million
    takes half a gigabyte."""
    mount: str | None = None
    """Where the client's mount appears on the host, a folder relative to the system file; it takes root. Without it the
    share is for the client library alone, or for a guest."""


@dataclass(frozen=True, slots=True)
class Share:
    """The same for one that is in no system file."""

    dir: str
    tag: str
    readonly: bool = False
    identity: Identity = "passthrough"
    squash_uid: int | None = None
    squash_gid: int | None = None
    translate_uid: Sequence[str] = ()
    translate_gid: Sequence[str] = ()
    fids: int = MOST_FIDS


def ranges(texts: Sequence[str]) -> list[IdRange]:
    """Rows of a translation, from CLIENT:HOST:COUNT each. Raises `LocalError`."""
    rows = []
    for text in texts:
        parts = text.split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise LocalError(f"{text!r}; expected CLIENT:HOST:COUNT")
        rows.append(IdRange(*map(int, parts)))
    return rows


def open_tree(declared: ShareOptions | Share) -> Tree:
    """The folder. Raises `LocalError`."""
    return Tree(
        declared.dir,
        TreeOptions(
            readonly=declared.readonly,
            identity=declared.identity,
            squash_uid=declared.squash_uid,
            squash_gid=declared.squash_gid,
            translate_uid=ranges(declared.translate_uid),
            translate_gid=ranges(declared.translate_gid),
        ),
    )


def make_device(declared: Any) -> device.P9Device:
    """The device. Raises `LocalError`."""
    from powervio.files.p9_session import Session

    tree = open_tree(declared)
    try:
        return device.P9Device(declared.tag, lambda: Session(tree, most_fids=declared.fids), close=tree.close)
    except BaseException:
        tree.close()
        raise


def problems(declared: Any) -> Iterator[str]:
    """What is wrong with the options, each as `option: what; what was expected`."""
    try:
        p9.check_tag(declared.tag)
    except LocalError as error:
        yield f"tag: {error}"
    if not os.path.isdir(declared.dir):
        yield f"dir: {declared.dir} is no folder"
    if declared.identity != "squash" and (declared.squash_uid is not None or declared.squash_gid is not None):
        yield 'identity: squash_uid and squash_gid are about "squash"'
    if declared.identity != "passthrough" and (declared.translate_uid or declared.translate_gid):
        yield 'identity: translate_uid and translate_gid are about "passthrough"'
    for option in ("translate_uid", "translate_gid"):
        try:
            checked(ranges(getattr(declared, option)))
        except LocalError as error:
            yield f"{option}: {error}"


def problems_of_section(declared: Any) -> list[str]:
    """The same of a section of a system file."""
    found = list(problems(declared))
    if declared.socket is not None:
        found.append("socket: programs use a share by its mount; expected mount")
    if declared.mount is not None and os.geteuid():
        found.append("mount: it takes root (CAP_SYS_ADMIN); without it the client library alone has the share")
    return found


def is_inside(path: str, folder: str) -> bool:
    """Whether an absolute path is a folder's, or is below it, by what it is called."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def make_driver(declared: Any) -> P9Driver:
    """The client's side: the driver, whose `client` is the link that a mount or the library stands on."""
    link = P9Device(P9Core(msize=P9Driver.most_bytes), name=declared.tag, soon=_soon)
    return link.driver


def _soon(call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(call)


def attach(declared: Any, driver: P9Driver) -> list[P9Mount]:
    """The mount."""
    link = driver.client
    assert isinstance(link, P9Device)
    if declared.mount is None:
        return []
    return [P9Mount(link, declared.mount, MountOptions(readonly=declared.readonly))]
