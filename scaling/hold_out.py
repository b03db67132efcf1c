"""Which law predicts the largest runs: each is fitted without them, and asked for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scaling.errors import TableError
from scaling.hold_out_forms import LAST, LINE, Attempt, Candidate, Table, candidates, read
from scaling.plain import plain

_REPEATS = 2000
"""Redrawn measurements of the held-out runs, to tell whether one form is nearer to them than another by luck."""


@dataclass(frozen=True)
class Form:
    """One form and how far it was off."""

    name: str
    equation: str
    parameters: int
    attempts: tuple[Attempt, ...]
    error: float
    """Mean of the attempts' errors, in percent; NaN unless all of them could be fitted."""
    behind: float
    """Share of redrawn measurements in which the best form is nearer than this one; NaN for the best itself."""

    @property
    def signed(self) -> float:
        """Mean of the attempts' signed errors, in percent; NaN unless all of them could be fitted."""
        return float(np.mean([attempt.signed for attempt in self.attempts]))

    @property
    def inside(self) -> float:
        """Share of all predicted runs that lie within an interval of a new run; NaN for forms without one."""
        shares, counts = ([getattr(attempt, name) for attempt in self.attempts] for name in ("inside", "predicted"))
        return float(np.average(shares, weights=counts))

    @property
    def told_apart(self) -> bool:
        """Whether this form is worse than the best by more than the noise of the held-out runs."""
        return bool(self.behind >= 0.975)

    @property
    def fitted_law(self) -> bool:
        """Whether it is a law, and not one of the naive forms."""
        return self.name not in (LAST, LINE)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why some attempt failed, each once."""
        return tuple(dict.fromkeys(attempt.reason for attempt in self.attempts if attempt.reason))


@dataclass(frozen=True)
class HoldOut:
    """Forms, the best first; those that could not be fitted everywhere last, with reasons."""

    rows: tuple[Form, ...]
    k: tuple[int, ...]
    configurations: tuple[float, ...]
    """Compute of each, from the least on."""
    noise: float
    """Standard deviation of a run's log loss."""
    noise_from: str
    """What it was taken from: "seeds", or the best form's "residuals"; empty where nothing could be fitted."""
    level: float
    doubts: tuple[str, ...]

    def table(self) -> list[dict[str, object]]:
        """A flat row a form, for people: errors in percent, None where undefined."""
        return [
            {
                "form": form.name,
                "error": plain(form.error),
                **{f"error, k = {attempt.k}": plain(attempt.error) for attempt in form.attempts},
                "signed": plain(form.signed),
                "inside": plain(form.inside),
                "rows": min(attempt.fitted for attempt in form.attempts),
                "best is nearer": plain(form.behind),
                "note": "; ".join(form.reasons),
            }
            for form in self.rows
        ]

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""

        return {
            "rows": [
                {
                    **{
                        name: plain(getattr(form, name))
                        for name in ("name", "equation", "parameters", "error", "signed", "inside", "behind")
                    },
                    "told_apart": form.told_apart,
                    "reasons": list(form.reasons),
                    "attempts": [attempt.to_json() for attempt in form.attempts],
                }
                for form in self.rows
            ],
            "k": list(self.k),
            "configurations": list(self.configurations),
            "noise": plain(self.noise),
            "noise_from": self.noise_from,
            "level": self.level,
            "doubts": list(self.doubts),
        }


