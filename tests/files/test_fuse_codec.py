"""The bytes of FUSE: each body beside the kernel's header file, each message through the codec, and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import RemoteError
from powervio.files import fuse_messages as fuse
from powervio.files.fuse_codec import FuseCodec, Request, byteorder_of, dirent_size
from powervio.files.fuse_messages import BODIES, REQUESTS, Opcode

pytestmark = pytest.mark.dual
STRUCTS: dict[type[Any], str] = {
    fuse.InHeader: "in_header",
    fuse.OutHeader: "out_header",
    fuse.ForgetIn: "forget_in",
    fuse.ForgetOne: "forget_one",
    fuse.BatchForgetIn: "batch_forget_in",
    fuse.GetattrIn: "getattr_in",
    fuse.SetattrIn: "setattr_in",
    fuse.MknodIn: "mknod_in",
    fuse.MkdirIn: "mkdir_in",
    fuse.RenameIn: "rename_in",
    fuse.Rename2In: "rename2_in",
    fuse.LinkIn: "link_in",
    fuse.OpenIn: "open_in",
    fuse.CreateIn: "create_in",
    fuse.ReadIn: "read_in",
    fuse.WriteIn: "write_in",
    fuse.ReleaseIn: "release_in",
    fuse.FsyncIn: "fsync_in",
    fuse.SetxattrExtIn: "setxattr_in",
    fuse.GetxattrIn: "getxattr_in",
    fuse.FlushIn: "flush_in",
    fuse.InitIn: "init_in",
    fuse.LkIn: "lk_in",
    fuse.AccessIn: "access_in",
    fuse.InterruptIn: "interrupt_in",
    fuse.BmapIn: "bmap_in",
    fuse.IoctlIn: "ioctl_in",
    fuse.PollIn: "poll_in",
    fuse.FallocateIn: "fallocate_in",
    fuse.LseekIn: "lseek_in",
    fuse.CopyFileRangeIn: "copy_file_range_in",
    fuse.SyncfsIn: "syncfs_in",
    fuse.Attr: "attr",
    fuse.OpenOut: "open_out",
    fuse.WriteOut: "write_out",
    fuse.StatfsOut: "statfs_out",
    fuse.GetxattrOut: "getxattr_out",
    fuse.LkOut: "lk_out",
    fuse.InitOut: "init_out",
    fuse.LseekOut: "lseek_out",
    fuse.NotifyInvalInode: "notify_inval_inode_out",
    fuse.NotifyInvalEntry: "notify_inval_entry_out",
}
"""What the header file of Debian 12's kernel (7.38) calls each body."""
FIELDS = {"length": "len", "kind": "type", "extensions": "total_extlen", "nodes": "count", "offset": "off"}
"""Names that are other ones there, where it has no field of ours."""
IN_LK = {"start": "lk.start", "end": "lk.end", "kind": "lk.type", "pid": "lk.pid"}
ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")


def path_in_c(body: type[Any], field: str) -> str:
    """A field in the header file's words."""
    if body in (fuse.LkIn, fuse.LkOut):
        return IN_LK.get(field, field)
    if body is fuse.StatfsOut:
        return f"st.{field}"
    if body is fuse.FsyncIn and field == "flags":
        return "fsync_flags"
    if body is fuse.GetattrIn and field == "flags":
        return "getattr_flags"
    if body is fuse.NotifyInvalInode:
        return {"nodeid": "ino", "offset": "off", "length": "len"}[field]
    if body is fuse.CopyFileRangeIn and field == "length":
        return "len"
    if body is fuse.FallocateIn or (body in (fuse.ReadIn, fuse.WriteIn, fuse.LseekIn, fuse.LseekOut)):
        return field
    return FIELDS.get(field, field)


