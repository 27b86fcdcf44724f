"""Raw images on real files, sparse files, full file systems and loop devices."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powervio.errors import LocalError
from powervio.storage import hostfile
from powervio.storage.image import Image, ImageBusy, open_image

MIB = 1 << 20
ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


def read(image: Image, position: int, length: int) -> bytes:
    buffer = bytearray(length)
    image.read_into(position, memoryview(buffer))
    return bytes(buffer)


def may(*command: str, needs: str) -> str:
    """What a program says that the machine has to let us run."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode:
        pytest.fail(f"this test needs {needs}: {' '.join(command)}: {done.stderr.strip()}", pytrace=False)
    return done.stdout


def write(image: Image, position: int, data: bytes) -> None:
    image.write_from(position, memoryview(data))


@pytest.fixture(params=["buffered", "direct"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    with open_image(tmp_path / "disk.img", create_size=4 * MIB, direct=request.param == "direct") as made:
        yield made


# Opening


def test_open_missing_file_is_a_local_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="does not exist"):
        open_image(tmp_path / "none.img")


def test_open_directory_is_a_local_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="is a directory"):
        open_image(tmp_path)


def test_open_character_device_is_a_local_error() -> None:
    with pytest.raises(LocalError, match="neither a file nor a block device"):
        open_image("/dev/zero")


def test_open_missing_directory_is_a_local_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="No such file"):
        open_image(tmp_path / "none" / "disk.img", create_size=512)


def test_open_path_through_a_file_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocalError, match="Not a directory"):
        open_image(tmp_path / "file" / "disk.img")


def test_open_without_permission_is_a_local_error() -> None:
    with pytest.raises(LocalError, match=r"cannot be opened for writing \(Permission denied\)"):
        open_image("/sys/kernel/notes")  # sysfs refuses root too


@pytest.mark.parametrize("size", [0, -512, 1000])
def test_create_bad_size_is_a_local_error_and_leaves_no_file(tmp_path: Path, size: int) -> None:
    with pytest.raises(LocalError, match="multiple of 512"):
        open_image(tmp_path / "disk.img", create_size=size)
    assert not (tmp_path / "disk.img").exists()


def test_create_read_only_is_a_local_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot be created"):
        open_image(tmp_path / "disk.img", create_size=512, read_only=True)


def test_create_new_image_is_sparse_and_zero(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with open_image(path, create_size=64 * MIB) as image:
        assert image.size == 64 * MIB
        assert read(image, 63 * MIB, 4096) == bytes(4096)
    assert path.stat().st_blocks == 0


def test_create_existing_image_of_that_size_keeps_its_data(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * 1024)
    with open_image(path, create_size=1024) as image:
        assert read(image, 0, 1024) == b"x" * 1024


def test_create_existing_image_of_another_size_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * 1024)
    with pytest.raises(LocalError, match="has 1024 bytes, not 2048"):
        open_image(path, create_size=2048)
    assert path.read_bytes() == b"x" * 1024


def test_create_failing_half_way_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, path: str, *, read_only: bool, wait: float) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(hostfile, "lock_image", refuse)
    with pytest.raises(LocalError, match="No locks available"):
        open_image(tmp_path / "disk.img", create_size=512)
    assert not (tmp_path / "disk.img").exists()


def test_size_not_whole_sectors_is_rounded_up_as_qemu_does(tmp_path: Path) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(b"x" * 1000)
    with open_image(path) as image:
        assert image.size == 1024
        assert read(image, 512, 512) == b"x" * 488 + bytes(24)
        write(image, 512, b"y" * 512)
        assert read(image, 0, 1024) == b"x" * 512 + b"y" * 512
    assert path.stat().st_size == 1024


def test_direct_size_not_whole_units_is_a_local_error(tmp_path: Path) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(LocalError, match="direct I/O wants a multiple of"):
        open_image(path, direct=True)


def test_direct_on_a_file_system_without_it_is_a_local_error(tmp_path: Path) -> None:
    path = Path(f"/proc/{os.getpid()}/status")  # procfs: a regular file, no O_DIRECT
    with pytest.raises(LocalError, match="cannot do direct I/O"):
        open_image(path, direct=True, read_only=True)


# Data


def test_write_then_read_any_alignment_gives_the_same_bytes(image: Image) -> None:
    data = os.urandom(3 * MIB)
    write(image, 513, data)
    assert read(image, 513, len(data)) == data
    assert read(image, 0, 513) == bytes(513)
    assert read(image, 513 + len(data), 100) == bytes(100)
    image.flush()


