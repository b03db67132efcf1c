"""What each table of a report means, in one sentence computed from its numbers; cautious where intervals overlap."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from scaling.elo import EloTable
from scaling.laws import Law
from scaling.study import values

MOST_COMPARED = 3
"""Of more formulations than this, only the extremes at some levels are told."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def scientific(value: float, digits: int = 1) -> str:
    """``1.8×10¹²``; a dash where there is no number."""
    if not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def percent(ratio: float) -> str:
    """A ratio as a change: ``3.2 % lower``."""
    return f"{abs(ratio - 1) * 100:.1f} % {'lower' if ratio < 1 else 'higher'}"


def percent_range(ratios: list[float]) -> str:
    """Several ratios as changes: ``2.1 to 3.4 % lower``, or both ends in full where they disagree in sign."""
    low, high = min(ratios), max(ratios)
    if len(ratios) == 1:
        return percent(low)
    if (low < 1) != (high < 1):
        return f"{percent(low)} to {percent(high)}"
    ends = sorted(abs(ratio - 1) * 100 for ratio in (low, high))
    return f"{ends[0]:.1f} to {ends[1]:.1f} % {'lower' if low < 1 else 'higher'}"


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def depth_finding(results: pd.DataFrame) -> str:
    """Does the final loss fall with depth, for each formulation?"""
    loss = values(results, "val_loss")
    usable = results.assign(val_loss=loss).dropna(subset=["val_loss"])  # assigning to no rows would bring them back
    if usable.empty:
        return "No run has a final validation loss yet."
    best = usable.loc[usable["val_loss"].idxmin()]
    text = f"The lowest final validation loss is {best['val_loss']:.4f}, of {best['name']}"
    ladders = []
    # Of several lengths, each is a ladder of its own: a mean over lengths would mix what depths differ in.
    for kind, part in usable.assign(steps=values(usable, "steps").fillna(-1.0)).groupby("formulation"):
        for _, own in part.groupby("steps"):
            mean = own.groupby("depth")["val_loss"].mean()
            if len(mean) > 1:
                ladders.append((str(kind), mean))
    if not ladders:
        return text + "; no formulation has runs at two depths yet, so depth cannot be compared."
    rising = list(dict.fromkeys(kind for kind, mean in ladders if not (np.diff(mean.to_numpy()) < 0).all()))
    kinds = list(dict.fromkeys(kind for kind, _ in ladders))
    first = ladders[0][1]
    shallow, deep = min(m.index.min() for _, m in ladders), max(m.index.max() for _, m in ladders)
    ratios = [mean.iloc[-1] / mean.iloc[0] for _, mean in ladders]
    change = percent_range(ratios)
    if not rising:
        steps = "at every step of the ladder" if len(first) > 2 else "from the shallower to the deeper"
        count = len(kinds)
        whose = f"in {'both' if count == 2 else f'all {count}'} formulations" if count > 1 else f"with {kinds[0]}"
        whose += " at every length" if len(ladders) > count else ""
        return f"{text}; loss falls {steps} {whose} (depth {deep:g} against {shallow:g}: {change})."
    return f"{text}; loss does not fall at every step of depth for {listed(rising)} ({change} from end to end)."


def compute_finding(curves: pd.DataFrame, frontier: pd.DataFrame) -> str:
    """Which depth is worth training at which budget, read off the frontier."""
    if frontier.empty:
        return "No run has validations with a compute count yet."
    parts = []
    for depth, rows in frontier.groupby("depth", sort=True):
        low, high = rows["train_flops"].min(), rows["train_flops"].max()
        parts.append(f"depth {depth:g} from {scientific(low)} to {scientific(high)}")
    unused = sorted(set(curves["depth"]) - set(frontier["depth"]))
    left_out = f"; depth {listed([f'{d:g}' for d in unused])} never reaches it" if unused else ""
    if frontier["depth"].nunique() == 1:
        return f"At every budget measured, {parts[0].split(' from ')[0]} gives the lowest loss{left_out}."
    return f"The lowest loss for a budget comes from {listed(parts)} FLOPs{left_out}."


