"""What ends a command, apart from the errors of the packages below."""

from __future__ import annotations


class AdminError(Exception):
    """The gateway refused, or could not be reached. `exit_code` is the design's: 1, or 3 for a conflict."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
