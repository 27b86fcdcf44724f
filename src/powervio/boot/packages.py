"""Debian packages of any architecture: found and downloaded by apt-get, installed nowhere.

apt-get uses this machine's sources, keys and proxies, and lists, cache and status of its own in a scratch folder, so
nothing of the machine changes, and no foreign architecture is added to it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from powervio.boot import commands
from powervio.errors import LocalError

UPDATE_LIMIT = 120.0
"""Seconds for the lists of packages."""
DOWNLOAD_LIMIT = 600.0
"""Seconds for the packages of a guest."""
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
    architecture: str = ""
    """Of this machine's, where that is not the guest's; "" is the guest's, or all."""

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


_DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64el"}


def of_this_machine() -> str:
    """Debian's name of this machine's architecture."""
    try:
        done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return _DEBIAN_NAMES.get(platform.machine(), platform.machine())


def configuration(folder: Path, architectures: Sequence[str], user: str) -> str:
    """What apt-get is told beside this machine's configuration. The first architecture is that of the packages.

    Hooks are left out: they tell services of the machine about changes, and nothing of the machine changes.
    """
    names = " ".join(f'"{name}";' for name in architectures)
    return f"""\
Dir::State "{folder}/state";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
APT::Architecture "{architectures[0]}";
#clear APT::Architectures;
APT::Architectures {{ {names} }};
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
    """apt-get for one architecture, with all of its state in a scratch folder of the caller's.

    `tools` is the architecture of programs that are to run here (this machine's), if some are wanted.
    """

    def __init__(self, folder: Path, architecture: str, say: Callable[[str], None], *, tools: str = "") -> None:
        if shutil.which("apt-get") is None:
            raise LocalError("apt-get is missing: kernels are fetched with it, on Debian and what is made of it")
        if '"' in str(folder):
            raise LocalError(f'{folder}: apt-get takes no folder with a " in its name')
        self._architectures = [architecture, *([tools] if tools not in ("", architecture) else [])]
        self._say = say
        self._downloads = folder / "downloads"
        self._said = ""
        for name in ("state", "lists/partial", "cache/archives/partial", "downloads"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        self._configuration = folder / "apt.conf"
        # a scratch folder is private, and the user that apt has for downloads could not write to it
        self._configuration.write_text(configuration(folder, self._architectures, "root"))

    def update(self) -> None:
        """Fetch the lists. Some may be missing: whether those that are needed are is seen when something is asked."""
        self._say(f"fetching the lists of packages for {' and '.join(self._architectures)}")
        done = self._run("apt-get", "-q", "update", limit=UPDATE_LIMIT, what="the lists of packages")
        self._said = done.stdout + done.stderr if done.returncode or "W: " in done.stderr else ""

    def choices(self, package: str) -> list[Choice]:
        """The versions of a package; raises `LocalError` if there is none."""
        return self._choices(package, "")

    def tools(self, package: str) -> list[Choice]:
        """The same of programs that run here."""
        return self._choices(package, self._architectures[-1] if len(self._architectures) > 1 else "")

    def _choices(self, package: str, architecture: str) -> list[Choice]:
        name = f"{package}:{architecture}" if architecture else package
        done = self._run("apt-cache", "show", name, limit=ASK_LIMIT, what=f"the versions of {package}")
        choices = [replace(choice, architecture=architecture) for choice in parse_show(done.stdout)]
        if not choices:
            reason = complaint(self._said) if self._said else "this machine's sources do not have it"
            raise LocalError(f"no package {package} for {architecture or self._architectures[0]}: {reason}")
        return choices

    def download_with_needs(self, names: Sequence[str]) -> list[Path]:
        """Download packages and all that they depend on, recommendations left out; where those are.

        Raises `LocalError`, also if they cannot be installed together.
        """
        for name in names:
            self.choices(name)  # apt-get would take a name that it does not know for a pattern
        arguments = ("-q", "-y", "--no-install-recommends", "--print-uris", "install", *names)
        done = self._run("apt-get", *arguments, limit=ASK_LIMIT, what=f"what {names[0]} depends on")
        files = re.findall(r"^'.*' ([^\s_]+)_([^\s_]+)_\S+\.deb (\d+) ", done.stdout, re.MULTILINE)
        wanted = [
            Choice(package, version.replace("%3a", ":"), int(size), ()) for package, version, size in sorted(files)
        ]
        if done.returncode or not wanted:
            # what lacks what is said on the standard output, indented
            found = re.search(r"^ (\S+ : .*)$", done.stdout, re.MULTILINE)
            reason = found[1] if found else complaint(done.stderr)
            raise LocalError(
                f"{', '.join(names)} cannot be installed on {self._architectures[0]}: {' '.join(reason.split())}"
            )
        said = self._fetch(wanted, f"{', '.join(names)} with what is needed, {len(wanted)} packages,")
        found_files = [path for choice in wanted if (path := self._file(choice)) is not None]
        if len(found_files) < len(wanted):
            raise LocalError(f"cannot download {', '.join(names)} for {self._architectures[0]}: {said}")
        return found_files

    def download(self, *needs: Sequence[Sequence[Choice]]) -> list[list[Path]]:
        """Download one of each need's alternatives, which are packages that belong together; where those are.

        All that is needed comes in one run of apt-get. A mirror that is just being synchronised may list what it does
        not have yet: then it is the first alternative that can be had, at the cost of another run. Raises `LocalError`.
        """
        found: list[list[Path]] = [[] for _ in needs]
        left = [list(need) for need in needs]
        said = "it is not to be had"
        while missing := [number for number, files in enumerate(found) if not files]:
            for number in missing:
                if not left[number]:
                    raise LocalError(
                        f"cannot download {needs[number][0][0].package} for {self._architectures[0]}: {said}"
                    )
            tried = {number: left[number].pop(0) for number in missing}
            said = self._fetch([choice for group in tried.values() for choice in group])
            for number, group in tried.items():
                files = [self._file(choice) for choice in group]
                found[number] = [path for path in files if path is not None] if None not in files else []
        return found

    def _fetch(self, choices: Sequence[Choice], what: str = "") -> str:
        """Download what can be had of these; the complaint if that is not all. `what` is what they are together."""
        size = sum(choice.size for choice in choices)
        total = f" ({size / 1e6:.0f} MB)" if size else ""
        self._say(f"downloading {what or ', '.join(map(str, choices))} for {self._architectures[0]}{total}")
        names = [
            f"{choice.package}{':' if choice.architecture else ''}{choice.architecture}={choice.version}"
            for choice in choices
        ]
        done = self._run(
            "apt-get", "-q", "download", *names, limit=DOWNLOAD_LIMIT, what=f"package {choices[0].package}"
        )
        return complaint(done.stderr)

    def _file(self, choice: Choice) -> Path | None:
        """Where a package was downloaded to, if it was, and wholly."""
        version = choice.version.replace(":", "%3a")
        for path in self._downloads.glob(f"{choice.package}_{version}_*.deb"):
            if path.exists() and choice.size in (0, path.stat().st_size):
                return path
        return None

    def _run(self, program: str, *arguments: str, limit: float, what: str) -> subprocess.CompletedProcess[str]:
        command = [program, "-c", str(self._configuration), *arguments]
        late = f"{what} from {program}; is the network there?"
        return commands.run(command, os.environ, limit=limit, late=late, folder=self._downloads)
