"""The list of compiled modules, and the two ways in which their sources run."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from typing import cast

import pytest

import powervio
from powervio import _compiled

declarations = runpy.run_path("tools/build.py")["declarations"]

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def extension_table() -> list[dict[str, object]]:
    table = PROJECT["tool"]["setuptools"]["ext-modules"]
    assert isinstance(table, list)
    return table


def python(code: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "POWERVIO_INTERPRETED"}
    return subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_compiled_list_is_the_list_of_pyproject() -> None:
    assert [entry["name"] for entry in extension_table()] == list(_compiled.COMPILED)


def test_extension_sources_are_the_modules_they_name() -> None:
    for entry in extension_table():
        assert entry["sources"] == [f"src/{str(entry['name']).replace('.', '/')}.py"]
        assert entry["optional"] is True


def test_every_compiled_module_has_a_stub_for_cimports() -> None:
    stubs = ROOT / "stubs/cython/cimports"
    for name in _compiled.COMPILED:
        assert (stubs / f"{name.replace('.', '/')}.pyi").read_text() == f"from {name} import *\n"


def test_every_accessor_of_hw_pxd_has_an_interpreted_stand_in() -> None:
    declared = set(re.findall(r"(\w+)\(", (ROOT / "src/powervio/memory/hw.pxd").read_text()))
    assert declared
    assert declared <= set(dir(import_module("powervio.memory.hw")))


@pytest.mark.dual
def test_compiled_modules_load_the_way_this_run_asks_for() -> None:
    interpreted = os.environ.get("POWERVIO_INTERPRETED", "0") not in ("", "0")
    assert _compiled.is_compiled() is not interpreted
    kind = SourceFileLoader if interpreted else ExtensionFileLoader
    for name in _compiled.COMPILED:
        spec = import_module(name).__spec__
        assert spec is not None
        assert isinstance(spec.loader, kind), name


@pytest.mark.dual
def test_cimports_resolve_to_the_ordinary_modules() -> None:
    code = (
        "import powervio\n"
        "import cython.cimports.powervio.memory.hw as first\n"
        "from cython.cimports.powervio.memory import hw as second\n"
        "from cython.cimports.powervio.memory.hw import ld16\n"
        "import powervio.memory.hw as real\n"
        "assert first is second is real and ld16 is real.ld16\n"
        "print(real.__name__, real.__spec__.name)"
    )
    assert python(code, POWERVIO_INTERPRETED="1") == "powervio.memory.hw powervio.memory.hw"


def test_interpreted_environment_ignores_the_extensions() -> None:
    code = "from powervio import _compiled; print(_compiled.is_compiled(), len(_compiled.compiled_modules()))"
    assert python(code, POWERVIO_INTERPRETED="1") == "False 0"
    assert python(code, POWERVIO_INTERPRETED="0") == f"True {len(_compiled.COMPILED)}"


def test_start_of_the_package_does_not_import_cython() -> None:
    assert python("import sys, powervio; print('cython' in sys.modules)") == "False"


def test_package_states_its_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", powervio.__version__)


def test_build_knows_every_declaration_that_a_module_is_compiled_with() -> None:
    assert _compiled.is_compiled()
    for entry in extension_table():
        (source,) = map(Path, cast(list[str], entry["sources"]))
        used = set(
            re.findall(
                r'^  "(src/powervio/[\w/]+\.pxd)",$', (ROOT / source).with_suffix(".c").read_text(), re.MULTILINE
            )
        )
        known = {str(path) for path in declarations(source)}
        assert used <= known, entry["name"]
