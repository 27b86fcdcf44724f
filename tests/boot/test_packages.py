"""What apt is told, and what it says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.boot.program import run

from powervio.boot.packages import Choice, complaint, configuration, parse_show

SHOW = """\
Package: linux-image-amd64
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2), other | another
Size: 1480
Description: Linux for 64-bit PCs
 This package depends on: something

Package: linux-image-amd64
Version: 6.1.176-1
Depends: linux-image-6.1.0-50-amd64 (= 6.1.176-1)

"""


def test_versions_are_read_in_the_order_of_apt() -> None:
    assert parse_show(SHOW) == [
        Choice("linux-image-amd64", "6.1.192-2", 1480, ("linux-image-6.1.0-56-amd64", "other")),
        Choice("linux-image-amd64", "6.1.176-1", 0, ("linux-image-6.1.0-50-amd64",)),
    ]
    assert parse_show("") == []


@pytest.mark.parametrize("names", [["ppc64el"], ["ppc64el", "amd64"]])
def test_apt_knows_these_architectures_and_no_hook(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "apt.conf").write_text(configuration(tmp_path, names, "root"))
    said = subprocess.run(
        ["apt-config", "-c", tmp_path / "apt.conf", "dump"], capture_output=True, text=True, check=True
    ).stdout
    assert re.findall('APT::Architectures:: "(.*)";', said) == names
    assert 'APT::Architecture "ppc64el";' in said
    assert f'Dir::State::lists "{tmp_path}/lists";' in said
    hooks = [line for line in said.splitlines() if line.startswith("APT::Update::P") and not line.endswith('"";')]
    assert hooks == []


def test_the_first_error_is_the_complaint() -> None:
    assert complaint("W: old\nE: Failed to fetch x\nE: Some index files\n") == "Failed to fetch x"
    assert complaint("W: only\n") == "W: only"
    assert complaint("") == "it said nothing"


def test_without_a_network_one_line_says_so_and_the_cache_stays_empty(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "ftp_proxy"), "http://127.0.0.1:9")
    done = run(tmp_path / "cache", "--arch", "x86_64", "--exec", "true", environment=nowhere)
    said = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert [line for line in said if not line.startswith("boot: ")] == said[-1:]
    assert said[-1].startswith("powervio: no package busybox-static for amd64: ")
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*")) == ["lock", "x86_64"]
