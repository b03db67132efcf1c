"""What ``mmdit recommend`` prints: a table of choices, a sentence, an object.

``rows`` holds, by recipe and size, a run as ``launch.execute.describe`` tells it, and what is known of its time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from launch.tables import ends
from scaling.plain import plain

if TYPE_CHECKING:
    from scaling.recommend import Recommendation


def sentence(found: Recommendation, rows: Mapping[tuple[str, str], dict[str, Any]], *, several: bool) -> str:
    """What to do, how surely, and what being wrong costs."""
    first, *others = found.choices
    row = rows[first.option.recipe, first.option.size]
    what = f"{first.option.size} {first.option.recipe}" if several else first.option.size
    second = others[0]
    then = f"{second.option.size} {second.option.recipe}" if several else second.option.size
    return (
        f"Spend it on {what} for {row['steps']:,} steps of {row['batch']:,}: loss {first.loss:.4g}, 95 % interval "
        f"{ends(first.low, first.high, digits=4)}. It is the best of {len(found.choices)} in {100 * first.best:.0f} % "
        f"of resampled laws; being wrong costs {100 * first.regret:.2g} % of loss on average "
        f"(95 % below {100 * first.regret_high:.2g} %), as much as {_waste(first.waste)} of the budget. "
        f"Next is {then}, with {100 * second.regret:.2g} %."
    )


def _waste(share: float) -> str:
    """A share of the budget; it is looked for up to all but the first of SHARES."""
    from scaling.recommend import SHARES

    return f"{'more than ' if share >= 1 - SHARES[0] else ''}{100 * share:.2g} %"


def shown(found: Recommendation, rows: Mapping[tuple[str, str], dict[str, Any]], *, several: bool) -> pd.DataFrame:
    """The table that is printed."""
    lines = []
    for choice in found.choices:
        row = rows[choice.option.recipe, choice.option.size]
        line: dict[str, str] = {"size": choice.option.size}
        if several:
            line["recipe"] = choice.option.recipe
        line |= {"parameters": f"{row['params']:,}", "steps": f"{row['steps']:,}", "FLOPs": f"{row['train_flops']:.2e}"}
        if "hours" in row:
            line["hours"] = f"{row['hours']:.3g}"
        line |= {
            "loss": f"{choice.loss:.4g}",
            "95 % interval": ends(choice.low, choice.high, digits=4),
            "best": f"{100 * choice.best:.0f} %",
            "regret": f"{100 * choice.regret:.2g} %",
            "of the budget": _waste(choice.waste),
        }
        lines.append(line)
    return pd.DataFrame(lines)


def as_json(
    found: Recommendation, rows: Mapping[tuple[str, str], dict[str, Any]], doubts: Sequence[str]
) -> dict[str, Any]:
    """The object that --json prints."""
    told = []
    for choice in found.choices:
        row = rows[choice.option.recipe, choice.option.size]
        item: dict[str, Any] = {"size": choice.option.size, "recipe": choice.option.recipe}
        item |= {name: row[name] for name in ("depth", "params", "steps", "batch", "images", "train_flops")}
        item |= {name: row[name] for name in ("step_seconds", "hours", "peak_gib", "mfu_bound") if name in row}
        for name in ("loss", "low", "high", "best", "regret", "regret_high", "waste"):
            item[name] = plain(vars(choice)[name])
        told.append({**item, "beyond": list(choice.beyond)})
    return {"choices": told, "doubts": list(doubts)}
