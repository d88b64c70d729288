"""Paths inside a version, as registries list them: untrusted until they have passed here."""

from __future__ import annotations

from registry_client.errors import ProtocolError

PATH_LIMIT = 1024


def checked_path(path: str, *, listed_by: str) -> str:
    """`path` itself, if it is relative, has forward slashes only and stays below its version.

    It is judged as it stands and never decoded: whoever decodes twice lets `%252e%252e` through.
    Raises `ProtocolError`, which names `listed_by`.
    """
    problem = _problem(path)
    if problem:
        raise ProtocolError(f"{listed_by} lists the file path {path[:120]!r}, which {problem}")
    return path


def _problem(path: str) -> str | None:
    if not path or len(path) > PATH_LIMIT:
        return f"is empty or longer than {PATH_LIMIT} characters"
    if not path.isprintable():
        return "is not printable"
    if "\\" in path:
        return "has a backslash"
    if path.startswith("/") or path[1:2] == ":":
        return "is absolute"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "has an empty, '.' or '..' part"
    return None
