"""Ladders of fixed data a parameter: found, fitted, compared; against the joint law that made them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from scaling.errors import TableError
from scaling.ladders import compare, ladders

COLUMNS = {"n": "n", "d": "d", "compute": "c", "loss": "loss"}


def table(ratios: tuple[float, ...], steps: int, noise: float = 0.0, *, jitter: float = 0.0, draw: int = 0):
    """L = 0.05 + 40 N^−0.3 + 40 D^−0.3: along a ladder D = r N it is 0.05 + constant·C^−0.15, least for r = 1."""
    rng = np.random.default_rng(draw)
    n = np.tile(np.geomspace(1e6, 1e10, steps), len(ratios))
    d = n * np.repeat(ratios, steps) * np.exp(jitter * rng.uniform(-1, 1, size=len(n)))
    loss = (0.05 + 40 * n**-0.3 + 40 * d**-0.3) * np.exp(noise * rng.normal(size=len(n)))
    return pd.DataFrame({"n": n, "d": d, "c": 6 * n * d, "loss": loss, "run": np.arange(len(n))})


def scale(ratio: float) -> float:
    return 40 * 6**0.15 * (ratio**0.15 + ratio**-0.15)


def test_each_ladder_has_its_closed_form() -> None:
    found = ladders(table((1, 10, 100), 8), **COLUMNS, draws=0)
    np.testing.assert_allclose([ladder.ratio for ladder in found], [1, 10, 100])
    for ladder in found:
        assert ladder.rows == ladder.steps == 8 and ladder.law is not None and ladder.doubts == ()
        expected = {"a": scale(ladder.ratio), "b": 0.15, "floor": 0.05}
        assert ladder.law.params == pytest.approx(expected, rel=0.01)
    ahead = compare(found, 1e24)
    assert [row.ratio for row in ahead] == pytest.approx([1, 10, 100])
    np.testing.assert_allclose(
        [row.loss for row in ahead], [0.05 + scale(r) * 1e24**-0.15 for r in (1, 10, 100)], rtol=1e-3
    )
    assert np.isnan(ahead[0].certainty)
    # 10 N² · 6 is 6e21 at the top of the middle ladder.
    assert ahead[1].beyond == pytest.approx(1e24 / 6e21)
    assert compare(found, 1e18)[0].beyond == 1.0


def test_certainty_is_high_where_ladders_differ_and_even_where_they_do_not() -> None:
    clear = compare(ladders(table((1, 100), 8, noise=0.003), **COLUMNS, draws=100), 1e20)
    assert clear[0].ratio == pytest.approx(1) and clear[0].certainty > 0.95
    assert sum(row.certainty for row in clear) == pytest.approx(1)
    # Ladders of r and 1/r have one law: of many studies each is the lowest in about half, and is told so.
    shares = []
    for draw in range(6):
        even = compare(ladders(table((0.2, 5), 8, noise=0.01, draw=draw), **COLUMNS, draws=100, seed=draw), 1e20)
        shares.append({row.ratio: row.certainty for row in even}[min(row.ratio for row in even)])
    assert 0.25 < np.mean(shares) < 0.75 and np.mean((np.array(shares) > 0.975) | (np.array(shares) < 0.025)) < 0.4


def test_intervals_hold_the_true_loss() -> None:
    held = []
    for draw in range(15):
        for row in compare(ladders(table((1, 20), 7, noise=0.005, draw=draw), **COLUMNS, draws=0), 1e21):
            held.append(row.low <= 0.05 + scale(row.ratio) * 1e21**-0.15 <= row.high)
    assert np.mean(held) >= 0.86


def test_ratios_that_vary_a_little_are_one_ladder_and_few_steps_are_told() -> None:
    found = ladders(table((2, 20), 4, noise=0.002, jitter=0.05), **COLUMNS, draws=50)
    assert len(found) == 2 and found[0].ratios[0] < 2 < found[0].ratios[1]
    law = found[0].law
    assert law is not None and law.params["floor"] == 0.0
    assert found[0].doubts[0] == "4 different values of compute cannot show a floor: the law has none"
    assert found[0].doubts[1:] == law.reasons
    two = ladders(table((2, 20), 2), **COLUMNS, draws=50)
    assert all(ladder.law is None and "no law; expected 3 or more" in ladder.doubts[0] for ladder in two)
    with pytest.raises(TableError, match="none of 2 has a law"):
        compare(two, 1e20)
    mixed = pd.concat([table((2,), 6, noise=0.002), table((30,), 2)])
    assert [row.ratio for row in compare(ladders(mixed, **COLUMNS, draws=20), 1e20)] == pytest.approx([2])
    json.loads(json.dumps([ladder.to_json() for ladder in found], allow_nan=False))
    json.loads(json.dumps([row.to_json() for row in compare(found, 1e20)], allow_nan=False))


def test_what_will_not_do_is_named() -> None:
    rows = table((1,), 8)
    with pytest.raises(TableError, match=r"without a gap of 0\.15 in the log"):
        ladders(rows.assign(d=rows["n"] * np.geomspace(1, 2.5, 8)), **COLUMNS)
    with pytest.raises(TableError, match="tolerance=-1: expected a number between 0 and 1"):
        ladders(rows, **COLUMNS, tolerance=-1.0)
    with pytest.raises(TableError, match="column='tokens': not in the table"):
        ladders(rows, **{**COLUMNS, "d": "tokens"})
    with pytest.raises(TableError, match="compute=-1: expected a number above 0"):
        compare(ladders(rows, **COLUMNS, draws=0), -1.0)
