"""How a benchmark ends when what it was given is wrong: one line on stderr, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from mmdit_jax.errors import EXIT_BAD_INPUT, EXIT_OK, UserError


def run(main: Callable[[], None]) -> NoReturn:
    """Exit with what ``main`` comes to."""
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    sys.exit(EXIT_OK)
