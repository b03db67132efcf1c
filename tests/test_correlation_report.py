"""The report's part on loss and quality: which runs belong together, loss given size, bins, thin studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.correlation_section import correlation_section, size_finding
from scaling.look import Look
from scaling.score_correlations import Score, groups_of, score_correlations
from scaling.study import load_study


def ladder(folder: Path, seeds: int = 2, budgets: int = 3, effect: float = 1.0) -> Path:
    """Six depths: the graded score follows what of loss size doesn't tell, CompBench follows size alone."""
    rng = np.random.default_rng(0)
    depth, budget, seed = (index.reshape(-1) for index in np.indices((6, budgets, seeds)))
    flops = 1e9 * (depth + 2.0) ** 3 * np.array([200, 450, 1000])[budget]
    own = 0.1 * rng.normal(size=6)[depth] + 0.1 * rng.normal(size=len(depth))
    loss = 3 * flops**-0.1 * np.exp(own)
    noise = rng.normal(size=(3, len(depth)))
    pd.DataFrame(
        {
            "run_id": [f"{row:04x}" for row in range(len(depth))],
            "name": [f"d{d + 2} b{b} s{s}" for d, b, s in zip(depth, budget, seed, strict=True)],
            "formulation": "rf",
            "depth": depth + 2,
            "dataset": "scenes",
            "seed": seed,
            "train_flops": flops,
            "val_loss": loss,
            **{f"val_loss_{k}": loss * np.exp(0.1 * rng.normal(size=len(depth))) for k in range(4)},
            "geneval": 0.0,
            "geneval_graded": 0.4 + 0.02 * np.log(flops / 1e12) - effect * 0.3 * own + 0.01 * noise[0],
            "compbench": 0.3 + 0.02 * np.log(flops / 1e12) + 0.01 * noise[1],
            "compbench_spatial": 0.3 + 0.02 * np.log(flops / 1e12) + 0.03 * noise[2],
        }
    ).to_csv(folder / "results.csv", index=False)
    return folder


def found(folder: Path) -> tuple[dict[str, Score], dict[str, str]]:
    return score_correlations(load_study(folder), {})


def test_loss_is_told_from_size(tmp_path: Path) -> None:
    scores, why = found(ladder(tmp_path))
    assert list(scores) == ["graded score", "CompBench proxy", "CompBench spatial"]
    assert why == {"GenEval proxy": "0 in every run, which goes with nothing"}
    graded, composed = scores["graded score"], scores["CompBench proxy"]
    table = pd.read_csv(tmp_path / "results.csv")
    held = np.stack([np.ones(36), np.log(table["train_flops"])], axis=1)
    left = [table[c] - held @ np.linalg.lstsq(held, table[c], rcond=None)[0] for c in ("val_loss", "geneval_graded")]
    assert graded.given is not None and composed.given is not None
    assert graded.given.pearson.r == pytest.approx(np.corrcoef(left)[0, 1], abs=1e-9)
    assert graded.given.pearson.high < 0 and composed.given.pearson.low < 0 < composed.given.pearson.high
    assert composed.found.pearson.high < 0  # size makes it look like loss
    text = size_finding({name: score for name, score in scores.items() if score.main})
    assert "lower loss goes with higher graded score still" in text and "CompBench proxy r = " in text
    assert "size alone may be what is seen" in text


def test_section_shows_every_score(tmp_path: Path) -> None:
    tables = load_study(ladder(tmp_path))
    scores, why = score_correlations(tables, {})
    part = correlation_section(scores, why, Look.of(tables.runs, tables.results), tmp_path / "figures")
    table, _ = part.tables[0]
    assert list(table["loss against"]) == list(scores)
    assert {"Pearson", "Spearman", "Kendall", "Pearson given log FLOPs"} <= set(table.columns)
    assert len(part.figures) == 2 and len(part.broad) == 1 and len(part.missing) == 1
    assert (tmp_path / "figures" / "correlation_bins.pdf").exists()
    assert sum("t = " in text or "No bin" in text for text in part.findings) == 2
    notes = " ".join(part.notes)
    assert "share 6 ladders" in notes and "2 seeds are too few" in notes and "jackknife over ladder (6)" in notes


def test_who_belongs_together(tmp_path: Path) -> None:
    def counts(**shape: int) -> dict[str, int]:
        return groups_of(found(ladder(tmp_path, **shape))[0]["graded score"].points).counts

    assert counts(seeds=2) == {"ladder": 6}
    assert counts(seeds=5, budgets=1) == {"ladder": 6, "seed": 5}
    assert counts(seeds=1, budgets=1) == {}


def test_runs_of_one_compute_have_no_size_to_hold(tmp_path: Path) -> None:
    table = pd.read_csv(ladder(tmp_path) / "results.csv").assign(train_flops=1e12)
    table.to_csv(tmp_path / "results.csv", index=False)
    scores, _ = found(tmp_path)
    assert all(score.given is None for score in scores.values())
    assert size_finding(scores) == "All runs have one compute: what loss says here, size doesn't."


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_thin_studies_say_what_is_missing(tmp_path: Path, rows: int) -> None:
    table = pd.read_csv(ladder(tmp_path) / "results.csv").iloc[::7].head(rows)
    table.to_csv(tmp_path / "results.csv", index=False)
    tables = load_study(tmp_path)
    scores, why = score_correlations(tables, {})
    part = correlation_section(scores, why, Look.of(tables.runs, tables.results), tmp_path / "figures")
    assert bool(scores) == (rows >= 3)
    assert part.missing and all(np.isfinite(s.found.pearson.r) for s in scores.values())
