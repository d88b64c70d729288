"""Who may do what with the admin API. Rolling back needs less than rolling forward."""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from re import Pattern

from starlette.routing import compile_path


class Role(IntEnum):
    """Each may do all that the ones before it may."""

    VIEWER = 1
    """Looks."""
    GUARD = 2
    """Rolls back: for alerts, scripts, and whoever must be able to stop a version and nothing else."""
    OPERATOR = 3
    """Moves traffic between the versions that are in force."""
    RELEASER = 4
    """Decides which versions may serve: applies manifests and lifts denies."""

    def __str__(self) -> str:
        return self.name.lower()


PREFIX = "/api/v1"
READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
WRITES: tuple[tuple[str, str, Role], ...] = (
    ("POST", f"{PREFIX}/routes/{{route}}/rollback", Role.GUARD),
    ("POST", f"{PREFIX}/rollback", Role.GUARD),
    ("POST", f"{PREFIX}/hooks/alertmanager", Role.GUARD),
    ("PATCH", f"{PREFIX}/routes/{{route}}/weights", Role.OPERATOR),
    ("PATCH", f"{PREFIX}/weights", Role.OPERATOR),
    ("POST", f"{PREFIX}/routes/{{route}}/lease", Role.OPERATOR),
    ("POST", f"{PREFIX}/routes/{{route}}/variants/{{variant}}/lease", Role.OPERATOR),
)
"""What needs less than a releaser. A plan is not here: it has registries asked that its manifest names."""


def needed(method: str, path: str) -> Role:
    """The least role for a request: what is not named above is a releaser's, and looking is a viewer's."""
    if method in READS:
        return Role.VIEWER
    for its_method, template, role in WRITES:
        if method == its_method and _pattern(template).match(path):
            return role
    return Role.RELEASER


@cache
def _pattern(template: str) -> Pattern[str]:
    # Starlette's own, as its router matches it: nothing is one path here and another one there.
    return compile_path(template)[0]
