"""From a name to a Formulation, the 61 names of the SD3 study, and names of what came later."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mmdit_jax.diffusion.densities import KINDS, MAX_BINS, T_MIN
from mmdit_jax.diffusion.forms import EXAMPLES, FORMS, MODIFIERS, Form, Modifier
from mmdit_jax.diffusion.formulation import Formulation
from mmdit_jax.diffusion.paths import EDM_SCHEDULES
from mmdit_jax.errors import UserError

_NAME = re.compile(r"([^()\s]+)\s*(?:\(([^()]*)\))?")
_MODIFIER = re.compile(r"/\s*(" + "|".join(item.word for item in MODIFIERS) + r")\s*\(([^()]*)\)\s*$")
_NEAREST = 3
_PILED = 1e-3  # share of the drawn times that a shift may leave at an end


def formulation(name: str) -> Formulation:
    """The formulation called ``name``: one of the SD3 paper's, or a later one written in the same way.

    The paper's: `rf`, `rf/lognorm(m,s)`, `rf/mode(s)`, `rf/cosmap`, `edm(Pm,Ps)`, `edm/rf`, `edm/cos`, `eps/linear`,
    `v/linear`, `eps/cos`, `v/cos`. Beyond it: `rf/histogram(mass,…)`, up to 64 relative masses on equal parts of
    [0, 1]; `rf/adaptive(p)`, a density ∝ (loss at t)^p learned while training; and after any of them `/shift(α)`, the
    resolution shift of the drawn times (equation 23), and `/minsnr(γ)`, min-SNR weighting (arXiv 2303.09556).

    Numbers may be written in any way and ``.name`` is canonical: ``formulation("rf/lognorm(0,1)").name`` is
    ``"rf/lognorm(0.00,1.00)"``.

    Raises:
        UserError: for any other name, with the three nearest valid ones, and for a number out of range, with the range.
    """
    base, modifiers = _split(name)
    match = _NAME.fullmatch(base.strip())
    stem, inside = match.groups() if match else (base, None)
    forms = {form.stem: form for form in FORMS}
    words = [] if inside is None else inside.split(",")
    values = [_number(word) for word in words]
    if match is not None and stem in forms and len(values) > forms[stem].most > 0:
        raise UserError(f"formulation={name!r}: {len(values)} numbers: expected 1 to {forms[stem].most}")
    if match is None or stem not in forms or None in values or not forms[stem].counts(len(values)):
        raise UserError(
            f"formulation={name!r}: unknown; did you mean {_suggest(base, values, modifiers)}? (forms: {_usages()})"
        )
    form = forms[stem]
    numbers = {slot: np.float32(value) for slot, value in (("m", 0.0), ("s", 1.0), ("shift", 1.0), ("snr_cap", 0.0))}
    masses: list[np.float32] = []
    pairs = [*form.paired(values), *((modifier.number, value) for modifier, value in modifiers)]
    for number, value in pairs:
        kept = None if value is None else _in_float32(value)
        if kept is None or not number.holds(float(kept)):
            shown = "not a number" if value is None else f"{value:g}"
            raise UserError(f"formulation={name!r}: {number.label}={shown} is out of range: use {number.valid()}")
        if number.slot == "masses":
            masses.append(kept)
        else:
            numbers[number.slot] = kept
    if masses and max(masses) == 0:
        raise UserError(f"formulation={name!r}: every mass is 0: use at least one above 0")
    _refuse_shift(name, form, numbers["shift"], numbers["m"], numbers["s"])
    return Formulation(
        form.path,
        form.prediction,
        np.int32(form.kind),
        **numbers,
        masses=np.pad(np.asarray(masses or [np.float32(1)], np.float32), (0, MAX_BINS - max(len(masses), 1))),
        bins=np.int32(max(len(masses), 1)),
    )


def _split(name: str) -> tuple[str, list[tuple[Modifier, float | None]]]:
    """The form's part of a name, and the modifiers after it with their numbers (none: not a number)."""
    words = {modifier.word: modifier for modifier in MODIFIERS}
    found: dict[str, float | None] = {}
    base = name
    while match := _MODIFIER.search(base):
        word, inside = match.groups()
        if word in found:
            raise UserError(f"formulation={name!r}: {word} is there twice: give it once")
        found[word] = _number(inside)
        base = base[: match.start()]
    return base, [(words[word], value) for word, value in found.items()]


