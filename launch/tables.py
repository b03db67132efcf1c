"""What the statistics commands share: how they are declared, their options, tables as text."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from scaling.errors import TableError

EXIT_OK = 0
ENOUGH_DRAWS = 100
"""Resamples from which on an interval's ends are told: of fewer, they are the luck of one or two."""


def command_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, example: str
) -> argparse.ArgumentParser:
    """A command with its summary as help and description, and an example below."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def table_options(parser: argparse.ArgumentParser) -> None:
    """The options --where and --json."""
    parser.add_argument(
        "--where",
        metavar="COL=VALUE",
        action="append",
        default=[],
        help="only these rows (or !=, >=, <, …); repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def resampling_options(parser: argparse.ArgumentParser, count: Callable[[str], int] | None = None) -> None:
    """The same, and --bootstrap and --seed. ``count`` reads the number of resamples; default: ``natural``."""
    table_options(parser)
    parser.add_argument(
        "--bootstrap", metavar="N", type=count or natural, default=1000, help="resamples (%(default)s); 0: none"
    )
    parser.add_argument("--seed", metavar="N", type=natural, default=0, help="of the resampling (%(default)s)")


def out_option(parser: argparse.ArgumentParser) -> None:
    """The option --out; see ``check_out``."""
    parser.add_argument("--out", metavar="DIR", type=Path, help="write figures (PNG, PDF) and tables (CSV) there")


def check_out(folder: Path | None) -> None:
    """Raises TableError where figures and tables can't go to ``folder``."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise TableError(f"out={str(folder)!r}: is a file; expected a folder, or a path to make one at")


def on_host() -> None:
    """Statistics need no accelerator: JAX must not take one, nor most of its memory, from a run that is under way.

    For commands that do nothing else, before JAX is used.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")


def ends(low: float | None, high: float | None, *, digits: int = 6) -> str:
    """An interval as text: ``[0.1, 0.3]``, and ``open`` where an end is infinite (in JSON: None)."""
    shown = (f"{end:.{digits}g}" if end is not None and math.isfinite(end) else "open" for end in (low, high))
    return f"[{', '.join(shown)}]"


def natural(text: str) -> int:
    """An argument that is a whole number from 0 on."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)


def enough(text: str) -> int:
    """A number of resamples whose percentiles are an interval's ends: ENOUGH_DRAWS or more, or 0 for none."""
    if not 0 < natural(text) < ENOUGH_DRAWS:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"{text!r}: too few for an interval; expected {ENOUGH_DRAWS} or more, or 0 for none"
    )


def text_table(frame: pd.DataFrame) -> str:
    """A frame of ready strings, the first column to the left, the others to the right, two blanks between."""
    columns = [[str(name), *(str(cell) for cell in frame[name])] for name in frame.columns]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for cells in zip(*columns, strict=True):
        first, *rest = zip(cells, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]).rstrip())
    return "\n".join(lines)
