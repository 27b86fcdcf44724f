"""What an `image` of a disk can be, and how it is opened as a `Backing`: the one place that knows all kinds.

- a path: a raw image or a block device (`image`), or with a format a qcow2, vmdk or vhdx image (`qemu_daemon`)
- `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`: an export of another NBD server (`nbd_backing`)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from powervio.errors import LocalError
from powervio.memory.abstract import Backing
from powervio.storage.image import open_image
from powervio.storage.nbd_backing import Address, NbdBacking
from powervio.storage.qemu_daemon import FORMATS, QemuDaemon

NBD_PORT = 10809
LOCK_WAIT = 3.0
"""Seconds that a predecessor which still has the image gets to end."""

_MAGIC = {
    "qcow2": (b"QFI\xfb",),
    "vmdk": (b"KDMV", b"COWD", b"# Disk DescriptorFile"),
    "vhdx": (b"vhdxfile",),
}
"""What an image of each format begins with."""


@dataclass(frozen=True, slots=True)
class NbdUri:
    """Where an NBD export is."""

    address: Address
    export: str


def is_uri(image: str) -> bool:
    """Whether an image is named by a URI rather than a path."""
    return "://" in image


def parse_uri(uri: str) -> NbdUri:
    """An `nbd:` URI (NetworkBlockDevice/nbd, doc/uri.md) without encryption. Raises `LocalError`."""
    parts = urlsplit(uri)
    export = unquote(parts.path.removeprefix("/"))
    query = parse_qs(parts.query)
    if parts.scheme == "nbd":
        try:
            port = parts.port
        except ValueError:
            raise LocalError(f"{uri}: the port is no number from 0 to 65535") from None
        if not parts.hostname or query:
            raise LocalError(f"{uri}: expected nbd://HOST[:PORT]/EXPORT")
        return NbdUri((parts.hostname, NBD_PORT if port is None else port), export)
    if parts.scheme == "nbd+unix":
        sockets = query.pop("socket", [])
        if parts.netloc or len(sockets) != 1 or query:
            raise LocalError(f"{uri}: expected nbd+unix:///EXPORT?socket=PATH")
        return NbdUri(sockets[0], export)
    raise LocalError(f"{uri}: expected a URI that begins with nbd:// or nbd+unix://, or a path")


def format_of(image: str) -> str | None:
    """The format that a file's first bytes are those of; None when they are of no known one. Raises `OSError`."""
    with open(image, "rb", buffering=0) as file:
        first = file.read(32)
    for name, magics in _MAGIC.items():
        if first.startswith(magics):
            return name
    return None


def check_format(image: str, declared: str | None) -> None:
    """Raise `LocalError` when a file is evidently not of the format that it is declared to have.

    None is raw as long as nothing speaks against it. Somebody who says raw may serve any file's bytes as they are.
    """
    try:
        found = format_of(image)
    except OSError as error:
        raise LocalError(f"image {image}: {error.strerror}") from error
    if declared is None and found is not None:
        raise LocalError(
            f'{image} is a {found} image: serve what is in it with format = "{found}",'
            ' or the file as it is with format = "raw"'
        )
    if declared in FORMATS and found != declared:
        raise LocalError(f"{image} is {f'a {found}' if found else 'no'} image; it is declared as {declared}")


def open_disk(
    image: str,
    *,
    image_format: str | None = None,
    read_only: bool = False,
    direct: bool = False,
    create_size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    map_file: bool | None = None,
) -> Backing:
    """Open an image of any kind; blocks for as long as that takes. Raises `LocalError`, `ImageBusy`.

    `create_size` makes a raw image that is not there. `folder` is for the sockets of QEMU's daemons. `map_file` is for
    raw images (`open_image`).
    """
    if map_file and (is_uri(image) or image_format in FORMATS):
        raise LocalError(f"image {image}: only a raw image in a file can be mapped")
    if is_uri(image):
        uri = parse_uri(image)
        return NbdBacking(uri.address, uri.export, read_only=read_only, name=image)
    if os.path.isfile(image):
        check_format(image, image_format)
    if image_format not in FORMATS:
        return open_image(
            image,
            read_only=read_only,
            direct=direct,
            create_size=create_size,
            wait=LOCK_WAIT,
            map_file=map_file,
        )
    daemon = QemuDaemon(image, image_format, read_only=read_only, direct=direct, wait=LOCK_WAIT, folder=folder)
    try:
        return NbdBacking(daemon.socket, read_only=read_only, name=f"image {image}", on_close=daemon.stop)
    except BaseException:
        daemon.stop()
        raise
