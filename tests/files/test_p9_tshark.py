"""tshark reads what a 9P server and its clients say to each other."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from tests.files.p9_client import P9Failure, SocketClient
from tests.files.p9_recording import Recorder, dissect, write_pcap

from powervio.files import p9_codec as p9
from powervio.files.p9_server import P9Server
from powervio.files.tree import Tree

MSIZE = 32768


def say_everything(client: SocketClient) -> None:
    """Every T-message, with an answer that is none of Rlerror, but for Tauth."""
    call, none = client.call, p9.NO_FID
    client.attach(msize=MSIZE)
    with pytest.raises(P9Failure):
        call(p9.TAUTH, 9, b"root", b"/", 0)
    call(p9.TMKDIR, 0, b"d", 0o755, 0)
    client.walk(0, 1, b"d")
    client.walk(1, 2)
    call(p9.TLCREATE, 2, b"f", os.O_RDWR, 0o644, 0)
    call(p9.TWRITE, 2, 0, bytes(range(256)) * 100)
    call(p9.TREAD, 2, 256, MSIZE)
    call(p9.TFSYNC, 2, 0)
    call(p9.TLOCK, 2, 1, 1, 0, 10, 7, b"client")
    call(p9.TGETLOCK, 2, 1, 0, 10, 8, b"client")
    call(p9.TGETATTR, 2, 0x3FFF)
    call(p9.TSETATTR, 2, 0x1B9, 0o600, 0, 0, 99, 1, 2, 3, 4)
    call(p9.TSYMLINK, 1, b"s", b"f", 0)
    call(p9.TMKNOD, 1, b"p", 0o10600, 0, 0, 0)
    client.walk(0, 3, b"d", b"s")
    call(p9.TREADLINK, 3)
    call(p9.TLINK, 1, 2, b"g")
    call(p9.TRENAMEAT, 1, b"g", 0, b"h")
    client.walk(0, 4, b"h")
    call(p9.TRENAME, 4, 1, b"i")
    call(p9.TXATTRCREATE, 4, b"user.x", 3, 0)
    call(p9.TWRITE, 4, 0, b"abc")
    call(p9.TCLUNK, 4)
    call(p9.TXATTRWALK, 2, 5, b"user.x")
    call(p9.TREAD, 5, 0, 100)
    client.walk(1, 6)
    call(p9.TLOPEN, 6, 0o200000)
    client.readdir(6)
    call(p9.TSTATFS, 0)
    client.walk(0, 7, b"d", b"p")
    call(p9.TREMOVE, 7)
    call(p9.TUNLINKAT, 1, b"i", 0)
    call(p9.TFLUSH, 1234)
    with pytest.raises(P9Failure):
        client.walk(0, 8, b"none")
    with pytest.raises(P9Failure):
        call(p9.TATTACH, 8, none, b"", b"none", 0)


def test_every_message_of_a_recorded_run(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "big").write_bytes(os.urandom(200_000))
    path = f"unix:{tmp_path / 'socket'}"
    with Tree(share) as tree, P9Server(tree, [path]), Recorder(path) as recorder:
        with socket.create_connection(("127.0.0.1", recorder.port)) as line:
            line.settimeout(20)
            say_everything(SocketClient(line))
        for command in (["diodls", "-l"], ["diodcat", "big"]):
            command[1:1] = ["-s", f"127.0.0.1:{recorder.port}", "-a", "/", "-m", str(MSIZE)]
            subprocess.run(command, check=True, timeout=60, capture_output=True)
    messages = recorder.messages
    assert {message.data[4] for message in messages} == set(p9.MESSAGES) - {p9.TAUTH + 1}
    assert len(messages) > 120
    capture = tmp_path / "run.pcap"
    write_pcap(capture, messages)
    assert dissect(capture) == [
        (len(message.data), *p9.head(message.data)) for message in messages
    ]  # fmt: skip
