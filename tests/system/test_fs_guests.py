"""Shares in stock Linux guests over CRQ: the kernel's own 9p, and programs that work on the mount."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import Cython
import cython
import pytest
from tests.boot.program import run
from tests.project_copy import copy_project
from tests.vhost_user.linux_guest import admin_program

pytestmark = pytest.mark.timeout(400)  # the first one fills the cache
ROOT = Path(__file__).parents[2]
MOUNT = """
for number in $(seq 100); do
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /mnt 2>/dev/null && break
    sleep 0.1
done
set -e
grep ' /mnt 9p ' /proc/mounts
"""
WORK = """
cd /mnt
cp -a tree copy
diff -r tree copy
tar cf tree.tar -C copy .
mkdir unpacked
tar xf tree.tar -C unpacked
diff -r tree unpacked
dd if=/dev/urandom of=large bs=300k count=40 conv=fsync 2>/dev/null
sha256sum large
ln -s large link; ln large other; mkfifo fifo; mkdir -m 2750 folder; chown 5:6 folder
truncate -s 100000000 sparse
mv unpacked moved
rm -r copy
exec 7>open; echo before >&7; rm open; echo after >&7; exec 7>&-
echo done
"""
"""With the shell of busybox."""
PROGRAMS = """
cd /mnt
export HOME=/tmp
git config --global safe.directory '*'; git config --global user.email a@b; git config --global user.name a
git clone -q project.git work
cd work
git fsck --full --strict
echo more >more; git add more; git commit -qm more
git push -q
git status --short
cd ..
sqlite3 data.db 'create table t (n integer primary key, v text);'
( while :; do echo "insert into t (v) values (hex(randomblob(500)));"; done | sqlite3 data.db ) &
sleep 6
kill -9 $(pidof sqlite3)
sqlite3 data.db 'pragma integrity_check; select count(*) > 0 from t;'
echo done
"""
"""With Debian's."""
ROUND_TRIP = """
mkdir /disk
mount -t ext4 /dev/vda /disk
cd /mnt
rsync -aHAXS source/ /disk/copy/
rsync -aHAXS /disk/copy/ copy/
echo "--$(rsync -aHAXSin --checksum --delete source/ copy/)--"
chmod u+w copy/plain
touch -d @1 copy/other
setfattr -x user.note copy/a/name
setfacl -b copy/acl
rm copy/b/name
rsync -aHAXSin --delete source/ copy/
rsync -aHAXS --delete source/ copy/
echo "--$(rsync -aHAXSin --checksum --delete source/ copy/)--"
"""
"""By way of a disk. Then what was changed is found and mended."""
BUILT = """
import importlib.machinery, importlib.util, sys

import powervio

name, path = "powervio.vio.ranges", "/mnt/copy/src/powervio/vio/ranges.so"
spec = importlib.util.spec_from_file_location(name, path, loader=importlib.machinery.ExtensionFileLoader(name, path))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules[name] = module


def pytest_report_header():
    return f"tested is {sys.modules[name].__file__}"
"""
"""What puts a module that was built in the place of its source, for pytest."""
BUILD = """
cd /mnt
cp -a project copy
diff -r project copy
cd copy
gcc -O1 -g0 -shared -fPIC -Wall -Werror -Isrc/powervio/memory $(python3-config --includes) \\
    -o src/powervio/vio/ranges.so src/powervio/vio/ranges.c
export PYTHONPATH=/mnt/site:src PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp
python3 -m pytest -p built -p no:cacheprovider -c /mnt/pytest.ini --rootdir . tests/vio/test_ranges.py
cd /
umount /mnt
"""


def packaged(*names: str) -> list[str]:
    """Have the guest get these of Debian's packages."""
    return [word for name in names for word in ("--package", name)]


