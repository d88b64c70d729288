"""What a manifest's fields have in common: how a value is checked, and how an error names its field."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from gateway.routing.names import NAME

LONGEST_DURATION_MS = 30 * 24 * 3_600_000
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|s|m|h)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_WRONG_KEY = re.compile(r"(.*) - at `key` in `\$(.*)`", re.DOTALL)
_USERINFO = re.compile(r"://[^/?#]*@")
T = TypeVar("T")


class ManifestError(ValueError):
    """The manifest is refused whole. `path` is the field, as `routes.digits.variants.canary.weight`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


def convert(path: str, value: Any, type_: type[T]) -> T:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        problem, where = _located(str(error))
        words = _words(get_type_hints(type_).get(where)) if isinstance(type_, type) else []
        if words:
            problem = f"{problem}: write {', '.join(words)}"
        raise ManifestError(".".join(part for part in (path, where) if part), problem) from error


def _words(hint: Any) -> list[str]:
    """The words that a field of this type takes, and whether a number does: `["auto", "off", "a number"]`."""
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    words = [word for inner in get_args(hint) for word in _words(inner)]
    return [*words, "a number"] if words and int in get_args(hint) else words


def _located(text: str) -> tuple[str, str]:
    """msgspec's message → what is wrong, and the path of the field inside the converted value."""
    key = _WRONG_KEY.fullmatch(text)
    if key:
        return f"a name must be text, put it in quotes: {key[1]}", key[2].strip(".")
    problem, _, where = text.partition(" - at `$")
    where = where.rstrip("`").strip(".")
    unknown = _UNKNOWN_FIELD.fullmatch(problem)
    if unknown:
        return "no such field", ".".join(part for part in (where, unknown[1][:140]) if part)
    return problem, where


def name_of(path: str, name: object) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ManifestError(path, f"the name {str(name)[:140]!r} must match {NAME.pattern}")
    return name


def with_words(declared: Any, fields: dict[str, tuple[bool, ...]]) -> Any:
    """A plain `on` is true in YAML and `off` is false, and both are words in these fields."""
    if not isinstance(declared, dict):
        return declared
    words = {
        field: "on" if declared[field] else "off"
        for field, taken in fields.items()
        if isinstance(declared.get(field), bool) and declared[field] in taken
    }
    return {**declared, **words}


def check_option(path: str, value: Any) -> None:
    """Only what JSON holds, or the state would read back as another one; and no secrets."""
    if isinstance(value, str):
        if _USERINFO.search(value):
            raise ManifestError(
                path, "holds credentials: leave them out and set the registry's environment variables"
            )
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ManifestError(path, f"a name must be text, put it in quotes: {key!r}")
            check_option(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_option(f"{path}[{index}]", inner)
    elif isinstance(value, int):
        if abs(value) >= 1 << 63:
            raise ManifestError(path, "has more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ManifestError(path, f"{value} is no number to work with")
    elif value is not None:
        raise ManifestError(
            path, f"a {type(value).__name__} is not accepted: put it in quotes to make it text"
        )


def basis_points(path: str, percent: float) -> int:
    """Per cent → basis points. Raises `ManifestError` outside 0..100 or finer than 0.01 %."""
    if not 0 <= percent <= 100:
        raise ManifestError(path, f"{percent:g} is not a weight: write per cent, from 0 to 100")
    points = round(percent * 100)
    if abs(points - percent * 100) > 1e-6:
        raise ManifestError(path, f"{percent:g} is finer than 0.01 %")
    return points


def duration_ms(path: str, text: str) -> int:
    """`"500ms"`, `"30s"`, `"10m"`, `"1h"` → milliseconds. Raises `ManifestError`."""
    match = _DURATION.fullmatch(text)
    if not match or float(match[1]) == 0:
        raise ManifestError(path, f"{text[:40]!r} is no duration: write 500ms, 30s, 10m or 1h")
    duration = max(1, round(float(match[1]) * _UNIT_MS[match[2]]))
    if duration > LONGEST_DURATION_MS:
        raise ManifestError(path, f"{text} is longer than 30 days")
    return duration
