"""SD3's figure 4 from a study of architectures: validation loss and graded score, a ranking with intervals.

python -m experiments.architectures_figure STUDY_FOLDER [--out FOLDER] [--baseline mmdit]

Reads results.csv and curves.csv, writes architectures.png and .pdf and ranking.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mmdit_jax.files import write_atomic
from scaling.errors import TableError
from scaling.figures import flops_axis, loss_axis
from scaling.groups import curves, interval, ranking
from scaling.look import HUES, MARKERS, legend_above, panels, save
from scaling.tables import numbers, read_table, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BY = "architecture"
TITLES = {"dit": "DiT", "crossdit": "CrossDiT", "uvit": "UViT", "mmdit": "MMDiT", "mmdit3": "MMDiT, 3 streams"}


def figure(results: pd.DataFrame, points: pd.DataFrame) -> Figure:
    """Left: loss against training FLOPs, thin lines the seeds, bands 95 % of their mean. Right: graded score."""
    from matplotlib.lines import Line2D

    found = curves(points, BY, "train_flops", "val_loss")
    names = [name for name in TITLES if name in found]
    with panels(1, 2, (8.4, 4.0)) as (drawn, grid):
        loss, score = grid[0]
        for index, name in enumerate(names):
            curve, hue = found[name], HUES[index]
            seen = curve.x > 0
            x = curve.x[seen]
            loss.fill_between(x, curve.low[seen], curve.high[seen], color=hue, alpha=0.15, lw=0)
            for run in curve.runs:
                loss.plot(x, run[seen], color=hue, lw=0.4, alpha=0.6)
            loss.plot(x, curve.mean[seen], color=hue, lw=1.5, marker=MARKERS[index], markersize=4)
            own = numbers(results[results[BY] == name], "geneval_graded")
            place = np.full(len(own), float(index)) + 0.05 * (np.arange(len(own)) - (len(own) - 1) / 2)
            score.scatter(place, own, color=hue, marker=MARKERS[index], s=18, lw=0, alpha=0.7)
            if len(own) > 1:
                low, high = interval(own)
                score.errorbar(
                    index + 0.25, own.mean(), [[own.mean() - low], [high - own.mean()]], color=hue, capsize=3
                )
        loss.set_yscale("log")
        loss_axis(loss.yaxis)
        loss.set_ylabel("validation loss (EMA weights, mean of levels)")
        flops_axis(loss)
        score.set_xticks(range(len(names)), [TITLES[name] for name in names], rotation=20, ha="right")
        score.set_ylabel("graded GenEval-proxy of the finished run")
        score.grid(axis="x", visible=False)
        legend_above(
            drawn,
            [Line2D([], [], color=HUES[i], marker=MARKERS[i], label=TITLES[name]) for i, name in enumerate(names)],
        )
        return drawn


def table(results: pd.DataFrame, baseline: str) -> str:
    """Markdown: architectures from the lowest final loss, with differences to the baseline's run of the same seed."""
    lines = [
        f"| architecture | parameters | steps | training FLOPs | final loss | difference to {TITLES[baseline]} (95 %) |"
        " graded score, difference (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    scores = {place.name: place for place in ranking(results, BY, "geneval_graded", baseline)}
    for place in ranking(results, BY, "val_loss", baseline):
        row = results[results[BY] == place.name].iloc[0]
        score = scores[place.name]
        ours = place.name == baseline
        lines.append(
            f"| {TITLES[place.name]} | {int(row['params']):,} | {int(row['steps'])} | {row['train_flops']:.3e} "
            f"| {place.mean:.4f} | {'0' if ours else _range(place.difference, place.low, place.high, 4)} "
            f"| {score.mean:.3f}{'' if ours else ', ' + _range(score.difference, score.low, score.high, 3)} |"
        )
    return "\n".join(lines).replace("-0.", "−0.") + "\n"


def _range(value: float, low: float, high: float, digits: int) -> str:
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.architectures_figure", description=__doc__)
    parser.add_argument("study", type=Path, metavar="STUDY_FOLDER", help="the folder with results.csv and curves.csv")
    parser.add_argument("--out", type=Path, help="where the figure and table go (default: STUDY_FOLDER/figures)")
    parser.add_argument("--baseline", default="mmdit", help="whose runs the others are compared with (%(default)s)")
    chosen = parser.parse_args(arguments)
    out = chosen.out or chosen.study / "figures"
    try:
        results, points = read_table(chosen.study / "results.csv"), read_table(chosen.study / "curves.csv")
        require(results, [BY, "params", "steps", "train_flops"])
        unknown = sorted(set(results[BY]) - set(TITLES))
        if unknown:
            raise TableError(f"{BY}={unknown[0]!r}: expected one of {', '.join(TITLES)}")
        text = table(results, chosen.baseline)
        save(figure(results, points), out, "architectures")
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomic(out / "ranking.md", text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
