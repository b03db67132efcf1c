"""Approach 2: exact where losses are parabolas, biased as expansions say where they are not, honest where thin."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from scaling.errors import TableError
from scaling.isoflop import isoflops

BUDGETS = np.geomspace(1e17, 1e20, 5)
LAW = {"E": 1.7, "A": 400.0, "alpha": 0.3, "B": 2000.0, "beta": 0.4}
COLUMNS = {"compute": "c", "n": "n", "d": "d", "loss": "loss"}


def best(compute: np.ndarray, law: dict[str, float]) -> np.ndarray:
    """Hoffmann et al. 2022, eq. 4."""
    total = law["alpha"] + law["beta"]
    ratio = law["alpha"] * law["A"] / (law["beta"] * law["B"])
    return ratio ** (1 / total) * (compute / 6) ** (law["beta"] / total)


def grid(
    half: float = 1.0,
    sizes: int = 7,
    *,
    centre: float = 0.0,
    tilt: float = 0.0,
    noise: float = 0.0,
    draw: int = 0,
    **law,
) -> pd.DataFrame:
    """Runs of a joint law: log N from −half to half about the optimum, moved by ``centre`` + ``tilt`` a budget."""
    law = {**LAW, **law}
    rng = np.random.default_rng(draw)
    parts = []
    for number, compute in enumerate(BUDGETS):
        n = best(compute, law) * np.exp(np.linspace(-half, half, sizes) + centre + tilt * (number - 2))
        d = compute / (6 * n)
        loss = law["E"] + law["A"] * n ** -law["alpha"] + law["B"] * d ** -law["beta"]
        parts.append(
            pd.DataFrame({"c": compute, "n": n, "d": d, "loss": loss * np.exp(noise * rng.normal(size=sizes))})
        )
    return pd.concat(parts, ignore_index=True)


def found_in(table: pd.DataFrame, **options):
    return isoflops(table, **COLUMNS, **{"draws": 0, "bias_draws": -1, **options})


def test_a_narrow_centred_grid_has_the_true_exponents() -> None:
    found = found_in(grid(0.2), bias_draws=0)
    assert found.allocation.params["a"] == pytest.approx(4 / 7, abs=1e-3)
    assert found.allocation.params["b"] == pytest.approx(3 / 7, abs=1e-3)
    np.testing.assert_allclose([budget.n_opt for budget in found.budgets], best(BUDGETS, LAW), rtol=0.01)
    np.testing.assert_allclose([budget.n_opt * budget.d_opt * 6 for budget in found.budgets], BUDGETS, rtol=1e-6)
    assert found.bias is not None and found.bias.proportional and found.bias.flops == pytest.approx(6)
    assert found.bias.law.params == pytest.approx(LAW, rel=0.02)
    assert max(abs(value.value) for value in found.bias.sizes) < 0.01
    assert found.bias.exponent_of_law == pytest.approx(4 / 7, abs=1e-3)
    for budget in found.budgets:
        x = np.log(budget.n_opt)
        assert np.exp(np.polyval(budget.curve[::-1], x)) == pytest.approx(budget.loss, rel=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.4), (0.4, 0.25)])
def test_asymmetry_on_wide_grids_moves_the_vertex_as_the_cubic_says(alpha: float, beta: float) -> None:
    """About the optimum L = L* + g((α+β) t²/2 + (β²−α²) t³/6): a least-squares parabola takes t³ for t·Σt⁴/Σt²."""
    half, sizes = 0.8, 9
    found = found_in(grid(half, sizes, alpha=alpha, beta=beta), bias_draws=0, of="loss")
    t = np.linspace(-half, half, sizes)
    expected = -(beta - alpha) / 6 * (t**4).sum() / (t**2).sum()
    assert found.bias is not None
    told = np.log1p([value.value for value in found.bias.sizes])
    np.testing.assert_allclose(told, expected, rtol=0.15)
    # What is told of the law fitted to the table is what happened to the table.
    np.testing.assert_allclose(
        np.log([budget.n_opt for budget in found.budgets])
        - np.log(best(BUDGETS, {**LAW, "alpha": alpha, "beta": beta})),
        told,
        atol=0.01,
    )


def test_off_centre_grids_move_the_vertex_as_the_quartic_says() -> None:
    """With α = β = p the loss is a cosh of p·t, and on a grid about c the vertex lands at c p² (c²/3 + q/12 − r/6)."""
    p, c, half, sizes = 0.35, 0.6, 1.0, 9
    found = found_in(grid(half, sizes, centre=c, alpha=p, beta=p), bias_draws=0, of="loss")
    s = np.linspace(-half, half, sizes)
    r = (s**4).sum() / (s**2).sum()
    q = np.polyfit(s**2, s**4, 1)[0]
    expected = c * p**2 * (c**2 / 3 + q / 12 - r / 6)
    assert found.bias is not None and abs(expected) > 0.001
    np.testing.assert_allclose(np.log1p([value.value for value in found.bias.sizes]), expected, rtol=0.15)
    # A centre that drifts with compute makes the exponent wrong, by what is told.
    drifting = found_in(grid(1.6, sizes, tilt=0.6), bias_draws=20)
    assert drifting.bias is not None
    error = drifting.allocation.params["a"] - 4 / 7
    assert abs(error) > 0.003 and drifting.bias.exponent.value == pytest.approx(error, rel=0.1)
    assert drifting.bias.exponent.low <= drifting.bias.exponent.value <= drifting.bias.exponent.high


def test_compute_that_is_not_proportional_is_searched() -> None:
    """Overhead a sample that grows as N^(2/3): the optimum along a budget is scipy's."""
    parts = []

    def data(n: np.ndarray, compute: float) -> np.ndarray:
        return compute / (6 * n + 2000 * n ** (2 / 3))

    def loss(n: np.ndarray, compute: float) -> np.ndarray:
        return LAW["E"] + LAW["A"] * n ** -LAW["alpha"] + LAW["B"] * data(n, compute) ** -LAW["beta"]

    truth = []
    for compute in BUDGETS:
        start = np.log(best(compute, LAW))
        least = optimize.minimize_scalar(lambda x, c=compute: loss(np.exp(x), c), bounds=(start - 3, start + 3))
        truth.append(np.exp(least.x))
        n = np.exp(least.x + np.linspace(-1, 1, 7))
        parts.append(pd.DataFrame({"c": compute, "n": n, "d": data(n, compute), "loss": loss(n, compute)}))
    found = found_in(pd.concat(parts), bias_draws=0)
    assert found.bias is not None and not found.bias.proportional
    np.testing.assert_allclose(found.bias.optima, truth, rtol=0.02)
    slope = np.polyfit(np.log(BUDGETS), np.log(truth), 1)[0]
    assert found.bias.exponent_of_law == pytest.approx(slope, abs=0.01)


