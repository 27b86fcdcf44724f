"""What is wrong with a system file in the words of a TOML file: msgspec's messages, and what each field takes."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct

from powervio.system.config import NAME_PATTERN, NAME_WORDS, Size, file_struct

_WORDS = {
    "int": "an integer",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "a table",
    "float": "a number",
}


def explain(message: str, raw: dict[str, Any]) -> str:
    """What msgspec's `message` about the file's content `raw` means, with its path in the file."""
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    kind, value = _follow(path, raw)
    if match := re.fullmatch(r"Object missing required field `(\w+)`", what):
        section = f"{path}.{match[1]}" if path else match[1]
        return f"{section}: it is missing; expected {expected_at(field_type(kind, match[1]), section)}"
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        return _unknown_field(kind, path, match[1])
    if what.startswith("expected"):  # our own `Size.parse`
        return f"{path}: {what}, found {show(value)}"
    return f"{path}: expected {expected_at(kind, path)}, found {show(value)}"


def _unknown_field(kind: Any, path: str, name: str) -> str:
    name = _shortened(name)
    known = [field.name for field in msgspec.structs.fields(kind)]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"expected one of {', '.join(known)}"
    return f"{f'{path}.' if path else ''}{name}: there is no such option; {hint}"


def _follow(path: str, raw: dict[str, Any]) -> tuple[Any, Any]:
    """The declared type and the value found at a path such as `lpar[0].disk[1].queues`."""
    kind: Any = file_struct()
    value: Any = raw
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        if index:
            kind = next(option for option in _options(kind) if typing.get_origin(option) is list)
            kind = typing.get_args(kind)[0]
            value = value[int(index)]
        else:
            kind = field_type(kind, name)
            value = value[name]
    return kind, value


def field_type(kind: Any, name: str) -> Any:
    """The type of a field, without an `| None`: TOML has no null."""
    declared = typing.get_type_hints(kind, include_extras=True)[name]
    options = [option for option in _options(declared) if option is not types.NoneType]
    return options[0] if len(options) == 1 else declared


def _options(kind: Any) -> tuple[Any, ...]:
    """The types of a union; the type itself if it is none."""
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if is_union else (kind,)


def expected(kind: type[Struct], name: str) -> str:
    """What a field of a section takes, in words."""
    return expected_at(field_type(kind, name), name)


def expected_at(kind: Any, path: str) -> str:
    """What the field at a path takes, in words."""
    if len(options := _options(kind)) > 1:
        return " or ".join(expected_at(option, path) for option in options)
    if typing.get_origin(kind) is Annotated:
        base, meta = typing.get_args(kind)
        if meta.pattern == NAME_PATTERN:
            return NAME_WORDS
        if meta.max_length is not None:
            return f"a string of{' 1 to' if meta.min_length else ' at most'} {meta.max_length} characters of ASCII"
        return f"{_WORDS[base.__name__]} from {meta.ge} to {meta.le}"
    if typing.get_origin(kind) is Literal:
        return " or ".join(show(value) for value in typing.get_args(kind))
    if kind is Size:
        return 'a size such as "256M" or a number of bytes'
    if kind == list[str]:
        return "an array of strings"
    if typing.get_origin(kind) is list:
        section = re.sub(r"\[\d+\]", "", path)
        return f"an array of tables, [[{section}]]"
    if isinstance(kind, type) and issubclass(kind, Struct):
        return "a table"
    return _WORDS[kind.__name__]


def show(value: object) -> str:
    """A value as the file would write it, or what it is if that is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{_shortened(value)}"'
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, int) and value.bit_length() > 4000:
        return "a number of more than a thousand digits"  # Python writes none of those
    return _shortened(str(value))


def _shortened(text: str) -> str:
    return text if len(text) < 60 else f"{text[:57]}..."


def one_line(text: str) -> str:
    """Text of the user's as a part of one line: control characters escaped, what nobody reads cut out."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: match[0].encode("unicode_escape").decode(), text)
    return re.sub(r"\S{300,}", lambda match: f"{match[0][:150]}...{match[0][-100:]}", text)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
