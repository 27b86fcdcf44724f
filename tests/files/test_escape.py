"""Somebody on the host, or another client, renames while a client walks: nothing outside is ever reached.

Outside the share there is a folder with a secret. A process of its own swaps directories for symbolic links that lead
out, moves directories out and back, and moves them between depths, as fast as it can; the client goes down, up and
around meanwhile, opens, reads, makes and removes. The test asserts on what was seen, never on how often a race was won.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from powervio.files.identity import Caller
from powervio.files.tree import Node, Tree, TreeOptions

pytestmark = pytest.mark.dual
ME = Caller(os.geteuid(), os.getegid())
_SECRET = b"the secret"
_RENAMER = textwrap.dedent(
    """
    import os, sys, itertools
    os.chdir(sys.argv[1])
    exchange = __import__("ctypes").CDLL(None).renameat2
    for turn in itertools.count():
        for call in (
            lambda: exchange(-100, b"share/a", -100, b"share/link", 2),
            lambda: os.rename("share/a/b", "outside/b"),
            lambda: os.rename("outside/b", "share/c/b"),
            lambda: os.rename("share/c/b", "share/a/b"),
            lambda: os.rename("share/a/b/d", "share/d"),
            lambda: os.rename("share/d", "share/a/b/d"),
            lambda: os.rename("share/c", "outside/c"),
            lambda: os.rename("outside/c", "share/c"),
            lambda: exchange(-100, b"share/a", -100, b"share/link", 2),
            lambda: exchange(-100, b"share/a/b/d/f", -100, b"share/file_link", 2),
            lambda: exchange(-100, b"share/a/b/d/f", -100, b"share/file_link", 2),
        ):
            try:
                call()
            except OSError:
                pass
        if turn == 0:
            print("ready", flush=True)
    """
)


@pytest.mark.parametrize("seed", range(4))
def test_racing_renamer_leads_nowhere(tmp_path: Path, seed: int, pytestconfig: pytest.Config) -> None:
    rounds = 20000 if pytestconfig.getoption("--all") else 1500
    for name in ("share/a/b/d/e", "share/c", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "outside/secret").write_bytes(_SECRET)
    (tmp_path / "secret").write_bytes(_SECRET)
    (tmp_path / "share/a/b/d/f").write_text("a file")
    (tmp_path / "share/link").symlink_to("../outside")
    (tmp_path / "share/file_link").symlink_to("../outside/secret")
    forbidden = {(facts.st_dev, facts.st_ino) for facts in map(os.stat, above(tmp_path))}
    renamer = subprocess.Popen([sys.executable, "-c", _RENAMER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert renamer.stdout is not None
        renamer.stdout.readline()
        with Tree(tmp_path / "share", TreeOptions(max_held=8)) as tree:
            walk(tree, random.Random(seed), rounds, forbidden)
    finally:
        renamer.kill()
        renamer.wait(10)
        if renamer.stdout is not None:
            renamer.stdout.close()
    assert sorted(os.listdir(tmp_path)) == ["outside", "secret", "share"]
    assert set(os.listdir(tmp_path / "outside")) <= {"secret", "b", "c"}
    assert (tmp_path / "outside/secret").read_bytes() == (tmp_path / "secret").read_bytes() == _SECRET


def above(place: Path) -> list[Path]:
    """What nobody may see: the folder that the share is in, all above it, the folder beside it and the secrets."""
    return [place, *place.parents, place / "outside", place / "secret", place / "outside/secret"]


def walk(tree: Tree, chance: random.Random, rounds: int, forbidden: set[tuple[int, int]]) -> None:
    names = [b"a", b"b", b"c", b"d", b"e", b"f", b"link", b"file_link", b"secret", b"outside", b"share", b".."]
    node = tree.root()
    for _ in range(rounds):
        found = node
        with contextlib.suppress(OSError):
            name = chance.choice([*names, b"..", b".."])
            found = node.lookup(name, ME)
            assert (found.dev, found.ino) not in forbidden, name
            look_at(found, forbidden, chance)
        if found is not node:
            node.close()
            node = found
        if not node.is_directory or chance.random() < 0.05:
            node.close()
            node = tree.root()
    node.close()


def look_at(node: Node, forbidden: set[tuple[int, int]], chance: random.Random) -> None:
    facts = node.stat()
    assert (facts.dev, facts.ino) not in forbidden
    if node.kind == stat.S_IFREG:
        opened = node.open(os.O_RDONLY, ME)
        buffer = bytearray(64)
        try:
            assert buffer[: opened.pread(buffer, 0)] == b"a file"
        finally:
            opened.close()
    elif node.is_directory:
        opened = node.open(os.O_RDONLY | os.O_DIRECTORY, ME)
        try:
            assert b"secret" not in [entry.name for entry in opened.readdir(0, 64)]
        finally:
            opened.close()
        if chance.random() < 0.2:
            with contextlib.suppress(OSError):
                node.unlink(b"secret", False, ME)
            with contextlib.suppress(OSError):
                made, opened = node.create(b"made", os.O_RDWR | os.O_EXCL, 0o600, ME)
                made.close()
                opened.close()
            with contextlib.suppress(OSError):
                node.unlink(b"made", False, ME)
