"""Write the tables of docs/system-file.md from the Structs of `powervio.system.config`: `./run` has made .venv, then

    PYTHONPATH=src .venv/bin/python tools/options.py

A field's text is its docstring; a test (tests/project/test_options.py) fails while the document lacks a field.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import msgspec

from powervio.system import config, explain, fs_section, machine_ports, net_section, sea_section
from powervio.system import types as device_types
from powervio.system.config import Size, show_size

DOCUMENT = Path(__file__).parents[1] / "docs" / "system-file.md"
MARK = "<!-- tools/options.py writes what follows -->\n"
SECTIONS: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    ("[system]", config.SystemSection),
    ("[[vios]]", config.Vios),
    ("[[lpar]]", config.Lpar),
    ("[[lpar.disk]]", config.Disk),
    ("[[lpar.console]]", device_types.Console),
    ("[[lpar.console.port]]", device_types.ConsolePort),
    ("[[lpar.rng]]", device_types.Rng),
    ("[[lpar.net]]", net_section.Net),
    ("[[lpar.fs]]", fs_section.Fs),
    ("[[port]]", machine_ports.MachinePort),
    ("[[sea]]", sea_section.Sea),
    ("[[pool]]", config.StoragePool),
)


def tables() -> str:
    """All sections, a table each."""
    parts = []
    for heading, struct in SECTIONS:
        parts.append(f"\n## `{heading}`\n\n{first_sentence(struct)}\n\n")
        parts.append("| option | value | default | meaning |\n|---|---|---|---|\n")
        texts = docstrings(struct)
        for field in msgspec.structs.fields(struct):
            value = re.sub(r"\s*\|\s*", " or ", explain.expected(struct, field.name))
            if field.name in ("disk", "port", "console", "rng", "net"):
                value = "tables"
            parts.append(f"| `{field.name}` | {value} | {default(field)} | {texts[field.name]} |\n")
    return "".join(parts)


def first_sentence(struct: type[msgspec.Struct]) -> str:
    """A class's docstring without the section's name, which is the heading."""
    text = (inspect.getdoc(struct) or "").split(": ", 1)[-1]
    return text[:1].upper() + text[1:]


def docstrings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The text below each field of a class, as one line."""
    found: dict[str, str] = {}
    for base in struct.__bases__:
        if issubclass(base, msgspec.Struct) and base is not msgspec.Struct:
            found |= docstrings(base)
    (body,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr), f"{struct.__name__}.{field.target.id} has no docstring"
            assert isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split()).replace("|", "\\|")
    return found


def default(field: msgspec.structs.FieldInfo) -> str:
    """The default as it would be written; "required" if there is none."""
    if field.required:
        return "required"
    value = field.default
    if value is None or value is msgspec.NODEFAULT:
        return "-"
    if isinstance(value, Size):
        return f'`"{show_size(value)}"`'
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{str(value).lower()}`"


def main() -> None:
    """Write them."""
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(text[: text.index(MARK) + len(MARK)] + tables())


if __name__ == "__main__":
    main()
