"""Feature bits: names, what needs what, and negotiation (virtio 1.4, 2.2 and chapter 6).

A set of features is an `int`, bit n of it being feature bit n (0..127); every constant here is such a mask. Ring and
transport bits are defined here; a device type's module defines its own and registers a table of them:

    register(2, (Feature(FLUSH, "FLUSH"), Feature(CONFIG_WCE, "CONFIG_WCE", (FLUSH,))))

Nothing here knows whose side it is on: `offer` and `check_accepted` are for a device, `choose` for a driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from powervio.errors import LocalError, RemoteError

NOTIFY_ON_EMPTY = 1 << 24
"""Legacy: a used notification whenever the available ring ran empty."""
ANY_LAYOUT = 1 << 27
"""Legacy: neither side draws conclusions from framing."""
INDIRECT_DESC = 1 << 28
EVENT_IDX = 1 << 29
SOCKET_ONLY = 1 << 30
"""VHOST_USER_F_PROTOCOL_FEATURES: between the two ends of a vhost-user socket. No guest must ever see it."""
VERSION_1 = 1 << 32
ACCESS_PLATFORM = 1 << 33
RING_PACKED = 1 << 34
IN_ORDER = 1 << 35
ORDER_PLATFORM = 1 << 36
SR_IOV = 1 << 37
NOTIFICATION_DATA = 1 << 38
NOTIF_CONFIG_DATA = 1 << 39
RING_RESET = 1 << 40
ADMIN_VQ = 1 << 41
SUSPEND = 1 << 43


def _span(first: int, last: int) -> int:
    return (1 << last + 1) - (1 << first)


ALL_BITS = _span(0, 127)
LEGACY_BITS = _span(0, 31)
"""What the legacy interface can carry (2.2.3)."""
DEVICE_BITS = (_span(0, 23) | _span(41, 42) | _span(50, 127)) & ~ADMIN_VQ
"""Bits of the device types (2.2). Bit 41 stands in that list too, but is ADMIN_VQ (chapter 6)."""
TRANSPORT_BITS = _span(24, 40) | ADMIN_VQ | SUSPEND
PCI_ONLY = SR_IOV | NOTIF_CONFIG_DATA | ADMIN_VQ
"""Defined for PCI devices alone so far (chapter 6); no transport of ours may offer or accept them."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One row: a feature, its name in the standard without prefix, and what it requires."""

    mask: int
    name: str
    requires: tuple[int, ...] = ()
    """Each of these has to be met; one of several bits is enough to meet one."""
    offered_with: int = 0
    """Bits that a device that offers it has to offer too, although a driver may accept it without them."""
    legacy_only: bool = False
    """Whether it exists in the legacy interface alone."""

    @property
    def bit(self) -> int:
        """The bit's number."""
        return self.mask.bit_length() - 1


_TRANSPORT = (
    Feature(NOTIFY_ON_EMPTY, "NOTIFY_ON_EMPTY", legacy_only=True),
    Feature(ANY_LAYOUT, "ANY_LAYOUT", legacy_only=True),
    Feature(INDIRECT_DESC, "INDIRECT_DESC"),
    Feature(EVENT_IDX, "EVENT_IDX"),
    Feature(SOCKET_ONLY, "PROTOCOL_FEATURES (vhost-user)"),
    Feature(VERSION_1, "VERSION_1"),
    Feature(ACCESS_PLATFORM, "ACCESS_PLATFORM"),
    Feature(RING_PACKED, "RING_PACKED"),
    Feature(IN_ORDER, "IN_ORDER"),
    Feature(ORDER_PLATFORM, "ORDER_PLATFORM"),
    Feature(SR_IOV, "SR_IOV"),
    Feature(NOTIFICATION_DATA, "NOTIFICATION_DATA"),
    Feature(NOTIF_CONFIG_DATA, "NOTIF_CONFIG_DATA"),
    Feature(RING_RESET, "RING_RESET"),
    Feature(ADMIN_VQ, "ADMIN_VQ"),
    Feature(SUSPEND, "SUSPEND"),
)
_by_device: dict[int, dict[int, Feature]] = {}


def _table(features: Iterable[Feature], home: int) -> dict[int, Feature]:
    table: dict[int, Feature] = {}
    for feature in features:
        if feature.mask.bit_count() != 1 or feature.mask & ~home:
            raise LocalError(f"{feature.name}: {feature.mask:#x} is not one bit of the range it belongs to")
        if feature.mask in table:
            raise LocalError(f"{feature.name} and {table[feature.mask].name} are the same bit {feature.bit}")
        table[feature.mask] = feature
    return table


_transport = _table(_TRANSPORT, TRANSPORT_BITS)


def register(device_id: int, features: Iterable[Feature]) -> None:
    """Make a device type's features known. Raises `LocalError` for a bit that no device type may have."""
    _by_device[device_id] = _table(features, DEVICE_BITS)


def each(bits: int) -> Iterator[int]:
    """The masks of the single features in a set, lowest first."""
    while bits:
        mask = bits & -bits
        yield mask
        bits ^= mask


def _feature(mask: int, device_id: int | None) -> Feature | None:
    found = _transport.get(mask)
    if found is None and device_id is not None:
        found = _by_device.get(device_id, {}).get(mask)
    return found


