"""Which size and which recipe the next budget should be spent on, and what being wrong about it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scaling.errors import TableError
from scaling.laws import Law

SHARES = np.geomspace(0.05, 1.0, 61)
"""Parts of the budget at which the best loss is known, to say a loss as compute."""
LEAST_INSIDE = 0.5
"""Share of the draws that must lie within all laws' intervals, for the others to be left out."""


@dataclass(frozen=True)
class Option:
    """One way to spend the budget: a recipe at a size. ``n`` and ``d`` are what its law calls N and D."""

    recipe: str
    size: str
    n: float
    d: float
    c: float
    """Compute, as the laws count it; for laws over C."""


@dataclass(frozen=True)
class Choice:
    """An option as the laws see it.

    ``low`` and ``high`` are the law's interval there. ``best`` is the share of resampled laws by which no option is
    better. ``regret`` is how much higher its loss is than that of the best option, as a share of it: on average over
    these, and with 95 of 100 below ``regret_high``.
    ``waste`` is that average as a share of the budget: what was needed less for the same loss, well spent.
    """

    option: Option
    loss: float
    low: float
    high: float
    best: float
    regret: float
    regret_high: float
    waste: float
    beyond: tuple[str, ...]
    """Where the law is asked outside of what it was fitted to."""


@dataclass(frozen=True)
class Recommendation:
    """Choices, least average regret first; ``doubts`` are what to know before it is relied on."""

    choices: tuple[Choice, ...]
    doubts: tuple[str, ...]


def recommend(laws: Mapping[str, Law], options: Sequence[Option]) -> Recommendation:
    """Compare ``options`` by the laws of their recipes, each fitted to its own runs, with its own bootstrap.

    The laws of a recipe's draws are compared size by size in the same draw: what is common to them cancels. Draws of
    different recipes are independent, which overstates the doubt where their runs share seeds. Draws by which an
    option's loss is outside of its law's interval, which the rows speak against, are left out: far from the rows a few
    of them, with losses of next to nothing, would be all of an average.

    Raises TableError where there is nothing to compare, or a law has no bootstrap.
    """
    if len(options) < 2:
        raise TableError(f"options={len(options)}: nothing to compare; expected two or more sizes or recipes")
    draws = min(law.draws for law in laws.values())
    if draws < 100:
        raise TableError(f"bootstrap={draws}: too few to tell a regret by; expected 100 or more")
    points = [_point(laws[o.recipe], o, 1.0) for o in options]
    bands = np.array(
        [[end.item() for end in laws[o.recipe].profile_band(*at)] for o, at in zip(options, points, strict=True)]
    )
    losses = np.stack([_draws(laws[o.recipe], o, 1.0)[:draws] for o in options], axis=1)  # [draws, options]
    inside = ((bands[:, 0] <= losses) & (losses <= bands[:, 1])).all(axis=1)
    losses = losses[inside] if inside.mean() > LEAST_INSIDE else losses
    least = losses.min(axis=1)
    regrets = losses / least[:, None] - 1
    wins = losses <= least[:, None] * (1 + 1e-12)
    curve = np.minimum.accumulate(np.array([min(_loss(laws[o.recipe], o, share) for o in options) for share in SHARES]))
    choices = []
    for index, (option, point, (low, high)) in enumerate(zip(options, points, bands, strict=True)):
        law = laws[option.recipe]
        told = tuple(f"{x} is {times:.3g} times beyond the runs" for x, times in law.beyond(*point).items())
        regret = float(regrets[:, index].mean())
        # The best loss of a part of the budget, read backwards: which part would have done.
        enough = float(np.interp(np.log(curve[-1] * (1 + regret)), np.log(curve[::-1]), SHARES[::-1]))
        choices.append(
            Choice(
                option=option,
                loss=float(law.predict(*point)),
                low=float(low),
                high=float(high),
                best=float(wins[:, index].mean()),
                regret=regret,
                regret_high=float(np.quantile(regrets[:, index], 0.95)),
                waste=1 - enough,
                beyond=told,
            )
        )
    order = sorted(choices, key=lambda choice: choice.regret)
    return Recommendation(tuple(order), _doubts(laws, order, options))


def _point(law: Law, option: Option, share: float) -> list[float]:
    """The law's abscissae where this share of the budget is spent on the option: its size stays."""
    known = {"N": option.n, "D": option.d * share, "C": option.c * share}
    return [known[x] for x in law.kind.abscissae]


def _loss(law: Law, option: Option, share: float) -> float:
    return float(law.predict(*_point(law, option, share)))


def _draws(law: Law, option: Option, share: float) -> np.ndarray:
    return law.draws_of(*_point(law, option, share))[:, 0]


def _doubts(laws: Mapping[str, Law], choices: Sequence[Choice], options: Sequence[Option]) -> tuple[str, ...]:
    doubts = [f"{recipe}: {reason}" if recipe else reason for recipe, law in laws.items() for reason in law.reasons]
    first = choices[0].option
    sizes = sorted({o.n for o in options if o.recipe == first.recipe})
    if len(sizes) > 1 and first.n in (sizes[0], sizes[-1]):
        end = "smallest" if first.n == sizes[0] else "largest"
        doubts.append(f"the best is the {end} size that was compared: one beyond it may be better")
    doubts += list(choices[0].beyond)
    return tuple(doubts)
