"""The report's part on whether loss tells how good the images are, and whether that is more than size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from scaling.bins import answer
from scaling.correlation import Coefficient
from scaling.correlation_figures import bins_figure, correlation_figure
from scaling.correlation_pairs import percent
from scaling.look import Look, save
from scaling.page import Section
from scaling.score_correlations import LEAST_SEEDS, Score, one_compute, seed_share


def correlation_section(scores: Mapping[str, Score], why: Mapping[str, str], look: Look, folder: Path) -> Section:
    """Validation loss against each score: every coefficient, given log FLOPs too, and by bins of t."""
    part = Section("Does loss predict quality?")
    part.missing += [f"{name}: {reason}" for name, reason in why.items()]
    if not scores:
        part.missing.append("scores of at least three runs are needed")
        return part
    main = {name: score for name, score in scores.items() if score.main}
    for name, score in main.items():
        part.findings.append(correlation_finding(score, name))
        png = save(correlation_figure(score, look), folder, f"correlation_{name.lower().replace(' ', '_')}")
        part.figures.append((png, f"Validation loss against {name}, a point a run, 95 % intervals of the score"))
    if main:
        part.findings.append(size_finding(main))
    binned = {name: score for name, score in main.items() if score.bins is not None}
    for name, score in binned.items():
        assert score.bins is not None
        part.findings.append(answer(score.bins, "pearson", name, score.bins.best("pearson").name))
    if binned:
        png = save(bins_figure(binned), folder, "correlation_bins")
        part.broad.append(
            (png, "Correlation with the loss at each t, 95 % intervals; the line and band are the mean loss's own")
        )
    part.tables.append(
        (
            _table(scores),
            "Correlation of validation loss with each score, 95 % intervals below; p by Holm's rule over the rows",
        )
    )
    part.notes += _notes(scores)
    return part


def _table(scores: Mapping[str, Score]) -> pd.DataFrame:
    given = any(score.given is not None for score in scores.values())
    rows = []
    for name, score in scores.items():
        found, p = score.found, score.adjusted or {}
        row = {"loss against": name, "Pearson": _cell(found.pearson), "Spearman": _cell(found.spearman)}
        row |= {"Kendall": _cell(found.kendall), "p (Pearson)": _p(p.get("pearson", found.pearson.p))}
        if given:
            row["Pearson given log FLOPs"] = _cell(score.given.pearson) if score.given else "–"
            row["and their square"] = _cell(score.curved.pearson) if score.curved else "–"
            row["p (given)"] = _p(p.get("given", math.nan))
        rows.append({**row, "runs": str(found.rows)})
    return pd.DataFrame(rows)


def _p(p: float) -> str:
    return f"{p:.3g}" if math.isfinite(p) else "–"


def _cell(c: Coefficient) -> str:
    if not math.isfinite(c.r):
        return "–"
    return f"{c.r:.2f}\n{c.low:.2f} to {c.high:.2f}".replace("-", "−")


def _notes(scores: Mapping[str, Score]) -> list[str]:
    """How the intervals were made, and what is not in them."""
    first = max(scores.values(), key=lambda score: score.found.rows)
    counts = first.found.groups
    notes = [f"Intervals: {first.found.pearson.interval}. p: {first.found.pearson.p_method}."]
    if counts:
        shared = " and ".join(f"{count} {name}s" for name, count in counts.items())
        notes[0] = (
            f"The runs share {shared} (a ladder: one formulation and depth), so that they are not as many "
            f"independent points. {notes[0]}"
        )
    seeds = first.points["seed"]
    if 1 < seeds.nunique() < LEAST_SEEDS:
        loss = seed_share(first.points["x"], seeds)
        most = max(seed_share(score.points["y"], score.points["seed"]) for score in scores.values())
        notes.append(
            f"{seeds.nunique()} seeds are too few to say what others would give: what moves all runs of a seed is not "
            f"in the intervals. The seeds' means make up {100 * loss:.1f} % of the variance of loss, and up to "
            f"{100 * most:.1f} % of a score's."
        )
    if any(score.given is not None for score in scores.values()):
        notes.append(
            f"Given log FLOPs: correlation of what a line on log FLOPs leaves of loss and of score. It leaves "
            f"{percent(first.left)} of the variance of loss: the less, the less can be told."
        )
    notes.append(
        "A score that is measured with noise correlates less than the score itself would: r is at most the root of its "
        "reliability."
    )
    return notes


def correlation_finding(score: Score, what: str) -> str:
    """Does lower loss go with more of ``what``?"""
    pearson, spearman, kendall = score.found.pearson, score.found.spearman, score.found.kendall
    numbers = (
        f"Pearson {pearson.r:.2f} ({pearson.low:.2f} to {pearson.high:.2f}), "
        f"Spearman {spearman.r:.2f} ({spearman.low:.2f} to {spearman.high:.2f}), "
        f"Kendall {kendall.r:.2f} ({kendall.low:.2f} to {kendall.high:.2f}), {score.found.rows} runs"
    ).replace("-", "−")
    if pearson.low <= 0 <= pearson.high:
        return f"Validation loss and {what} are not shown to be related ({numbers}: the interval holds zero)."
    direction = "higher" if pearson.r < 0 else "lower"
    return f"Lower validation loss goes with {direction} {what} ({numbers})."


def size_finding(main: Mapping[str, Score]) -> str:
    """Is it the loss, or just size? Over the main scores."""
    if all(one_compute(score.points) for score in main.values()):
        return "All runs have one compute: what loss says here, size doesn't."
    told = {name: score.given.pearson for name, score in main.items() if score.given is not None}
    told = {name: c for name, c in told.items() if math.isfinite(c.r)}
    if not told:
        return "Whether it is the loss, or just size, can't be told: too little is left once log FLOPs are held fixed."
    left = max(score.left for score in main.values() if score.given is not None)
    shown = {name: c for name, c in told.items() if not c.low <= 0 <= c.high}
    text = f"Is it the loss, or just size? Given log FLOPs, which leave {percent(left)} of the variance of loss, "
    parts = []
    for name, c in shown.items():
        parts.append(f"lower loss goes with {'higher' if c.r < 0 else 'lower'} {name} still ({_numbers(c)})")
    rest = {name: c for name, c in told.items() if name not in shown}
    if rest:
        numbers = "; ".join(f"{name} {_numbers(c)}" for name, c in rest.items())
        nothing = "nothing of it is shown to be left" if not shown else "nothing is shown to be left of the rest"
        parts.append(f"{nothing} ({numbers}): size alone may be what is seen")
    return text + ", ".join(parts[:-1]) + (", and " if len(parts) > 1 else "") + parts[-1] + "."


def _numbers(c: Coefficient) -> str:
    return f"r = {c.r:.2f}, {c.low:.2f} to {c.high:.2f}".replace("-", "−")