def _refuse_shift(name: str, form: Form, shift: np.float32, m: np.float32, s: np.float32) -> None:
    if shift == 1.0:
        return
    if form.path == "linear":
        raise UserError(
            f"formulation={name!r}: the linear path ends before pure noise, and a shift would pile times up at its "
            "end: use shift(1), or another path"
        )
    if form.path == "edm" and form.kind == EDM_SCHEDULES.index("normal"):
        # t = Φ(z) becomes Φ(z + log α / Ps), and a time beyond 1e-5 from an end stays there
        room = float(s) * (NormalDist().inv_cdf(_PILED) - NormalDist().inv_cdf(T_MIN))
        if abs(np.log(shift)) > room:
            other = Form.write(form, (round(float(m + np.log(shift)), 4), float(s)))
            raise UserError(
                f"formulation={name!r}: more than a thousandth of the times would pile up at the schedule's end: use "
                f"{math.exp(-room):.2f} <= alpha <= {math.exp(room):.2f}, or {other!r}, which draws those noise levels"
            )
    if form.kind == KINDS.index("adaptive") and form.path == "rf":
        raise UserError(f"formulation={name!r}: an adaptive density finds its own place: use it without shift")


def histogram(density: Callable[[Any], Any] | ArrayLike, bins: int | None = None) -> str:
    """The name of a rectified flow trained under a density of one's own: ``rf/histogram(…)``.

    Args:
        density: a function of t in (0, 1), finite and not negative, which need not be normalised: of arrays, float64
            [n] -> [n], or else of one number. Its integral over each of ``bins`` equal parts of [0, 1] is taken by
            Gauss's rule of 8 points. Or the relative masses of the parts themselves, at any positive scale, such as
            counts: 1 to 64 numbers.
        bins: 1 to 64; none: 64 of a function, as many as there are masses.

    Returns:
        The name, which says all there is to say of the histogram: four significant digits a mass.

    Raises:
        UserError: another number of bins, or values that no density has.
    """
    if not callable(density):
        masses = _numbers(density)
        if masses is None or masses.ndim != 1 or not 1 <= masses.size <= MAX_BINS:
            raise UserError(f"density: expected a function of t, or 1 to {MAX_BINS} masses")
        if bins is not None and bins != masses.size:
            raise UserError(f"bins={bins}: expected {masses.size}, one a mass, or none")
        _require_density(masses, "one for each bin")
    else:
        count = _whole(MAX_BINS if bins is None else bins)
        if count is None or not 1 <= count <= MAX_BINS:
            raise UserError(f"bins={bins}: expected a whole number, 1 to {MAX_BINS}")
        nodes, weights = np.polynomial.legendre.leggauss(8)
        t = (np.arange(count)[:, None] + 0.5 * (nodes + 1.0)) / count
        values = _values(density, t.reshape(-1))
        _require_density(values, "one for each t")
        masses = (values / values.max()).reshape(t.shape) @ weights
    masses = masses / masses.max()  # before their mean, which may be too large or too small for a float
    return formulation(f"rf/histogram({','.join(f'{mass:.4g}' for mass in masses / masses.mean())})").name


def _values(density: Callable[[Any], Any], t: np.ndarray) -> np.ndarray:
    """``density`` at each t [n], float64 [n]: of all at once where it takes arrays, else of one after the other."""
    try:
        at_once = _numbers(density(t))
    except Exception:
        at_once = None
    if at_once is not None and at_once.shape == t.shape:
        return at_once
    try:
        values = _numbers([density(float(x)) for x in t])
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(f"density: raised {type(error).__name__} ({said}); expected a function of t") from error
    if values is None or values.shape != t.shape:
        raise UserError("density: expected a number for each t")
    return values


