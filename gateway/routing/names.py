"""What routes, variants and explicit versions may be called.

In a file of its own: workers check names in paths, and need nothing else of what reads a manifest.
"""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Names of routes and variants: they stand in URLs and metrics."""
