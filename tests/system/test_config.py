"""The system file: what is read, and what is said about each mistake."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.system.config import Size, show_size
from powervio.system.load import ConfigError, default_name, load, parse

SMALLEST = """
[[vios]]
name = "vios1"

[[lpar]]
name = "client1"
memory = "256M"

[[lpar.disk]]
vios = "vios1"
image = "disk.img"
nbd = "client1.sock"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    (tmp_path / "other.img").write_bytes(bytes(1 << 20))
    (tmp_path / "empty.img").touch()
    (tmp_path / "link.img").symlink_to("disk.img")
    return tmp_path


def problems(text: str, folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "s.toml", folder)
    return caught.value.problems


def test_smallest_file_has_the_defaults(folder: Path) -> None:
    config = parse(SMALLEST, "dir/my system.toml", folder)
    assert config.name == "my-system"
    assert [vios.name for vios in config.vios] == ["vios1"]
    (lpar,) = config.lpar
    assert (lpar.name, lpar.memory) == ("client1", 256 << 20)
    (disk,) = lpar.disk
    assert (disk.image, disk.nbd) == (str(folder / "disk.img"), str(folder / "client1.sock"))
    assert not disk.readonly
    assert disk.revision == 1


def test_every_option_is_read(folder: Path) -> None:
    options = """
readonly = true
direct = true
format = "raw"
bytes_per_second = "10M"
requests_per_second = 500
burst_bytes = "1M"
burst_requests = 50
write_cache = false
serial = "A B-1"
block_size = 4096
queues = 4
queue_size = 256
revision = 0
byteorder = "big"
indirect = "always"
event_idx = true
slot = 7
"""
    config = parse('[system]\nname = "x.1"\n' + SMALLEST + options, "s.toml", folder)
    disk = config.lpar[0].disk[0]
    assert config.name == "x.1"
    assert (disk.readonly, disk.direct, disk.write_cache, disk.serial) == (True, True, False, "A B-1")
    assert (disk.format, disk.bytes_per_second, disk.requests_per_second) == ("raw", 10 << 20, 500)
    assert (disk.burst_bytes, disk.burst_requests) == (1 << 20, 50)
    assert (disk.block_size, disk.queues, disk.queue_size, disk.slot) == (4096, 4, 256, 7)
    assert (disk.revision, disk.byteorder, disk.indirect, disk.event_idx) == (0, "big", "always", True)


