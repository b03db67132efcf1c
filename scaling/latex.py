"""Tables as LaTeX: booktabs, everything escaped."""

from __future__ import annotations

from collections.abc import Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "–": "--",
    "²": r"\textsuperscript{2}",
    "‖": r"$\Vert$",
    "Σ": r"$\Sigma$",
    "\n": " ",
}


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def tabular(comment: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, apart: int | None = None) -> str:
    """A tabular with ``rows`` of strings, the first column to the left; a rule before row ``apart``."""
    lines = [f"% {comment}".replace("\n", " "), "% Needs \\usepackage{booktabs}."]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule", _row(columns), r"\midrule"]
    for place, row in enumerate(rows):
        if place == apart and place:
            lines.append(r"\midrule")
        lines.append(_row(row))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(escaped(cell) for cell in cells) + r" \\"
