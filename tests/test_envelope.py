"""Frontiers of training curves and the best sizes that they show: closed forms, simulations, published numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scaling.allocation import line
from scaling.envelope import fit_frontier, frontier, optimal_sizes
from scaling.errors import TableError


def curves() -> pd.DataFrame:
    """Two runs whose curves cross at 1e13 FLOPs, and one that is never best."""
    rows = []
    for run, scale, slope in (("small", 1.0, 0.1), ("large", 2.0, 0.2), ("poor", 3.0, 0.15)):
        steps = 10 ** np.arange(12, 14.01, 0.25) * (2.0 if run == "large" else 1.0)
        rows += [
            {"run_id": run, "train_flops": c, "val_loss": scale * (c / 1e13) ** -slope / (2 if run == "large" else 1)}
            for c in steps
        ]
    return pd.DataFrame(rows)


def ladder(
    sizes: np.ndarray, *, noise: float = 0.0, draw: int = 0, seeds: int = 1, alpha: float = 0.4, beta: float = 0.3
) -> pd.DataFrame:
    """Curves of L = 0.1 + 40 N^−alpha + 40 D^−beta with C = 6 N D; each run has a level of its own where ``noise``."""
    rng = np.random.default_rng(draw)
    rows = []
    for size in sizes:
        for seed in range(seeds):
            data = size * np.geomspace(0.5, 500, 60)
            loss = (0.1 + 40 * size**-alpha + 40 * data**-beta) * np.exp(noise * rng.normal())
            rows.append(
                pd.DataFrame(
                    {"run_id": f"{size:.0f}-{seed}", "train_flops": 6 * size * data, "parameters": size, "images": data}
                ).assign(val_loss=loss)
            )
    return pd.concat(rows)


def test_frontier_is_the_lower_envelope() -> None:
    table = curves()
    best = frontier(table, burn_in=0.0)
    assert best["train_flops"].is_monotonic_increasing and best["val_loss"].is_monotonic_decreasing
    assert set(best[best["train_flops"] < 0.99e13]["run_id"]) == {"small"}
    assert set(best[best["train_flops"] > 1.01e13]["run_id"]) == {"large"}
    # A coarse checkpoint of the poor run that no other checkpoint dominates still lies above the others' curves.
    gap = pd.DataFrame({"run_id": ["poor2"] * 2, "train_flops": [1.2e12, 1.4e12], "val_loss": [1.24, 1.238]})
    small = table[table["run_id"] == "small"]
    sparse = small[small["train_flops"].isin([small["train_flops"].min(), small["train_flops"].max()])]
    together = pd.concat([sparse, gap])
    assert set(frontier(together, burn_in=0.0)["run_id"]) == {"small"}
    assert frontier(table, burn_in=0.5)["train_flops"].min() >= 0.5e14
    law, rows = fit_frontier(table, draws=20, burn_in=0.0)
    assert law.groups == 2 and len(rows) == law.rows and 0.1 < law.params["b"] < 0.2


def test_frontier_is_what_a_plain_search_finds() -> None:
    """Row by row and run by run, on curves of noise."""
    rng = np.random.default_rng(3)
    names = np.repeat(list("abcde"), 12)
    cost = np.exp(rng.uniform(0, 5, 60))
    table = pd.DataFrame({"run_id": names, "train_flops": cost, "val_loss": np.exp(-0.2 * np.log(cost))})
    table["val_loss"] *= np.exp(0.1 * rng.normal(size=60))
    expected = []
    for place, row in table.iterrows():
        lower = (table["val_loss"][table["train_flops"] < row["train_flops"]] > row["val_loss"]).all()
        for name in set("abcde") - {row["run_id"]}:
            own = table[table["run_id"] == name].sort_values("train_flops")
            x, y = np.log(own["train_flops"]), np.log(own["val_loss"])
            if x.min() <= np.log(row["train_flops"]) <= x.max():
                lower &= np.log(row["val_loss"]) <= np.interp(np.log(row["train_flops"]), x, y) + 1e-12
        if lower:
            expected.append(place)
    assert set(frontier(table, burn_in=0.0).index) == set(expected) and 3 < len(expected) < 30


def test_best_sizes_follow_the_law_that_made_them() -> None:
    """a = beta / (alpha + beta), b = alpha / (alpha + beta) (Hoffmann et al. 2022, eq. 4), for a fine ladder."""
    table = ladder(np.geomspace(1e5, 1e9, 25))
    found = optimal_sizes(table, d="images", burn_in=0.0, draws=50)
    assert found.params["a"] == pytest.approx(3 / 7, abs=0.02) and found.params["b"] == pytest.approx(4 / 7, abs=0.02)
    compute = np.array([1e13, 1e15])
    # Loss is least where alpha A N^−alpha = beta B D^−beta.
    best = [(4 / 3 * (c / 6) ** 0.3) ** (1 / 0.7) for c in compute]
    size, low, high = found.sizes_at(compute)
    np.testing.assert_allclose(size, best, rtol=0.2)
    assert (low <= size).all() and (size <= high).all()
    np.testing.assert_allclose(size * found.data_at(compute)[0] * 6, compute, rtol=0.02)
    assert found.sizes > 10 and "its rows are left out" in found.doubts[0] and "its rows" in found.doubts[1]
    assert found.to_json()["params"]["a"] == found.params["a"]
    assert "b" not in optimal_sizes(table, draws=0).params
    short = table[table["images"] < 60 * table["parameters"]]
    told = " ".join(optimal_sizes(short, burn_in=0.0, draws=0).doubts)
    assert "are still the best where their runs end" in told


def test_intervals_of_sizes_hold_the_exponent() -> None:
    """A coarse ladder with runs that are lucky or not: of 40, most intervals hold what the same ladder gives without
    luck (the staircase of a coarse grid is no luck)."""
    sizes = np.geomspace(1e5, 1e9, 9)
    settled = optimal_sizes(ladder(sizes), burn_in=0.0, draws=0).params["a"]
    held, widths = 0, []
    for draw in range(40):
        found = optimal_sizes(ladder(sizes, noise=0.01, draw=draw, seeds=2), burn_in=0.0, draws=100, seed=draw)
        low, high = found.intervals["a"]
        held += low <= settled <= high
        widths.append(high - low)
    assert held >= 34 and np.median(widths) < 0.6


def test_few_sizes_and_ends_are_told() -> None:
    two = optimal_sizes(ladder(np.array([1e6, 1e7])), draws=20)
    assert np.isnan(two.params["a"]) and two.draws == 0 and "2 different sizes on the frontier" in two.doubts[0]
    assert two.to_json()["params"] == {"a": None, "k_n": None}
    three = optimal_sizes(ladder(np.array([1e6, 1e7, 1e8])), draws=20)
    told = " ".join(three.doubts)
    assert "the smallest size, 1e+06, holds" in told and "the largest size, 1e+08, holds" in told
    with pytest.raises(TableError, match="did you mean 'parameters'"):
        optimal_sizes(ladder(np.array([1e6])), n="params")
    with pytest.raises(TableError, match="images="):
        optimal_sizes(ladder(np.array([1e6, 1e7])).assign(images=0.0), d="images")


def test_published_sizes_give_the_published_exponents() -> None:
    """Hoffmann et al. 2022, table 3 (approach 1) and table 2: a = 0.50, b = 0.50."""
    size = np.array([400e6, 1e9, 10e9, 67e9, 175e9, 280e9, 520e9, 1e12, 10e12])
    compute = np.array([1.92e19, 1.21e20, 1.23e22, 5.76e23, 3.85e24, 9.90e24, 3.43e25, 1.27e26, 1.30e28])
    tokens = np.array([8.0e9, 20.2e9, 205.1e9, 1.5e12, 3.7e12, 5.9e12, 11.0e12, 21.2e12, 216.2e12])
    u = np.log(compute) - np.log(compute).mean()
    (_, a), (_, b) = line(u, np.log(np.stack([size, tokens])), np.ones(9))
    assert round(a, 2) == 0.50 and round(b, 2) == 0.50
