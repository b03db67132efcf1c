"""Which battle next: the drop by brute force, and fewer votes than random pairs need."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special

from scaling.davidson import ELO, PRIOR_SD, Design, fit, hessian
from scaling.next_battle import next_pairs


def davidson(first: np.ndarray, second: np.ndarray, log_ties: float) -> np.ndarray:
    """Win, loss, tie chances written straight from Davidson 1970: [..., 3]."""
    p, q = np.broadcast_arrays(np.exp(first), np.exp(second))
    raised = np.stack([p, q, np.exp(log_ties) * np.sqrt(p * q)], axis=-1)
    return raised / raised.sum(-1, keepdims=True)


def second_derivatives(function, at: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """By central differences."""
    unit = np.eye(len(at)) * step
    return np.array(
        [
            [
                (function(at + a + b) - function(at + a - b) - function(at - a + b) + function(at - a - b))
                / (4 * step**2)
                for b in unit
            ]
            for a in unit
        ]
    )


def spread(covariance: np.ndarray) -> float:
    """Root mean variance of a rating difference, Elo."""
    players = len(covariance) - 1
    gaps = [covariance[i, i] + covariance[j, j] - 2 * covariance[i, j] for i in range(players) for j in range(i)]
    return ELO * float(np.sqrt(np.mean(gaps)))


def mean_width(counts: np.ndarray) -> float:
    """Mean width of 95 % intervals of rating differences, Elo, by the fit's information."""
    i, j = np.triu_indices(len(counts), 1)
    design = Design(i, j, np.zeros((len(i), 0)), len(counts))
    seen = (counts[i, j] + counts[j, i][:, [1, 0, 2]])[None]
    known = np.linalg.inv(hessian(design, fit(design, seen), seen.sum(-1))[0])
    return float(2 * 1.96 * ELO * np.sqrt(known[i, i] + known[j, j] - 2 * known[i, j]).mean())


def test_the_drop_is_what_brute_force_finds() -> None:
    players = 4
    counts = np.zeros((players, players, 3))
    rng = np.random.default_rng(3)
    for i, j in ((0, 1), (1, 0), (1, 2), (2, 3), (0, 3)):
        counts[i, j] = rng.multinomial(12, [0.5, 0.3, 0.2])

    def negative(at: np.ndarray, table: np.ndarray) -> float:
        chance = davidson(at[:players, None], at[:players], at[-1])
        return float(-(table * np.log(chance)).sum() + (at**2).sum() / (2 * PRIOR_SD**2))

    best = optimize.minimize(negative, np.zeros(players + 1), args=(counts,), method="BFGS", options={"gtol": 1e-7}).x
    information = second_derivatives(lambda at: negative(at, counts), best)
    covariance = np.linalg.inv(information)
    expected = {}
    for i in range(players):
        for j in range(i + 1, players):
            gap_sd = np.sqrt(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])
            battle = np.zeros_like(information)
            for z in (np.arange(2000) + 0.5) / 2000:  # the middles of 2,000 equally likely parts of the gap's spread
                gap = best[i] - best[j] + gap_sd * np.sqrt(2) * special.erfinv(2 * z - 1)
                win, loss, tie = davidson(np.array(gap), np.array(0.0), best[-1])
                scores = np.zeros((3, players + 1))
                scores[:, i] = np.array([0.5, -0.5, 0.0]) - (win - loss) / 2
                scores[:, j] = -scores[:, i]
                scores[:, -1] = np.array([0.0, 0.0, 1.0]) - tie
                battle += (scores.T * [win, loss, tie]) @ scores / 2000
            expected[i, j] = spread(covariance) - spread(np.linalg.inv(information + battle))
    found = next_pairs(counts, k=100)
    assert [drop for *_, drop in found] == sorted((drop for *_, drop in found), reverse=True)
    assert len(found) == 6
    for left, right, drop in found:
        assert drop == pytest.approx(expected[min(left, right), max(left, right)], rel=5e-3)


def test_no_votes_and_strangers() -> None:
    first = next_pairs(np.zeros((3, 3, 3)), k=9)
    assert {frozenset(pair[:2]) for pair in first} == {frozenset(p) for p in ((0, 1), (0, 2), (1, 2))}
    assert all(np.isfinite(drop) and drop > 0 for *_, drop in first)
    apart = np.zeros((4, 4, 3))
    apart[0, 1] = apart[2, 3] = (30, 30, 10)
    left, right, _ = next_pairs(apart)[0]
    assert {left, right} & {0, 1} and {left, right} & {2, 3}
    only = next_pairs(np.zeros((2, 2, 3)), k=3)
    assert len(only) == 1


def test_battles_in_flight_count_as_coming_and_sides_take_turns() -> None:
    counts = np.zeros((4, 4, 3))
    waiting = np.zeros((4, 4), dtype=np.int64)
    asked = set()
    for _ in range(3):
        left, right, _ = next_pairs(counts, in_flight=waiting)[0]
        asked |= {left, right}
        waiting[left, right] += 1
    assert asked == {0, 1, 2, 3}  # three battles that connect four players, before any vote has come
    two = np.zeros((2, 2, 3))
    two[0, 1] = (1, 0, 0)
    assert next_pairs(two)[0][:2] == (1, 0)
    two[1, 0] = (0, 2, 0)
    assert next_pairs(two)[0][:2] == (0, 1)


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match="players, players, 3"):
        next_pairs(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="in_flight"):
        next_pairs(np.zeros((3, 3, 3)), in_flight=np.zeros(3))


def votes_until(width: float, strength: np.ndarray, start: np.ndarray, seed: int, chosen: bool) -> int:
    """Battles fought until intervals are ``width`` wide on average, with pairs chosen, or random."""
    rng = np.random.default_rng(seed)
    counts = start.copy()
    for vote in range(1, 4000):
        if chosen:
            left, right, _ = next_pairs(counts)[0]
        else:
            left, right = (int(player) for player in rng.choice(len(strength), 2, replace=False))
        chance = davidson(strength[left], strength[right], np.log(0.5))
        counts[left, right, rng.choice(3, p=chance)] += 1
        if vote % 5 == 0 and mean_width(counts) < width:
            return vote
    raise AssertionError(f"intervals of width {width} not reached")


def test_chosen_pairs_reach_a_width_with_fewer_votes_than_random_ones() -> None:
    strength = np.linspace(-3, 3, 8)  # 150 Elo from one to the next
    none = np.zeros((8, 8, 3))
    chosen, random = (
        np.mean([votes_until(450, strength, none, seed, kind) for seed in range(4)]) for kind in (True, False)
    )
    assert chosen < 0.9 * random


def test_a_newcomer_is_asked_about_first() -> None:
    rng = np.random.default_rng(0)
    strength = np.array([0.6, 0.2, 0.0, -0.3, -0.5, 0.1])
    counts = np.zeros((6, 6, 3))
    for i in range(5):
        for j in range(i + 1, 5):
            counts[i, j] = rng.multinomial(60, davidson(strength[i], strength[j], np.log(0.5)))
    chosen, random = (
        np.mean([votes_until(200, strength, counts, seed, kind) for seed in range(4)]) for kind in (True, False)
    )
    assert chosen < 0.6 * random
