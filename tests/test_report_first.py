"""The report's first screen on made-up studies of which the truth is known: a winner, a tie, one seed, an edge."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from first_screen_cases import KINDS, battles, losses, screen, tables
from scipy import stats

from launch.cli import main
from launch.execute import describe
from launch.studies import load_study as load_named
from scaling.analysis import Analysis, analyse
from scaling.contest import by_elo, by_loss, by_rank
from scaling.elo import rate
from scaling.findings import depth_finding
from scaling.first_screen import first_screen
from scaling.next_steps import Names, seeds_wanted
from scaling.ranking import rank
from scaling.recipes import recipes
from scaling.study import load_study


def test_a_clear_winner_at_the_end_of_the_grid(tmp_path: Path) -> None:
    results = losses(0.2)
    found = screen(tmp_path / "s", results)
    assert found.decided and found.headline.startswith("rf/lognorm(0.00,1.00) won, and is best at depth 3 at equal")
    wide = results.pivot_table(index=["depth", "seed"], columns="formulation", values="val_loss")
    apart = (np.log(wide["rf"]) - np.log(wide["rf/lognorm(0.00,1.00)"])).to_numpy().reshape(3, 3)
    left = apart - apart.mean(axis=1, keepdims=True)  # a difference has twice a run's variance
    within, between = (left**2).sum() / 6, 3 * apart.mean(axis=1).var(ddof=1)
    assert stats.f.sf(between / within, 2, 6) > 0.25  # sizes agree: what they differ by is noise as well
    arm = stats.t.ppf(0.975, 8) * apart.std() * np.sqrt(9 / 8 / 9)
    low, high = (100 * (1 - np.exp(-(apart.mean() + sign * arm))) for sign in (-1, 1))
    lead = 100 * (1 - np.exp(-apart.mean()))
    assert found.margin[0] == f"Validation loss: {lead:.1f} % below rf ({low:.1f} to {high:.1f} %)"
    assert low < 20 < high
    assert found.surety[0] == "Validation loss: better with probability above 0.99 (3 seeds at 3 sizes)"
    assert found.steps[0].text.startswith("Other lengths of training: at equal steps depth 3")
    assert found.steps[0].command == "mmdit study run mine"  # of one length of training there is no law
    assert found.steps[0].text.endswith("Add them to the study file, then:")
    assert "losses do not tell how images look" in found.steps[1].text


def test_a_tie_asks_for_as_many_seeds_as_would_tell(tmp_path: Path) -> None:
    found = screen(tmp_path / "s", losses(0.004, noise=0.02, seed=3))
    assert not found.decided and found.headline.startswith("Not decided: ") and "not told apart" in found.headline
    assert all(kind in found.headline for kind in KINDS)
    contest = by_loss(losses(0.004, noise=0.02, seed=3))
    assert contest is not None and contest.low < 0 < contest.high and 0.5 < contest.ahead[1] < 0.975
    wanted = seeds_wanted(contest)
    assert wanted is None and "more seeds each would not tell" in found.steps[0].text
    wider = screen(tmp_path / "w", losses(0.02, noise=0.02, seed=3))
    seeds = seeds_wanted(by_loss(losses(0.02, noise=0.02, seed=3)))
    assert seeds is not None and wider.steps[0].text.startswith("One more seed of ") and seeds[0] == 1


def test_equal_is_only_said_where_an_interval_says_it(tmp_path: Path) -> None:
    """A small gap is not equality: seven loose studies and a tight one."""
    for seed in range(7):
        found = screen(tmp_path / f"{seed}", losses(0.0, noise=0.03, seeds=2, seed=seed))
        assert not any("as good as equal" in step.text for step in found.steps)
    tight = screen(tmp_path / "tight", losses(0.0, noise=0.002, seeds=4, seed=2))
    assert "as good as equal here (" in tight.steps[0].text and "take the cheaper" in tight.steps[0].text


def test_seeds_that_are_wanted_narrow_the_interval() -> None:
    """A gap of 1.5 arms of noise: the number is the least whose Student interval is narrower than the gap."""
    contest = by_loss(losses(0.02, noise=0.02, depths=(1,), seeds=3, seed=5))
    assert contest is not None
    wanted = seeds_wanted(contest)
    gap = -np.log1p(-contest.margin)

    def arm(seeds: int) -> float:
        return float(stats.t.ppf(0.975, seeds - 1) * contest.blocks.noise * np.sqrt(2 / seeds))

    least = next((more for more in range(1, 9) if arm(3 + more) < gap), None)
    assert (wanted[0] if wanted else None) == least


def test_one_run_each_decides_nothing(tmp_path: Path) -> None:
    found = screen(tmp_path / "s", losses(0.2, depths=(2,), seeds=1))
    assert not found.decided and "nothing tells that from luck" in found.headline
    assert found.surety[0] == "Validation loss: not known, nothing was repeated (one seed at 1 size)"
    assert found.steps[0].text.startswith("Two more seeds")
    assert found.steps[0].command.splitlines() == [f"mmdit study run mine --set seed={seed}" for seed in (1, 2)]


def test_one_seed_at_several_sizes_is_said(tmp_path: Path) -> None:
    found = screen(tmp_path / "s", losses(0.2, depths=(1, 2, 3, 4), seeds=1))
    assert found.decided and "leads, with one seed" in found.headline and "one seed at 4 sizes" in found.surety[0]
    assert found.steps[0].text.startswith("One more seed")


def test_the_best_depth_within_the_grid_is_not_an_edge(tmp_path: Path) -> None:
    results = losses(0.2)
    deep = results["depth"] == 3
    results.loc[deep, "val_loss"] *= 2.0
    found = screen(tmp_path / "s", results)
    assert "best at depth 2" in found.headline and not any("Deeper" in step.text for step in found.steps)
    assert found.steps[0].text.startswith("Other depths and lengths of training, before")
    assert found.steps[0].text.endswith("Add them to the study file, then:")
    assert found.steps[0].command == "mmdit study run mine"


def test_measures_that_disagree_leave_it_open(tmp_path: Path) -> None:
    results = losses(0.2, depths=(1, 2), seeds=2)
    fights = battles(results, {KINDS[0]: 100.0, KINDS[1]: 0.0})
    found = screen(tmp_path / "s", results, fights)
    assert not found.decided
    assert found.headline == "Not decided, measures disagree: rf by Elo; rf/lognorm(0.00,1.00) by validation loss."
    assert "people decide" in found.steps[0].text and found.steps[0].command == "mmdit arena studies/mine"
    assert found.margin[0].startswith("Elo: rf ")


def test_a_measure_that_knows_better_is_not_overruled(tmp_path: Path) -> None:
    """Ratings don't settle their own first place, but they do say that the winner by loss is not it."""
    kinds = ("rf", "v/cos", "eps/cos")
    results = losses(0.2, depths=(1, 2), seeds=2, kinds=kinds)
    fights = battles(results, {"rf": 200.0, "v/cos": 200.0, "eps/cos": 0.0}, prompts=20)
    elo = by_elo(rate(fights, draws=200), results)
    assert elo is not None and not elo.settled and len(elo.tied) == 2
    found = screen(tmp_path / "s", results, fights)
    assert not found.decided and "measures disagree" in found.headline
    assert "eps/cos by validation loss" in found.headline and f"{elo.names[0]} by Elo" in found.headline