DISK = 'image = "disk.img"'
MISTAKES = [
    # what is replaced, by what, and the whole of what is said about it
    ('vios = "vios1"', 'vios = "vios2"', 'lpar[0].disk[0].vios: "vios2" is not one of the VIO servers (vios1)'),
    ('vios = "vios1"', "", "lpar[0].disk[0].vios: it is missing; expected a string or an array of strings"),
    (
        'name = "client1"',
        "",
        "lpar[0].name: it is missing; expected a name of letters, digits, '_', '.' and '-', up to 63",
    ),
    (
        'name = "client1"',
        'name = "a/b"',
        "lpar[0].name: expected a name of letters, digits, '_', '.' and '-', up to 63, found \"a/b\"",
    ),
    ('name = "client1"', 'name = "vios1"', 'lpar[0].name: "vios1" is the name of vios[0] already'),
    ("memory =", "mem =", 'lpar[0].mem: there is no such option; did you mean "memory"?'),
    (
        "memory =",
        "cpus =",
        "lpar[0].cpus: there is no such option; expected one of name, memory, guest, arch, exec, disk, console, rng,"
        " net, fs",
    ),
    ("memory =", "memroy =", 'lpar[0].memroy: there is no such option; did you mean "memory"?'),
    (
        '"256M"',
        '"256X"',
        'lpar[0].memory: expected a size such as "256M", "1G" or a positive number of bytes, found "256X"',
    ),
    ('"256M"', "1.5", 'lpar[0].memory: expected a size such as "256M", "1G" or a positive number of bytes, found 1.5'),
    (
        '"256M"',
        "true",
        'lpar[0].memory: expected a size such as "256M", "1G" or a positive number of bytes, found true',
    ),
    ('"256M"', "-1", 'lpar[0].memory: expected a size such as "256M", "1G" or a positive number of bytes, found -1'),
    ('"256M"', '"4M"', "lpar[0].memory: 4M; expected 8M to 16T"),
    ('"256M"', '"99T"', "lpar[0].memory: 99T; expected 8M to 16T"),
    ('"256M"', "16777217", "lpar[0].memory: 16777217 bytes; expected a multiple of 4096"),
    ('[[vios]]\nname = "vios1"', "", "vios: it is missing; expected an array of tables, [[vios]]"),
    ('[[vios]]\nname = "vios1"', "vios = []", "vios: there is none; expected at least one [[vios]]"),
    (
        '[[vios]]\nname = "vios1"',
        '[vios]\nname = "vios1"',
        "vios: expected an array of tables, [[vios]], found a table",
    ),
    ("[[vios]]", "vios = [3]\n[x]", "vios[0]: expected a table, found 3"),
    ("[[vios]]", "system = 1\n[[vios]]", "system: expected a table, found 1"),
    ("[[vios]]", "[[vois]]\n[[vios]]", 'vois: there is no such option; did you mean "vios"?'),
    ("[[lpar]]", "[[lpar", "line 5, column 7: expected ']]' at the end of an array declaration; not TOML"),
    ('"client1.sock"', '"client1.sock', "line 12, column 20: illegal character '\\n'; not TOML"),
    (DISK, 'image = ""', "lpar[0].disk[0].image: it is empty; expected the path of a raw image"),
    (DISK, 'image = "."', "lpar[0].disk[0].image: {folder} is a directory; expected a file or a block device"),
    (DISK, 'image = "/dev/null"', "lpar[0].disk[0].image: /dev/null is neither a file nor a block device"),
    (DISK, 'image = "no.img"', 'lpar[0].disk[0].image: {folder}/no.img does not exist (size = "1G" would make it)'),
    (DISK, 'image = "a\\u0000b"', "lpar[0].disk[0].image: {folder}/a\\x00b: embedded null byte"),
    (DISK, 'image = "disk.img/x"', "lpar[0].disk[0].image: {folder}/disk.img/x: Not a directory"),
    (
        DISK,
        'image = "empty.img"',
        "lpar[0].disk[0].image: {folder}/empty.img is empty (0 bytes); expected at least one sector",
    ),
    (
        DISK,
        'image = "no/no.img"\nsize = "1G"',
        "lpar[0].disk[0].image: the folder of {folder}/no/no.img does not exist",
    ),
    (DISK, f'{DISK}\nsize = "9999999T"', 'lpar[0].disk[0].size: expected a size of at most 4194304T, found "9999999T"'),
    ('"256M"', "9" * 90, f"lpar[0].memory: expected a size of at most 4194304T, found {'9' * 57}..."),
    ("[[lpar.disk]]", "[lpar.disk]", "lpar[0].disk: expected an array of tables, [[lpar.disk]], found a table"),
    (
        "memory =",
        '"a\\nb" =',
        "lpar[0].a\\nb: there is no such option; expected one of name, memory, guest, arch, exec, disk, console, rng,"
        " net, fs",
    ),
    (
        'vios = "vios1"',
        f'vios = "{"v" * 99}"',
        f'lpar[0].disk[0].vios: "{"v" * 57}..." is not one of the VIO servers (vios1)',
    ),
    (DISK, f"{DISK}\nsize = 1000", "lpar[0].disk[0].size: 1000 bytes; expected a multiple of 512"),
    (DISK, f"{DISK}\nsize = 512\nreadonly = true", "lpar[0].disk[0].size: a disk that is readonly cannot be made"),
    (
        DISK,
        f"{DISK}\nreadonly = true\ndiscard = true",
        "lpar[0].disk[0].discard: a disk that is readonly cannot discard",
    ),
    (DISK, f"{DISK}\nreadonly = 1", "lpar[0].disk[0].readonly: expected true or false, found 1"),
    (DISK, f"{DISK}\nqueues = 0", "lpar[0].disk[0].queues: expected an integer from 1 to 64, found 0"),
    (DISK, f'{DISK}\nqueues = "two"', 'lpar[0].disk[0].queues: expected an integer from 1 to 64, found "two"'),
    (DISK, f"{DISK}\nqueue_size = 100", "lpar[0].disk[0].queue_size: 100; expected a power of two"),
    (DISK, f"{DISK}\nblock_size = 1000", "lpar[0].disk[0].block_size: 1000; expected a power of two"),
    (DISK, f"{DISK}\nslot = 1", "lpar[0].disk[0].slot: expected an integer from 2 to 65535, found 1"),
    (DISK, f"{DISK}\nrevision = 2", "lpar[0].disk[0].revision: expected 0 or 1, found 2"),
    (
        DISK,
        f'{DISK}\nindirect = "maybe"',
        'lpar[0].disk[0].indirect: expected "auto" or "always" or "never", found "maybe"',
    ),
    (
        DISK,
        f'{DISK}\nbyteorder = "big"',
        'lpar[0].disk[0].byteorder: "big" needs revision = 0; revision 1 is little-endian as virtio 1 is',
    ),
    (
        DISK,
        f'{DISK}\nserial = "{"s" * 21}"',
        f'lpar[0].disk[0].serial: expected a string of at most 20 characters of ASCII, found "{"s" * 21}"',
    ),
    (
        DISK,
        f'{DISK}\nserial = "ü"',
        'lpar[0].disk[0].serial: expected a string of at most 20 characters of ASCII, found "ü"',
    ),
    ('"client1.sock"', '""', "lpar[0].disk[0].nbd: it is empty; expected the path of a socket"),
    ('"client1.sock"', '"no/client1.sock"', "lpar[0].disk[0].nbd: the folder {folder}/no does not exist"),
    ('"client1.sock"', '"other.img"', "lpar[0].disk[0].nbd: {folder}/other.img exists and is not a socket"),
]


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES, ids=[said.replace("\0", "") for _, _, said in MISTAKES])
def test_mistake_is_told_with_its_path(old: str, new: str, expected: str, folder: Path) -> None:
    assert old in SMALLEST
    assert problems(SMALLEST.replace(old, new, 1), folder) == [expected.replace("{folder}", str(folder))]


