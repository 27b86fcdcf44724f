"""A share on a mount, served by diod and by our own server: programs, ends of servers and of mounts. Needs root."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.attach.p9_mounts import Mounted, is_mounted
from tests.attach.p9_servers import Diod, Ours, Server
from tests.project_copy import PROJECT, copy_project

TESTS = Path(__file__).parents[1]
BUILD = """
from Cython.Build import cythonize
from setuptools import Extension, setup

source = "src/powervio/virtio/packed_layout.py"
module = Extension("powervio.virtio.packed_layout", [source], include_dirs=["src/powervio/memory"])
setup(name="part", packages=[], package_dir={"": "src"}, ext_modules=cythonize([module], include_path=["src"]))
"""
LOAD = """
import importlib.machinery, importlib.util, sys
name, path = "powervio.virtio.packed_layout", sys.argv[1]
spec = importlib.util.spec_from_file_location(name, path, loader=importlib.machinery.ExtensionFileLoader(name, path))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.__file__)
"""


@pytest.fixture(params=[Diod, Ours], ids=["diod", "ours"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    made: Server = request.param(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def mounted(server: Server, tmp_path: Path) -> Iterator[Mounted]:
    made = Mounted(server.address, tmp_path / "mnt", "--share", server.name)
    yield made
    made.close()
    assert not is_mounted(tmp_path / "mnt")


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [os.fspath(word) if isinstance(word, Path) else str(word) for word in command],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(what: Callable[[], bool], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_git_clone_and_fsck(mounted: Mounted, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    run("git", "init", "-q", origin)
    (origin / "tree").mkdir()
    for number in range(60):
        (origin / "tree" / f"file{number}").write_text(f"{number}\n" * number * 50)
    (origin / "link").symlink_to("tree/file1")
    run("git", "add", ".", cwd=origin)
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "all", cwd=origin)
    clone = mounted.path / "clone"
    run("git", "clone", "-q", "--no-local", origin, clone)
    run("git", "fsck", "--strict", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    run("git", "gc", "-q", cwd=clone)
    run("git", "fsck", "--strict", cwd=clone)
    run("diff", "-r", "--no-dereference", origin / "tree", clone / "tree")


def test_tree_of_the_project_is_copied_and_compared(mounted: Mounted, server: Server) -> None:
    run("cp", "-a", TESTS, mounted.path / "copy")
    run("diff", "-r", TESTS, mounted.path / "copy")
    run("diff", "-r", TESTS, server.share / "copy")
    run("rm", "-r", mounted.path / "copy")
    assert os.listdir(server.share) == []


def test_part_of_the_project_is_built_and_tested_inside(ours: Mounted) -> None:
    inside = ours.path / "project"
    inside.mkdir()
    top = [f"src/powervio/{path.name}" for path in (PROJECT / "src/powervio").glob("*.py")]
    copy_project(inside, "src/powervio/memory", "src/powervio/virtio", *top)
    (inside / "pytest.ini").write_text("[pytest]\npythonpath = src\nmarkers = dual\n")
    run("cp", "-a", "--parents", "tests/conftest.py", "tests/virtio", inside, cwd=PROJECT)
    run(sys.executable, "-c", BUILD, "build_ext", "--inplace", cwd=inside)
    (built,) = (inside / "src/powervio/virtio").glob("packed_layout*.so")
    said = run(sys.executable, "-c", LOAD, built, cwd=inside)
    assert said.strip() == str(built)
    assert "passed" in run(sys.executable, "-m", "pytest", "-q", "tests/virtio/test_features.py", cwd=inside)


def test_rsync_keeps_hard_links_and_attributes(mounted: Mounted, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "one").write_text("1")
    os.link(source / "one", source / "two")
    os.setxattr(source / "one", "user.note", b"value")
    (source / "deep").mkdir(mode=0o2750)
    (source / "deep/run").write_text("#!/bin/sh\n")
    os.chmod(source / "deep/run", 0o4755)
    os.chown(source / "deep/run", 12, 34)
    os.symlink("nowhere", source / "dangling")
    os.mkfifo(source / "pipe")
    os.utime(source / "one", ns=(1_234_567_890_123_456_789, 987_654_321_012_345_678))
    run("rsync", "-aHAX", f"{source}/", f"{mounted.path}/copy/")
    assert run("rsync", "-aHAXin", "--delete", f"{source}/", f"{mounted.path}/copy/") == ""
    copy = mounted.path / "copy"
    assert (copy / "one").stat().st_nlink == 2
    assert (copy / "one").stat().st_mtime_ns == 987_654_321_012_345_678
    assert os.getxattr(copy / "two", "user.note") == b"value"
    assert stat.S_ISFIFO((copy / "pipe").stat().st_mode)


def test_tar_round_trip(mounted: Mounted, tmp_path: Path) -> None:
    run("cp", "-a", TESTS / "storage", mounted.path / "a")
    run("tar", "-C", mounted.path / "a", "-cf", mounted.path / "a.tar", ".")
    (mounted.path / "b").mkdir()
    run("tar", "-C", mounted.path / "b", "-xpf", mounted.path / "a.tar")
    run("diff", "-r", mounted.path / "a", mounted.path / "b")
    run("tar", "-C", mounted.path / "b", "-df", mounted.path / "a.tar")


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_database_is_sound_after_its_writer_was_killed(mounted: Mounted, journal: str) -> None:
    path = mounted.path / "data.db"
    code = f"""