def test_architectures_of_one_compute_meet_though_depths_differ() -> None:
    results = losses(0.1, depths=(3,), kinds=("mmdit rf", "uvit rf")).assign(train_flops=1e13)
    results["architecture"] = results["formulation"].str.split().str[0]
    results.loc[results["architecture"] == "uvit", ["depth", "steps"]] = (2, 380)
    found = by_loss(results)
    assert found is not None and found.names == ("uvit rf", "mmdit rf") and found.sizes == 1 and found.seeds == 3


def test_ratings_that_agree_come_first(tmp_path: Path) -> None:
    results = losses(0.2, depths=(1, 2), seeds=2)
    fights = battles(results, {KINDS[0]: 0.0, KINDS[1]: 150.0})
    found = screen(tmp_path / "s", results, fights)
    assert found.decided and found.margin[0].startswith("Elo: 1") and "60 prompts resampled" in found.surety[0]
    elo = rate(fights, draws=200)
    means = {kind: np.mean([r.elo for r in elo.ratings if f" {kind} " in r.name]) for kind in KINDS}
    contest = by_elo(elo, results)
    assert contest is not None and contest.margin == pytest.approx(means[KINDS[1]] - means[KINDS[0]])
    assert contest.low < 150 < contest.high


def test_a_single_recipe_is_asked_for_its_depth(tmp_path: Path) -> None:
    found = screen(tmp_path / "a", losses(0.0, kinds=("rf",)))
    assert found.headline == "rf, the only recipe, is best at depth 3 at equal steps."
    assert found.margin[0].startswith("Depth 3: loss")
    alone = screen(tmp_path / "b", losses(0.0, kinds=("rf",), depths=(2,), seeds=1))
    assert "nothing to compare" in alone.headline and not alone.decided and alone.steps[0].command