def test_too_long_socket_path_is_told_with_its_length(folder: Path) -> None:
    (said,) = problems(SMALLEST.replace("client1.sock", "x" * 120), folder)
    path = folder / ("x" * 120)
    length = len(os.fsencode(path))
    assert said == (f"lpar[0].disk[0].nbd: {path} has {length} bytes; the path of a Unix socket has at most 107")


SECOND_DISK = '\n[[lpar.disk]]\nvios = "vios1"\nimage = "{image}"\nnbd = "{nbd}"\n{more}\n'


def test_same_image_twice_is_refused_by_any_name(folder: Path) -> None:
    for image in ("disk.img", "./disk.img", "link.img"):
        text = SMALLEST + SECOND_DISK.format(image=image, nbd="b.sock", more="readonly = true")
        (said,) = problems(text, folder)
        assert said.startswith("lpar[0].disk[1].image: ")
        assert said.endswith("is served by lpar[0].disk[0] already; an image has one disk unless all are readonly")


def test_same_image_twice_readonly_is_allowed(folder: Path) -> None:
    text = SMALLEST + "readonly = true" + SECOND_DISK.format(image="link.img", nbd="b.sock", more="readonly = true")
    assert len(parse(text, "s.toml", folder).lpar[0].disk) == 2


def test_same_image_that_is_yet_to_be_made_is_refused_too(folder: Path) -> None:
    text = SMALLEST.replace(DISK, 'image = "new.img"\nsize = "1M"')
    text += SECOND_DISK.format(image="./new.img", nbd="b.sock", more='size = "1M"')
    (said,) = problems(text, folder)
    assert "is served by lpar[0].disk[0] already" in said


def test_same_socket_twice_is_refused(folder: Path) -> None:
    text = SMALLEST + SECOND_DISK.format(image="other.img", nbd="./client1.sock", more="")
    assert problems(text, folder) == [
        f"lpar[0].disk[1].nbd: {folder}/client1.sock is the socket of lpar[0].disk[0].nbd already"
    ]


def test_socket_where_an_image_is_to_be_made_is_refused(folder: Path) -> None:
    text = SMALLEST.replace(DISK, 'image = "new.img"\nsize = "1M"').replace("client1.sock", "new.img")
    assert problems(text, folder) == [
        f"lpar[0].disk[0].nbd: {folder}/new.img is an image of this file; expected the path of a socket"
    ]


