"""``mmdit``: the console script. Parses, dispatches, and turns every end into one of the contract's exit codes."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys

from launch import data, runs, stats, study
from launch.runtime import start_runtime
from mmdit_jax.errors import EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_PREEMPTED, UserError
from mmdit_jax.training.loop import Diverged, Preempted
from scaling.errors import TableError

EXIT_CODES = (
    "exit codes: 0 done, 75 preempted and saved (run again), 2 bad input, 3 training diverged, 128+ infrastructure"
)


def parser() -> argparse.ArgumentParser:
    """Every command of ``mmdit``."""
    top = argparse.ArgumentParser(
        prog="mmdit", description="Scaling studies of text-to-image rectified-flow transformers.", epilog=EXIT_CODES
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (study, runs, data, stats):
        module.add_parsers(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells there, at length, what we tell in a line
    try:
        start_runtime(args)
        code: int = args.run(args)
        return code
    except (UserError, TableError) as error:
        return _say(f"mmdit: {error}", EXIT_BAD_INPUT)
    except Diverged as error:
        return _say(f"mmdit: {error}", EXIT_DIVERGED)
    except Preempted as error:
        return _say(f"mmdit: {error}", EXIT_PREEMPTED)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _say(
                f"mmdit: {error.filename or 'disk'}: disk full; free space and run again, nothing saved is lost",
                EXIT_BAD_INPUT,
            )
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            return _say(f"mmdit: {error.filename}: {error.strerror}; choose another place", EXIT_BAD_INPUT)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _say(line: str, code: int) -> int:
    sys.stdout.flush()
    print(" ".join(line.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
