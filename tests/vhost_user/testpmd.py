"""DPDK's testpmd, used by its prompt."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.vhost_user.harness import Serving

LIMIT = 60.0
PROMPT = "testpmd> "


class Testpmd:
    """The program, used by its prompt."""

    __test__ = False

    def __init__(self, paths: Sequence[Path], options: str, *more: str, queues: int = 1) -> None:
        """A port at each of the sockets."""
        cpu = min(os.sched_getaffinity(0))  # both of its threads on one: the other is ours
        terminal, its = pty.openpty()
        self._terminal = terminal
        self.output = ""
        self._process = subprocess.Popen(
            [
                *("dpdk-testpmd", "--no-huge", "-m", "64", "--no-pci", "--no-telemetry"),
                *("--file-prefix", f"powervio-{os.getpid()}", "--lcores", f"0@{cpu},1@{cpu}"),
                *(
                    f"--vdev=net_virtio_user{number},path={path},queues={queues},{options}"
                    for number, path in enumerate(paths)
                ),
                *("--", "--interactive", "--total-num-mbufs=2048", "--no-mlockall", "--disable-link-check", *more),
            ],
            stdin=subprocess.PIPE,
            stdout=its,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(its)
        self.expect(PROMPT)

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until there is something like that in what was not looked at yet."""
        deadline = time.monotonic() + LIMIT
        poller = select.poll()
        poller.register(self._terminal, select.POLLIN)
        while (match := re.search(pattern, self.output)) is None:
            assert poller.poll(max(0.0, deadline - time.monotonic()) * 1000), f"no {pattern!r} in {self.output}"
            try:
                self.output += os.read(self._terminal, 65536).decode(errors="replace").replace("\r", "")
            except OSError:
                pytest.fail(f"testpmd ended: {self.output}")
        self.output = self.output[match.end() :]
        return match

    def run(self, command: str, answer: str = "") -> re.Match[str]:
        """Give a command, and wait for a line of its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        self.expect(re.escape(command))
        return self.expect(answer)

    def forward(self, mode: str, start: str = "start") -> None:
        """Begin forwarding; what was received before is thrown away by then."""
        self.run(f"set fwd {mode}", f"Set {mode}")
        self.run(start, f"{mode} packet forwarding")
        self.expect("TX offloads=.*TX RS bit")

    def stop(self) -> None:
        """End forwarding."""
        self.run("stop", r"Done\.")

    def counters(self) -> tuple[int, int]:
        """Frames sent and received, as the driver counts them; it counted no errors."""
        return self.counters_of(0)

    def counters_of(self, port: int) -> tuple[int, int]:
        """The same of one of several ports."""
        sent = self.run(f"show port stats {port}", r"RX-packets: (\d+) [^#]*TX-packets: (\d+) [^#]*####")
        errors = re.findall(r"(?:errors|missed|nombuf): +(\d+)", sent[0])
        assert len(errors) == 4
        assert set(errors) == {"0"}, sent[0]
        return int(sent[2]), int(sent[1])

    def close(self) -> None:
        if self._process.poll() is None and self._process.stdin is not None:
            self.run("quit", r"Bye\.\.\.")
            assert self._process.wait(LIMIT) == 0

    def kill(self) -> None:
        """Whatever it does."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(LIMIT)
        os.close(self._terminal)


@contextmanager
def testpmd(back: Serving, options: str, *more: str) -> Iterator[Testpmd]:
    """Run it, and see that it and our end part as they should."""
    made = Testpmd([back.path], options, *more)
    try:
        yield made
        made.close()
    finally:
        made.kill()
    assert back.server.failures == []


testpmd.__test__ = False  # type: ignore[attr-defined]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
