"""What can go wrong with weights, beside what their registry raises (`registry_client.errors`).

WeightsError
├── WeightsRefused     the version is nothing that this gateway loads
├── CacheFull          no room for it
└── CacheUnusable      the cache directory cannot be read or written
"""

from __future__ import annotations


class WeightsError(Exception):
    """The base of the weights cache's own errors."""


class WeightsRefused(WeightsError):
    """The version holds pickles, no ONNX model or too many of them, or paths that are not its own."""


class CacheFull(WeightsError):
    """The disk, or the limit of the cache, has no room for the version. What is cached stays served."""


class CacheUnusable(WeightsError):
    """The cache directory cannot be used."""
