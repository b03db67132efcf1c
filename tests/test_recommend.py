"""What to spend a budget on: the optimum of a known law, sure where the data are, and honest where they are not."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import ladder_small, quickstart
from launch import cli
from launch.execute import describe
from launch.plan import laid_out
from launch.planning.request import Request
from launch.planning.target import parse
from launch.recommend import _laws, add_parsers, candidates
from scaling.law_kinds import JOINT
from scaling.laws import fit_law
from scaling.recommend import Option
from scaling.recommend import recommend as choose

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


def test_recipes_are_resampled_apart(tmp_path: Path) -> None:
    """Two recipes with the very same losses: neither is sure to be the better one, as it were if resampled alike."""
    frame = table(0.02)
    same = pd.concat([frame[frame["formulation"] == "good"].assign(formulation=name) for name in ("one", "two")])
    words = ["recommend", "t.csv", "--flops", "2e13", "--by", "formulation", "--bootstrap", "120"]
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers())
    laws, _ = _laws(same.reset_index(drop=True), parser.parse_args(words))
    one, two = (laws[name].draws_of(1e6, 1e5)[:, 0] for name in ("one", "two"))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.35
    assert laws["one"].params == laws["two"].params


def test_hours_of_a_pod_by_its_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers of the compiler as they are kept: steps by their seconds, and a size that does not fit is left out."""
    target = parse("v5e:2x2")
    seconds = {4: 0.5, 6: 1.0, 8: 2.0}
    for depth in (4, 6, 8, 10):
        run = replace(ladder_small.study().runs[0], model=ladder_small.model(depth))
        request = Request(laid_out(run, target, {}), target)
        fits = depth in seconds
        answer = {"fits": fits, "peak_gib": depth * 2.0, "step_seconds": seconds.get(depth), "mfu_bound": 0.4}
        (tmp_path / f"{request.key}.json").write_text(json.dumps(answer))
    words = ("--hours", "2", "--topology", "v5e:2x2", "--memo", str(tmp_path), "--depths", "4,6,8,10")
    frame = table(0.002)
    found = recommend(tmp_path, frame[frame["formulation"] == "good"], capsys, *words)
    told = {choice["depth"]: choice for choice in found["choices"]}
    assert set(told) == set(seconds)
    for depth, choice in told.items():
        assert choice["steps"] == int(7200 / seconds[depth]) and choice["hours"] == pytest.approx(2.0, abs=1e-3)
        assert choice["peak_gib"] == 2 * depth and choice["step_seconds"] == seconds[depth]
    assert any("a bound that no real step reaches" in doubt for doubt in found["doubts"])
    code = cli.main(
        ["recommend", str(tmp_path / "results.csv"), "--study", "ladder_small", "--bootstrap", "100", *words]
    )
    out, err = capsys.readouterr()
    assert code == 0 and "d10: left out, it needs 20.0 GiB a device" in err
    assert "hours" in out and "95 % interval" in out and "of the budget" in out


def test_what_the_rows_say_against_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data that are seen again, another batch, recipes in one law, a bound of time: each is told, and only then."""
    good = table(0.002)
    good = good[good["formulation"] == "good"]

    def doubts(frame: pd.DataFrame, *words: str) -> str:
        return " | ".join(recommend(tmp_path, frame, capsys, "--bootstrap", "100", "--flops", *words)["doubts"])

    again = doubts(good, "1e15", "--depths", "9,10")
    one = replace(ladder_small.study().runs[0], model=ladder_small.model(9))
    passes = 1e15 / one.train_flops(1) * one.batch / one.data.examples
    assert f"{passes:.3g} passes over the 65,536 training examples" in again and "at most 0.49" in again
    assert "at 1 of the 1 other sizes" in again
    once = doubts(good, "1e13", "--depths", "4-6")
    assert not any(word in once for word in ("passes", "repeated", "batch", "share a law", "bound"))
    both = pd.concat([table(0.002), table(0.002)[:2]], ignore_index=True)
    told = doubts(both, "1e13", "--depths", "4-6", "--batch", "64")
    assert "batch=64: the rows have 32" in told and "2 rows repeat" in told
    assert "formulation (good, poor) share a law" in told and "--by formulation" in told
    assert "share a law" not in doubts(both, "1e13", "--depths", "4-6", "--by", "formulation")


def test_the_studys_run_that_is_in_the_table_is_the_base() -> None:
    """Of quickstart, whose runs are of two data sets: sizes of the one that the rows are of."""
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers())
    args = parser.parse_args(["recommend", "t.csv", "--flops", "1e13", "--study", "quickstart"])
    for name in ("scenes", "emoji"):
        rows = [describe(run) for run in quickstart.study().runs if run.data.name == name]
        assert {run.data.name for run in candidates(args, pd.DataFrame(rows[::-1]))} == {name}


def test_one_size_by_a_law_of_compute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recipes may be told apart by it where nothing else is chosen."""
    words = ("--flops", "2e13", "--depths", "4", "--by", "formulation", "--law", "power", "--bootstrap", "100")
    found = recommend(tmp_path, table(0.002), capsys, *words)
    assert [choice["recipe"] for choice in found["choices"]] == ["good", "poor"]