def test_each_field_is_where_the_kernels_header_file_has_it(tmp_path: Path) -> None:
    lines = []
    for body, name in STRUCTS.items():
        lines.append(f'printf("{body.__name__} = %zu\\n", sizeof(struct fuse_{name}));')
        for field in body._fields:
            place = f"offsetof(struct fuse_{name}, {path_in_c(body, field)})"
            lines.append(f'printf("{body.__name__}.{field} = %zu\\n", {place});')
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <linux/fuse.h>\n"
        f"int main(void) {{ {' '.join(lines)} return 0; }}\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "layout", source], check=True)
    said = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout
    theirs = dict(line.split(" = ") for line in said.splitlines())

    codec = FuseCodec("little")
    ours = {}
    for body in STRUCTS:
        ours[body.__name__] = str(codec.size(body))
        for index, field in enumerate(body._fields):
            # the first byte that changes when the field does
            zero = body._make([0] * len(body._fields))
            data = codec.pack(zero._replace(**{field: 1}))
            ours[f"{body.__name__}.{body._fields[index]}"] = str(data.index(1))
    assert ours == theirs


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("opcode", REQUESTS, ids=lambda opcode: Opcode(opcode).name)
def test_request_comes_back_as_it_was(opcode: int, order: Literal["little", "big"]) -> None:
    codec = FuseCodec(order)
    row = REQUESTS[opcode]
    body = None if row.body is None else row.body._make(range(1, len(row.body._fields) + 1))
    names = tuple(b"name%d" % index for index in range(row.names))
    data = b"\0data\0" if row.data else b""
    frame = codec.encode_request(opcode, 2, 7, body, names, data, uid=1, gid=2, pid=3)
    request = codec.decode(memoryview(frame))
    assert request.header == fuse.InHeader(len(frame), opcode, 2, 7, 1, 2, 3)
    assert request.body == body
    assert request.names == names
    assert bytes(request.data) == data


@pytest.mark.parametrize("order", ORDERS)
def test_first_message_says_the_byte_order(order: Literal["little", "big"]) -> None:
    frame = FuseCodec(order).encode_request(Opcode.INIT, 2, 0, fuse.InitIn(7, 38, 0, 0))
    assert byteorder_of(frame) == order
    with pytest.raises(RemoteError, match="INIT is expected"):
        byteorder_of(FuseCodec(order).encode_request(Opcode.LOOKUP, 2, 1, names=(b"a",)))


def test_init_of_an_old_kernel_has_no_second_flags() -> None:
    codec = FuseCodec()
    frame = codec.encode_request(Opcode.INIT, 2, 0, fuse.InitIn(7, 31, 4096, 5))[: 40 + 16]
    frame = (56).to_bytes(4, codec.byteorder) + frame[4:]
    assert codec.decode(memoryview(frame)).body == fuse.InitIn(7, 31, 4096, 5, 0)


