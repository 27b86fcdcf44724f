"""Flattened device trees, version 17: a tree of nodes with properties to bytes and back (Devicetree
Specification 0.4, 5).

Everything in a blob is big-endian. A property is bytes whose meaning is its name's; `cells` and `strings` make the
common ones, `to_cells` and `to_strings` read them. Reading trusts nothing: a blob gives a tree or raises `RemoteError`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from powervio.errors import LocalError, RemoteError

MAGIC = 0xD00D_FEED
VERSION = 17
LAST_COMPATIBLE = 16
MAX_SIZE = 64 << 20
"""Bytes of the largest blob that is read."""
MAX_DEPTH = 64
"""Nodes below one another."""

_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_HEADER = struct.Struct(">10I")
_WORD = struct.Struct(">I")
_PAIR = struct.Struct(">II")
_NODE_NAME = re.compile(r"[0-9A-Za-z,._+-]{1,255}(@[0-9A-Za-z,._+-]{1,255})?")
_PROPERTY_NAME = re.compile(r"[0-9A-Za-z,._+?#-]{1,255}")


@dataclass(slots=True)
class Node:
    """One node: its name with the unit address ("" for the root), its properties and children in order."""

    name: str = ""
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def child(self, name: str) -> Node | None:
        """The child of this name, or None."""
        return next((node for node in self.children if node.name == name), None)


# -- values


def cells(*values: int) -> bytes:
    """32-bit integers; a negative one as two's complement."""
    return b"".join([_WORD.pack(value & 0xFFFF_FFFF) for value in values])


def cells_64(value: int) -> bytes:
    """One 64-bit integer in two cells."""
    return struct.pack(">Q", value)


def strings(*values: str) -> bytes:
    """Strings, each ended by a zero byte."""
    return b"".join([value.encode() + b"\0" for value in values])


def to_cells(value: bytes) -> tuple[int, ...]:
    """A property as 32-bit integers. Raises `RemoteError`."""
    if len(value) % 4:
        raise RemoteError(f"a property of {len(value)} bytes has no whole number of cells")
    return struct.unpack(f">{len(value) // 4}I", value)


def to_strings(value: bytes) -> tuple[str, ...]:
    """A property as strings. Raises `RemoteError`."""
    if not value.endswith(b"\0"):
        raise RemoteError("a list of strings does not end with a zero byte")
    try:
        return tuple(value[:-1].decode().split("\0"))
    except UnicodeDecodeError:
        raise RemoteError("a string is not UTF-8") from None


# -- writing


def encode(root: Node, boot_cpu: int = 0) -> bytes:
    """The tree as a blob. Raises `LocalError` for names that cannot be, or that are there twice."""
    structure = bytearray()
    names = bytearray()
    offsets: dict[str, int] = {}

    def write(node: Node, depth: int) -> None:
        _check_node(node, depth)
        structure.extend(_WORD.pack(_BEGIN_NODE))
        structure.extend(_padded(node.name.encode() + b"\0"))
        for name, value in node.properties.items():
            if name not in offsets:
                offsets[name] = len(names)
                names.extend(name.encode() + b"\0")
            structure.extend(_WORD.pack(_PROP) + _PAIR.pack(len(value), offsets[name]) + _padded(value))
        for child in node.children:
            write(child, depth + 1)
        structure.extend(_WORD.pack(_END_NODE))

    write(root, 0)
    structure.extend(_WORD.pack(_END))
    reservations_at = _HEADER.size
    structure_at = reservations_at + 16  # the empty list of reservations: one entry of zeroes
    names_at = structure_at + len(structure)
    header = _HEADER.pack(
        MAGIC, names_at + len(names), structure_at, names_at, reservations_at, VERSION, LAST_COMPATIBLE, boot_cpu,
        len(names), len(structure),
    )  # fmt: skip
    return header + bytes(16) + bytes(structure) + bytes(names)