def law_finding(fits: Mapping[str, tuple[Law, pd.DataFrame]], pooled: str) -> str:
    """What ten times the compute buys, and whether the formulations' laws differ."""
    law, _ = fits[pooled] if pooled in fits else next(iter(fits.values()))
    low, high = law.intervals["b"]
    reach = f"{scientific(law.compute_range[0])} to {scientific(law.compute_range[1])} FLOPs"
    text = (
        f"From {reach} loss follows C^−{law.params['b']:.3f} (95 % interval of the exponent {low:.3f} to {high:.3f}): "
        f"ten times the compute multiplies loss by {10 ** -law.params['b']:.2f} ({10**-high:.2f} to {10**-low:.2f})"
    )
    if not law.identifiable and not low <= 0 <= high:
        text += f"; not to be relied on, since {law.reasons[0]}"
    if low <= 0 <= high:
        text = (
            f"From {reach} the fitted exponent is {law.params['b']:.3f}, but its 95 % interval ({low:.3f} to "
            f"{high:.3f}) holds zero: {law.groups} runs do not yet show a law"
        )
    kinds = [kind for kind in fits if kind != pooled]
    if len(kinds) < 2:
        return text + "."
    top = np.array([min(fits[kind][0].compute_range[1] for kind in kinds)])
    at = {kind: float(fits[kind][0].predict(top)[0]) for kind in kinds}
    best, second = sorted(kinds, key=lambda kind: at[kind])[:2]
    apart = fits[best][0].band(top)[1][0] < fits[second][0].band(top)[0][0]
    verdict = "the bands do not overlap" if apart else "the bands overlap, so the laws are not told apart"
    return f"{text}; at {scientific(top[0])} FLOPs {best} is {percent(at[best] / at[second])} than {second}, {verdict}."


def level_finding(ratios: pd.DataFrame, baseline: str, seeds: int) -> str:
    """Where along t the formulations differ. ``ratios``: formulation, depth, t, ratio to the baseline."""
    if ratios.empty:
        return "Fewer than two formulations share a depth, so there is nothing to compare per level yet."
    single = " One seed a setting: seed noise is not in these numbers." if seeds < 2 else ""
    if ratios["formulation"].nunique() > MOST_COMPARED:
        return _extremes_finding(ratios, baseline) + single
    texts = []
    for kind, part in ratios.groupby("formulation", sort=True):
        table = part.pivot_table(index="t", columns="depth", values="ratio")
        lower, higher = table.index[(table < 1).all(axis=1)], table.index[(table > 1).all(axis=1)]
        mean = table.mean(axis=1)
        extreme = mean.index[(mean - 1).abs().argmax()]
        whose = f"at all {table.shape[1]} depths" if table.shape[1] > 1 else "at the one depth both have"
        spots = []
        if len(lower):
            spots.append(f"lower {whose} at t = {listed([f'{t:.2f}' for t in lower])}")
        if len(higher):
            spots.append(f"higher {whose} at t = {listed([f'{t:.2f}' for t in higher])}")
        sides = " and ".join(spots) if spots else "on neither side consistently across depths"
        texts.append(
            f"against {baseline}, {kind}'s loss is {sides}; it differs most at t = {extreme:.2f} "
            f"({percent(mean[extreme])} on average)"
        )
    text = "; ".join(texts) + "."
    return text[0].upper() + text[1:] + single