def test_intervals_hold_what_they_promise() -> None:
    """Of 150 studies with noise, in which the law itself is nearly a parabola."""
    truth, held, vertices, widths = 4 / 7, 0, [], []
    for draw in range(150):
        found = found_in(grid(0.8, 6, noise=0.004, draw=draw), draws=200, seed=draw)
        low, high = found.allocation.intervals["a"]
        held += low <= truth <= high
        widths.append(high - low)
        vertices += [b.low <= best(b.compute, LAW) <= b.high for b in found.budgets if not b.reason]
    assert 0.92 <= held / 150 <= 1.0
    assert 0.92 <= np.mean(vertices) <= 0.985
    assert np.median(widths) < 0.2  # and are of use


def test_rows_of_a_run_share_a_fate() -> None:
    """Checkpoints of one run in all budgets: luck in common moves all vertices alike, and N_opt is known the less."""
    middle = BUDGETS[2:3]
    held = {None: 0, "run": 0}
    for draw in range(60):
        table = grid(0.8, 7)
        table["run"] = np.tile(np.arange(7), len(BUDGETS))
        table["loss"] *= np.exp(0.004 * np.random.default_rng(draw).normal(size=7))[table["run"]]
        for run in held:
            _, low, high = found_in(table, draws=200, run=run).allocation.sizes_at(middle)
            held[run] += bool(low[0] <= best(middle, LAW)[0] <= high[0])
    assert held["run"] >= 52 and held[None] <= 45


