"""One run of a study: found by name or id, its settings asked of it alone, its identity that of its training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Mmdit

from launch.studies import find_run, load_study, trainings
from mmdit_jax.config import Study
from mmdit_jax.config_values import overridden
from mmdit_jax.errors import UserError

COMPOSED = "evaluation.compbench_prompts=1"


@pytest.fixture
def mixed(tiny_study: Path) -> Study:
    """A run on scenes, and one on emoji that refuses prompts which ask for scenes."""
    first, second = load_study(str(tiny_study)).runs
    return Study("mixed", (first, replace(second, data=replace(second.data, name="emoji"))))


def test_settings_that_another_run_refuses(mixed: Study) -> None:
    first, second = mixed.runs
    with pytest.raises(UserError, match="ask for scenes"):
        overridden(second, [COMPOSED])
    for key in ("rf", first.run_id, overridden(first, [COMPOSED]).run_id):
        assert find_run(mixed, key, [COMPOSED]) == first
    for overrides in ([], ["steps=10"], ["steps=10", COMPOSED]):
        assert find_run(mixed, overridden(first, overrides).run_id, overrides) == first
    assert find_run(mixed, overridden(first, ["steps=10"]).run_id, ["steps=10", COMPOSED]) == first
    assert find_run(mixed, "log normal", [COMPOSED]) == second  # which is then told what it refuses
    with pytest.raises(UserError, match=f"run='rg': not in study 'mixed'; did you mean '{first.run_id}'"):
        find_run(mixed, "rg", [COMPOSED])


def second_on_emoji(path: Path) -> None:
    """Change the tiny study's file so that its second run refuses what asks for scenes."""
    emoji = "{'data': dataclasses.replace(data, name='emoji')}"
    text = path.read_text().replace("**base)", f"**(base | {emoji} if name != 'rf' else base))")
    path.write_text(text.replace("    return", "    import dataclasses\n    return"))


def test_a_setting_that_one_run_refuses_says_which(tiny_study: Path) -> None:
    second_on_emoji(tiny_study)
    with pytest.raises(UserError, match=r"ask for scenes; .* \(so says 'log normal'; 1 of 2 runs would take it"):
        load_study(str(tiny_study), [COMPOSED])
    with pytest.raises(UserError) as told:  # refused by every run
        load_study(str(tiny_study), ["stepz=1"])
    assert "did you mean 'steps'" in str(told.value) and "so says" not in str(told.value)


def test_how_it_is_scored_is_not_what_was_trained(mixed: Study) -> None:
    """The study may have been run with the settings that come first, or with none of them."""
    first = mixed.runs[0]
    overrides = ["evaluation.seed=3", "steps=10", COMPOSED]
    ways = [overrides, ["evaluation.seed=3", "steps=10"], ["steps=10"]]
    assert trainings(first, overrides) == [overridden(first, way) for way in ways]
    assert len({run.run_id for run in trainings(first, overrides)}) == 3
    assert trainings(first, []) == [first]


@pytest.mark.slow
def test_a_finished_run_is_scored_with_other_settings(mmdit: Mmdit) -> None:
    """Of a study that was run with settings of its own, in which the other run is on emoji."""
    second_on_emoji(mmdit.study)
    study, more = ("--set", "steps=10", "--set", "evaluation.seed=5"), ("--set", COMPOSED)
    trained = mmdit("train", "tiny.py", "--run", "rf", "--quiet", *study)
    assert trained.returncode == 0, trained.stderr
    run_id = Path(trained.stdout.strip()).parent.name
    scored = mmdit("evaluate", "tiny.py", "--run", "rf", *study, *more, "--steps", "1", "--out", "out", "--json")
    assert scored.returncode == 0, scored.stderr
    found = json.loads(scored.stdout)
    assert found["run_id"] == run_id and len(found["compbench"]) == 4
    drawn = mmdit("sample", "tiny.py", "--run", run_id, "a red circle", *study, *more)
    assert drawn.returncode == 0, drawn.stderr
    assert [path.name for path in (mmdit.folder / "studies" / "tiny").glob("rf-*")] == [run_id]
