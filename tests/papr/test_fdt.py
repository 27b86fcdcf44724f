"""The codec of flattened device trees: what it writes it reads, `dtc` agrees, and no bytes do harm."""

from __future__ import annotations

import contextlib
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError, RemoteError
from powervio.papr import fdt
from powervio.papr.fdt import Node

NAMES = st.from_regex(r"[a-z][0-9a-z,._+-]{0,20}(@[0-9a-f]{1,8})?", fullmatch=True)
PROPERTIES = st.dictionaries(
    st.from_regex(r"[0-9A-Za-z,._+?#-]{1,31}", fullmatch=True), st.binary(max_size=40), max_size=5
)


def nodes(children: st.SearchStrategy[list[Node]]) -> st.SearchStrategy[Node]:
    return st.builds(Node, NAMES, PROPERTIES, children)


def siblings(node: st.SearchStrategy[Node]) -> st.SearchStrategy[list[Node]]:
    return st.lists(node, max_size=3, unique_by=lambda child: child.name)


TREES = st.builds(
    Node, st.just(""), PROPERTIES, siblings(st.recursive(nodes(st.just([])), lambda node: nodes(siblings(node))))
)

SAMPLE = Node(
    "",
    {"#address-cells": fdt.cells(1), "#size-cells": fdt.cells(0), "compatible": fdt.strings("a,b", "c")},
    [Node("one@1", {"reg": fdt.cells(1), "empty": b""}), Node("two", {}, [Node("inner", {"odd": b"\1\2\3"})])],
)


@given(TREES)
def test_tree_read_back_is_equal(tree: Node) -> None:
    assert fdt.decode(fdt.encode(tree)) == tree


@given(st.binary(max_size=400))
def test_any_bytes_give_a_tree_or_remote_error(data: bytes) -> None:
    with contextlib.suppress(RemoteError):
        fdt.decode(data)


@given(st.data())
def test_changed_blob_gives_a_tree_or_remote_error(data: st.DataObject) -> None:
    blob = bytearray(fdt.encode(SAMPLE))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)))
    for attempt in (bytes(blob), bytes(blob[:cut])):
        try:
            tree = fdt.decode(attempt)
        except RemoteError:
            continue
        assert fdt.decode(fdt.encode(tree)) == tree


def test_blob_is_version_17_big_endian_and_aligned() -> None:
    blob = fdt.encode(SAMPLE, boot_cpu=3)
    header = struct.unpack(">10I", blob[:40])
    assert header[0] == 0xD00DFEED
    assert header[1] == len(blob)
    assert header[5:8] == (17, 16, 3)
    assert header[2] % 4 == 0
    assert header[4] % 8 == 0
    assert blob[header[4] : header[4] + 16] == bytes(16)


def test_blob_with_nops_and_more_behind_it_is_read() -> None:
    blob = bytearray(fdt.encode(Node("")))
    at, size = struct.unpack(">I", blob[8:12])[0], struct.unpack(">I", blob[36:40])[0]
    blob[at:at] = struct.pack(">I", 4)
    struct.pack_into(">I", blob, 36, size + 4)
    struct.pack_into(">I", blob, 4, len(blob))
    struct.pack_into(">I", blob, 12, len(blob))
    assert fdt.decode(bytes(blob) + b"tail") == Node("")


def test_dtc_reads_it_and_writes_the_same_tree() -> None:
    blob = fdt.encode(SAMPLE)
    result = subprocess.run(["dtc", "-I", "dtb", "-O", "dtb"], input=blob, capture_output=True, check=True)
    assert fdt.decode(result.stdout) == SAMPLE


BAD_TREES = {
    "root with a name": (Node("root"), "'root' cannot be the name of a node at depth 0"),
    "slash": (Node("", {}, [Node("a/b")]), "'a/b' cannot be the name of a node at depth 1"),
    "twins": (Node("", {}, [Node("a"), Node("a")]), "node '' has two children of one name: a, a"),
    "property": (Node("", {"a b": b""}), "'a b' cannot be the name of a property (node '')"),
}


@pytest.mark.parametrize("case", BAD_TREES)
def test_encode_tree_that_cannot_be_is_local_error(case: str) -> None:
    tree, told = BAD_TREES[case]
    with pytest.raises(LocalError) as caught:
        fdt.encode(tree)
    assert str(caught.value) == told


def test_encode_too_deep_is_local_error() -> None:
    tree = Node("")
    inner = tree
    for _ in range(fdt.MAX_DEPTH + 1):
        inner.children.append(Node("n"))
        inner = inner.children[0]
    with pytest.raises(LocalError, match="more than 64 levels deep"):
        fdt.encode(tree)


