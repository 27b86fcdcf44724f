"""Where running systems are found: a folder with a control socket, a lock and a log for each.

`NAME.lock` is locked by the process that runs the system for as long as it lives, whatever becomes of it: it says who
owns `NAME.sock`. So a socket whose owner was killed is known as stale without asking anybody.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import stat
import time
from pathlib import Path

from powervio.errors import LocalError

_ATTEMPTS = 10
_numbers = itertools.count()


class NameInUse(LocalError):
    """A system of this name is running."""


def run_folder() -> Path:
    """`$XDG_RUNTIME_DIR/powervio`, else `/run/powervio` (root) or `/tmp/powervio-UID`.

    XDG_RUNTIME_DIR counts only if it is an absolute path: the XDG specification has others ignored.
    It is made if it is not there, with access for its owner alone. Raises `LocalError` when somebody else could write
    there: control sockets take commands from whoever reaches them.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isabs(base):
        folder = Path(base, "powervio")
    elif os.getuid() == 0:
        folder = Path("/run/powervio")
    else:
        folder = Path(f"/tmp/powervio-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        where = " (from XDG_RUNTIME_DIR)" if base and os.path.isabs(base) else ""
        raise LocalError(f"the folder {folder}{where} for control sockets: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise LocalError(
            f"{folder} must be a folder that is yours and that only you can write to"
            " (XDG_RUNTIME_DIR names another place for it)"
        )
    return folder


class RunName:
    """The right to run a system under a name: held from `__init__` to `release` or the end of the process."""

    def __init__(self, name: str) -> None:
        """Raises `NameInUse`, `LocalError`."""
        folder = run_folder()
        self.name = name
        self.socket = folder / f"{name}.sock"
        self._lock = folder / f"{name}.lock"
        try:
            self._fd = _locked(self._lock)
        except OSError as error:
            raise LocalError(f"{self._lock}: {error.strerror}") from error
        if self._fd < 0:
            owner = self._lock.read_text(errors="replace").strip() or "another process"
            raise NameInUse(
                f'a system named "{name}" is running ({owner}): end it with `powervio down {name}`, or give this one'
                " another name, [system] name"
            )
        try:
            os.truncate(self._fd, 0)
            os.write(self._fd, f"process {os.getpid()}\n".encode())
            self.socket.unlink(missing_ok=True)
        except OSError as error:
            self._lock.unlink(missing_ok=True)
            os.close(self._fd)
            raise LocalError(f"{self._lock}: {error.strerror}") from error

    def release(self) -> None:
        """Let the name go; the socket goes first."""
        if self._fd < 0:
            return
        self.socket.unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1


def log_file(name: str) -> Path:
    """Where a system in the background writes what it has to say."""
    return run_folder() / f"{name}.log"


def guest_files(folder: Path, lpar: str, system: str) -> tuple[str, str]:
    """Paths of a guest's door and of its memory. Names have no "@", so that no two guests have the same ones."""
    stem = folder / f"{lpar}@{system}"
    return f"{stem}.door", f"{stem}.memory"


def private_folder() -> str:
    """A new folder for sockets between this process and its helpers; those of processes that are gone are removed."""
    folder = run_folder()
    for path in folder.glob("q*-*"):
        owner = path.name[1:].partition("-")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(path, ignore_errors=True)
    made = folder / f"q{os.getpid()}-{next(_numbers)}"  # short: the path of a socket has at most 107 bytes
    made.mkdir(mode=0o700)
    return str(made)


def running_names() -> list[str]:
    """The systems of this user that run now, by name."""
    return sorted(path.stem for path in run_folder().glob("*.lock") if _is_held(path))


def is_running(name: str) -> bool:
    """Whether a system of this name runs."""
    return _is_held(run_folder() / f"{name}.lock")


def socket_of(name: str) -> Path:
    """The control socket of a system, whether or not it runs."""
    return run_folder() / f"{name}.sock"


def _locked(path: Path) -> int:
    """A descriptor that holds the lock on the file at `path`, or -1 if somebody else does."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02 if attempt < _ATTEMPTS - 1 else 0)  # it may be somebody who only looks: `_is_held`
        else:
            os.close(fd)
            return -1
        try:
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)  # the owner removed it between our open and our lock: that lock protects nothing


def _is_held(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)
