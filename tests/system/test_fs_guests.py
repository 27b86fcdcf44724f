"""Shares in stock Linux guests over CRQ: the kernel's own 9p, and programs that work on the mount."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest
from tests.boot.program import run

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
dd if=/dev/urandom of=large bs=300k count=40 2>/dev/null
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
    packages = ("--package", "git", "--package", "sqlite3")
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
