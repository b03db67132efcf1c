"""Leave the largest out: the form that made the data predicts best, what cannot be fitted is told, noise is noise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scaling.errors import TableError
from scaling.hold_out import HoldOut, leave_largest_out
from scaling.hold_out_forms import LAST, LINE


def joint(noise: float, draw: int = 0) -> dict[str, np.ndarray]:
    """Twelve sizes, whose data go up and down from one to the next: no law of compute alone can follow."""
    rng = np.random.default_rng(draw)
    n = np.geomspace(1e5, 1e8, 12)
    d = n * np.tile([200, 20, 120, 30], 3)
    loss = 0.1 + 8 * n**-0.3 + 40 * d**-0.35
    return {"C": 6 * n * d, "N": n, "D": d, "loss": loss * np.exp(noise * rng.normal(size=len(n)))}


def powers(floor: float, noise: float, seeds: int = 1, draw: int = 0, steps: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(draw)
    c = np.repeat(np.geomspace(1e15, 1e19, steps), seeds)
    return {"C": c, "loss": (floor + 30 * c**-0.15) * np.exp(noise * rng.normal(size=len(c)))}


def by_name(found: HoldOut) -> dict:
    return {row.name: row for row in found.rows}


@pytest.mark.slow
def test_the_form_that_made_the_data_wins() -> None:
    found = leave_largest_out(joint(0.001))
    assert found.rows[0].name in ("joint, floor", "joint")
    assert found.rows[0].error < 0.2 * by_name(found)["power, floor"].error
    assert by_name(found)["power, floor"].told_apart and not found.rows[0].told_apart
    assert [row.error for row in found.rows] == sorted(row.error for row in found.rows)
    assert {attempt.k: attempt.predicted for attempt in found.rows[0].attempts} == {1: 1, 2: 2, 3: 3}
    assert {row.name for row in found.rows} >= {"parameters", "data, floor", LAST, LINE}
    with_floor = leave_largest_out(powers(0.05, 1e-4))
    assert with_floor.rows[0].name == "power, floor" and by_name(with_floor)["power"].told_apart
    # Without its floor a law promises too low a loss, and the last value too high a one.
    assert all(attempt.signed < 0 for attempt in by_name(with_floor)["power"].attempts)
    assert all(attempt.signed > 0 for attempt in by_name(with_floor)[LAST].attempts)


def test_errors_are_those_of_a_fit_by_hand() -> None:
    table = powers(0.0, 0.0)
    found = by_name(leave_largest_out(table, k=(1, 2)))
    c, loss = table["C"], table["loss"]
    expected = [100 * np.log(loss[-2] / loss[-1]), 100 * np.mean(np.log(loss[-3] / loss[-2:]))]
    np.testing.assert_allclose([attempt.error for attempt in found[LAST].attempts], expected)
    assert found[LAST].error == pytest.approx(np.mean(expected))
    # A pure power is a straight line: two forms have it exactly.
    assert found["power"].error < 1e-3 and found[LINE].error < 1e-6
    assert found["power"].attempts[1].fitted == 6 and len(c) == 8


def test_new_runs_are_inside_as_often_as_promised() -> None:
    inside = []
    for draw in range(10):
        found = by_name(leave_largest_out(powers(0.0, 0.01, seeds=2, draw=draw), k=(2,)))
        inside.append(found["power"].attempts[0].inside)
    assert 0.8 <= np.mean(inside) <= 1.0


def test_seeds_ties_and_checkpoints_leave_together() -> None:
    table = powers(0.0, 0.02, seeds=3, steps=5)
    table["C"] = table["C"] * np.tile([1, 1.003, 0.998], 5)
    found = leave_largest_out(table, k=(1, 2))
    assert len(found.configurations) == 5
    assert [attempt.predicted for attempt in found.rows[0].attempts] == [3, 6]
    assert found.noise_from == "residuals"  # C differs a little: these are not the same run again
    same = leave_largest_out(powers(0.0, 0.02, seeds=3, steps=5), k=(1,))
    assert same.noise_from == "seeds" and 0.01 < same.noise < 0.03
    # Three checkpoints a run: the whole run leaves, and its last is predicted.
    end = powers(0.0, 0.0, steps=5)
    groups = np.tile(np.arange(5), 3)
    c = np.concatenate([end["C"] * share for share in (0.3, 0.6, 1.0)])
    curves = leave_largest_out({"C": c, "loss": 30 * c**-0.15}, groups=groups, k=(2,))
    attempt = by_name(curves)["power"].attempts[0]
    assert attempt.fitted == 9 and attempt.predicted == 2 and list(attempt.runs) == [13, 14]


def test_differences_within_noise_are_told() -> None:
    flat = leave_largest_out(powers(0.0, 0.03, seeds=3, draw=1, steps=5), k=(1,))
    near = [row.name for row in flat.rows[1:] if not row.told_apart]
    assert near and f"within the noise of the held-out runs of {flat.rows[0].name}" in flat.doubts[0]
    assert all(name in flat.doubts[0] for name in near)
    assert all(0 <= row.behind <= 1 for row in flat.rows[1:])


def test_forms_that_cannot_be_fitted_stay_with_their_reason() -> None:
    table = {name: values[:5] for name, values in joint(0.001).items()}
    found = leave_largest_out(table, k=(1, 2))
    forms = by_name(found)
    assert len(found.rows) == 10 and np.isnan(forms["joint, floor"].error)
    assert forms["joint, floor"].reasons[0] == "rows=4: too few for 5 parameters; expected 6 or more"
    assert np.isfinite(forms["power"].error)
    assert [np.isnan(row.error) for row in found.rows] == sorted(np.isnan(row.error) for row in found.rows)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert len(told["rows"]) == 10 and told["rows"][0]["attempts"][0]["k"] == 1
    flat = found.table()
    assert [row["form"] for row in flat] == [row.name for row in found.rows]
    assert flat[0]["error"] == pytest.approx(np.mean([flat[0]["error, k = 1"], flat[0]["error, k = 2"]]))
    assert flat[-1]["error"] is None and "too few" in str(flat[-1]["note"])
    one = by_name(leave_largest_out(table, k=(4,)))
    assert one[LINE].reasons == ("1 configuration is left; expected 2 or more for a line",)
    assert np.isfinite(one[LAST].error)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"loss": None}, {}, "expected C and loss"),
        ({"E": np.ones(8)}, {}, "expected C and loss"),
        ({"N": np.ones(7)}, {}, "N: 7 rows; expected 8"),
        ({"D": np.zeros(8)}, {}, r"D=0 \(row 1\): expected a finite number above 0"),
        ({}, {"k": (0,)}, "expected whole numbers from 1 on"),
        ({}, {"k": (8, 9)}, "there are 8 different compute values"),
        ({}, {"tolerance": 0.0}, "tolerance=0"),
    ],
)
def test_what_will_not_do_is_named(change: dict, options: dict, message: str) -> None:
    columns = {name: values for name, values in {**powers(0.0, 0.01), **change}.items() if values is not None}
    with pytest.raises(TableError, match=message):
        leave_largest_out(columns, **options)
