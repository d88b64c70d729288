"""A manifest's text as plain values: YAML without its surprises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from gateway.routing.manifest_values import ManifestError

DEPTH_LIMIT = 50

_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml, where PyYAML was built with it: 10,000 routes take 1 s, and 11 s without."""


class _Loader(_Safe):  # type: ignore[misc]
    """A safe loader that refuses a key written twice: the second would silently win."""


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ManifestError("", f"line {key_node.start_mark.line + 1}: a key must be plain text")
        if key_node.value in seen:
            line = key_node.start_mark.line + 1
            raise ManifestError("", f"line {line}: the key {key_node.value!r} is written twice")
        seen.add(key_node.value)
    found: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def _events(text: str) -> Iterator[tuple[int, yaml.Event]]:
    """(depth, event) of the text, read no further than the caller asks."""
    depth = 0
    for event in yaml.parse(text, Loader=_Safe):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        yield depth, event


def load_yaml(text: str) -> Any:
    try:
        for depth, event in _events(text):
            if depth > DEPTH_LIMIT:
                # Before anything is built: the time that PyYAML takes grows with the square of the depth.
                raise ManifestError("", f"the manifest is nested deeper than {DEPTH_LIMIT}")
            if getattr(event, "anchor", None) is not None:
                raise ManifestError("", "YAML anchors and aliases are not accepted: write the value out")
        # A subclass of SafeLoader: only plain values can come out of it.
        document = yaml.load(text, Loader=_Loader)  # noqa: S506
    except ManifestError:
        raise
    except Exception as error:
        # Beside its own errors PyYAML lets through whatever a value's constructor throws: ValueError for
        # the date 2001-13-01, KeyError for `!!bool x`, AttributeError for `!!timestamp x`.
        raise ManifestError("", f"this is no YAML: {' '.join(str(error).split())}") from error
    if document is None:
        # An empty file is an accident more often than the wish to remove every route.
        raise ManifestError("", "the manifest is empty: write `routes: {}` to declare that there are none")
    return document