def test_budgets_are_found_between_other_rows() -> None:
    rng = np.random.default_rng(1)
    table = grid(1.0, 7)
    c = np.exp(rng.uniform(np.log(1e17), np.log(1e20), 30))
    n = best(c, LAW) * np.exp(rng.uniform(-1, 1, 30))
    loss = LAW["E"] + LAW["A"] * n ** -LAW["alpha"] + LAW["B"] * (c / 6 / n) ** -LAW["beta"]
    mixed = pd.concat([table, pd.DataFrame({"c": c, "n": n, "d": c / 6 / n, "loss": loss})])
    found = found_in(mixed, tolerance=0.02)
    np.testing.assert_allclose([budget.compute for budget in found.budgets], BUDGETS, rtol=0.02)
    assert found.outside >= 20
    # Compute that differs within a budget is taken out by its slope.
    uneven = table.assign(c=table["c"] * np.exp(0.05 * rng.normal(size=len(table))))
    uneven["d"] = uneven["c"] / 6 / uneven["n"]
    law = LAW["E"] + LAW["A"] * uneven["n"] ** -LAW["alpha"] + LAW["B"] * uneven["d"] ** -LAW["beta"]
    given = found_in(uneven.assign(loss=law), budgets=BUDGETS, tolerance=0.3)
    assert given.allocation.params["a"] == pytest.approx(4 / 7, abs=0.01) and given.noise < 0.001


def test_what_is_thin_is_told() -> None:
    one_side = grid(1.0, 7, centre=1.5)
    found = found_in(one_side, draws=20, bias_draws=0)
    assert all(budget.edge and "smallest size: a smaller one" in budget.reason for budget in found.budgets)
    assert np.isnan(found.allocation.params["a"]) and "0 budgets with a vertex" in found.allocation.doubts[0]
    assert found.bias is None and len(found.doubts) == 5
    mixed = pd.concat([grid(1.0)[lambda t: t["c"] < 1e19], one_side[lambda t: t["c"] > 1e19]])
    assert [budget.edge for budget in found_in(mixed).budgets] == [False, False, False, True, True]
    exact = found_in(grid(1.0, 3), draws=20)
    assert exact.freedom == 0 and exact.allocation.draws == 0 and "nothing tells noise" in exact.allocation.doubts[0]
    assert np.isfinite(exact.allocation.params["a"])
    without = isoflops(grid(1.0), compute="c", n="n", loss="loss", draws=0, bias_draws=-1)
    assert without.doubts == ("no column of data: D was taken to be C / 6N",)
    json.loads(json.dumps(found.to_json(), allow_nan=False))
    json.loads(json.dumps(found_in(grid(1.0, noise=0.001), draws=20, bias_draws=0).to_json(), allow_nan=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "L"}, "of='L': expected one of log, loss"),
        ({"tolerance": 2.0}, "tolerance=2: expected a number between 0 and 1"),
        ({"budgets": [1e17, 3e17]}, "budgets: 3e[+]17 has 0 sizes within 0.1 of its log; expected 3 or more"),
        ({"budgets": [-1.0]}, "expected numbers above 0"),
        ({"n": "width"}, "column='width': not in the table"),
    ],
)
def test_what_will_not_do_is_named(options: dict, message: str) -> None:
    with pytest.raises(TableError, match=message):
        isoflops(grid(1.0), **{**COLUMNS, **options})
    with pytest.raises(TableError, match="expected budgets shared by runs of several sizes"):
        found_in(grid(1.0, 2))
