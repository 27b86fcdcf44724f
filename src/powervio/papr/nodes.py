"""What the device tree tells a partition of its virtual adapters (papr-vio 9)."""

from __future__ import annotations

from dataclasses import dataclass, field

UNIT_ADDRESS_BASE = 0x3000_0000
"""Unit address of virtual slot n is this plus n."""


@dataclass(frozen=True, slots=True)
class DmaWindow:
    """One window pane: a triple of `ibm,my-dma-window`."""

    liobn: int
    """Logical I/O bus number, an opaque 32-bit handle."""
    size: int
    """Bytes; the pane's addresses run from 0 to size - 1."""


@dataclass(frozen=True, slots=True)
class VdeviceNode:
    """One child of `/vdevice`: a virtual adapter as its partition sees it."""

    unit_address: int
    name: str
    device_type: str
    compatible: tuple[str, ...]
    location_code: str
    interrupt: int
    """Source number of the CRQ interrupt."""
    windows: tuple[DmaWindow, ...]
    """First the pane onto the partition's own memory; on a server, second the pane onto the partner's first."""
    is_server: bool
    """Whether the node carries `ibm,vserver`."""
    interrupt_ranges: tuple[tuple[int, int], ...] = ()
    """`interrupt-ranges`: first number and count of the further sources, for Sub-CRQs."""
    release: bool = field(default=False, compare=False)
    """`powervio,release`: the adapter is to be unplugged as soon as its partition has let go of it. It is still the
    same adapter."""
    properties: tuple[tuple[str, bytes], ...] = ()
    """Names and values that only this kind of adapter has, in the order of its kind's table."""

    def property(self, name: str) -> bytes | None:
        """The value of one of `properties`, None if it is not there."""
        return dict(self.properties).get(name)


@dataclass(frozen=True, slots=True)
class PhysicalNode:
    """A physical adapter of a partition: what its software knows of it."""

    name: str
    location_code: str
    window: DmaWindow
    """The adapter's TCE table: where H_PUT_TCE maps the owner's memory and H_PUT_RTCE a client's (papr-vio 2.5)."""
