"""Predictions: registered before a run begins, only ever added to, and set beside what came."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from launch import cli, predict
from launch.execute import describe
from launch.places import RESULT
from launch.studies import load_study
from mmdit_jax.config import Run
from mmdit_jax.training.events import EventLog
from scaling.law_kinds import PARAMETERS
from scaling.laws import Law, fit_law
from scaling.predictions import FILE, added, parse, prediction, with_truth

STUDY = """
from dataclasses import replace
from experiments.ladder_small import study as ladder
from mmdit_jax.config import Study
def study():
    return Study("foretold", ladder().runs)
"""


def loss_of(run: Run, noise: float = 0.0) -> float:
    """A known law, with a run's noise."""
    n, d = run.model.num_params(), run.steps * run.batch
    return float((0.05 + 3 * n**-0.3 + 20 * d**-0.5) * np.exp(noise))


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, list[Run]]:
    """A study of which all but the last depth is done."""
    path = tmp_path / "foretold.py"
    path.write_text(STUDY)
    runs = list(load_study(str(path)).runs)
    rng = np.random.default_rng(0)
    for run in runs[:-6]:
        finish(tmp_path, run, rng.normal(0, 0.004))
    return path, runs


def finish(root: Path, run: Run, noise: float) -> None:
    folder = root / "foretold" / run.run_id
    folder.mkdir(parents=True)
    loss = loss_of(run, noise)
    (folder / RESULT).write_text(json.dumps({"val_loss": loss, "val_loss_levels": [loss] * 8}))


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main([*words])
    out, err = capsys.readouterr()
    return code, out, err


def test_foretold_before_and_true_after(
    begun: tuple[Path, list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, runs = begun
    top = runs[-1]
    words = ("predict", str(path), "--root", str(tmp_path))
    code, out, _ = command(capsys, *words, "--run", top.name, "--run", runs[-3].name, "--json")
    assert code == 0
    first, second = json.loads(out)["records"]
    assert first["rows"] == 30 and first["run_id"] == top.run_id
    assert first["at"] == {"N": top.model.num_params(), "D": top.steps * top.batch}
    assert first["low"] < loss_of(top) < first["high"] and first["loss"] == pytest.approx(loss_of(top), rel=0.02)
    assert first["low"] < first["law_low"] < first["loss"] < first["law_high"] < first["high"]
    assert second["before"] != first["before"] == "none"

    finish(tmp_path, top, 0.0)
    code, out, _ = command(capsys, *words, "--json")
    told = {row["run_id"]: row for row in json.loads(out)["predictions"]}
    assert told[top.run_id]["actual"] == pytest.approx(loss_of(top))
    assert told[top.run_id]["inside"] is True and told[runs[-3].run_id]["actual"] is None
    code, out, _ = command(capsys, *words)
    assert code == 0 and "yes" in out and top.name in out


def test_what_was_foretold_is_never_replaced(
    begun: tuple[Path, list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, runs = begun
    words = ("predict", str(path), "--root", str(tmp_path), "--run", runs[-1].name)
    assert command(capsys, *words)[0] == 0
    kept = (tmp_path / "foretold" / FILE).read_text()
    code, _, err = command(capsys, *words)
    assert code == 2 and "never replaced" in err and err.count("\n") == 1
    assert command(capsys, *words, "--law", "power", "--floor")[0] == 0
    assert (tmp_path / "foretold" / FILE).read_text().startswith(kept)

    code, _, err = command(capsys, *words[:-1], runs[0].name)
    assert code == 2 and "has begun" in err
    (tmp_path / "foretold" / runs[-2].run_id).mkdir()
    log = EventLog(tmp_path / "foretold" / runs[-2].run_id)
    log.write("start", durable=True)
    log.close()
    code, _, err = command(capsys, *words[:-1], runs[-2].name)
    assert code == 2 and "has begun" in err
    code, _, err = command(capsys, *words[:-1], "no such run")
    assert code == 2


def test_rows_of_the_run_itself_foretell_nothing(
    begun: tuple[Path, list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table from elsewhere may hold the run that is to be foretold."""
    path, runs = begun
    top = runs[-1]
    rows = [{**describe(run), "val_loss": loss_of(run, 0.003 * (-1) ** k)} for k, run in enumerate(runs)]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    words = ("predict", str(path), "--root", str(tmp_path), "--run", top.name, "--from", str(tmp_path / "t.csv"))
    code, _, err = command(capsys, *words)
    assert code == 2 and "is among the rows" in err and err.count("\n") == 1
    code, _, err = command(capsys, *words, "--where", f"run_id!={top.run_id}", "--loss", "val_loss,images")
    assert code == 2 and "expected one" in err
    assert command(capsys, *words, "--where", f"run_id!={top.run_id}")[0] == 0


def test_a_run_that_begins_meanwhile_is_not_foretold(
    begun: tuple[Path, list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit takes seconds, in which another host may start the run."""
    path, runs = begun
    fitted = predict.fit

    def slow(*args: Any) -> Law:
        law = fitted(*args)
        folder = tmp_path / "foretold" / runs[-1].run_id
        folder.mkdir()
        log = EventLog(folder)
        log.write("start", durable=True)
        log.close()
        return law

    monkeypatch.setattr(predict, "fit", slow)
    code, _, err = command(capsys, "predict", str(path), "--root", str(tmp_path), "--run", runs[-1].name)
    assert code == 2 and "has begun" in err
    assert not (tmp_path / "foretold" / FILE).exists()


def test_what_is_open_is_written_as_such() -> None:
    """Two sizes and as many parameters as rows less one: far away anything may come, and the line is still JSON."""
    n = np.array([1e5, 1e5, 1.2e5, 1.2e5])
    law = fit_law(PARAMETERS, [n], np.array([1.0, 1.3, 1.25, 0.9]), draws=0)
    found = prediction(law, {"N": 1e12})
    assert found["high"] is None and found["law_high"] is None
    record = {**found, "run_id": "a", "name": "a", "registered": "day", "loss_column": "val_loss", "table_sha256": ""}
    (told,) = parse(added("", [record]))
    (inside,) = with_truth([told], pd.DataFrame({"run_id": ["a"], "val_loss": [50.0]}))["inside"]
    assert inside is True
