"""Programs that do not know us: qemu-storage-daemon as the back end of our front end, and the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from tests.vhost_user.harness import RawFrontEnd, until
from tests.vhost_user.program import finish, run, start

from powervio.drivers.block import BlockDriver
from powervio.drivers.entropy import EntropyDriver
from powervio.testing.raw import RawDriver
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.front_end import FrontEnd
from powervio.transport.vhost_user.protocol import FrontEnd as Request
from powervio.virtio import features as feature
from powervio.virtio import net


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 8 << 20)
    return path


# -- qemu-storage-daemon


@pytest.mark.parametrize("rings", ["plain", "event-indirect"])
def test_our_driver_at_qemus_back_end(tmp_path: Path, image: Path, rings: str) -> None:
    path = tmp_path / "qsd.sock"
    export = f"type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={path},writable=on,num-queues=2"
    blockdev = f"driver=file,node-name=n,filename={image}"
    listens = tmp_path / "pid"  # written when the socket is listened at
    daemon = subprocess.Popen(["qemu-storage-daemon", "--pidfile", listens, "--blockdev", blockdev, "--export", export])
    data = os.urandom(1 << 20)
    extra = feature.EVENT_IDX | feature.INDIRECT_DESC if rings == "event-indirect" else 0

    async def use() -> None:
        driver = BlockDriver(max_queues=2)
        end = FrontEnd(path, driver, ring_features=feature.VERSION_1 | extra, queue_size=128)
        await end.start()
        assert end.features & extra == extra
        assert driver.capacity == 8 << 20
        await asyncio.gather(*(driver.write(at, data[at : at + 32768]) for at in range(0, len(data), 32768)))
        await driver.flush()
        assert await driver.read(0, len(data)) == data
        await end.close()
        again = BlockDriver()
        end = FrontEnd(path, again)
        await end.start()
        assert await again.read(4096, 4096) == data[4096:8192]
        await end.close()

    try:
        deadline = time.monotonic() + 10
        while not listens.exists():
            assert time.monotonic() < deadline
            assert daemon.poll() is None
            time.sleep(0.01)
        asyncio.run(use())
    finally:
        daemon.terminate()
        daemon.wait(10)
    assert image.read_bytes()[: len(data)] == data


# -- the command line


def test_block_is_served_to_one_front_end_after_another_until_sigterm(tmp_path: Path, image: Path) -> None:
    process = start(
        "block", "--socket-path", str(tmp_path / "s"), "--image", str(image), "--queues", "2", "--serial", "S"
    )

    async def use(turn: int) -> None:
        driver = BlockDriver()
        end = FrontEnd(tmp_path / "s", driver)
        await end.start()
        assert len(end.queues) == 2
        assert await driver.get_id() == "S"
        await driver.write(turn * 512, bytes([turn + 1]) * 512)
        await end.close()

    for turn in range(2):
        asyncio.run(use(turn))
    assert finish(process) == 0
    assert not (tmp_path / "s").exists()
    assert image.read_bytes()[:1024] == b"\1" * 512 + b"\2" * 512


def test_read_only_disk_refuses_writes(tmp_path: Path, image: Path) -> None:
    process = start("block", "--socket-path", str(tmp_path / "s"), "--blk-file", str(image), "--read-only")

    async def use() -> None:
        driver = BlockDriver()
        end = FrontEnd(tmp_path / "s", driver)
        await end.start()
        assert driver.read_only
        assert await driver.read(0, 512) == bytes(512)
        await end.close()

    asyncio.run(use())
    assert finish(process, signal.SIGINT) == 0


def test_entropy_device_from_the_table_of_types(tmp_path: Path) -> None:
    process = start("rng", "--socket-path", str(tmp_path / "s"), "--rate", "1000000")

    async def use() -> None:
        driver = EntropyDriver()
        end = FrontEnd(tmp_path / "s", driver)
        await end.start()
        assert len(set(await driver.read(4096))) == 256
        await end.close()

    asyncio.run(use())
    assert finish(process) == 0


def test_connected_descriptor_is_served_until_its_front_end_is_gone(tmp_path: Path, image: Path) -> None:
    ours, theirs = socket.socketpair()
    process = start("block", "--fd", str(theirs.fileno()), "--image", str(image), pass_fds=(theirs.fileno(),))
    theirs.close()
    ours.sendall(wire.Message(Request.GET_FEATURES).encode())
    assert len(ours.recv(20)) == 20
    ours.close()
    assert process.wait(10) == 0
    assert process.stderr is not None
    process.stderr.close()


def test_listening_descriptor_is_served(tmp_path: Path, image: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    process = start("block", "--fd", str(listener.fileno()), "--image", str(image), pass_fds=(listener.fileno(),))
    listener.close()
    for _ in range(2):
        peer = RawFrontEnd(tmp_path / "s")
        assert peer.get(Request.GET_FEATURES) & feature.VERSION_1
        peer.close()
    assert finish(process) == 0


def test_network_gives_frames_back_and_says_at_the_end_what_was_lost(tmp_path: Path) -> None:
    process = start(
        "net", "--socket-path", str(tmp_path / "s"), "--loopback", "--mtu", "1000", "--mac", "52-54-0-1-2-3"
    )

    async def use() -> None:
        driver = RawDriver(queues=2)
        driver.device_id = net.DEVICE_ID  # type: ignore[misc]
        end = FrontEnd(tmp_path / "s", driver, config_size=12)
        await end.start()
        config = net.unpack_config(end.read_config(), end.features, "little")
        assert config == net.NetConfig(bytes.fromhex("525400010203"), net.S_LINK_UP, 0, 1000)
        received = driver.send([], [1600], net.RECEIVE)
        for length in (1015, 1014):
            sent = driver.send([bytes(12), bytes(length)], [], net.TRANSMIT)
        await until(lambda: received.used is not None and sent.used is not None)
        assert received.used == 12 + 1014
        await end.close()

    asyncio.run(use())
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert process.stderr is not None
    assert process.stderr.read().splitlines() == [
        "from the driver: 1 frames, 1014 bytes; lost 1: 1 too long",
        "to the driver: 1 frames, 1014 bytes; none lost",
    ]
    process.stderr.close()


@pytest.mark.parametrize("device", ["block", "net", "console", "rng", "p9"])
def test_capabilities_are_json(device: str) -> None:
    result = run(device, "--print-capabilities")
    assert result.returncode == 0
    assert json.loads(result.stdout)["type"] == device


@pytest.mark.parametrize(
    ("arguments", "status", "what"),
    [
        (["block", "--image", "x"], 2, "expected one of --socket-path and --fd"),
        (["block", "--image", "x", "--fd", "3", "--socket-path", "s"], 2, "expected one of"),
        (["block", "--socket-path", "s"], 2, "expected --image FILE"),
        (["block", "--socket-path", "s", "--image", "/nowhere/x"], 1, "/nowhere/x does not exist"),
        (["net", "--socket-path", "s"], 2, "expected one of --tap NAME and --loopback"),
        (["net", "--socket-path", "s", "--tap", "t", "--loopback"], 2, "expected one of --tap NAME and --loopback"),
        (["net", "--socket-path", "s", "--loopback", "--mac", "1:2:3"], 1, "expected six bytes like"),
        (["net", "--socket-path", "s", "--loopback", "--mac", "53:54:00:1:2:3"], 1, "no address of one device"),
        (["net", "--socket-path", "s", "--tap", "much-too-long-a-name"], 1, "cannot be the name of an interface"),
        (["rng", "--fd", "77"], 1, "descriptor 77 is no socket"),
        (["rng", "--socket-path", "/nowhere/s"], 1, "cannot listen at /nowhere/s"),
        (["p9", "--socket-path", "s"], 2, "expected FOLDER"),
        (["p9", "/nowhere", "--socket-path", "s"], 1, "/nowhere is no folder"),
        (["p9", "/tmp", "--tag", "a b", "--socket-path", "s"], 1, "mount tag 'a b'"),
        (["p9", "/tmp", "--socket-path", "s", "--translate-uid", "0:1"], 1, "translate_uid: '0:1'; expected"),
        (["nothing"], 2, "No such command"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], status: int, what: str) -> None:
    result = run(*arguments)
    assert result.returncode == status
    assert what in result.stderr
    assert "Traceback" not in result.stderr