def _legacy_only(device_id: int) -> int:
    rows = (*_transport.values(), *_by_device.get(device_id, {}).values())
    return sum(feature.mask for feature in rows if feature.legacy_only)


def known(device_id: int) -> int:
    """All features of the standard for a device type: what a driver may accept at most (2.2.1)."""
    bits = 0
    for mask in (*_transport, *_by_device.get(device_id, {})):
        bits |= mask
    return bits & ~SOCKET_ONLY & ~PCI_ONLY


def names(bits: int, device_id: int | None = None) -> list[str]:
    """The names of a set, lowest bit first; `bit 45` for one without a name."""
    found = ((mask, _feature(mask, device_id)) for mask in each(bits))
    return [feature.name if feature else f"bit {mask.bit_length() - 1}" for mask, feature in found]


def missing_dependencies(bits: int, device_id: int | None = None) -> list[str]:
    """What a set lacks to be complete, a sentence for each: "CONFIG_WCE requires FLUSH". Empty when it is complete."""
    return [
        f"{feature.name} requires {' or '.join(names(needed, device_id))}"
        for mask in each(bits)
        if (feature := _feature(mask, device_id)) is not None
        for needed in feature.requires
        if not bits & needed
    ]


def without_incomplete(bits: int, device_id: int | None = None) -> int:
    """The largest part of a set in which nothing lacks what it requires."""
    while True:
        lacking = 0
        for mask in each(bits):
            feature = _feature(mask, device_id)
            if feature is not None and not all(bits & needed for needed in feature.requires):
                lacking |= mask
        if not lacking:
            return bits
        bits &= ~lacking


def legacy(bits: int) -> int:
    """What of a set can be offered or accepted through the legacy interface (2.2.3): 32 bits, no VERSION_1."""
    return bits & LEGACY_BITS & ~SOCKET_ONLY


def offer(device_features: int, transport_features: int, device_id: int) -> int:
    """What a device offers: its own features and those that its transport can carry.

    `transport_features` is the transport's allow-list of ring and transport bits (2.2.2), with VERSION_1 unless the
    interface is legacy. Device bits above 31 are left out of a legacy offer, then whatever depended on them; bits that
    only the legacy interface has are left out of any other.
    Raises `LocalError` for a bit in the wrong part or that no transport of ours has, and for a missing dependency.
    """
    for bits, home, whose in (
        (device_features, DEVICE_BITS, f"device type {device_id}"),
        (transport_features, TRANSPORT_BITS & ~PCI_ONLY & ~SOCKET_ONLY, "the transport"),
    ):
        if bits & ~home:
            raise LocalError(f"{whose} cannot offer {', '.join(names(bits & ~home, device_id))} (virtio 1.4, 2.2.2)")
    bits = device_features | transport_features
    missing = missing_dependencies(bits, device_id)
    for mask in each(bits):
        feature = _feature(mask, device_id)
        if feature is not None and feature.offered_with & ~bits:
            missing.append(f"{feature.name} is offered with {', '.join(names(feature.offered_with, device_id))}")
    if missing:
        raise LocalError(f"device type {device_id}: {'; '.join(missing)} (virtio 1.4, 2.2.2)")
    if transport_features & VERSION_1:
        return bits & ~_legacy_only(device_id)
    if transport_features & ~LEGACY_BITS:
        above = ", ".join(names(transport_features & ~LEGACY_BITS))
        raise LocalError(f"the legacy interface has 32 feature bits and cannot carry {above} (virtio 1.4, 2.2.3)")
    return without_incomplete(bits & LEGACY_BITS, device_id)


def check_accepted(offered: int, accepted: int, device_id: int) -> None:
    """Look at what a driver accepted of `offered`; a device that keeps FEATURES_OK must be able to live with it.

    A device that also serves legacy drivers passes `legacy(offered)` for one that did not accept VERSION_1.
    Raises `RemoteError` (REJECT: do not set FEATURES_OK) for a bit that was not offered, a dependency that is missing,
    and VERSION_1 offered but not accepted (2.2.1, chapter 6).
    """
    extra = accepted & ~offered
    if extra:
        raise RemoteError(f"driver accepted {', '.join(names(extra, device_id))}, not offered (virtio 1.4, 2.2.1)")
    if offered & ~accepted & VERSION_1:
        raise RemoteError("driver did not accept VERSION_1 although it is offered (virtio 1.4, 6.1)")
    missing = missing_dependencies(accepted, device_id)
    if missing:
        raise RemoteError(f"driver accepted what cannot be: {'; '.join(missing)} (virtio 1.4, 2.2.1)")


def choose(offered: int, wanted: int, device_id: int) -> int:
    """What a driver accepts: what it wants of what is offered, as far as that is complete.

    Bits that are not in the standard, reserved, or not for transports of ours are ignored and never a reason to fail
    (2.2.1). VERSION_1 is accepted whenever it is offered (6.1); without it the device is legacy and has 32 bits.
    """
    bits = offered & (wanted | VERSION_1) & ALL_BITS & ~SOCKET_ONLY & ~PCI_ONLY
    if not offered & VERSION_1:
        return without_incomplete(bits & LEGACY_BITS, device_id)
    return without_incomplete(bits & ~_legacy_only(device_id), device_id)
