"""qcow2, vmdk and vhdx images, served over NBD on a private socket by a `qemu-storage-daemon` that is looked after.

One thread for each daemon starts it, copies what it says on stderr to the log, notices its death and starts another.
The daemon dies with that thread, and so with the process, by PR_SET_PDEATHSIG: killed or not, powervio leaves no
daemon behind.

The image is locked here, by QEMU's rules, and the daemon inherits the open file and with it the lock; it is told to
take none itself. So the image belongs to us while a dead daemon is being replaced, and when powervio is killed it is
free not before the daemon's last I/O has ended. Files that an image refers to (backing files) are locked by QEMU.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress

from powervio.errors import LocalError
from powervio.storage import hostfile
from powervio.storage.nbd import protocol as nbd

_log = logging.getLogger(__name__)

PROGRAM = "qemu-storage-daemon"
PACKAGE = "qemu-system-common"
FORMATS = ("qcow2", "vmdk", "vhdx")
START_LIMIT = 15.0
"""Seconds for the first daemon to serve."""
STOP_LIMIT = 5.0
"""Seconds between SIGTERM and SIGKILL."""
_PAUSES = (0.0, 0.1, 0.3, 1.0)
"""Seconds before each further start of a daemon that does not live for `_HEALTHY` seconds."""
_HEALTHY = 5.0

_numbers = itertools.count()

# Runs in the child, between fork and exec, without this process' threads and locks: a program of its own.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"  # PR_SET_PDEATHSIG, SIGKILL
    "if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])\n"
)


def dying_with_us(command: list[str]) -> list[str]:
    """A command, by the full path of its program, made to be killed when the thread that starts it ends."""
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


class QemuDaemon:
    """One image served by a daemon that is replaced when it dies, from `__init__` to `stop`."""

    def __init__(
        self,
        image: str,
        image_format: str,
        *,
        read_only: bool = False,
        direct: bool = False,
        wait: float = 0.0,
        folder: str | os.PathLike[str] | None = None,
        start_limit: float = START_LIMIT,
    ) -> None:
        """Lock the image, waiting up to `wait` seconds for a predecessor to end, and start a daemon for it.

        `folder` is a private one for the socket; one is made if it is None.
        Raises `LocalError` with what the daemon said when it cannot serve the image, `ImageBusy` when it is in use.
        """
        self.image = image
        self.format = image_format
        self.starts = 0
        """Daemons that were started."""
        self._read_only = read_only
        self._direct = direct
        program = shutil.which(PROGRAM)
        if program is None:
            raise LocalError(
                f"image {image}: {PROGRAM}, which serves {image_format}, is missing: apt-get install {PACKAGE}"
            )
        self._program = program
        self._fd = _open_locked(image, read_only=read_only, wait=wait)
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._said: deque[str] = deque(maxlen=10)
        self._told: set[int] = set()  # processes that were asked to end
        try:
            self._own_folder = None if folder is not None else tempfile.mkdtemp(prefix="powervio-")
        except OSError as error:
            os.close(self._fd)
            raise LocalError(f"image {image}: no folder for a socket ({error})") from error
        self.socket = os.path.join(folder or self._own_folder or "", f"{next(_numbers)}.sock")
        """Path of the Unix socket; the export's name is empty."""
        self._ended_once = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name=f"{PROGRAM} of {image}", daemon=True)
        self._thread.start()
        try:
            self._wait_until_served(time.monotonic() + start_limit)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int | None:
        """The daemon's process now; None while there is none."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def stop(self) -> None:
        """End the daemon: SIGTERM, and SIGKILL after `STOP_LIMIT` seconds. The image is free then."""
        self._stopping.set()
        for number, patience in ((signal.SIGTERM, STOP_LIMIT), (signal.SIGKILL, STOP_LIMIT)):
            deadline = time.monotonic() + patience
            while self._thread.is_alive() and time.monotonic() < deadline:
                process = self._process  # perhaps one that is only just being started
                if process is not None and (number == signal.SIGKILL or process.pid not in self._told):
                    self._told.add(process.pid)
                    with suppress(ProcessLookupError):
                        process.send_signal(number)
                self._thread.join(0.1)
            if not self._thread.is_alive():
                break
            _log.error("%s of %s does not end after %s", PROGRAM, self.image, number.name)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with suppress(OSError):
            os.unlink(self.socket)
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)

    def _wait_until_served(self, deadline: float) -> None:
        while True:
            ended = self._ended_once.is_set()
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                with suppress(OSError):
                    probe.connect(self.socket)
                    if probe.recv(18):
                        # an orderly goodbye, or the daemon would complain
                        probe.sendall(nbd.ClientFlags(3).pack() + nbd.pack_option(nbd.Option.ABORT))
                        while probe.recv(64):
                            pass
                        return
            if ended:
                said = "; ".join(self._said) or "it said nothing"
                raise LocalError(f"image {self.image}: {PROGRAM} cannot serve it as {self.format}: {said}")
            if time.monotonic() > deadline:
                raise LocalError(f"image {self.image}: {PROGRAM} did not serve it in time")
            time.sleep(0.005)

    # -- in the thread that looks after the daemon

    def _look_after(self) -> None:
        quick = 0
        while not self._stopping.wait(_PAUSES[min(quick, len(_PAUSES) - 1)]):
            began = time.monotonic()
            try:
                status = self._run_once()
            except OSError as error:
                status = None
                self._said.append(str(error))
                _log.exception("%s cannot be started", PROGRAM)
            self._ended_once.set()
            if self._stopping.is_set():
                break
            quick = 0 if time.monotonic() - began > _HEALTHY else quick + 1
            _log.warning("%s of %s ended (status %s); starting another", PROGRAM, self.image, status)

    def _run_once(self) -> int:
        """Start a daemon and return its status when it has ended."""
        with subprocess.Popen(
            dying_with_us([self._program, *self._arguments()]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(self._fd,),
            start_new_session=True,  # Ctrl-C at the terminal is for powervio, which ends it after its last request
        ) as process:
            self._process = process
            self.starts += 1
            assert process.stderr is not None
            for line in process.stderr:
                text = line.decode(errors="replace").strip()
                self._said.append(text.removeprefix(f"{PROGRAM}: "))
                _log.warning("%s of %s: %s", PROGRAM, self.image, text)
            return process.wait()

    def _arguments(self) -> list[str]:
        node = {
            "driver": self.format,
            "node-name": "disk",
            "read-only": self._read_only,
            "discard": "unmap",
            "cache": {"direct": self._direct},
            "file": {
                "driver": "file",
                "filename": os.path.abspath(self.image),
                "read-only": self._read_only,
                "locking": "off",  # it has our lock
                "discard": "unmap",
                "cache": {"direct": self._direct},
            },
        }
        server = {"addr": {"type": "unix", "path": self.socket}}
        export = {"type": "nbd", "id": "disk", "node-name": "disk", "name": "", "writable": not self._read_only}
        return [
            *("--blockdev", json.dumps(node)),
            *("--nbd-server", json.dumps(server)),
            *("--export", json.dumps(export)),
        ]


def _open_locked(image: str, *, read_only: bool, wait: float) -> int:
    """The image's descriptor, which holds its lock. Raises `LocalError`, `ImageBusy`."""
    try:
        fd = os.open(image, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR))
    except OSError as error:
        raise LocalError(f"image {image}: {error.strerror}") from error
    try:
        hostfile.lock_image(fd, image, read_only=read_only, wait=wait)
    except BaseException:
        os.close(fd)
        raise
    return fd
