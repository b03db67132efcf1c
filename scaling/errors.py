"""The one exception of this package that a user sees, as a single line."""

from __future__ import annotations


class TableError(ValueError):
    """A table that cannot be used, told in one line: file or column, value, what would work. Exit code 2."""
