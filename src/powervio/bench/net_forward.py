"""How many small frames go through our vhost-user switch, beside DPDK's own back end.

A testpmd with two virtio-user ports gives back on one port what it gets on the other, so the same frames go round and
round through whatever is between the ports: our switch, or a second testpmd with two net_vhost ports. Rounds of one and
the other are interleaved, both on the same processors: the driver's testpmd on the first that there is, the back end on
the last. What counts is the ratio of the medians, which is what is left when other work on the machine is the same for
both.

Needs `dpdk-testpmd` with the virtio and vhost drivers (`powervio peers`).
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from powervio.errors import LocalError

_LIMIT = 30.0
_PROMPT = "testpmd> "
PROGRAM = "dpdk-testpmd"
MODES = {
    "split": "packed_vq=0,in_order=0,mrg_rxbuf=1",
    "split, in order, no mergeable buffers": "packed_vq=0,in_order=1,mrg_rxbuf=0",
    "packed": "packed_vq=1,in_order=0,mrg_rxbuf=1",
    "packed, in order": "packed_vq=1,in_order=1,mrg_rxbuf=1",
}


@dataclass(frozen=True, slots=True)
class Forwarding:
    """The frames a second of both directions together, of each round."""

    mode: str
    size: int
    """Bytes of a frame."""
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Of the medians: ours to theirs."""
        return statistics.median(self.ours) / statistics.median(self.theirs)


class _Program:
    """A testpmd, used by its prompt."""

    def __init__(self, cpu: int, devices: Sequence[str], name: str) -> None:
        if shutil.which(PROGRAM) is None:
            raise LocalError(f"there is no {PROGRAM}; see `powervio peers`")
        self._terminal, its = pty.openpty()
        self._output = ""
        self._process = subprocess.Popen(
            [
                *(PROGRAM, "--no-huge", "-m", "128", "--no-pci", "--no-telemetry"),
                *("--file-prefix", f"powervio-{os.getpid()}-{name}", "--lcores", f"0@{cpu},1@{cpu}"),
                *(f"--vdev={device}" for device in devices),
                *("--", "--interactive", "--total-num-mbufs=8192", "--no-mlockall", "--disable-link-check"),
            ],
            stdin=subprocess.PIPE,
            stdout=its,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(its)
        self._expect(_PROMPT)

    def _expect(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + _LIMIT
        poller = select.poll()
        poller.register(self._terminal, select.POLLIN)
        while (match := re.search(pattern, self._output)) is None:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise LocalError(f"{PROGRAM} did not answer with {pattern!r}: {self._output[-500:]}")
            try:
                self._output += os.read(self._terminal, 65536).decode(errors="replace").replace("\r", "")
            except OSError:
                raise LocalError(f"{PROGRAM} ended: {self._output[-500:]}") from None
        self._output = self._output[match.end() :]
        return match

    def run(self, command: str, answer: str) -> re.Match[str]:
        """Give a command, and wait for a line of its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        self._expect(re.escape(command))
        return self._expect(answer)

    def received(self) -> int:
        """Frames that its ports have received."""
        total = 0
        for port in (0, 1):
            total += int(self.run(f"show port stats {port}", r"RX-packets: (\d+) [^#]*####")[1])
        return total

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_LIMIT)
        os.close(self._terminal)


@contextmanager
def _ours(folder: Path, paths: Sequence[Path], cpu: int, mode: str, spin_us: int) -> Iterator[None]:
    packed = ["--packed", "--no-indirect"] if "packed_vq=1" in mode else []
    command = [sys.executable, "-m", "powervio", "vhost-user", "net", "--spin-us", str(spin_us), "--in-order", *packed]
    for path in paths:
        command += ["--port", str(path)]
    with (folder / "ours.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    os.sched_setaffinity(process.pid, {cpu})
    try:
        yield
    finally:
        process.terminate()
        process.wait(_LIMIT)


@contextmanager
def _theirs(paths: Sequence[Path], cpu: int) -> Iterator[None]:
    program = _Program(cpu, [f"net_vhost{number},iface={path}" for number, path in enumerate(paths)], "back")
    try:
        program.run("set fwd io", "Set io")
        program.run("start", "io packet forwarding")
        yield
    finally:
        program.close()


def _wait_for(paths: Sequence[Path]) -> None:
    deadline = time.monotonic() + _LIMIT
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline:
            raise LocalError(f"no socket at {paths[0]} after {_LIMIT:.0f} s")
        time.sleep(0.01)


def _rate(paths: Sequence[Path], cpu: int, mode: str, size: int, seconds: float) -> float:
    _wait_for(paths)
    program = _Program(
        cpu, [f"net_virtio_user{number},path={path},{mode}" for number, path in enumerate(paths)], "front"
    )
    try:
        program.run(f"set txpkts {size}", _PROMPT)
        program.run("set fwd io", "Set io")
        program.run("start tx_first 8", "io packet forwarding")
        time.sleep(0.3)
        before, began = program.received(), time.monotonic()
        time.sleep(seconds)
        after, ended = program.received(), time.monotonic()
        return (after - before) / (ended - began)
    finally:
        program.close()


def measure(mode: str, *, size: int = 64, rounds: int = 3, seconds: float = 1.0, spin_us: int = 100) -> Forwarding:
    """Forward frames of `size` bytes in so many interleaved rounds; `mode` is virtio-user's options. Raises
    `LocalError`."""
    processors = sorted(os.sched_getaffinity(0))
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        for rates in (ours, theirs):
            with ExitStack() as undo:
                folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="powervio-net-")))
                paths = [folder / "a", folder / "b"]
                if rates is ours:
                    undo.enter_context(_ours(folder, paths, processors[-1], mode, spin_us))
                else:
                    undo.enter_context(_theirs(paths, processors[-1]))
                rates.append(_rate(paths, processors[0], mode, size, seconds))
    return Forwarding(mode, size, tuple(ours), tuple(theirs))


def _report(found: Forwarding, name: str) -> str:
    mine, other = (statistics.median(rates) / 1e6 for rates in (found.ours, found.theirs))
    return f"{name:40} {found.size:5} B  {mine:6.2f} M/s  net_vhost {other:6.2f} M/s  ratio {found.ratio:.2f}"


def main() -> None:
    """Measure all modes, and print the ratios."""
    for name, mode in MODES.items():
        print(_report(measure(mode), name), flush=True)


if __name__ == "__main__":
    main()
