"""What is told before a law is relied on: recipes that share it, runs unlike its rows, data seen again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import ladder_small
from launch.doubts import RECIPE, few_draws, mixed, passes, training_examples, unlike
from launch.execute import describe
from mmdit_jax.config import DataConfig
from scaling.tables import where

RUN = ladder_small.study().runs[-1]


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return pd.DataFrame([describe(run) for run in ladder_small.study().runs[::4]])


def test_recipes_that_share_a_law(rows: pd.DataFrame) -> None:
    assert mixed(rows) == []
    for column in RECIPE:
        other = rows[column].replace(rows[column].iloc[0], 7 if column in ("learning_rate", "batch") else "other one")
        table = pd.concat([rows, rows[:3].assign(**{column: other[:3]})], ignore_index=True)
        (told,) = mixed(table, parts=True)
        assert column in told and f"--by {column}" in told and "--by" not in mixed(table)[0]
        # What it says to do keeps the recipe of most runs, and nothing is left to tell.
        words = shlex.split(told.split("; ")[1])
        kept = where(table, [words[1 + words.index("--where")]])
        assert len(kept) == len(rows) and mixed(kept) == []
        assert mixed(table, by=column, parts=True) == []
    blank = rows.assign(dataset=[np.nan, *rows["dataset"][1:]])
    assert "dataset (scenes, blank)" in mixed(blank)[0]


def test_two_columns_differ_within_recipes(rows: pd.DataFrame) -> None:
    table = pd.concat([rows, rows[:2].assign(dataset="emoji", batch=64)], ignore_index=True)
    (told,) = mixed(table)
    assert "dataset (scenes, emoji) and batch (32, 64)" in told and "--where dataset=scenes --where batch=32" in told
    (told,) = mixed(table.assign(formulation="rf"), by="formulation", parts=True)
    assert "runs of one formulation" in told and "--by" not in told
    assert len(mixed(table, by="dataset")) == 0


def test_a_run_unlike_the_rows(rows: pd.DataFrame) -> None:
    assert unlike(describe(RUN), rows) == [] == unlike(describe(RUN), rows[["params"]])
    other = replace(RUN, batch=70_000, formulation="eps/linear")
    told = unlike(describe(other), rows)
    assert [text.split("=")[0] for text in told] == [
        "formulation",
        "batch",
    ] and "batch=70000: the rows have 32" in told[1]
    assert unlike(describe(other), rows, ("batch",)) == told[1:]


def test_data_seen_again(rows: pd.DataFrame) -> None:
    epoch = RUN.data.examples // RUN.batch
    assert passes(replace(RUN, steps=epoch), rows) == []
    (told,) = passes(replace(RUN, steps=6 * epoch), rows)
    assert "6 passes over the 65,536 training examples of 'scenes'" in told and "at most 0.49" in told
    # Rows that have seen as many passes know what they are worth; those of another set, or without images, do not.
    assert passes(replace(RUN, steps=6 * epoch), rows.assign(images=6 * RUN.data.examples)) == []
    for strange in (rows.assign(dataset="emoji"), rows[["params"]]):
        assert "not known" in passes(replace(RUN, steps=6 * epoch), strange)[0]


def test_how_many_examples_there_are(tmp_path: Path) -> None:
    assert training_examples(DataConfig(name="signs", examples=77)) == 77
    assert 2_500 < (training_examples(DataConfig(name="emoji", examples=77)) or 0) < 3_139  # nine tenths of them
    assert training_examples(DataConfig(name="cc12m")) is None
    assert training_examples(DataConfig(name="cc12m"), tmp_path) is None


def test_few_draws() -> None:
    assert few_draws(0) == [] == few_draws(100)
    assert "3 bootstraps" in few_draws(3)[0]
