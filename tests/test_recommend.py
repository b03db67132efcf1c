"""What to spend a budget on: the optimum of a known law, sure where the data are, and honest where they are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import ladder_small
from launch import cli
from launch.execute import describe

LAW = {"E": 0.05, "A": 4.0, "alpha": 0.3, "B": 40.0, "beta": 0.5}


def loss(n: np.ndarray, d: np.ndarray, scale: float = 1.0) -> np.ndarray:
    return LAW["E"] + scale * (LAW["A"] * n ** -LAW["alpha"] + LAW["B"] * d ** -LAW["beta"])


def table(noise: float, seed: int = 0) -> pd.DataFrame:
    """The ladder's runs under two recipes, the second of which is worse by a tenth of what can be learned."""
    rng = np.random.default_rng(seed)
    rows = [
        {**describe(run), "formulation": recipe, "val_loss": loss(run.model.num_params(), run.steps * run.batch, scale)}
        for run in ladder_small.study().runs
        for recipe, scale in (("good", 1.0), ("poor", 1.1))
    ]
    found = pd.DataFrame(rows)
    return found.assign(val_loss=found["val_loss"] * np.exp(rng.normal(0, noise, len(found))))


def recommend(tmp_path: Path, frame: pd.DataFrame, capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    frame.to_csv(tmp_path / "results.csv", index=False)
    code = cli.main(
        ["recommend", str(tmp_path / "results.csv"), "--study", "ladder_small", "--bootstrap", "200", "--json", *words]
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    found: dict = json.loads(out)
    return found


def by_hand(flops: float, depths: range) -> dict[int, float]:
    """The known law's loss of each depth at the budget."""
    base = ladder_small.study().runs[0]
    found = {}
    for depth in depths:
        run = replace(base, model=ladder_small.model(depth))
        steps = int(flops / run.train_flops(1))
        found[depth] = float(loss(run.model.num_params(), steps * run.batch))
    return found


def test_the_known_optimum_is_recommended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = recommend(tmp_path, table(0.002), capsys, "--flops", "2e13", "--depths", "2-9", "--by", "formulation")
    truth = by_hand(2e13, range(2, 10))
    first = found["choices"][0]
    assert first["recipe"] == "good" and len(found["choices"]) == 16
    assert truth[first["depth"]] <= min(truth.values()) * 1.005
    assert first["train_flops"] <= 2e13 < first["train_flops"] * 1.01
    regrets = [choice["regret"] for choice in found["choices"]]
    assert regrets == sorted(regrets) and regrets[0] >= 0
    for choice in found["choices"]:
        if choice["recipe"] == "good" and choice["depth"] in (3, 4, 5):
            assert choice["low"] <= truth[choice["depth"]] <= choice["high"]
            assert choice["regret"] == pytest.approx(truth[choice["depth"]] / min(truth.values()) - 1, abs=0.01)
    assert sum(choice["best"] for choice in found["choices"]) == pytest.approx(1.0, abs=0.02)
    # The poor recipe's best size wastes compute; what share, the known law says.
    poor = next(choice for choice in found["choices"] if choice["recipe"] == "poor")
    shares = np.linspace(0.3, 1, 71)
    best = [min(by_hand(2e13 * share, range(2, 10)).values()) for share in shares]
    enough = np.interp(np.log(min(truth.values()) * (1 + poor["regret"])), np.log(best[::-1]), shares[::-1])
    assert poor["waste"] == pytest.approx(1 - enough, abs=0.05)


def test_noise_and_reach_raise_the_regret_and_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--by", "formulation", "--flops", "1e15", "--depths", "4-20", "--where", "formulation=good")
    calm = recommend(tmp_path, table(0.001), capsys, *words)
    noisy = recommend(tmp_path, table(0.02), capsys, *words)
    assert noisy["choices"][0]["regret"] > calm["choices"][0]["regret"]
    assert any("beyond the runs" in doubt for doubt in calm["doubts"])
    ends = recommend(tmp_path, table(0.001), capsys, "--flops", "1e15", "--depths", "4-5")
    assert any("largest size" in doubt for doubt in ends["doubts"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--flops", "1e13", "--hours", "2"), "one of them"),
        ((), "one of them"),
        (("--hours", "2"), "of which pod"),
        (("--flops", "-1"), "above 0"),
        (("--flops", "1e13", "--study", "mup_small", "--depths", "9"), "do not follow from the depth"),
        (("--flops", "1e13", "--study", "ladder_small", "--depths", "4"), "nothing to compare"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    table(0.001).to_csv(tmp_path / "results.csv", index=False)
    code = cli.main(["recommend", str(tmp_path / "results.csv"), "--bootstrap", "100", *words])
    err = capsys.readouterr().err
    assert code == 2 and told in err and err.count("\n") == 1