def test_noise_and_reach_raise_the_regret_and_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--by", "formulation", "--flops", "1e15", "--depths", "4-20", "--where", "formulation=good")
    calm = recommend(tmp_path, table(0.001), capsys, *words)
    noisy = recommend(tmp_path, table(0.02), capsys, *words)
    assert noisy["choices"][0]["regret"] > calm["choices"][0]["regret"]
    assert any("beyond the runs" in doubt for doubt in calm["doubts"])
    ends = recommend(tmp_path, table(0.001), capsys, "--flops", "1e15", "--depths", "4-5")
    assert any("largest size" in doubt for doubt in ends["doubts"])
    assert not any(doubt.startswith(":") for doubt in ends["doubts"])  # of the one law there is no recipe to name


def test_a_few_wild_draws_do_not_decide() -> None:
    """Sizes of the paper by the law of small runs: some draws have floors of nothing, which the rows speak against."""
    rows = pd.read_csv(Path(__file__).parents[1] / "docs" / "results" / "ladder_small" / "results.csv")
    n, d, found = (rows[name].to_numpy(float) for name in ("params", "images", "val_loss"))
    law = fit_law(JOINT, [n, d], found, draws=400)
    sizes = {"d15": (496_070_464, 5_630_920), "d24": (2_028_334_144, 1_406_902), "d38": (8_056_627_520, 359_237)}
    options = [Option("", name, float(n), steps * 4096.0, 1e22) for name, (n, steps) in sizes.items()]
    losses = np.array([law.draws_of(option.n, option.d)[:, 0] for option in options])
    wild = losses / losses.min(axis=0) - 1
    first = choose({"": law}, options).choices[0]
    assert first.option.size == "d38" and first.best > 0.8 and first.regret < 1e-3
    assert wild[2].mean() > 100 * first.regret  # what an average over all of them would say


def test_depths_go_up(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["recommend", "t.csv", "--flops", "1e13", "--depths", "16-4"])
    assert caught.value.code == 2 and "'16-4': expected depths from low to high" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--flops", "1e13", "--hours", "2"), "one of them"),
        ((), "one of them"),
        (("--hours", "2"), "of which pod"),
        (("--flops", "-1"), "above 0"),
        (("--flops", "1e13", "--study", "mup_small", "--depths", "9"), "do not follow from the depth"),
        (("--flops", "1e13", "--study", "ladder_small", "--depths", "4"), "depths=d4: nothing to compare"),
        (("--flops", "1", "--study", "ladder_small", "--depths", "400"), "depths: none"),
        (("--flops", "1e13", "--study", "ladder_small", "--law", "power"), "cannot choose among 6 sizes"),
        (("--flops", "1e13", "--study", "ladder_small", "--law", "parameters"), "--law joint"),
        (("--flops", "1e13", "--study", "ladder_small", "--law", "data"), "--law joint"),
        (("--flops", "1e13", "--study", "ladder_small", "--n", "count"), "rename the table's column"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    table(0.001).assign(count=lambda rows: rows["params"]).to_csv(tmp_path / "results.csv", index=False)
    code = cli.main(["recommend", str(tmp_path / "results.csv"), "--bootstrap", "100", *words])
    err = capsys.readouterr().err
    assert code == 2 and told in err and err.count("\n") == 1 + err.count("left out")
