"""From a paper name to a Formulation, and the 61 names of the SD3 study."""

from __future__ import annotations

import re

import numpy as np

from mmdit_jax.diffusion.forms import EXAMPLES, FORMS, Form
from mmdit_jax.diffusion.formulation import Formulation
from mmdit_jax.errors import UserError, nearest

_NAME = re.compile(r"([^()\s]+)\s*(?:\(([^()]*)\))?")


def formulation(name: str) -> Formulation:
    """The formulation that the SD3 paper calls ``name``.

    Names: `rf`, `rf/lognorm(m,s)`, `rf/mode(s)`, `rf/cosmap`, `edm(Pm,Ps)`, `edm/rf`, `edm/cos`, `eps/linear`,
    `v/linear`, `eps/cos`, `v/cos`. Numbers may be written in any way and ``.name`` is canonical:
    ``formulation("rf/lognorm(0,1)").name`` is ``"rf/lognorm(0.00,1.00)"``.

    Raises:
        UserError: for any other name, with the nearest valid one, and for a number out of range, with the range.
    """
    match = _NAME.fullmatch(name.strip())
    stem, inside = match.groups() if match else (name, None)
    forms = {form.stem: form for form in FORMS}
    words = [] if inside is None else inside.split(",")
    values = [_number(word) for word in words]
    if match is None or stem not in forms or None in values or len(values) != len(forms[stem].numbers):
        raise UserError(f"formulation={name!r}: unknown; did you mean {_suggest(name, values)!r}? (forms: {_forms()})")
    form, slots = forms[stem], {"m": 0.0, "s": 1.0}
    for number, value in zip(form.numbers, values, strict=True):
        # what float32 makes of it counts: a tiny scale would become 0, a huge mean infinite
        if value is None or not number.holds(float(np.float32(value))):
            raise UserError(f"formulation={name!r}: {number.label}={value:g} is out of range: use {number.valid()}")
        slots[number.slot] = value
    return Formulation(form.path, form.prediction, np.int32(form.kind), np.float32(slots["m"]), np.float32(slots["s"]))


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _forms() -> str:
    return ", ".join(
        f"{form.stem}({','.join(n.label for n in form.numbers)})" if form.numbers else form.stem for form in FORMS
    )


def _suggest(name: str, values: list[float | None]) -> str:
    """The valid name nearest to ``name``, with the given numbers where they fit its form, else an example's."""
    stem = nearest(re.split(r"[(\d]", name.strip())[0].rstrip("/ ") or name, [form.stem for form in FORMS])
    form = next(form for form in FORMS if form.stem == stem)
    return form.write(_fitting(form, values))


def _fitting(form: Form, values: list[float | None]) -> list[float]:
    given = [value for value in values if value is not None]
    if len(given) == len(form.numbers) and all(n.holds(v) for n, v in zip(form.numbers, given, strict=True)):
        return given
    return list(EXAMPLES.get(form.stem, ()))


def _study_61() -> tuple[str, ...]:
    modes = (*np.linspace(-1.0, 1.75, 7), 1.0)  # s = 0, the ninth, is `rf` itself
    return (
        *("eps/linear", "v/linear", "eps/cos", "v/cos", "rf", "rf/cosmap", "edm/rf", "edm/cos"),
        *(f"rf/mode({s:.2f})" for s in modes),
        *(f"rf/lognorm({m:.2f},{s:.2f})" for m in (-1, -0.5, 0, 0.5, 1) for s in (0.2, 0.6, 1, 1.4, 1.8, 2.2)),
        *(f"edm({m:.2f},{s:.2f})" for m in (-1.2, -0.6, 0, 0.6, 1.2) for s in (0.6, 1.2, 1.8)),
    )


STUDY_61: tuple[str, ...] = _study_61()
"""The 61 formulations that the paper compares, by its printed names (mode's s rounded to two decimals as printed)."""