def _check_node(node: Node, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise LocalError(f"node {node.name} is more than {MAX_DEPTH} levels deep")
    if not (_NODE_NAME.fullmatch(node.name) if depth else node.name == ""):
        raise LocalError(f"{node.name!r} cannot be the name of a node at depth {depth}")
    children = [child.name for child in node.children]
    if len(set(children)) != len(children):
        raise LocalError(f"node {node.name!r} has two children of one name: {', '.join(sorted(children))}")
    for name in node.properties:
        if not _PROPERTY_NAME.fullmatch(name):
            raise LocalError(f"{name!r} cannot be the name of a property (node {node.name!r})")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# -- reading


def decode(blob: bytes) -> Node:
    """The tree of a blob. Raises `RemoteError` for whatever is not one."""
    return _Reader(bytes(blob)).tree()


class _Reader:
    """One pass over the structure block, with a stack instead of recursion."""

    def __init__(self, blob: bytes) -> None:
        if len(blob) < _HEADER.size:
            raise RemoteError(f"{len(blob)} bytes are no device tree; its header alone has {_HEADER.size}")
        magic, size, structure_at, names_at, _, version, compatible, _, names_size, structure_size = _HEADER.unpack(
            blob[: _HEADER.size]
        )
        if magic != MAGIC:
            raise RemoteError(f"a device tree begins with {MAGIC:#x}, this with {magic:#x}")
        if version < VERSION or compatible > VERSION:
            raise RemoteError(f"device tree version {version}, compatible to {compatible}; expected {VERSION}")
        if not _HEADER.size <= size <= min(len(blob), MAX_SIZE):
            raise RemoteError(f"a device tree of {size} bytes in {len(blob)}; at most {MAX_SIZE} are read")
        for what, at, length in (("structure", structure_at, structure_size), ("strings", names_at, names_size)):
            if at < _HEADER.size or at + length > size:
                raise RemoteError(f"the {what} block, {length} bytes at {at}, is outside the tree of {size} bytes")
        if structure_at % 4 or structure_size % 4:
            raise RemoteError(f"the structure block, {structure_size} bytes at {structure_at}, is not made of words")
        self._data = blob[structure_at : structure_at + structure_size]
        self._names = blob[names_at : names_at + names_size]
        self._at = 0

    def tree(self) -> Node:
        """Read from the first to the last token."""
        root: Node | None = None
        path: list[Node] = []
        seen: list[set[str]] = []
        while (token := self._word()) != _END:
            if token == _BEGIN_NODE:
                node = Node(self._node_name(len(path)))
                if path:
                    if node.name in seen[-1]:
                        raise self._wrong(f"there are two nodes {node.name!r} in {path[-1].name!r}")
                    seen[-1].add(node.name)
                    path[-1].children.append(node)
                elif root is None:
                    root = node
                else:
                    raise self._wrong("there are two root nodes")
                path.append(node)
                seen.append(set())
                if len(path) > MAX_DEPTH + 1:
                    raise self._wrong(f"nodes are more than {MAX_DEPTH} levels deep")
            elif token == _END_NODE and path:
                path.pop()
                seen.pop()
            elif token == _PROP and path:
                self._property(path[-1])
            elif token != _NOP:
                raise self._wrong(f"token {token:#x} cannot be here")
        if root is None or path:
            raise self._wrong("the tree ends inside a node" if path else "there is no root node")
        return root

    def _wrong(self, what: str) -> RemoteError:
        return RemoteError(f"device tree, before byte {self._at} of the structure block: {what}")

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise self._wrong(f"{length} bytes are expected, {len(self._data) - self._at} are left")
        data = self._data[self._at : end]
        self._at = end + -end % 4
        return data

    def _word(self) -> int:
        word: int = _WORD.unpack(self._take(4))[0]
        return word

    def _node_name(self, depth: int) -> str:
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise self._wrong("a node's name has no end")
        name = self._take(end + 1 - self._at)[:-1].decode("ascii", "replace")
        if not (_NODE_NAME.fullmatch(name) if depth else name == ""):
            raise self._wrong(f"{name[:64]!r} cannot be the name of a node at depth {depth}")
        return name

    def _property(self, node: Node) -> None:
        length, offset = _PAIR.unpack(self._take(8))
        value = self._take(length)
        end = self._names.find(b"\0", offset) if offset < len(self._names) else -1
        if end < 0:
            raise self._wrong(f"there is no name at {offset} in the strings block of {len(self._names)} bytes")
        name = self._names[offset : min(end, offset + 256)].decode("ascii", "replace")
        if not _PROPERTY_NAME.fullmatch(name):
            raise self._wrong(f"{name[:64]!r} cannot be the name of a property")
        if name in node.properties:
            raise self._wrong(f"node {node.name!r} has two properties {name!r}")
        if node.children:
            raise self._wrong(f"property {name!r} stands behind the children of node {node.name!r}")
        node.properties[name] = value