def blob_of(*words: int, names: bytes = b"p\0", **header: int) -> bytes:
    """A blob with this structure block; `header` changes fields by their place, `f0` to `f9`."""
    body = struct.pack(f">{len(words)}I", *words)
    fields = [0xD00DFEED, 56 + len(body) + len(names), 56, 56 + len(body), 40, 17, 16, 0, len(names), len(body)]
    for place, value in header.items():
        fields[int(place[1:])] = value
    return struct.pack(">10I", *fields) + bytes(16) + body + names


BEGIN, END_NODE, PROP, END = 1, 2, 3, 9
A = 0x61000000
BAD_BLOBS = {
    "short": (b"\xd0\x0d", "2 bytes are no device tree"),
    "magic": (blob_of(f0=1), "a device tree begins with 0xd00dfeed, this with 0x1"),
    "version": (blob_of(f5=16), "device tree version 16, compatible to 16; expected 17"),
    "newer": (blob_of(f6=18), "device tree version 17, compatible to 18; expected 17"),
    "size": (blob_of(f1=1 << 30), f"a device tree of {1 << 30} bytes in 58"),
    "structure": (blob_of(f9=4096), "the structure block, 4096 bytes at 56, is outside"),
    "in the header": (blob_of(f2=36), "the structure block, 0 bytes at 36, is outside"),
    "strings": (blob_of(f3=0xFFFFFFFF), "the strings block, 2 bytes at 4294967295, is outside"),
    "words": (blob_of(BEGIN, f2=57, f9=0), "the structure block, 0 bytes at 57, is not made of words"),
    "nothing": (blob_of(), "4 bytes are expected, 0 are left"),
    "no root": (blob_of(END), "there is no root node"),
    "open": (blob_of(BEGIN, 0, END), "the tree ends inside a node"),
    "two roots": (blob_of(BEGIN, 0, END_NODE, BEGIN, 0, END_NODE, END), "there are two root nodes"),
    "end without begin": (blob_of(END_NODE, END), "token 0x2 cannot be here"),
    "property outside": (blob_of(PROP, 0, 0, END), "token 0x3 cannot be here"),
    "named root": (blob_of(BEGIN, A, END_NODE, END), "'a' cannot be the name of a node at depth 0"),
    "twins": (
        blob_of(BEGIN, 0, BEGIN, A, END_NODE, BEGIN, A, END_NODE, END_NODE, END),
        "there are two nodes 'a' in ''",
    ),
    "name without end": (blob_of(BEGIN, 0x61616161), "a node's name has no end"),
    "long property": (blob_of(BEGIN, 0, PROP, 0xFFFFFFFF, 0, END), "4294967295 bytes are expected, 4 are left"),
    "no such name": (blob_of(BEGIN, 0, PROP, 0, 2, END_NODE, END), "there is no name at 2 in the strings block"),
    "name not ended": (blob_of(BEGIN, 0, PROP, 0, 0, END_NODE, END, names=b"p"), "there is no name at 0"),
    "empty name": (blob_of(BEGIN, 0, PROP, 0, 1, END_NODE, END), "'' cannot be the name of a property"),
    "property twice": (
        blob_of(BEGIN, 0, PROP, 0, 0, PROP, 0, 0, END_NODE, END),
        "node '' has two properties 'p'",
    ),
    "property behind a child": (
        blob_of(BEGIN, 0, BEGIN, A, END_NODE, PROP, 0, 0, END_NODE, END),
        "property 'p' stands behind the children of node ''",
    ),
    "deep": (blob_of(BEGIN, 0, *(BEGIN, A) * 70), "nodes are more than 64 levels deep"),
}


@pytest.mark.parametrize("case", BAD_BLOBS)
def test_bad_blob_is_remote_error_that_says_what(case: str) -> None:
    blob, told = BAD_BLOBS[case]
    with pytest.raises(RemoteError) as caught:
        fdt.decode(blob)
    assert told in str(caught.value)


def test_values_read_back() -> None:
    assert fdt.to_cells(fdt.cells(1, 0xFFFFFFFF)) == (1, 0xFFFFFFFF)
    assert fdt.cells(-1) == b"\xff\xff\xff\xff"
    assert fdt.cells_64(1 << 40) == b"\0\0\1\0\0\0\0\0"
    assert fdt.to_strings(fdt.strings("a", "", "b")) == ("a", "", "b")
    for bad in (b"abc", b""):
        with pytest.raises(RemoteError):
            fdt.to_strings(bad)
    with pytest.raises(RemoteError):
        fdt.to_cells(b"abc")
    with pytest.raises(RemoteError):
        fdt.to_strings(b"\xff\0")