def _numbers(values: Any) -> np.ndarray | None:
    """``values`` as float64; none where they are no numbers."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return None


def _whole(value: Any) -> int | None:
    """A whole number of any kind (numpy's too) as an int; none where it is none."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _require_density(values: np.ndarray, each: str) -> None:
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise UserError(f"density: expected finite values, none negative and not all 0, {each}")


def resolution_shift(pixels: int, base_pixels: int) -> float:
    """α = √(m/n) of the resolution shift (equation 23).

    Args:
        pixels: m, height times width of the images that are trained on or sampled.
        base_pixels: n, of those that the schedule was chosen for.

    Raises:
        UserError: a number that is not positive.
    """
    for name, value in (("pixels", pixels), ("base_pixels", base_pixels)):
        if not 1 <= value < math.inf:
            raise UserError(f"{name}={value}: expected 1 or more")
    return math.sqrt(pixels / base_pixels)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _in_float32(value: float) -> np.float32:
    """What counts of a number: a huge one is infinite, and one too small for XLA, which has no subnormals, is 0."""
    with np.errstate(over="ignore"):
        kept = np.float32(value)
    return np.float32(0) if abs(kept) < np.finfo(np.float32).tiny else kept


def _usages() -> str:
    modifiers = ", ".join(f"/{item.word}({item.number.label})" for item in MODIFIERS)
    return f"{', '.join(form.usage() for form in FORMS)}; after any of them {modifiers}"


def _suggest(name: str, values: list[float | None], modifiers: list[tuple[Modifier, float | None]]) -> str:
    """The three valid names nearest to ``name``, with the given numbers where they fit their forms, else examples'.

    Modifiers that were read are kept where they may be, and a misspelt one is put right.
    """
    tail = "".join(f"/{modifier.word}({value})" for modifier, value in modifiers)
    asked = (re.split(r"[(\d]", name.strip())[0].rstrip("/ ") or name).lower()
    by_stem = {form.stem.lower(): form for form in FORMS}
    close = difflib.get_close_matches(asked, list(by_stem), n=_NEAREST, cutoff=0.0)
    names = [by_stem[stem].write(_fitting(by_stem[stem], values)) for stem in close]
    names = [*_respelt(name, tail), *(_canonical(name + tail) or name for name in names)][:_NEAREST]
    return ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"


def _respelt(name: str, tail: str) -> list[str]:
    """``name`` with its last word taken for a misspelt modifier: one valid name, or none."""
    match = re.fullmatch(r"(.+)/\s*([^/()\s]+)\s*(?:\(([^()]*)\)?)?\s*", name)
    close = match and difflib.get_close_matches(match[2].lower(), [item.word for item in MODIFIERS], n=1)
    if not match or not close:
        return []
    numbers = (match[3], *EXAMPLES[close[0]])  # the given one, or an example
    found = (_canonical(f"{match[1]}/{close[0]}({number}){tail}") for number in numbers if number is not None)
    return [name for name in found if name][:1]


def _canonical(name: str) -> str | None:
    """``name`` as it is written back; None if it is not valid."""
    try:
        return formulation(name).name
    except UserError:
        return None


def _fitting(form: Form, values: list[float | None]) -> list[float]:
    given = [value for value in values if value is not None]
    if form.counts(len(given)) and all(n.holds(v) for n, v in form.paired(given) if v is not None):
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

LATER: dict[str, str] = {
    "rf/lognorm(0.00,1.00)/shift(3.00)": "SD3's own choice at 1024² (Esser et al. 2024, section 5.3.2)",
    "rf/mode(1.29)/shift(3.00)": "the same shift after the mode density (as above)",
    "rf/shift(3.00)": "uniform times, shifted: diffusers' flow-matching scheduler at SD3's shift",
    "rf/lognorm(1.90,1.00)": "ABRA 2026, scaling laws of rectified flows",
    "v/cos/minsnr(5.00)": "min-SNR weighting, γ = 5 (Hang et al. 2023, arXiv 2303.09556)",
    "rf/adaptive(-1.00)": "times ∝ 1/loss(t), learned: the weights that EDM2's uncertainty has at its optimum "
    "(Karras et al. 2024, arXiv 2312.02696)",
    "rf/adaptive(1.00)": "times ∝ loss(t), learned: more where the loss is high (after the importance sampling of "
    "Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.3, without its correction of the weights)",
}
"""Formulations that are not in the paper's 61, each with its source."""
