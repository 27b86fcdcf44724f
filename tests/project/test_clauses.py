"""The normative pages and the tests know of each other: every clause is named by a test, every named clause exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    "P": ("docs/protocol.md", "tests", "src"),
    "G": ("docs/gateway.md", "tests/gateway", "src/powervio/gateway"),
    "F": ("docs/virtio-9p.md", "tests", "src"),
}
"""By the letter of its clauses: the page, and where these are named."""


def clauses(letter: str) -> set[str]:
    text = (ROOT / PAGES[letter][0]).read_text()
    return set(re.findall(rf"^(?:- )?\*\*({letter}\d+\.\d+)", text, re.MULTILINE))


def named(letter: str, folder: str) -> dict[str, str]:
    """Clause ids in the Python files below a folder, with a file that names each; `P1.3-P1.6` names all between."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        for chapter, first, last in re.findall(rf"\b{letter}(\d+)\.(\d+)-{letter}\1\.(\d+)\b", text):
            for number in range(int(first), int(last) + 1):
                found.setdefault(f"{letter}{chapter}.{number}", path.name)
        for clause in re.findall(rf"\b{letter}\d+\.\d+\b", text):
            found.setdefault(clause, path.name)
    return found


@pytest.mark.parametrize("letter", PAGES)
def test_every_clause_is_named_by_a_test(letter: str) -> None:
    assert clauses(letter)
    assert sorted(clauses(letter) - set(named(letter, PAGES[letter][1]))) == []


@pytest.mark.parametrize("letter", PAGES)
def test_every_clause_that_is_cited_exists(letter: str) -> None:
    _, tests, sources = PAGES[letter]
    cited = {**named(letter, tests), **named(letter, sources)}
    assert {clause: place for clause, place in cited.items() if clause not in clauses(letter)} == {}