def _extremes_finding(ratios: pd.DataFrame, baseline: str) -> str:
    """Who is lowest and highest near data, in the middle and near noise, of many formulations."""
    mean = ratios.groupby(["t", "formulation"])["ratio"].mean().unstack()
    parts = []
    for t in (mean.index[0], mean.index[len(mean) // 2], mean.index[-1]):
        at = mean.loc[t].dropna()
        low, high = percent(at.min()), percent(at.max())
        parts.append(f"at t = {t:.2f} {at.idxmin()} is lowest ({low}) and {at.idxmax()} highest ({high})")
    return f"Loss per level against {baseline}'s, of {mean.shape[1]} other formulations: {'; '.join(parts)}."


def task_finding(geneval: pd.DataFrame) -> str:
    """Who passes most, whether that is more than chance, and whether the order is shown."""
    overall = geneval[(geneval["task"] == "overall") & values(geneval, "rate").notna()]
    if overall.empty:
        return "No run has an overall score yet."
    overall = overall.sort_values("rate", ascending=False, kind="stable")
    best = overall.iloc[0]
    chance = values(overall, "chance").mean()
    text = f"{best['name']} passes most, {best['rate']:.3f} ({best['low']:.3f} to {best['high']:.3f})"
    if not best["rate"] > 0:
        text = (
            f"No run passes a single strict test (at most {best['high']:.3f} by the interval): read the graded scores"
        )
    elif len(overall) > 1:
        tied = [row["name"] for _, row in overall.iloc[1:].iterrows() if row["high"] >= best["low"]]
        if tied:
            text += f", but the intervals of {len(tied)} of the other {len(overall) - 1} runs overlap its own"
        else:
            text += ", and no other run's interval reaches its own"
    if np.isfinite(chance):
        if best["low"] > chance:
            text += f"; that is above the {chance:.3f} of a random scene"
        elif best["high"] < chance:
            text += f"; that is below the {chance:.3f} that a random, but sharp, scene would pass"
        else:
            text += f"; that is not told apart from the {chance:.3f} of a random scene"
    tasks = geneval[(geneval["task"] != "overall") & (values(geneval, "low") > values(geneval, "chance"))]
    if not values(geneval, "chance").notna().any():
        return text + "."
    if tasks.empty:
        return text + ", and no run is clear of chance in any task."
    counts = [
        f"{str(task).replace('_', ' ')} ({len(part)} of {overall['name'].nunique()} runs)"
        for task, part in tasks.groupby("task", sort=False)
    ]
    return text + f". Clear of chance: {listed(counts)}."


def graded_finding(geneval: pd.DataFrame) -> str:
    """The same question for the graded score, which moves long before a strict pass does."""
    overall = geneval[(geneval["task"] == "overall") & values(geneval, "graded").notna()]
    if overall.empty:
        return ""
    overall = overall.sort_values("graded", ascending=False, kind="stable")
    best, worst = overall.iloc[0], overall.iloc[-1]
    chance = values(overall, "chance_graded").mean()
    text = f"Graded (parts of a prompt count), {best['name']} leads with {best['graded']:.3f}"
    if len(overall) > 1:
        apart = values(overall, "graded_low").iloc[0] > values(overall, "graded_high").iloc[-1]
        text += f" and {worst['name']} ends with {worst['graded']:.3f}"
        text += ", intervals apart" if apart else ", intervals overlapping: no order is shown"
    return text + (f"; a random scene gets {chance:.3f}." if np.isfinite(chance) else ".")


def elo_finding(table: EloTable) -> str:
    """Who leads, and how often the bootstrap agrees that it beats the next."""
    best, second, last = table.ratings[0], table.ratings[1], table.ratings[-1]
    share = float((table.samples[:, 0] > table.samples[:, 1]).mean()) if len(table.samples) else float("nan")
    verdict = (
        f"in {share * 100:.0f} % of the bootstraps it is ahead of {second.name}"
        + ("" if share >= 0.975 else ", so first place is not settled")
        if np.isfinite(share)
        else f"{second.name} is next"
    )
    rate = float(table.win_rates().loc[best.name, last.name])
    return (
        f"{best.name} leads with {best.elo:.0f} ({best.low:.0f} to {best.high:.0f}), expected to score "
        f"{rate * 100:.0f} % against {last.name}; {verdict}."
    )
