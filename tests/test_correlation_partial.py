"""Partial correlations against the inverse of the correlation matrix, residuals and counted pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from scaling.coefficients import KINDS, Control, coefficient
from scaling.correlation import correlate
from scaling.dependence import Groups
from scaling.errors import TableError
from scaling.prediction import left_out_r2

ROWS = 40


@pytest.fixture
def columns() -> np.ndarray:
    return np.random.default_rng(0).multivariate_normal(np.zeros(4), 0.5 + 0.5 * np.eye(4), ROWS).T


def once(kind, x: np.ndarray, y: np.ndarray, control: Control) -> float:
    return float(coefficient(kind, x, y, np.ones((1, len(x))), control)[0])


@pytest.mark.parametrize("held", [1, 2])
def test_partial_is_minus_the_inverse_of_the_matrix(columns: np.ndarray, held: int) -> None:
    known = {
        "pearson": np.corrcoef(columns[: 2 + held]),
        "spearman": np.corrcoef(stats.rankdata(columns[: 2 + held], axis=1)),
        "kendall": np.array([[stats.kendalltau(a, b)[0] for a in columns[: 2 + held]] for b in columns[: 2 + held]]),
    }
    x, y, *rest = columns[: 2 + held]
    for kind in KINDS:
        inverse = np.linalg.inv(known[kind])
        expected = -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])
        assert once(kind, x, y, Control(np.stack(rest, axis=1))) == pytest.approx(expected, abs=1e-10), kind


def test_partial_kendall_of_one_column_is_kendalls_formula(columns: np.ndarray) -> None:
    x, y, z, _ = columns
    xy, xz, yz = (stats.kendalltau(a, b)[0] for a, b in ((x, y), (x, z), (y, z)))
    known = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert once("kendall", x, y, Control(z[:, None])) == pytest.approx(known, abs=1e-10)


def test_powers_are_residuals_of_a_curve(columns: np.ndarray) -> None:
    x, y, z, _ = columns
    left = [column - np.polyval(np.polyfit(z, column, 2), z) for column in (x, y)]
    assert once("pearson", x, y, Control(z[:, None], 2)) == pytest.approx(np.corrcoef(left)[0, 1], abs=1e-10)


def test_within_compares_rows_of_one_stratum(columns: np.ndarray) -> None:
    x, y = columns[:2]
    strata = np.random.default_rng(1).integers(0, 4, ROWS)
    control = Control(np.zeros((ROWS, 0)), 1, strata)
    left = []
    for column in (x, y, stats.rankdata(x), stats.rankdata(y)):
        means = np.array([column[strata == level].mean() for level in range(4)])
        left.append(column - means[strata])
    assert once("pearson", x, y, control) == pytest.approx(np.corrcoef(left[:2])[0, 1], abs=1e-10)
    assert once("spearman", x, y, control) == pytest.approx(np.corrcoef(left[2:])[0, 1], abs=1e-10)
    pairs = [(i, j) for i, j in combinations(range(ROWS), 2) if strata[i] == strata[j]]
    signs = [np.sign((x[i] - x[j]) * (y[i] - y[j])) for i, j in pairs]
    assert once("kendall", x, y, control) == pytest.approx(np.mean(signs), abs=1e-10)


def test_resampled_partials_are_those_of_the_repeated_rows(columns: np.ndarray) -> None:
    x, y, z, _ = columns
    counts = np.random.default_rng(2).multinomial(ROWS, np.full(ROWS, 1 / ROWS))
    rows = np.repeat(np.arange(ROWS), counts)
    for kind in KINDS:
        found = coefficient(kind, x, y, counts[None].astype(float), Control(z[:, None]))[0]
        assert found == pytest.approx(once(kind, x[rows], y[rows], Control(z[rows][:, None])), abs=1e-10), kind


def test_intervals_tell_size_from_loss() -> None:
    """Loss and score both follow size: given it nothing is left, unless the score follows loss too."""
    rng, studies = np.random.default_rng(0), 120
    ladder = np.repeat(np.arange(8), 4)
    groups = Groups.of(32, {"ladder": ladder})
    missed = {0.0: np.zeros(2), 1.0: np.zeros(2)}
    plain = 0
    for _ in range(studies):
        size = np.repeat(np.linspace(-1, 1, 8), 4) + np.tile(np.linspace(-0.5, 0.5, 4), 8)
        loss = -2 * size + 0.5 * rng.normal(size=8)[ladder] + 0.5 * rng.normal(size=32)
        noise = 0.4 * rng.normal(size=8)[ladder] + 0.4 * rng.normal(size=32)
        for effect, out in missed.items():
            score = 2 * size - effect * (loss + 2 * size) + noise
            given = correlate(loss, score, groups=groups, control=Control(size[:, None]), permutations=9)
            out += [not c.low <= 0 <= c.high for c in (given.pearson, given.spearman)]
            plain += effect == 0 and correlate(loss, score, groups=groups, permutations=9).pearson.high < 0
    assert plain >= 0.95 * studies
    assert (missed[0.0] / studies <= 0.09).all()
    assert (missed[1.0] / studies >= [0.85, 0.65]).all()


def test_left_out_r2_predicts_groups_that_were_not_seen(columns: np.ndarray) -> None:
    x, y, z, _ = columns
    groups = Groups.of(ROWS, {"ladder": np.repeat(np.arange(8), 5)})
    missed = none = 0.0
    for group in range(8):
        here = np.repeat(np.arange(8), 5) == group
        design = np.stack([np.ones(ROWS), z, x], axis=1)
        line = np.linalg.solve(design[~here].T @ design[~here], design[~here].T @ y[~here])
        missed += ((y[here] - design[here] @ line) ** 2).sum()
        none += ((y[here] - y[~here].mean()) ** 2).sum()
    assert left_out_r2(x, y, groups, Control(z[:, None])) == pytest.approx(1 - missed / none, abs=1e-9)
    assert left_out_r2(x, 3 - 2 * x, groups, Control.nothing(ROWS)) == pytest.approx(1)
    own = Control(np.zeros((ROWS, 0)), 1, groups.cells)
    assert np.isnan(left_out_r2(x, y, groups, own))  # nothing tells the level of a stratum that is left out


def test_a_column_that_is_all_size_is_refused(columns: np.ndarray) -> None:
    x, y, z, _ = columns
    with pytest.raises(TableError, match="nothing left of a column"):
        correlate(2 * z + 1, y, control=Control(z[:, None]))
    falling = correlate(np.exp(-z), y, control=Control(z[:, None]))  # by rank it is size, by value it isn't
    assert np.isnan(falling.kendall.r) and np.isfinite(falling.pearson.r)
    assert falling.to_json()["kendall"]["r"] is None
    with pytest.raises(TableError, match="rows=3: too few"):
        correlate(x[:3], y[:3], control=Control(z[:3, None]))