def test_write_inside_one_unit_keeps_its_neighbours(image: Image) -> None:
    write(image, 0, b"a" * 8192)
    write(image, 700, b"b" * 10)
    write(image, 4090, b"c" * 12)
    expected = bytearray(b"a" * 8192)
    expected[700:710] = b"b" * 10
    expected[4090:4102] = b"c" * 12
    assert read(image, 0, 8192) == bytes(expected)


@pytest.mark.parametrize("position", [-512, 4 * MIB, 4 * MIB - 511])
def test_range_outside_the_image_is_einval_and_does_not_grow_it(image: Image, position: int) -> None:
    operations = (
        lambda: read(image, position, 512),
        lambda: write(image, position, bytes(512)),
        lambda: image.discard(position, 512),
        lambda: image.write_zeroes(position, 512, unmap=True),
        lambda: image.extents(position, 512),
    )
    for operation in operations:
        with pytest.raises(OSError, match="outside the image") as caught:
            operation()
        assert caught.value.errno == errno.EINVAL
    assert os.path.getsize(image.path) == 4 * MIB


@settings(max_examples=60)
@given(data=st.data(), direct=st.booleans())
def test_random_operations_equal_a_bytearray(
    data: st.DataObject, direct: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = 64 * 1024
    model = bytearray(size)
    with open_image(tmp_path_factory.mktemp("model") / "disk.img", create_size=size, direct=direct) as image:
        for _ in range(data.draw(st.integers(1, 12))):
            position = data.draw(st.integers(0, size - 1))
            length = data.draw(st.integers(0, size - position))
            match data.draw(st.sampled_from(["write", "zero", "unmap", "read"])):
                case "write":
                    content = data.draw(st.binary(min_size=1, max_size=4)) * length
                    write(image, position, content[:length])
                    model[position : position + length] = content[:length]
                case "read":
                    assert read(image, position, length) == model[position : position + length]
                case kind:
                    image.write_zeroes(position, length, unmap=kind == "unmap")
                    model[position : position + length] = bytes(length)
            runs = image.extents(0, size)
            assert sum(run for run, _ in runs) == size
            at = 0
            for run, is_data in runs:
                assert is_data or not any(model[at : at + run])
                at += run
        assert read(image, 0, size) == model


# Holes


def test_opening_does_not_count_as_a_change(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    os.utime(path, ns=(10**18, 10**18))
    open_image(path).close()
    assert path.stat().st_mtime_ns == 10**18


def test_discard_gives_space_back(image: Image) -> None:
    write(image, 0, os.urandom(2 * MIB))
    image.flush()
    assert image.can_discard
    before = os.stat(image.path).st_blocks
    image.discard(0, MIB)
    assert os.stat(image.path).st_blocks <= before - MIB // 512
    assert os.stat(image.path).st_size == 4 * MIB


def test_write_zeroes_with_unmap_gives_space_back_and_reads_zero(image: Image) -> None:
    write(image, 0, os.urandom(2 * MIB))
    image.flush()
    before = os.stat(image.path).st_blocks
    image.write_zeroes(100, MIB, unmap=True)
    assert os.stat(image.path).st_blocks < before
    assert read(image, 100, MIB) == bytes(MIB)


def test_write_zeroes_without_unmap_keeps_the_space(image: Image) -> None:
    write(image, 0, os.urandom(MIB))
    image.flush()
    before = os.stat(image.path).st_blocks
    image.write_zeroes(0, MIB, unmap=False)
    assert os.stat(image.path).st_blocks >= before
    assert read(image, 0, MIB) == bytes(MIB)


def test_write_zeroes_where_fallocate_is_not_supported_writes_them(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(fd: int, mode: int, position: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(hostfile, "fallocate", unsupported)
    write(image, 0, b"x" * MIB)
    image.write_zeroes(10, MIB - 20, unmap=True)
    assert read(image, 0, MIB) == b"x" * 10 + bytes(MIB - 20) + b"x" * 10
    image.discard(0, MIB)  # a hint: nothing happens
    assert read(image, 0, 10) == b"x" * 10


def test_zero_length_changes_nothing(image: Image) -> None:
    image.discard(0, 0)
    image.write_zeroes(0, 0, unmap=True)
    write(image, 0, b"")
    assert image.extents(0, 0) == []
    assert os.stat(image.path).st_blocks == 0


def test_extents_of_a_sparse_file_tell_holes(tmp_path: Path) -> None:
    with open_image(tmp_path / "disk.img", create_size=4 * MIB) as image:
        write(image, MIB, os.urandom(MIB))
        image.flush()
        assert image.extents(0, 4 * MIB) == [(MIB, False), (MIB, True), (2 * MIB, False)]
        assert image.extents(MIB + 512, 1024) == [(1024, True)]


# Faults


def test_read_of_a_file_that_shrank_is_eio_and_the_rest_goes_on(image: Image) -> None:
    write(image, 0, b"x" * 4 * MIB)
    os.truncate(image.path, MIB)
    assert read(image, 0, MIB) == b"x" * MIB
    for position, length in ((MIB, 512), (MIB - 4096, 8192), (4 * MIB - 512, 512)):
        with pytest.raises(OSError, match="shorter") as caught:
            read(image, position, length)
        assert caught.value.errno == errno.EIO


def test_change_of_a_file_that_shrank_is_eio_and_does_not_grow_it(image: Image) -> None:
    write(image, 0, b"x" * 4 * MIB)
    os.truncate(image.path, MIB)
    operations = (
        lambda: write(image, 2 * MIB, bytes(512)),
        lambda: image.discard(2 * MIB, 4096),
        lambda: image.write_zeroes(2 * MIB, 4096, unmap=False),
        lambda: image.extents(0, 4 * MIB),
    )
    for operation in operations:
        with pytest.raises(OSError, match="shorter") as caught:
            operation()
        assert caught.value.errno == errno.EIO
    assert os.path.getsize(image.path) == MIB


def test_write_to_a_full_file_system_is_enospc_and_the_rest_goes_on(tmp_path: Path) -> None:
    script = """
        import errno, os
        from powervio.storage.image import open_image
        image = open_image("/mnt/disk.img", create_size=4 << 20)
        image.write_from(0, memoryview(b"x" * 65536))
        try:
            image.write_from(65536, memoryview(b"y" * (2 << 20)))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        else:
            raise AssertionError("2 MiB fitted into 1 MiB")
        back = bytearray(65536)
        image.read_into(0, memoryview(back))
        assert back == b"x" * 65536
        image.discard(65536, (4 << 20) - 65536)
        image.write_from(1 << 20, memoryview(b"z" * 65536))
        image.flush()
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    mount = "mount -t tmpfs -o size=1m none /mnt"
    namespace = ["unshare", "--map-root-user", "--mount"]
    may(*namespace, "true", needs="an unprivileged user namespace (sysctl kernel.unprivileged_userns_clone)")
    done = subprocess.run(
        [*namespace, "sh", "-ec", f'{mount}; "$0" "$1"', sys.executable, "script.py"],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr


def test_flush_that_failed_once_fails_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with open_image(tmp_path / "disk.img", create_size=512) as image:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(OSError, match="Input/output"):
                image.flush()
        with pytest.raises(OSError, match="earlier flush failed"):
            image.flush()
    with open_image(tmp_path / "disk.img") as image:
        image.flush()


def test_short_reads_and_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:700]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: pwritev(fd, [buffers[0][:700]], at))
    data = os.urandom(10_000)
    with open_image(tmp_path / "disk.img", create_size=16384) as image:
        write(image, 100, data)
        assert read(image, 100, len(data)) == data


def test_read_only_image_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    with open_image(path, read_only=True) as image:
        assert image.read_only
        assert not image.can_discard
        with pytest.raises(OSError, match="Bad file descriptor"):
            write(image, 0, bytes(512))
        image.flush()


# Size


def test_resize_grows_and_shrinks_the_file(tmp_path: Path) -> None:
    with open_image(tmp_path / "disk.img", create_size=MIB) as image:
        image.resize(2 * MIB)
        assert read(image, MIB, 512) == bytes(512)
        image.resize(MIB)
        assert image.size == os.path.getsize(image.path) == MIB
        with pytest.raises(LocalError, match="not a multiple"):
            image.resize(1000)


def test_resize_of_a_read_only_image_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(512))
    with open_image(tmp_path / "disk.img", read_only=True) as image, pytest.raises(LocalError, match="read-only"):
        image.resize(1024)


def test_close_twice_is_harmless(tmp_path: Path) -> None:
    image = open_image(tmp_path / "disk.img", create_size=512)
    image.close()
    image.close()


# Locks


def test_second_writer_is_refused_and_told_who(tmp_path: Path) -> None:
    with open_image(tmp_path / "disk.img", create_size=512), pytest.raises(ImageBusy, match="in use by this process"):
        open_image(tmp_path / "disk.img")
    open_image(tmp_path / "disk.img").close()


def test_reader_beside_a_writer_is_refused(tmp_path: Path) -> None:
    with open_image(tmp_path / "disk.img", create_size=512), pytest.raises(ImageBusy, match="byte 101"):
        open_image(tmp_path / "disk.img", read_only=True)


def test_readers_share_an_image_and_keep_writers_out(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    with open_image(path, read_only=True), open_image(path, read_only=True), pytest.raises(ImageBusy):
        open_image(path)


def test_lock_false_opens_an_image_in_use(tmp_path: Path) -> None:
    with open_image(tmp_path / "disk.img", create_size=512):
        open_image(tmp_path / "disk.img", lock=False).close()


def test_image_in_use_here_is_refused_by_qemu(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with open_image(path, create_size=MIB):
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "read 0 512", path], check=False, capture_output=True, text=True
        )
        assert done.returncode != 0
        assert "lock" in done.stderr
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", path], check=True, capture_output=True)


def test_image_in_use_by_qemu_is_refused_here(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    qemu = subprocess.Popen(
        ["qemu-io", "-f", "raw", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=0
    )
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    qemu.stdin.write("read 0 512\n")
    while "ops/sec" not in qemu.stdout.readline():
        pass
    with pytest.raises(ImageBusy, match=rf"process {qemu.pid} \(qemu-io\)"):
        open_image(path)
    qemu.communicate("quit\n")
    open_image(path).close()


def test_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    script = f"""
        import time
        from powervio.storage.image import open_image
        image = open_image({str(path)!r}, create_size=512)
        print("open", flush=True)
        time.sleep(60)
    """
    server = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == "open\n"
    with pytest.raises(ImageBusy, match=f"process {server.pid}"):
        open_image(path)
    server.kill()
    server.communicate()
    open_image(path).close()


# Block devices


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "medium").write_bytes(os.urandom(4 * MIB))
    command = [*ROOT, "losetup", "--find", "--show", str(tmp_path / "medium")]
    device = may(*command, needs="root (or sudo without a password) and loop devices").strip()
    if ROOT:
        subprocess.run([*ROOT, "chown", str(os.geteuid()), device], check=True)
    yield device
    subprocess.run([*ROOT, "losetup", "--detach", device], check=True)


@pytest.mark.parametrize("direct", [False, True])
def test_block_device_reads_writes_zeroes_and_discards(loop_device: str, direct: bool, tmp_path: Path) -> None:
    medium = tmp_path / "medium"
    before = medium.read_bytes()
    with open_image(loop_device, direct=direct) as image:
        assert image.size == 4 * MIB
        assert image.is_block_device
        assert image.can_discard
        assert read(image, 0, 4 * MIB) == before
        assert image.extents(0, 4 * MIB) == [(4 * MIB, True)]
        write(image, 1000, b"x" * 5000)
        image.write_zeroes(MIB + 100, MIB, unmap=True)
        image.discard(3 * MIB + 10, MIB // 2)
        image.flush()
        expected = bytearray(before)
        expected[1000:6000] = b"x" * 5000
        expected[MIB + 100 : 2 * MIB + 100] = bytes(MIB)
        assert read(image, 0, 3 * MIB) == expected[: 3 * MIB]
        with pytest.raises(LocalError, match="block device"):
            image.resize(MIB)
    assert medium.read_bytes()[: 3 * MIB] == expected[: 3 * MIB]
    assert medium.stat().st_blocks * 512 < 4 * MIB


def test_block_device_that_is_used_by_the_kernel_is_refused(loop_device: str) -> None:
    subprocess.run([*ROOT, "mkfs.ext4", "-q", loop_device], check=True)
    script = f"""
        import os, subprocess
        from powervio.storage.image import ImageBusy, open_image
        subprocess.run(["mount", {loop_device!r}, "/mnt"], check=True)
        try:
            open_image({loop_device!r})
        except ImageBusy as error:
            print(error)
        open_image({loop_device!r}, read_only=True).close()
        subprocess.run(["umount", "/mnt"], check=True)
    """
    path = os.pathsep.join(filter(None, sys.path))
    command = [*ROOT, "env", f"PYTHONPATH={path}", "unshare", "--mount", sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "mounted or used by the kernel" in done.stdout