import sqlite3
db = sqlite3.connect({str(path)!r}, isolation_level=None)
db.execute("pragma journal_mode={journal}")
db.execute("create table t(n integer primary key, text)")
print("begun", flush=True)
for n in range(10**9):
    db.execute("insert into t values(?, ?)", (n, "x" * 1000))
    if n % 10 == 0:
        print(n, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if line.strip() == "50":
            break
    writer.kill()
    said = writer.communicate(timeout=10)[0].split()
    written = max([50, *map(int, said)])
    with sqlite3.connect(path) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        (count,) = db.execute("select count(*) from t").fetchone()
        assert count > written
    db.close()


def test_mapping_is_written_and_read(mounted: Mounted, server: Server) -> None:
    path = mounted.path / "mapped"
    path.write_bytes(bytes(1 << 20))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[5000:5005] = b"there"
        mapping[-3:] = b"end"
        mapping.flush()
        data = (server.share / "mapped").read_bytes()
        assert data[5000:5005] == b"there"
        assert data[-3:] == b"end"
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    with mmap.mmap(fd, 0) as mapping:  # pages go to their place though the file was opened to append
        mapping[:5] = b"first"
        mapping.flush()
        os.write(fd, b"appended")
    os.close(fd)
    data = (server.share / "mapped").read_bytes()
    assert data[:5] == b"first"
    assert data[1 << 20 :] == b"appended"


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Mounted]:
    """What diod, whose fids are names, cannot do."""
    server = Ours(tmp_path)
    try:
        mounted = Mounted(server.address, tmp_path / "mnt")
        yield mounted
        mounted.close()
    finally:
        server.kill()


def test_file_without_a_name_goes_on(ours: Mounted) -> None:
    path = ours.path / "gone"
    with path.open("w+b") as file:
        file.write(b"before")
        file.flush()
        path.unlink()
        assert not path.exists()
        file.write(b" and after")
        file.flush()
        file.seek(0)
        assert file.read() == b"before and after"
        os.fchmod(file.fileno(), 0o600)
        assert os.fstat(file.fileno()).st_size == 16
        assert os.fstat(file.fileno()).st_nlink == 0


def test_default_acl_counts_and_the_umask_does_not(ours: Mounted) -> None:
    for name, acl in (("plain", None), ("acl", "default:user:1234:rwx,default:mask::rwx")):
        (ours.path / name).mkdir()
        if acl is not None:
            run("setfacl", "-m", acl, ours.path / name)
        before = os.umask(0o077)
        try:
            os.close(os.open(ours.path / name / "file", os.O_CREAT | os.O_WRONLY, 0o666))
            os.mkdir(ours.path / name / "directory", 0o777)
        finally:
            os.umask(before)
    modes = [stat.S_IMODE((ours.path / name).stat().st_mode) for name in ("plain/file", "plain/directory")]
    assert modes == [0o600, 0o700]
    modes = [stat.S_IMODE((ours.path / name).stat().st_mode) for name in ("acl/file", "acl/directory")]
    assert modes == [0o664, 0o775]
    assert "user:1234:rwx" in run("getfacl", "-c", "-p", ours.path / "acl/directory")


def test_changes_of_others_are_seen_at_open(mounted: Mounted, server: Server) -> None:
    (server.share / "file").write_bytes(b"one" * 1000)
    assert (mounted.path / "file").read_bytes() == b"one" * 1000
    for number in range(20):
        text = b"%03d" % number * 1000
        (server.share / "file").write_bytes(text)
        assert (mounted.path / "file").read_bytes() == text


def test_directory_of_many_entries_is_read_whole(mounted: Mounted, server: Server) -> None:
    names = {f"{number:05d}-{'n' * (number % 200)}" for number in range(3000)}
    for name in names:
        (server.share / name).touch()
    assert set(os.listdir(mounted.path)) == names
    with os.scandir(mounted.path) as entries:
        assert {entry.name for entry in entries if entry.stat().st_size == 0} == names