def test_disk_on_an_export_of_the_same_system_is_refused(folder: Path) -> None:
    image = "nbd+unix:///?socket=client1.sock"
    text = SMALLEST + SECOND_DISK.format(image=image, nbd="b.sock", more="")
    assert problems(text, folder) == [
        f"lpar[0].disk[1].image: nbd+unix:///?socket={folder}/client1.sock is what this system exports; a disk cannot"
        " stand on another one of it"
    ]


def test_same_slot_twice_is_refused(folder: Path) -> None:
    text = SMALLEST + "slot = 5" + SECOND_DISK.format(image="other.img", nbd="b.sock", more="slot = 5")
    assert problems(text, folder) == ["lpar[0].disk[1].slot: slot 5 of client1 is taken by lpar[0].disk[0]"]


def test_stale_socket_file_is_no_mistake(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "client1.sock"))
    parse(SMALLEST, "s.toml", folder)


def test_several_mistakes_are_told_at_once(folder: Path) -> None:
    text = SMALLEST.replace('vios = "vios1"', 'vios = "x"').replace("disk.img", "no.img").replace("256M", "1M")
    assert [said.split(":")[0] for said in problems(text, folder)] == [
        "lpar[0].memory",
        "lpar[0].disk[0].vios",
        "lpar[0].disk[0].image",
    ]


def test_many_large_queues_need_memory(folder: Path) -> None:
    text = SMALLEST.replace("256M", "8M") + "queues = 64\nqueue_size = 1024"
    (said,) = problems(text, folder)
    assert said.startswith("lpar[0].memory: 8M; its devices need at least ")


def test_file_that_cannot_be_read_is_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: cannot be read \(No such file or directory\)"):
        load(folder / "no.toml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        load(folder)


def test_file_that_is_not_utf8_is_told_with_its_line(folder: Path) -> None:
    (folder / "s.toml").write_bytes(b"[[vios]]\nname = '\xff'\n")
    with pytest.raises(ConfigError, match=r"s\.toml: line 2: not UTF-8"):
        load(folder / "s.toml")


def test_paths_are_relative_to_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "s.toml").write_text(SMALLEST)
    monkeypatch.chdir("/")
    monkeypatch.chdir(folder.parent)
    config = load(f"{folder.name}/s.toml")
    assert config.lpar[0].disk[0].image == str(folder / "disk.img")


@given(st.integers(1, 1 << 50))
def test_size_survives_being_shown(size: int) -> None:
    assert Size.parse(show_size(size).removesuffix(" bytes") if " " not in show_size(size) else size) == size


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("4K", 4096), ("4 KiB", 4096), ("256M", 1 << 28), ("1g", 1 << 30), ("2T", 1 << 41)]
)
def test_size_forms(text: str, size: int) -> None:
    assert Size.parse(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "0", "1 MB", "1e3", "0x10", "1" * 30])
def test_size_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        Size.parse(text)


def test_mark_at_the_beginning_of_the_file_is_no_mistake(folder: Path) -> None:
    (folder / "s.toml").write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert load(folder / "s.toml").name == "s"


@pytest.mark.parametrize("number", ["9" * 3000, "9" * 6000, "0x" + "f" * 6000])
def test_number_of_thousands_of_digits_is_told_in_one_line(number: str, folder: Path) -> None:
    (said,) = problems(SMALLEST + f"slot = {number}", folder)
    assert len(said) < 300


def test_any_message_is_one_line(folder: Path) -> None:
    text = SMALLEST.replace("disk.img", "a\\nb\\u0085" + "x" * 4000).replace('"client1"', '"a\\n\\u2028b"')
    with pytest.raises(ConfigError) as caught:
        parse(text, "s\n.toml", folder)
    assert len(str(caught.value).splitlines()) == 1
    text = text.replace('"a\\n\\u2028b"', '"client1"')
    (said,) = problems(text, folder)
    assert len(said.splitlines()) == 1
    assert len(said) < 600


