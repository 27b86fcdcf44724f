"""Debian packages of any architecture: found and downloaded by apt-get, unpacked nowhere, installed nowhere.

apt-get uses this machine's sources, keys and proxies, and lists, cache and status of its own in a scratch folder, so
nothing of the machine changes, and no foreign architecture is added to it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from powervio.errors import LocalError

UPDATE_LIMIT = 120.0
"""Seconds for the lists of packages."""
DOWNLOAD_LIMIT = 600.0
"""Seconds for a package."""
ASK_LIMIT = 60.0
"""Seconds for a question that is answered from the lists."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One version of a package that the lists have."""

    package: str
    version: str
    size: int
    """Bytes; 0 if the lists do not say it."""
    depends: tuple[str, ...]
    """Names of packages that it depends on, without alternatives and versions."""


def configuration(folder: Path, architecture: str, user: str) -> str:
    """What apt-get is told beside this machine's configuration.

    Hooks are left out: they tell services of the machine about changes, and nothing of the machine changes.
    """
    return f"""\
Dir::State "{folder}/state";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Sandbox::User "{user}";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
"""


def parse_show(text: str) -> list[Choice]:
    """What `apt-cache show` says, the version that apt would install first."""
    choices = []
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): *(.*)$", stanza, re.MULTILINE))
        if "Package" not in fields or "Version" not in fields:
            continue
        depends = [part.split()[0] for part in fields.get("Depends", "").split(",") if part.strip()]
        size = fields.get("Size", "0")
        choices.append(Choice(fields["Package"], fields["Version"], int(size) if size.isdigit() else 0, tuple(depends)))
    return choices


def complaint(stderr: str) -> str:
    """The first error of what apt said, or its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
    errors += [line for line in lines if line.startswith(("Err:", "W: Failed"))]
    return errors[0] if errors else lines[-1] if lines else "it said nothing"


class Apt:
    """apt-get for one architecture, with all of its state in a scratch folder of the caller's."""

    def __init__(self, folder: Path, architecture: str, say: Callable[[str], None]) -> None:
        if shutil.which("apt-get") is None:
            raise LocalError("apt-get is missing: kernels are fetched with it, on Debian and what is made of it")
        if '"' in str(folder):
            raise LocalError(f'{folder}: apt-get takes no folder with a " in its name')
        self._architecture = architecture
        self._say = say
        self._downloads = folder / "downloads"
        self._said = ""
        for name in ("state", "lists/partial", "cache/archives/partial", "downloads"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        self._configuration = folder / "apt.conf"
        # a scratch folder is private, and the user that apt has for downloads could not write to it
        self._configuration.write_text(configuration(folder, architecture, "root"))

    def update(self) -> None:
        """Fetch the lists. Some may be missing: whether those that are needed are is seen when something is asked."""
        self._say(f"fetching the lists of packages for {self._architecture}")
        done = self._run("apt-get", "-q", "update", limit=UPDATE_LIMIT, what="the lists of packages")
        self._said = done.stdout + done.stderr if done.returncode or "W: " in done.stderr else ""

    def choices(self, package: str) -> list[Choice]:
        """The versions of a package; raises `LocalError` if there is none."""
        done = self._run("apt-cache", "show", package, limit=ASK_LIMIT, what=f"the versions of {package}")
        choices = parse_show(done.stdout)
        if not choices:
            reason = complaint(self._said) if self._said else "this machine's sources do not have it"
            raise LocalError(f"no package {package} for {self._architecture}: {reason}")
        return choices

    def download(self, choices: Sequence[Choice]) -> tuple[Choice, Path]:
        """Download the first of these that can be had; raises `LocalError`.

        A mirror that is just being synchronised may list what it does not have yet.
        """
        said = "it is not to be had"
        for choice in choices:
            name = f"{choice.package}={choice.version}"
            size = f" ({choice.size / 1e6:.0f} MB)" if choice.size else ""
            self._say(f"downloading {choice.package} {choice.version} for {self._architecture}{size}")
            done = self._run("apt-get", "-q", "download", name, limit=DOWNLOAD_LIMIT, what=f"package {choice.package}")
            found = sorted(self._downloads.glob(f"{choice.package}_*.deb"))
            if done.returncode == 0 and found:
                return choice, found[0]
            said = complaint(done.stderr)
        raise LocalError(f"cannot download {choices[0].package} for {self._architecture}: {said}")

    def _run(self, program: str, *arguments: str, limit: float, what: str) -> subprocess.CompletedProcess[str]:
        command = [program, "-c", str(self._configuration), *arguments]
        environment = {**os.environ, "LC_ALL": "C"}
        process = subprocess.Popen(
            command,
            cwd=self._downloads,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # its helpers end with it
        )
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise LocalError(f"waited {limit:.0f} s for {what} from {program}; is the network there?") from None
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)