def leave_largest_out(
    columns: Mapping[str, np.ndarray],
    *,
    groups: np.ndarray | None = None,
    huber: float = 1e-3,
    k: Sequence[int] = (1, 2, 3),
    draws: int = 0,
    tolerance: float = 0.01,
    level: float = 0.95,
    seed: int = 0,
) -> HoldOut:
    """Fit every form that ``columns`` allow without the k largest configurations, and predict these.

    ``columns``: float ``[rows]``, all positive: "C" and "loss", "N" and "D" where there are. Forms: the power of
    compute, laws of parameters, of data and of both, each with and without a floor, and two that fit nothing (LAST,
    LINE).

    A configuration is all rows whose log compute is the same within ``tolerance``: seeds and ties leave together. Of
    ``groups`` (runs, one row a checkpoint) a run's compute is its last row's; the whole run leaves, and its last row is
    predicted. ``draws`` are the bootstrap's, which nothing here needs.

    Noise is that of runs which repeat one another, or else the best form's own. With it the held-out losses are drawn
    anew; the best form's lead over another is told apart where it stands in 97.5 % of these. The noise of the rows that
    were fitted to is not in this, and the errors at different k share runs.

    Raises TableError for absent or bad columns, or a bad k.
    """
    table = read(columns, groups, tolerance)
    sizes = tuple(dict.fromkeys(int(number) for number in k))
    total = table.configurations
    if not sizes or min(sizes) < 1:
        raise TableError(f"k={list(k)}: expected whole numbers from 1 on")
    if min(sizes) >= total:
        raise TableError(f"k={list(k)}: there are {total} different compute values; expected more than are left out")
    forms = candidates(table)
    tried = {
        form.name: [form.attempt(table, number, huber=huber, draws=draws, level=level, seed=seed) for number in sizes]
        for form in forms
    }
    forms.sort(key=lambda form: _order(tried[form.name]))
    noise, source = table.noise(), "seeds"
    if not np.isfinite(noise):
        noise, source = _own_noise(forms, tried)
    repeated = _redrawn(forms, tried, table, noise, np.random.default_rng(seed))
    rows = tuple(_row(form, tried[form.name], repeated, forms[0].name) for form in forms)
    return HoldOut(
        rows=rows,
        k=sizes,
        configurations=table.compute,
        noise=noise,
        noise_from=source,
        level=level,
        doubts=_doubts(rows, source, total, sizes),
    )


def _order(attempts: Sequence[Attempt]) -> tuple[int, float]:
    """Forms that failed at some k come after the others: the others' mean holds what is hardest."""
    errors = [attempt.error for attempt in attempts]
    failed = sum(not np.isfinite(error) for error in errors)
    return failed, float(np.nanmean(errors)) if failed < len(errors) else 0.0


def _own_noise(forms: Sequence[Candidate], tried: Mapping[str, Sequence[Attempt]]) -> tuple[float, str]:
    """The noise of a run about the best of the fitted forms, where no runs repeat one another."""
    for form in forms:
        noises = [attempt.noise for attempt in tried[form.name] if np.isfinite(attempt.noise)]
        if noises:
            return float(np.sqrt(np.mean(np.square(noises)))), "residuals"
    return float("nan"), ""


def _redrawn(
    forms: Sequence[Candidate],
    tried: Mapping[str, Sequence[Attempt]],
    table: Table,
    noise: float,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Mean error ``[_REPEATS]`` of each form that never failed, were the held-out runs measured anew."""
    if not np.isfinite(noise):
        return {}
    shock = noise * rng.normal(size=(_REPEATS, len(table.loss)))
    found = {}
    for form in forms:
        if all(np.isfinite(attempt.error) for attempt in tried[form.name]):
            errors = [np.abs(attempt.misses - shock[:, attempt.runs]).mean(axis=1) for attempt in tried[form.name]]
            found[form.name] = np.mean(errors, axis=0)
    return found


def _row(form: Candidate, attempts: Sequence[Attempt], repeated: Mapping[str, np.ndarray], best: str) -> Form:
    behind = float("nan")
    if form.name != best and form.name in repeated and best in repeated:
        behind = float((repeated[form.name] > repeated[best]).mean())
    return Form(
        name=form.name,
        equation=form.equation,
        parameters=form.parameters,
        attempts=tuple(attempts),
        error=float(np.mean([attempt.error for attempt in attempts])),
        behind=behind,
    )


def _doubts(rows: Sequence[Form], source: str, total: int, sizes: Sequence[int]) -> tuple[str, ...]:
    found = []
    best = rows[0]
    if np.isnan(best.error):
        return ("no form could be fitted at every k",)
    alike = [row.name for row in rows[1:] if np.isfinite(row.behind) and not row.told_apart]
    if alike:
        found.append(f"within the noise of the held-out runs of {best.name}: {', '.join(alike)}")
    if source == "residuals":
        found.append("no runs repeat one another: noise is that of runs about the best form, whose misfit it holds")
    if not best.fitted_law:
        found.append(f"{best.name}, which fits nothing, is the best: no law predicts these runs")
    if max(sizes) > total // 2:
        found.append(f"up to {max(sizes)} of {total} configurations are left out: little is left to fit to")
    return tuple(found)
