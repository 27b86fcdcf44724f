"""`powervio demo --guest`: the same work by a stock Linux kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.demo.test_demo import powervio


@pytest.mark.slow
@pytest.mark.timeout(300)  # the first one fills the cache
@pytest.mark.parametrize("arch", ["x86_64", "ppc64le"])
def test_guest_reads_mounts_and_copies_and_its_costs_are_counted(boot_cache: Path, arch: str) -> None:
    result = powervio("demo", "--guest", "--json", "--arch", arch, "--cache", str(boot_cache))
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["guest"], report["revision"], report["failures"]) == (arch, 1, [])
    assert report["digest_match"] is True
    assert report["fsck_clean"] is True
    assert report["files"] > 100
    # all of the image went by remote DMA, in and out
    assert report["rdma_bytes"] > 2 * report["image_bytes"]
    for depth in ("qd1", "qd8"):
        # the header, the data, the status byte, and what the ring takes
        assert 3 <= report["remote_copies_per_request"][depth]["total"] <= 6
        assert report["hcalls_per_request"][depth]["H_SEND_CRQ"] <= 2.1


def test_without_qemu_its_package_is_named(tmp_path: Path) -> None:
    result = powervio("demo", "--guest", "--json", "--arch", "ppc64le", "--cache", str(tmp_path), PATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "powervio: qemu-system-ppc64 is missing: apt-get install qemu-system-ppc"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--guest", "--revision", "0"), "--revision is for clients of powervio's own"),
        (("--arch", "x86_64"), "--arch is for demo --guest"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: tuple[str, ...], said: str) -> None:
    result = powervio("demo", *words)
    assert result.returncode == 2
    assert said in result.stderr