@given(st.text(max_size=80))
def test_any_text_is_refused_with_words(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^s\.toml: "):  # no short text is a system
        parse(text, "s.toml", tmp_path_factory.getbasetemp())


@given(st.text(min_size=1, max_size=80).filter(lambda name: "/" not in name and "\0" not in name))
def test_every_file_name_gives_a_name(name: str) -> None:
    found = default_name(name)
    assert found
    assert "/" not in found
    assert not found.startswith(".")


STORAGE_MISTAKES = [
    ('image = "disk.img"\nformat = "vdi"', '.format: expected "raw" or "qcow2" or "vmdk" or "vhdx", found "vdi"'),
    ('image = "disk.img"\nformat = "qcow2"', ".format: {folder}/disk.img is no image; it is declared as qcow2"),
    ('image = "a.qcow2"', ".image: {folder}/a.qcow2 is a qcow2 image: serve what is in it with format = "),
    ('image = "a.qcow2"\nformat = "vhdx"', ".format: {folder}/a.qcow2 is a qcow2 image; it is declared as vhdx"),
    ('image = "new"\nsize = "1G"\nformat = "qcow2"', ".size: only a raw image can be made"),
    ('image = "nbd://h/x"\nsize = "1G"', ".size: only a raw image can be made"),
    ('image = "nbd://h/x"\ndirect = true', ".direct: it is the NBD server's to choose, not ours"),
    ('image = "nbd://h/x"\nformat = "raw"', ".format: it is the NBD server's to choose, not ours"),
    ('image = "http://h/x"', ".image: http://h/x: expected a URI that begins with nbd://"),
    ('image = "disk.img"\nburst_bytes = 5', ".burst_bytes: it limits nothing without bytes_per_second"),
    ('image = "disk.img"\nrequests_per_second = 0', ".requests_per_second: expected an integer from 1 to"),
    ('image = "pool:other/a"', '.image: there is no pool "other" (pools: data)'),
    ('image = "pool:data/../disk.img"', '.image: "pool:data/../disk.img": "../disk.img" is no name of a volume'),
    ('image = "pool:data"', '.image: "pool:data": expected POOL/VOLUME'),
    ('image = "pool:data/b"', ".image: pool data has no volume b"),
    ('image = "pool:data/link"', ".image: pool data: volume link: Too many levels of symbolic links"),
    ('image = "pool:data/a"\nsize = "1G"', ".image: a volume has its size already"),
]


@pytest.fixture
def pools(folder: Path) -> str:
    (folder / "a.qcow2").write_bytes(b"QFI\xfb" + bytes(512))
    (folder / "pool").mkdir()
    (folder / "pool" / "a").write_bytes(bytes(512))
    (folder / "pool" / "link").symlink_to(folder / "disk.img")
    return '[[pool]]\nname = "data"\npath = "pool"\n' + SMALLEST


@pytest.mark.parametrize(("new", "said"), STORAGE_MISTAKES)
def test_mistake_about_storage_is_told(pools: str, folder: Path, new: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(pools.replace(DISK, new), "s.toml", folder)
    assert f"lpar[0].disk[0]{said.format(folder=folder)}" in str(caught.value)


def test_volume_is_a_file_of_its_pool_and_a_socket_in_a_uri_is_relative_too(pools: str, folder: Path) -> None:
    config = parse(pools.replace(DISK, 'image = "pool:data/a"'), "s.toml", folder)
    assert config.lpar[0].disk[0].image == f"{folder}/pool/a"
    config = parse(pools.replace(DISK, 'image = "nbd+unix:///x?socket=y.sock"'), "s.toml", folder)
    assert config.lpar[0].disk[0].image == f"nbd+unix:///x?socket={folder}/y.sock"


def test_pools_are_checked_and_their_disks_need_not_be_there_for_who_makes_them(pools: str, folder: Path) -> None:
    again = '[[pool]]\nname = "data"\npath = "./pool/"\n' + pools
    with pytest.raises(ConfigError, match=r"pool\[1\]\.name: data is that of pool\[0\] already") as caught:
        parse(again, "s.toml", folder)
    assert "pool[1].path" in str(caught.value)
    text = pools.replace(DISK, 'image = "pool:data/none"')
    assert parse(text, "s.toml", folder, look_at_disks=False).pool[0].path == f"{folder}/pool"
