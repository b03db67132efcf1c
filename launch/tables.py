"""What the statistics commands share: how they are declared, the options of a resampling, tables as text."""

from __future__ import annotations

import argparse

import pandas as pd

EXIT_OK = 0


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


def resampling_options(parser: argparse.ArgumentParser, default: int = 1000) -> None:
    """The options --where, --bootstrap, --seed and --json."""
    parser.add_argument("--where", metavar="COL=VALUE", action="append", default=[], help="only these rows; repeatable")
    parser.add_argument(
        "--bootstrap", metavar="N", type=natural, default=default, help="resamples (%(default)s); 0: none"
    )
    parser.add_argument("--seed", metavar="N", type=natural, default=0, help="of the resampling (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def natural(text: str) -> int:
    """An argument that is a whole number from 0 on."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)


def text_table(frame: pd.DataFrame) -> str:
    """A frame of ready strings, the first column to the left, the others to the right, two blanks between."""
    columns = [[str(name), *(str(cell) for cell in frame[name])] for name in frame.columns]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for cells in zip(*columns, strict=True):
        first, *rest = zip(cells, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]).rstrip())
    return "\n".join(lines)
