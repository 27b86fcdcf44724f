"""`powervio bench guest`: what a guest says, the table, and a real run in slices that say nothing of speed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from powervio.bench.guest import MODES, PEERS, Measured, Result, Row, Slice, hear_hello, parse_reads
from powervio.bench.machine import conditions
from powervio.bench.talk import Talk
from powervio.boot import machine
from powervio.cli.guest import show
from powervio.errors import LocalError
from powervio.phyp.ledger import CostLedger, Costs

HELLO = "kernel 6.1\ndisk vda /sys/bus/pci/drivers/virtio-pci\ndisk vdb ../bus/virtio_vio/drivers/virtio_vio\nready"


def lines(text: str) -> Callable[[float], str]:
    left = iter(text.splitlines())
    return lambda limit: next(left)


def powervio(*words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "powervio", "bench", "guest", *words]
    environment = {**os.environ, "PATH": os.environ["PATH"] if path is None else path}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)


def made_result(others: float = 0.0) -> Result:
    costs = Costs(CostLedger().snapshot(), hcalls={"H_COPY_RDMA": 40, "H_SEND_CRQ": 20}, crq_messages=20)
    guests = []
    for mode in MODES:
        rows = []
        for depth in (1, 32):
            row = Row(depth, 0.75 if mode.wanted else None)
            row.pairs = [
                (Slice(reads, 0.5, others), Slice(10_000, 0.5, others)) for reads in (9000, 2000 * depth, 8000)
            ]
            row.costs += costs
            row.requests = 10
            rows.append(row)
        guests.append(Measured(mode, rows, "6.1"))
    words = ("arch", "filesystem", "peer", "peer_configuration", "poll_us")
    numbers = {"image_bytes": 1 << 20, "rounds": 3, "slice_seconds": 0.5, "load_average_after": 0.25}
    return Result({**dict.fromkeys(words, "x"), **conditions(), **numbers}, guests)


def test_disks_are_told_apart_by_their_drivers() -> None:
    assert hear_hello(lines(HELLO), 1.0) == ("6.1", {"crq": "vdb", "vhost-user": "vda"})
    with pytest.raises(LocalError, match="no disk over vhost-user"):
        hear_hello(lines(HELLO.replace("disk vda", "kernel")), 1.0)
    with pytest.raises(LocalError, match="the guest says 'sh: no such thing'"):
        hear_hello(lines("sh: no such thing\n"), 1.0)


def test_what_is_read_is_a_rate_or_a_complaint() -> None:
    assert parse_reads("1234 500000") == (1234, 0.5)
    for line in ("another content in block: 7", "0 500000", "12", "", "1 2 3"):
        with pytest.raises(LocalError, match=f"reading in the guest: {line}"):
            parse_reads(line)


def test_a_guest_that_says_nothing_too_much_or_goodbye_is_told() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        talk = Talk(ours)
        theirs.sendall(b"one\ntwo\r\nthr")
        assert [talk.line(5), talk.line(5)] == ["one", "two"]
        with pytest.raises(LocalError, match=r"waited 0\.01 s"):
            talk.line(0.01)
        sender = threading.Thread(target=theirs.sendall, args=(bytes(10_000),))
        sender.start()
        with pytest.raises(LocalError, match="says more than it was asked for"):
            talk.line(5)
        sender.join(5)
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(LocalError, match="ended before"):
            Talk(ours).line(5)


def test_a_figure_is_the_median_of_the_rounds_ratios() -> None:
    one, many = made_result().guests[0].rows
    assert one.ratios == [0.9, 0.2, 0.8]
    assert (one.ratio, many.ratio) == (0.8, 0.9)
    assert one.counts == {
        "hcalls": 6.0,
        "remote_copies": 4.0,
        "crq_messages": 2.0,
        "interrupts": 0.0,
        "tce_updates": 0.0,
        "shared_tce_updates": 0.0,
    }
    values = one.as_json()
    assert (values["ratio"], values["crq_iops"], values["vhost_user_iops"]) == (0.8, 16000, 20000)


def test_the_table_has_every_round_and_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show(made_result())
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert rows.count(["1", "18,000", "20,000", "0.90", "18,000", "20,000", "0.90"]) == 2  # a guest each
    assert rows.count(["2", "4,000", "20,000", "0.20", "128,000", "20,000", "6.40"]) == 2
    assert rows.count(["median", "16,000", "20,000", "0.80", "18,000", "20,000", "0.90"]) == 2
    assert rows.count(["wanted", ">=", "0.75", ">=", "0.75"]) == 1
    assert ["hypervisor", "calls", "6.00", "6.00", "6.00", "6.00"] in rows
    assert "Others" not in said
    assert max(map(len, said.splitlines())) <= 80
    show(made_result(0.5))
    assert "Others used 0.50" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "what"),
    [(["--peer", "best"], "--peer"), (["--rounds", "0"], "--rounds"), (["--arch", "vax"], "--arch")],
)
def test_mistake_is_told(words: list[str], what: str) -> None:
    result = powervio(*words)
    assert result.returncode == 2
    assert what in result.stderr


def test_missing_peer_is_told_with_its_package(tmp_path: Path) -> None:
    result = powervio(path=str(tmp_path))
    assert result.returncode == 1
    assert "apt-get install qemu-system-common" in " ".join(result.stderr.split())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("arch", machine.ARCHES)
def test_a_guest_reads_from_both_disks_and_every_read_is_counted(
    boot_cache: Path, memory_folder: Path, arch: str
) -> None:
    size = 4 << 20
    options = ("--rounds", "1", "--seconds", "0.3", "--size", "4M", "--folder", str(memory_folder))
    result = powervio("--json", "--arch", arch, "--cache", str(boot_cache), *options)
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    conditions = values["conditions"]
    assert conditions["peer"].startswith("qemu-storage-daemon version")
    assert (conditions["arch"], conditions["image_bytes"], conditions["peer_configuration"]) == (arch, size, PEERS[0])
    assert [guest["guest"] for guest in values["guests"]] == ["shared", "hcalls"]
    reads = 0
    for guest in values["guests"]:
        assert guest["kernel"].startswith("6.")
        for row in guest["rows"]:
            depth, each = row["depth"], row["each"]
            (pair,) = row["rounds"]
            ours = pair["crq"]["reads"]
            reads += ours + pair["vhost_user"]["reads"]
            assert ours > depth
            assert pair["vhost_user"]["reads"] > depth
            # each read went over CRQ, and was counted there
            assert ours <= row["requests"] <= ours + depth
            shared = guest["guest"] == "shared"
            assert (each["shared_tce_updates"] > 0.5) is shared
            if not shared:
                assert each["shared_tce_updates"] == 0
            assert each["remote_copies"] <= each["hcalls"] <= 12
            assert each["remote_copies"] <= 5.5
            assert each["crq_messages"] <= (2.5 if depth == 1 else 1)
    assert values["verified_reads"] == reads
    assert not list(memory_folder.iterdir())