def test_supplementary_groups_come_behind_the_names() -> None:
    codec = FuseCodec("little")
    plain = codec.encode_request(Opcode.MKDIR, 2, 1, fuse.MkdirIn(0o755, 0), (b"d",))
    padded = plain + bytes(-len(plain) & 7)
    extension = b"".join(n.to_bytes(4, "little") for n in (24, fuse.EXT_GROUPS, 2, 100, 200, 0))
    header = fuse.InHeader(len(padded) + len(extension), Opcode.MKDIR, 2, 1, 0, 0, 0, len(extension) // 8)
    request = codec.decode(memoryview(codec.pack(header) + padded[40:] + extension))
    assert request.names == (b"d",)
    assert request.groups == (100, 200)


def test_forgets_of_both_kinds() -> None:
    codec = FuseCodec()
    one = codec.decode(memoryview(codec.encode_request(Opcode.FORGET, 2, 9, fuse.ForgetIn(3))))
    assert list(codec.forgotten(one)) == [(9, 3)]
    items = codec.pack(fuse.ForgetOne(5, 1)) + codec.pack(fuse.ForgetOne(6, 2))
    many = codec.encode_request(Opcode.BATCH_FORGET, 2, 0, fuse.BatchForgetIn(2), data=items)
    assert list(codec.forgotten(codec.decode(memoryview(many)))) == [(5, 1), (6, 2)]
    short = codec.encode_request(Opcode.BATCH_FORGET, 2, 0, fuse.BatchForgetIn(3), data=items)
    with pytest.raises(RemoteError, match="of 3 nodes has 32 bytes"):
        list(codec.forgotten(codec.decode(memoryview(short))))


def test_replies_and_entries_of_directories() -> None:
    codec = FuseCodec()
    assert codec.decode_reply(memoryview(codec.header(6, 0, 2))) == (fuse.OutHeader(16, -2, 6), memoryview(b""))
    entry = codec.entry(fuse.EntryHead(5, 1, 1, 2, 3, 4), fuse.Attr(*range(15)))
    assert len(entry) == 128
    listing = b"".join(
        (codec.direntplus(entry, 11, 1, 4, b"directory"), codec.direntplus(entry, 12, 2, 8, b"file-of-16-bytes"))
    )
    assert len(listing) == dirent_size(9, plus=True) + dirent_size(16, plus=True)
    found = [
        (head, one.ino, one.offset, one.kind, name) for head, one, name in codec.dirents(memoryview(listing), plus=True)
    ]
    head = fuse.EntryHead(5, 1, 1, 2, 3, 4)
    assert found == [(head, 11, 1, 4, b"directory"), (head, 12, 2, 8, b"file-of-16-bytes")]
    plain = codec.dirent(11, 1, 4, b"a")
    assert [name for _, _, name in codec.dirents(memoryview(plain))] == [b"a"]
    with pytest.raises(RemoteError):
        list(codec.dirents(memoryview(plain[:20])))


def test_statx_has_the_size_of_the_kernels() -> None:
    # struct fuse_statx_out of 7.39: 32 bytes, and struct fuse_statx with 256
    assert FuseCodec().size(fuse.StatxOut) == 32 + 256
    assert FuseCodec().size(fuse.StatxIn) == 24


def test_times_before_1970_are_negative() -> None:
    codec = FuseCodec()
    attr = fuse.Attr(1, 2, 3, -1, -2, -(1 << 33), *range(9))
    assert codec.unpack(fuse.Attr, codec.pack(attr)) == attr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame[:39], "40 at least"),
        (lambda frame: frame + b"x", "says that it has"),
        (lambda frame: (len(frame) - 1).to_bytes(4, "little") + frame[4:-1], "without an end"),
        (lambda frame: (44).to_bytes(4, "little") + frame[4:44], "8 expected"),
    ],
)
def test_request_that_is_not_well_is_refused(change: Any, message: str) -> None:
    frame = FuseCodec("little").encode_request(Opcode.MKDIR, 2, 1, fuse.MkdirIn(0o755, 0), (b"d",))
    with pytest.raises(RemoteError, match=message):
        FuseCodec("little").decode(memoryview(change(frame)))


@given(st.binary(max_size=200), st.sampled_from([0, *REQUESTS]), st.booleans())
def test_any_bytes_are_a_request_or_a_remote_error(tail: bytes, opcode: int, extended: bool) -> None:
    codec = FuseCodec("little")
    header = fuse.InHeader(40 + len(tail), opcode, 2, 1, 0, 0, 0, len(tail) // 16 if extended else 0)
    frame = codec.pack(header) + tail
    try:
        request = codec.decode(memoryview(frame))
        if opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            list(codec.forgotten(request))
    except RemoteError:
        return
    assert isinstance(request, Request)
    assert all(b"\0" not in name for name in request.names)


def test_bodies_are_all_known_to_the_test_of_the_header_file() -> None:
    # what is not compared is cut differently here (an entry's head), or is of a newer kernel (7.39)
    apart = {fuse.EntryHead, fuse.AttrHead, fuse.SetxattrIn, fuse.Dirent, fuse.StatxIn, fuse.StatxOut}
    assert set(BODIES) == set(STRUCTS) | apart