def listing(folder: Path) -> dict[str, tuple[object, ...]]:
    """What is in a tree: mode, owner, contents and, of files, the time: busybox's tar sets that of nothing else."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        content: object = None
        if stat.S_ISREG(facts.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(facts.st_mode):
            content = os.readlink(path)
        time = int(facts.st_mtime) if stat.S_ISREG(facts.st_mode) else None
        found[str(path.relative_to(folder))] = (facts.st_mode, facts.st_uid, facts.st_gid, time, content)
    return found


@pytest.mark.parametrize("arch", ["x86_64", "ppc64le"])
def test_kernels_9p_copies_compares_and_changes_a_tree(tmp_path: Path, boot_cache: Path, arch: str) -> None:
    share = tmp_path / "share"
    shutil.copytree(ROOT / "tests" / "files", share / "tree", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", share / "tree" / "docs")
    (share / "tree" / "run").symlink_to("docs/nowhere")
    before = listing(share / "tree")
    done = run(boot_cache, "--arch", arch, "--memory", "512M", "--share", str(share), "--exec", MOUNT + WORK)
    said = done.stdout.decode()
    assert done.returncode == 0, said + done.stderr.decode()
    assert "msize=512000" in said
    assert said.endswith("done\n")
    assert listing(share / "tree") == before
    assert listing(share / "moved") == before
    assert f"{hashlib.sha256((share / 'large').read_bytes()).hexdigest()}  large" in said
    assert os.readlink(share / "link") == "large"
    assert (share / "other").stat().st_nlink == 2
    assert stat.S_ISFIFO((share / "fifo").stat().st_mode)
    folder = (share / "folder").stat()
    assert (stat.S_IMODE(folder.st_mode), folder.st_uid, folder.st_gid) == (0o2750, 5, 6)
    sparse = (share / "sparse").stat()
    assert (sparse.st_size, sparse.st_blocks) == (100_000_000, 0)
    assert not (share / "open").exists()
    assert not (share / "copy").exists()


def test_read_only_share_and_a_second_one(tmp_path: Path, boot_cache: Path) -> None:
    share, other = tmp_path / "share", tmp_path / "other"
    for folder in (share, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    command = f"""{MOUNT}
        mkdir /two; mount -t 9p -o trans=virtio,version=9p2000.L two /two
        cat /mnt/name; echo; cat /two/name; echo
        echo x >/two/new
        ! echo x >/mnt/new
        ! rm /mnt/name
        ! mount -t 9p -o trans=virtio,version=9p2000.L three /root
    """
    shares = ("--share", f"{share},readonly", "--share", f"{other},tag=two")
    done = run(boot_cache, "--arch", "x86_64", "--memory", "512M", *shares, "--exec", command)
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, said
    assert "\nshare\nother\n" in done.stdout.decode()
    assert said.count("Read-only file system") == 2
    assert sorted(os.listdir(share)) == ["name"]
    assert (other / "new").read_text() == "x\n"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["x86_64", "ppc64le"])
def test_git_and_sqlite_on_the_kernels_9p(tmp_path: Path, boot_cache: Path, arch: str) -> None:
    share, source = tmp_path / "share", tmp_path / "source"
    share.mkdir()
    shutil.copytree(ROOT / "docs", source / "docs")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "docs"]):
        subprocess.run(["git", *words], cwd=source, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", source, share / "project.git"], check=True)
    packages = packaged("git", "sqlite3")
    command = MOUNT + PROGRAMS
    done = run(boot_cache, "--arch", arch, "--memory", "1G", *packages, "--share", str(share), "--exec", command)
    said = done.stdout.decode()
    assert done.returncode == 0, said + done.stderr.decode()
    assert said.endswith("ok\n1\ndone\n")
    subprocess.run(["git", "fsck", "--full", "--strict"], cwd=share / "project.git", check=True)
    log = subprocess.run(
        ["git", "-c", "safe.directory=*", "log", "--format=%s"],
        cwd=share / "project.git",
        check=True,
        capture_output=True,
        text=True,
    )
    assert log.stdout == "more\ndocs\n"
    data = sqlite3.connect(share / "data.db")
    assert data.execute("pragma integrity_check").fetchone() == ("ok",)
    data.close()


def make_odd_tree(folder: Path) -> None:
    """One of each: what a copy may lose."""
    for name in ("a", "b", "empty", "acl", "deep/" * 12):
        (folder / name).mkdir(parents=True)
    (folder / "a/name").write_bytes(os.urandom(300_000))
    for name in ("b/name", "third"):
        os.link(folder / "a/name", folder / name)
    (folder / "sparse").write_bytes(b"begin")
    with (folder / "sparse").open("r+b") as sparse:
        sparse.seek(1_000_000)
        sparse.write(b"middle")
        sparse.truncate(3_000_000)
    for odd in (b" -rf *", b"new\nline", "Größe".encode(), b"\xff\xfe", b"back\\slash'\"", b"n" * 255, b".hidden"):
        (folder / os.fsdecode(odd)).write_bytes(odd)
    for name, mode in (("plain", 0o444), ("other", 0o600), ("none", 0), ("run", 0o4755)):
        (folder / name).write_text(name)
        os.chown(folder / name, 1234, 5678)
        (folder / name).chmod(mode)
    os.chown(folder / "b", 0, 20)
    (folder / "b").chmod(0o3771)
    (folder / "dangling").symlink_to("no/where")
    (folder / "far").symlink_to("/" + "x" * 3000)
    os.lchown(folder / "far", 7, 8)
    os.mkfifo(folder / "fifo", 0o640)
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "disk", stat.S_IFBLK | 0o660, os.makedev(8, 300))
    for name, attribute, value in (
        ("a/name", "user.note", bytes(range(256))),
        ("a/name", "user.empty", b""),
        ("a", "user.of a folder", b"value"),
        ("other", "trusted.hidden", b"1"),
        ("other", "security.capability", b"\1\0\0\2" + bytes(16)),
    ):
        os.setxattr(folder / name, attribute, value)
    for acl, name in (("u:1234:rw,g:20:r,m::rw", "plain"), ("u:1234:rwx,d:u:4321:rx,d:g::-,d:o::-", "acl")):
        subprocess.run(["setfacl", "-m", acl, folder / name], check=True)
    (folder / "acl/below").write_text("inherits")
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, ns=(10**18 + number, 10**18 + number * 1_111_111_111), follow_symlinks=False)


def every_fact(folder: Path) -> dict[str, tuple[object, ...]]:
    """What is in a tree: all that can be asked, but the number of a file, for which there are all of its names."""
    names: dict[int, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        names.setdefault(path.lstat().st_ino, []).append(str(path.relative_to(folder)))
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        facts = path.lstat()
        content: object = os.readlink(path) if path.is_symlink() else facts.st_rdev
        if stat.S_ISREG(facts.st_mode):
            content = facts.st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        own = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_nlink, facts.st_mtime_ns // 10**9)
        found[str(path.relative_to(folder))] = (*own, names.get(facts.st_ino), content, attributes)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["x86_64", "ppc64le"])
def test_rsync_takes_all_of_a_tree_there_and_back(tmp_path: Path, boot_cache: Path, arch: str) -> None:
    share, image = tmp_path / "share", tmp_path / "disk"
    share.mkdir()
    make_odd_tree(share / "source")
    before = every_fact(share / "source")
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.run([admin_program("mke2fs"), "-q", "-F", "-t", "ext4", "-b", "4096", image], check=True)
    packages = packaged("rsync", "acl", "attr")
    command = MOUNT.replace("msize=512000", "msize=512000,access=client,posixacl") + ROUND_TRIP
    given = ("--disk", str(image), "--share", str(share))
    done = run(boot_cache, "--arch", arch, "--memory", "1G", *packages, *given, "--exec", command, limit=200)
    said = done.stdout.decode()
    assert done.returncode == 0, said + done.stderr.decode()
    assert "posixacl" in said
    _, equal, changed, again, _ = said.split("--")
    assert (equal, again) == ("", "")
    assert [name for name in ("plain", "other", "a/name", "acl/", "b/name") if f" {name}" not in changed] == [], changed
    assert every_fact(share / "source") == before
    assert every_fact(share / "copy") == before
    assert (share / "copy/sparse").stat().st_blocks < 1000


@pytest.mark.slow
def test_project_is_copied_built_and_tested_on_the_kernels_9p(tmp_path: Path, boot_cache: Path) -> None:
    share = tmp_path / "share"
    project, site = share / "project", share / "site"
    copy_project(project, "src", "tests", "docs", "linux", "pyproject.toml")
    subprocess.run([sys.executable, "-m", "cython", "powervio/vio/ranges.py"], cwd=project / "src", check=True)
    (site / "Cython").mkdir(parents=True)  # which sources that are not compiled import
    shutil.copy(cython.__file__, site)
    for name in ("__init__.py", "Shadow.py"):
        shutil.copy(Path(Cython.__file__).with_name(name), site / "Cython")
    (site / "built.py").write_text(BUILT)
    (share / "pytest.ini").write_text("[pytest]\nmarkers = dual\n")
    packages = packaged("gcc", "libc6-dev", "python3-dev", "python3-pytest", "python3-hypothesis")
    given = ("--memory", "2G", "--timeout", "200", "--share", str(share))
    command = MOUNT.replace("msize=512000", "msize=512000,cache=loose") + BUILD
    done = run(boot_cache, "--arch", "x86_64", *given, *packages, "--exec", command, limit=300)
    said = done.stdout.decode()
    assert done.returncode == 0, said + done.stderr.decode()
    assert "tested is /mnt/copy/src/powervio/vio/ranges.so\n" in said
    assert " 2 passed" in said
    before, after = listing(project), listing(share / "copy")
    assert after.pop("src/powervio/vio/ranges.so")[-1] is not None
    assert after == before
