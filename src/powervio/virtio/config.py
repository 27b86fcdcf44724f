"""Device configuration space: a layout is a table of fields, and one codec serves all device types (virtio 1.4, 2.5).

Offsets and sizes are bytes. Integers are little-endian, or in the guest's order in legacy devices (2.5.3); the byte
order is an argument everywhere. A field that is more than an integer (an address, a tag) is bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from powervio.errors import LocalError, RemoteError

Value: TypeAlias = int | bytes
_T = TypeVar("_T")


def _order(byteorder: str) -> Literal["little", "big"]:
    if byteorder == "little":
        return "little"
    if byteorder == "big":
        return "big"
    raise LocalError(f"byte order {byteorder!r}: expected 'little' or 'big'")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a config space."""

    name: str
    offset: int
    size: int
    """1, 2, 4 or 8 for an integer."""
    feature: int = 0
    """Set of feature bits; the field exists when one of them was offered. 0: always."""
    writable: bool = False
    """Whether the driver may write it."""
    raw: bool = False
    """Whether it is bytes and no integer."""

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.size

    def present(self, features: int) -> bool:
        """Whether it exists with these features."""
        return self.feature == 0 or self.feature & features != 0


@dataclass(frozen=True)
class Layout:
    """The config space of one device type."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        end = 0
        for field in self.fields:
            if field.offset < end or (not field.raw and field.size not in (1, 2, 4, 8)):
                raise LocalError(f"config field {field.name} at {field.offset} with {field.size} bytes")
            end = field.end

    def size(self, features: int) -> int:
        """Bytes up to the end of the last field that exists with these features."""
        return max((field.end for field in self.fields if field.present(features)), default=0)

    def pack(self, values: Mapping[str, Value], features: int, byteorder: str) -> bytes:
        """The space as a driver reads it; a field without value is 0, and so are fields that do not exist.

        Raises `LocalError` for a name that is no field, and for a value that does not fit.
        """
        order = _order(byteorder)
        data = bytearray(self.size(features))
        rest = set(values)
        for field in self.fields:
            rest.discard(field.name)
            value = values.get(field.name)
            if value is None or not field.present(features):
                continue
            try:
                coded = value if isinstance(value, bytes) else value.to_bytes(field.size, order)
            except OverflowError:
                raise LocalError(f"config field {field.name} has {field.size} bytes: {value!r} does not fit") from None
            if len(coded) > field.size or isinstance(value, bytes) is not field.raw:
                raise LocalError(f"config field {field.name} cannot hold {value!r}")
            data[field.offset : field.offset + len(coded)] = coded
        if rest:
            raise LocalError(f"no such config field: {', '.join(sorted(rest))}")
        return bytes(data)

    def unpack(self, data: bytes, features: int, byteorder: str) -> dict[str, Value]:
        """The fields that exist with the offered `features`, as far as `data` goes.

        A longer space is accepted (2.5.1: a driver only checks that it is large enough for what it needs).
        """
        order = _order(byteorder)
        values: dict[str, Value] = {}
        for field in self.fields:
            if field.present(features) and field.end <= len(data):
                part = data[field.offset : field.end]
                values[field.name] = part if field.raw else int.from_bytes(part, order)
        return values

    def written(self, offset: int, data: bytes, features: int, byteorder: str) -> tuple[str, Value]:
        """Which field a driver's write of `data` at `offset` sets, and to what.

        Raises `RemoteError` unless it is one whole field that exists and may be written.
        """
        for field in self.fields:
            if field.writable and field.offset == offset and field.size == len(data) and field.present(features):
                return field.name, data if field.raw else int.from_bytes(data, _order(byteorder))
        raise RemoteError(f"driver wrote {len(data)} bytes at {offset} of the config space: no writable field")


def snapshot(generation: Callable[[], int], read: Callable[[], _T], attempts: int = 8) -> _T:
    """What `read` gives when nothing changed meanwhile: the generation is equal before and after (2.5.1).

    Raises `RemoteError` when the device's config does not stand still for `attempts` times.
    """
    before = generation()
    for _ in range(attempts):
        value = read()
        after = generation()
        if after == before:
            return value
        before = after
    raise RemoteError(f"config generation changed during each of {attempts} reads (virtio 1.4, 2.5)")
