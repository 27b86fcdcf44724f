"""What every device of the table of types can say in the system file."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct


class AdapterSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every `[[lpar.SECTION]]` of the table has."""

    paths: ClassVar[tuple[str, ...]] = ("socket",)
    """Options that are paths, relative to the system file."""

    vios: str
    """Name of the VIO server."""
    slot: Annotated[int, Meta(ge=2, le=0xFFFF)] | None = None
    """The client adapter's virtual slot; the lowest free one if it is not given."""
    socket: str | None = None
    """Path of a Unix socket at which programs of the client partition use the device; relative to the system file."""
    revision: Literal[0, 1] = 1
    """Highest revision of virtio over CRQ that the client proposes."""
    byteorder: Literal["little", "big"] = "little"
    """Of rings, config and requests in revision 0; revision 1 is always little-endian."""