def test_of_several_lengths_the_longest_is_told(tmp_path: Path) -> None:
    short = losses(0.0, kinds=("rf",))
    long = losses(0.0, kinds=("rf",), depths=(1, 2), seed=1).assign(steps=900)
    long["run_id"], long["name"] = "long " + long["run_id"], "long " + long["name"]
    long["val_loss"] *= 0.5
    both = pd.concat([short, long], ignore_index=True)
    found = screen(tmp_path / "s", both)
    assert "best at depth 3 at equal steps" in found.headline
    assert "after 400 steps" in found.surety[0]  # most depths were trained for so long
    text = depth_finding(both)
    assert "loss falls at every step of the ladder with rf at every length" in text


def test_nothing_finished(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    curve = losses(0.1).assign(step=100)
    curve.to_csv(folder / "curves.csv", index=False)
    found = first_screen(load_study(folder), Analysis(), None, Names("mine", "studies/mine"))
    assert not found.decided and "No run has finished" in found.headline
    assert found.steps[0].command == "mmdit study run mine"


def test_gaps_cost_only_their_cells() -> None:
    """Least squares with gaps, against a fit by a design matrix; a recipe of one run costs the others nothing."""
    results = losses(0.2, kinds=("rf", "v/cos", "eps/cos"), seed=2)
    cut = results[~((results["formulation"] == "v/cos") & (results["depth"] == 3) & (results["seed"] == 2))]
    rare = results[(results["formulation"] != "v/cos") | (results["name"] == "d1 v/cos s0")]
    for some, seeds in ((results, 3), (cut, 3), (rare, 1)):
        found = by_loss(some)
        assert found is not None and found.names == ("eps/cos", "v/cos", "rf") and found.seeds == seeds
        block = pd.get_dummies(some["depth"].astype(str) + some["seed"].astype(str)).to_numpy(float)
        recipe = pd.get_dummies(some["formulation"])[["v/cos", "rf"]].to_numpy(float)  # beside eps/cos
        solved, squares, rank, _ = np.linalg.lstsq(
            np.hstack([block, recipe]), np.log(some["val_loss"].to_numpy()), rcond=None
        )
        assert found.margin == pytest.approx(1 - np.exp(-solved[-2]))
        blocks = found.blocks
        assert blocks is not None and blocks.freedom == len(some) - rank  # sizes agree in this study
        assert blocks.noise**2 == pytest.approx(squares[0] / (len(some) - rank))
        error = np.linalg.inv(np.hstack([block, recipe]).T @ np.hstack([block, recipe]))[-2, -2]
        arm = stats.t.ppf(0.975, blocks.freedom) * blocks.noise * np.sqrt(error)
        assert (found.low, found.high) == pytest.approx(tuple(1 - np.exp(-(solved[-2] + s * arm)) for s in (-1, 1)))
    apart = results["depth"].where(results["formulation"] != "v/cos", 9)
    lonely = by_loss(results.assign(depth=apart))
    assert lonely is not None and lonely.names == ("eps/cos", "rf") and lonely.apart == ("v/cos",)


def test_more_seeds_of_the_first_two_narrow_their_interval_and_keep_the_third() -> None:
    few = losses(0.01, noise=0.02, kinds=("rf", "v/cos", "eps/cos"), seeds=2, depths=(1, 2), seed=4)
    many = losses(0.01, noise=0.02, kinds=("rf", "v/cos", "eps/cos"), seeds=6, depths=(1, 2), seed=4)
    first = by_loss(few)
    extra = many[(many["seed"] >= 2) & (many["formulation"] != "eps/cos")]
    more = by_loss(pd.concat([few, extra], ignore_index=True))
    assert more is not None and set(more.names) == {"rf", "v/cos", "eps/cos"}
    before, after = first.blocks, more.blocks
    assert (
        before is not None and after is not None and after.shared(1, 2) == (6, 2, 1) and after.shared(0, 1) == (2, 2, 1)
    )
    assert after.error(1, 2, 1.0) < 0.6 * before.error(1, 2, 1.0)  # √(2/6) of it, but for what eps/cos tells
    assert after.error(0, 1, 1.0) <= before.error(0, 1, 1.0)


def test_a_lead_that_turns_with_size_is_told(tmp_path: Path) -> None:
    """The first recipe is 10 % better at depths 1 and 2, 5 % worse at depth 3; three seeds."""
    results = losses(-0.1, noise=0.002)
    deep = (results["depth"] == 3) & (results["formulation"] == KINDS[1])
    results.loc[deep, "val_loss"] *= 0.95 / 1.1
    found = screen(tmp_path / "s", results)
    assert not found.decided
    contest = by_loss(results)
    assert contest is not None and contest.names[0] == "rf" and not contest.settled
    assert contest.crossed is not None and contest.crossed.name == KINDS[1] and contest.crossed.size == "depth 3"
    assert contest.crossed.low < 0.05 < contest.crossed.high and contest.crossed.low > 0.03
    assert f"at depth 3 {KINDS[1]} is ahead by " in found.margin[0]
    assert found.steps[0].text.startswith(f"A larger size than depth 3: {KINDS[1]} is ahead there")


def test_missing_runs_and_lost_recipes_are_told(tmp_path: Path) -> None:
    results = losses(0.2)
    known = tables(tmp_path / "s", results)
    names = Names("mine", "studies/mine")
    found = first_screen(known, Analysis(), None, names, ["d3 rf s0 (diverged)"] * 5)
    assert found.surety[-1].startswith("5 of 23 runs have no result: d3 rf s0 (diverged), ")
    assert found.surety[-1].endswith(" and 2 more")
    lost = results.assign(val_loss=results["val_loss"].where(results["formulation"] != "rf"))
    alone = screen(tmp_path / "lost", lost)
    assert f"{KINDS[1]}, the only recipe" in alone.headline
    nothing = screen(tmp_path / "nothing", results.assign(val_loss=np.nan))
    assert nothing.headline.startswith("No run has finished with a loss")


def test_questions_and_judges_that_disagree_are_told(tmp_path: Path) -> None:
    results = losses(0.0, depths=(1, 2), seeds=2, noise=0.05)
    up, down = {KINDS[0]: 0.0, KINDS[1]: 400.0}, {KINDS[0]: 400.0, KINDS[1]: 0.0}
    asked = [
        battles(results, points, prompts=60).assign(question=question, judge=judge)
        for question, judge, points in (
            ("prompt following", "a", up),
            ("prompt following", "b", {KINDS[0]: 100.0, KINDS[1]: 0.0}),
            ("aesthetics", "c", down),
        )
    ]
    known = tables(tmp_path / "s", results, pd.concat(asked, ignore_index=True))
    found = first_screen(known, analyse(known, draws=100), None, Names("mine", "studies/mine"))
    assert found.headline.startswith(f"Not decided, measures disagree: {KINDS[1]} by Elo, prompt following")
    assert "rf by Elo, aesthetics" in found.headline
    (told,) = [line for line in found.surety if line.startswith("Elo, prompt following")]
    assert "; its judge b has rf first, by " in told


@pytest.mark.parametrize(("column", "of"), [("learning_rate", (0.1, 0.2)), ("text_encoders", ("words", "words+t5"))])
def test_what_else_differs_tells_recipes_apart(column: str, of: tuple[object, object]) -> None:
    results = pd.concat([losses(0.0, kinds=("rf",)).assign(**{column: value}) for value in of])
    results.loc[results[column] == of[1], "val_loss"] *= 0.9
    words = column.replace("_", " ")
    assert set(recipes(results)) == {f"rf, {words} {of[0]}", f"rf, {words} {of[1]}"}
    found = by_loss(results)
    assert found is not None and found.names[0] == f"rf, {words} {of[1]}" and found.margin == pytest.approx(0.1)
    assert found.settled  # to the last digit: no noise is left


def test_ranks_of_sampler_settings() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for name, level in (("good", 0.4), ("fair", 0.3), ("poor", 0.2)):
        for setting, seed in itertools.product(("a", "b", "c"), (0, 1, 2)):
            own = {"clip": level + 0.002 * rng.normal(), "fid": 1 - level + 0.002 * rng.normal()}
            rows.append({"name": name, "setting": setting, "seed": seed, **own})
    table = rank(pd.DataFrame(rows), bootstrap=200)
    found = by_rank(table)
    assert found is not None and found.names == ("good", "fair", "poor") and found.settled
    assert found.margin == pytest.approx(1.0) and found.best == 1.0
    assert found.ahead[1:] == pytest.approx(table.pairs[0, 1:]) and found.how == "3 seeds resampled"


def test_ranks_over_depths_are_a_recipes_mean() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for depth, (kind, level) in itertools.product((1, 2), {"rf": 0.2, "v/cos": 0.4}.items()):
        for setting, seed in itertools.product(("a", "b"), (0, 1, 2)):
            own = {"clip": level + 0.05 * depth + 0.001 * rng.normal(), "fid": 1 - level - 0.05 * depth}
            rows.append({"name": f"d{depth} {kind}", "setting": setting, "seed": seed, **own})
    table = rank(pd.DataFrame(rows), bootstrap=100)
    found = by_rank(table)
    assert found is not None and found.names == ("v/cos", "rf")
    ranks = {place.name: place.all.rank for place in table.places}
    assert found.scores[0] == pytest.approx((ranks["d1 v/cos"] + ranks["d2 v/cos"]) / 2) and found.settled
    only = rank(pd.DataFrame([row for row in rows if row["name"].endswith("rf")]), bootstrap=100)
    assert by_rank(only) is None  # one recipe at two depths


def ladder(kinds: Sequence[str] = KINDS, noise: float = 0.001) -> pd.DataFrame:
    """Six depths, three lengths and two seeds of ladder_small by a known joint law, its best depth in the midst."""
    rng = np.random.default_rng(0)
    rows = []
    for run, (place, kind) in itertools.product(load_named("ladder_small").runs, enumerate(kinds)):
        known = {"run_id": f"{run.run_id} {kind}", "name": f"{run.name} {kind}", "dataset": "scenes", "seed": run.seed}
        row = {**describe(run), **known, "formulation": kind}
        law = 0.05 + 10 * row["params"] ** -0.4 + 8 * row["images"] ** -0.45 + 0.02 * (row["depth"] == 7)
        rows.append({**row, "val_loss": law * np.exp(noise * rng.normal()) * 0.9**place})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("others", [False, True])
def test_the_command_that_is_advised_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], others: bool) -> None:
    """Of two recipes and of one, with another data set beside; in a folder whose name wants quotes."""
    results = ladder(KINDS if others else KINDS[:1])
    if others:
        emoji = results.iloc[:1].assign(run_id="e", name="e", dataset="emoji", val_loss=3.0)
        results = pd.concat([results, emoji], ignore_index=True)
    folder = tmp_path / "a study"
    known = tables(folder, results)
    found = first_screen(known, Analysis(), None, Names("ladder_small", str(folder)))
    (command,) = [step.command for step in found.steps if "recommend" in step.command]
    assert command.startswith("mmdit recommend '") and "--depths 2-14" in command
    assert ("--where dataset=scenes --where 'formulation=rf/lognorm(0.00,1.00)'" in command) == others
    assert main([*shlex.split(command)[1:], "--bootstrap", "200", "--json"]) == 0
    choices = json.loads(capsys.readouterr().out)["choices"]
    assert {choice["depth"] for choice in choices} == set(range(2, 15))


def test_commands_are_those_of_the_study_as_it_was_called(tmp_path: Path) -> None:
    known = tables(tmp_path / "s", losses(0.0, kinds=("rf",), depths=(2,), seeds=1))
    names = Names("my study.py", "elsewhere/s", "--root elsewhere")
    found = first_screen(known, Analysis(), None, names)
    assert found.steps[0].command == "mmdit study run 'my study.py' --root elsewhere"
    assert names.arena == "mmdit arena elsewhere/s"


def test_widths_that_follow_no_rule_are_not_asked_beyond_the_study(tmp_path: Path) -> None:
    results = ladder(KINDS[:1])
    results["width"] = results["width"].replace(48, 96)
    found = first_screen(tables(tmp_path / "s", results), Analysis(), None, Names("mine", "s"))
    (command,) = [step.command for step in found.steps if "recommend" in step.command]
    assert "--depths" not in command