def test_errors_are_the_servers(mounted: Mounted) -> None:
    (mounted.path / "d/e").mkdir(parents=True)
    (mounted.path / "f").touch()
    for code, call in (
        (errno.ENOENT, lambda: os.stat(mounted.path / "no")),
        (errno.EEXIST, lambda: os.mkdir(mounted.path / "d")),
        (errno.ENOTEMPTY, lambda: os.rmdir(mounted.path / "d")),
        (errno.ENOTDIR, lambda: os.rmdir(mounted.path / "f")),
        (errno.EISDIR, lambda: os.open(mounted.path / "d", os.O_WRONLY)),
        (errno.ENAMETOOLONG, lambda: os.stat(mounted.path / ("n" * 256))),
        (errno.ENODATA, lambda: os.getxattr(mounted.path / "f", "user.none")),
        (errno.EINVAL, lambda: os.rename(mounted.path / "d", mounted.path / "d/e/f")),
    ):
        with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught:
            call()
        assert caught.value.errno == code


def test_open_file_goes_on_after_the_server_was_restarted(mounted: Mounted, server: Server) -> None:
    path = mounted.path / "deep/file"
    path.parent.mkdir()
    path.write_bytes(b"x" * 10000)
    with path.open("r+b", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        server.kill()
        server.start()
        assert os.pwrite(file.fileno(), b"after", 0) == 5
        assert os.pread(file.fileno(), 8, 0) == b"afterxxx"
    assert (server.share / "deep/file").read_bytes()[:6] == b"afterx"
    assert os.listdir(mounted.path / "deep") == ["file"]


def test_open_file_that_was_replaced_is_stale_after_a_restart(mounted: Mounted, server: Server) -> None:
    path = mounted.path / "file"
    path.write_bytes(b"old")
    with path.open("r+b", buffering=0) as file:
        server.kill()
        kept = server.share / "kept"  # so that its inode number is not used again
        (server.share / "file").rename(kept)
        (server.share / "file").write_bytes(b"new")
        server.start()
        for _ in range(2):
            with pytest.raises(OSError, match="Stale") as caught:
                os.pwrite(file.fileno(), b"bad", 0)
            assert caught.value.errno == errno.ESTALE
    assert (server.share / "file").read_bytes() == b"new"
    assert kept.read_bytes() == b"old"
    until(lambda: path.read_bytes() == b"new")


def test_programs_get_eio_when_the_server_stays_away(server: Server, tmp_path: Path) -> None:
    mounted = Mounted(server.address, tmp_path / "mnt", "--share", server.name, "--patience", "0.3", "--cache", "0")
    try:
        (mounted.path / "file").write_bytes(b"data")
        server.kill()
        with pytest.raises(OSError, match="Input/output error"):
            os.stat(mounted.path / "file")
        server.start()
        until(lambda: _reads(mounted.path / "file", b"data"))
    finally:
        assert mounted.close() == 0
    assert not is_mounted(tmp_path / "mnt")


def _reads(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def test_mount_that_was_killed_is_cleared_by_the_next(server: Server, tmp_path: Path) -> None:
    first = Mounted(server.address, tmp_path / "mnt", "--share", server.name)
    first.process.send_signal(signal.SIGKILL)
    first.close()
    try:
        with pytest.raises(OSError, match="not connected"):
            os.listdir(tmp_path / "mnt")
        second = Mounted(server.address, tmp_path / "mnt", "--share", server.name)
    except BaseException:
        subprocess.run(["umount", "-l", tmp_path / "mnt"], check=False)
        raise
    try:
        (second.path / "works").touch()
        with pytest.raises(AssertionError, match="is mounted there already"):
            Mounted(server.address, tmp_path / "mnt", "--share", server.name)
    finally:
        assert second.close() == 0
    assert not is_mounted(tmp_path / "mnt")


def test_unmounting_ends_the_command(server: Server, tmp_path: Path) -> None:
    mounted = Mounted(server.address, tmp_path / "mnt", "--share", server.name)
    subprocess.run(["umount", tmp_path / "mnt"], check=True, timeout=20)
    assert mounted.process.wait(10) == 0
    mounted.close()


def test_mount_goes_also_when_it_is_in_use(server: Server, tmp_path: Path) -> None:
    mounted = Mounted(server.address, tmp_path / "mnt", "--share", server.name)
    fd = os.open(mounted.path / "open", os.O_WRONLY | os.O_CREAT)
    assert mounted.close() == 0
    assert not is_mounted(tmp_path / "mnt")
    with pytest.raises(OSError, match="not connected"):
        os.write(fd, b"too late")
    with suppress(OSError):
        os.close(fd)


def test_readonly_mount(server: Server, tmp_path: Path) -> None:
    (server.share / "file").write_text("text")
    mounted = Mounted(server.address, tmp_path / "mnt", "--share", server.name, "--readonly")
    try:
        assert (mounted.path / "file").read_text() == "text"
        with pytest.raises(OSError, match="Read-only"):
            (mounted.path / "file").write_text("other")
    finally:
        mounted.close()


def test_locks_of_processes_exclude_each_other(mounted: Mounted) -> None:
    path = mounted.path / "locked"
    path.touch()
    code = f"""
import fcntl, sys
file = open({str(path)!r}, "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    with path.open("r+b") as file:
        with pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        other.communicate(timeout=10)
        fcntl.lockf(file, fcntl.LOCK_EX)
