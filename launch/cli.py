"""``mmdit``: the console script. Parses, dispatches, and turns every end into one of the contract's exit codes."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
import traceback
from typing import Any, NoReturn

from mmdit_jax.errors import (
    EXIT_BAD_INPUT,
    EXIT_DIVERGED,
    EXIT_INFRASTRUCTURE,
    EXIT_PREEMPTED,
    Diverged,
    Infrastructure,
    Preempted,
    UserError,
    nearest,
)
from mmdit_jax.files import NO_SPACE
from mmdit_jax.host import prepare_host
from scaling.errors import TableError

COMMANDS = {
    "study": ("launch.study", "a whole study: run, plan, status, report"),
    "train": ("launch.runs", "one run of a study: what executors call"),
    "evaluate": ("launch.runs", "scores of a trained run, with other settings if given"),
    "sample": ("launch.runs", "images from a trained run"),
    "convert": ("launch.convert", "SD3 checkpoints in and out: diffusers' and Stability's files, our tree"),
    "data": ("launch.data", "build, encode and look at data sets; find duplicates"),
    "plan": ("launch.plan", "what a run takes on a pod that is not here, compiled for its chips"),
    "arena": ("launch.arena.cli", "a local page for blind votes of people on a study's samples, and its board"),
    "fit": ("launch.fit", "scaling laws with intervals, from any table"),
    "predict": ("launch.predict", "losses of runs foretold before they start, and what came of it"),
    "recommend": ("launch.recommend", "what to spend a budget on, and the regret of being wrong"),
    "geneval": ("launch.geneval", "GenEval itself: prompts of its kind, a scorer by a detector, results to a table"),
    "battles": ("launch.battles", "judges over trees of images, into a table of battles"),
    "elo": ("launch.elo", "ratings with intervals, from any table of battles"),
    "correlate": ("launch.correlate", "correlations of columns with intervals, partial ones, bins beside their mean"),
    "winrate": ("launch.winrate", "win rates against one player with intervals, from any table of battles"),
    "coordinates": ("launch.coordinates", "how activations go with width and depth, standard beside muP"),
    "optimum": ("launch.optimum", "where a learning rate is best at each size, and its drift, from any table"),
    "compare": ("launch.compare", "groups of runs against one of them, seed by seed, from any table of results"),
    "rank": ("launch.rank", "average Pareto fronts with intervals, from any table of two scores"),
    "efficiency": ("launch.rank", "score lost with fewer sampling steps, from any table of scores"),
}
EXIT_CODES = (
    "exit codes: 0 done, 75 preempted and saved (run again), 2 bad input, 3 training diverged, 128+ infrastructure"
)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, without the usage text."""

    intermixed = False
    """Whether words without an option may stand on both sides of options, as STUDY --run ID PROMPT."""
    _within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which takes only one row of such words."""
        if not self.intermixed or self._within:
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of ``command``; without one, that of all commands by name only, since some take seconds to import."""
    top = OneLineParser(
        prog="mmdit", description="Scaling studies of text-to-image rectified-flow transformers.", epilog=EXIT_CODES
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    if command in COMMANDS:
        importlib.import_module(COMMANDS[command][0]).add_parsers(commands)
    else:
        for name, (_, text) in COMMANDS.items():
            commands.add_parser(name, help=text)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. One of several processes of a run ends here."""
    try:
        code = _main(argv)
    except Exception as error:
        processes = sys.modules.get("mmdit_jax.processes")  # none where the command runs no model
        if processes is not None and processes.is_infrastructure(error):
            code = _say(f"mmdit: infrastructure: {type(error).__name__}: {str(error)[:1000]}", EXIT_INFRASTRUCTURE)
        elif processes is not None and processes.joined():
            traceback.print_exception(error)
            code = 1
        else:
            raise
    processes = sys.modules.get("mmdit_jax.processes")
    if processes is not None:
        processes.end(code)
    return code


def _main(argv: list[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    command = words[0] if words else None
    if command and not command.startswith("-") and command not in COMMANDS:
        return _say(
            f"mmdit: command={command!r}: unknown; did you mean {nearest(command, COMMANDS)!r}?", EXIT_BAD_INPUT
        )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells there, at length, what we tell in a line
    runs_models = False
    try:
        args = parser(command).parse_args(words)
        runs_models = "root" in vars(args)
        if runs_models:
            prepare_host()
        code: int = args.run(args)
        return code
    except (UserError, TableError) as error:
        return _say(f"mmdit: {error}", EXIT_BAD_INPUT)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        what = _told(error, runs_models)
        if what is None:
            raise
        return _say(f"mmdit: {what}", EXIT_BAD_INPUT)
    except Diverged as error:
        return _say(f"mmdit: {error}", EXIT_DIVERGED)
    except Preempted as error:
        return _say(f"mmdit: {error}", EXIT_PREEMPTED)
    except Infrastructure as error:
        return _say(f"mmdit: {error}", EXIT_INFRASTRUCTURE)


def _told(error: OSError, runs_models: bool) -> str | None:
    """The line for an operating system's refusal that the user can do something about.

    A file that isn't there is one where a command only reads and writes what it was told; in a run it is ours.
    """
    named = error.filename2 or error.filename  # of a file that replaces another, the latter
    if error.errno in NO_SPACE:
        return f"{named or 'root'}: disk full; free space and run again, what was saved is kept"
    elsewhere = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
    if error.errno in elsewhere or (error.errno == errno.ENOENT and not runs_models):
        return f"{named}: {error.strerror}; choose another place"
    return None


def _say(line: str, code: int) -> int:
    sys.stdout.flush()
    print(" ".join(line.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
