"""Judges of single images: ties, pairs, trees, and the file of scores, whatever cut it short. No torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit_jax.errors import Preempted, UserError
from mmdit_jax.evaluation.rewards import (
    Judge,
    Options,
    Picture,
    Score,
    ScoreFile,
    Tree,
    find_trees,
    image_hash,
    open_judge,
    pair,
    read_image,
    read_tree,
    score_pictures,
    tie_lead,
    torch_files,
)
from mmdit_jax.evaluation.rewards.pixels import fit, normalise

PROMPTS = ["a red circle", 'a "blue" square, large\r\nand\nbroken', "größe 猫"]


def brightness(images: Sequence[np.ndarray], pictures: Sequence[Picture]) -> np.ndarray:
    """A judge that can be checked by hand."""
    return np.array([image.mean() for image in images])


def judge(**changes: object) -> Judge:
    told = {"name": "bright", "question": "light", "fingerprint": "0123456789abcdef", "load": lambda: brightness}
    return Judge(**{**told, "batch": 4, **changes})  # type: ignore[arg-type]


def write_tree(folder: Path, levels: Sequence[Sequence[int]], prompts: Sequence[str] = PROMPTS) -> Path:
    """One grey image of 4×4 px a level, for each prompt."""
    for number, (prompt, row) in enumerate(zip(prompts, levels, strict=True)):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True)
        (place / "metadata.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n")
        for sample, level in enumerate(row):
            Image.new("RGB", (4, 4), (level,) * 3).save(place / "samples" / f"{sample:04d}.png")
    return folder


def pictures_of(*trees: Tree) -> tuple[list[Picture], dict[Path, str]]:
    found = [picture for tree in trees for picture in read_tree(tree)]
    return found, {picture.path: image_hash(picture.path) for picture in found}


@pytest.mark.parametrize("slope", [1.0, 1.0333394966054072, 100.0])
@pytest.mark.parametrize("margin", [0.0, 0.02, 0.3, 0.49])
def test_a_tie_is_where_the_judges_own_probability_is_within_the_margin(slope: float, margin: float) -> None:
    lead = tie_lead(judge(slope=slope), margin)
    assert 1 / (1 + math.exp(-slope * lead)) == pytest.approx(0.5 + margin, abs=1e-12)


def test_judges_without_a_probability_keep_their_own_tie() -> None:
    assert tie_lead(judge(tie=0.25), 0.02) == tie_lead(judge(tie=0.25), 0.4) == 0.25
    assert open_judge("scorer", Options()).tie == 0 < open_judge("contrastive", Options()).tie


def test_pairs_by_hand() -> None:
    scores = {
        "b": {("p", 0): 2.0, ("p", 1): 1.0, ("q", 0): 0.0},
        "a": {("p", 0): 1.0, ("p", 1): 1.05, ("r", 0): 9.0},
        "c": {("q", 0): -1.0},
    }
    rows = pair(scores, judge="j", question="which?", tie=0.1)
    winners = [
        (row.prompt, row.seed, None if row.outcome == "tie" else getattr(row, row.outcome), {row.left, row.right})
        for row in rows
    ]
    assert winners == [("p", 0, "b", {"a", "b"}), ("p", 1, None, {"a", "b"}), ("q", 0, "b", {"b", "c"})]
    assert {(row.judge, row.question) for row in rows} == {("j", "which?")}


def test_who_stands_left_is_a_fair_coin_and_knows_nothing_of_scores() -> None:
    keys = [(f"prompt {i}", i % 3) for i in range(600)]
    rng = np.random.default_rng(0)
    high, low = ({key: float(rng.normal(shift)) for key in keys} for shift in (3.0, -3.0))
    one = pair({"x": high, "y": low}, judge="j", question="q", tie=0.0)
    other = pair({"x": low, "y": high}, judge="j", question="q", tie=0.0)
    assert [row.left for row in one] == [row.left for row in other]
    assert abs(sum(row.left == "x" for row in one) - 300) < 4 * math.sqrt(600 / 4)


def test_what_is_in_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, [[10, 20], [30], [40, 50]], ["same", "other", "same"])
    (tmp_path / "grid.png").write_bytes(b"")
    Image.new("L", (3, 5), 7).save(tmp_path / "00001" / "samples" / "0007.jpg")
    found = read_tree(Tree("me", tmp_path))
    keys = [(picture.prompt, picture.sample) for picture in found]
    assert keys == [("same", 0), ("same", 1), ("other", 0), ("other", 7), ("same", 2), ("same", 3)]
    assert read_image(found[3].path).shape == (5, 3, 3)
    with monkeypatch.context() as patched:
        patched.setattr("PIL.Image.MAX_IMAGE_PIXELS", 7)  # twice that is refused
        with pytest.raises(UserError, match="can't be read"):
            read_image(found[3].path)
    for line in ('{"prompt": " "}', '{"prompt": 3}', '{"tag": "colors"}', "{"):
        (tmp_path / "00001" / "metadata.jsonl").write_text(line)
        with pytest.raises(UserError, match=r"metadata=.*00001/metadata.jsonl: .*expected"):
            read_tree(Tree("me", tmp_path))


def test_which_trees_there_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(("one", "two", "three")):
        run = tmp_path / "study" / f"{name}-{number}"
        write_tree(run / "samples", [[1]], ["p"])
        (run / "config.json").write_text(json.dumps({"config": {"name": name}}))
        if name != "three":
            (run / "result.json").write_text("{}")
    study = tmp_path / "study"
    plain = write_tree(tmp_path / "plain", [[1]], ["p"])
    assert {tree.name for tree in find_trees([study])} == {"one", "two"}  # finished
    assert caplog.messages == [f"{study}: 1 of 3 runs are not done, or have drawn nothing: left out"]
    found = find_trees([study / "three-2", study / "one-0" / "samples", plain])
    assert [tree.name for tree in found] == ["three", "one", "plain"]
    assert [tree.name for tree in find_trees([study, plain], ["x", "y", "z"])] == ["x", "y", "z"]
    for paths, names, line in (
        ([study, plain], ["x"], "1 for 3 trees"),
        ([study, study / "one-0"], None, "all named 'one'; tell them apart by --names"),
        ([plain], None, "expected two or more to compare"),
        ([tmp_path / "none", plain], None, "none: no such folder"),
        ([tmp_path, plain], None, "neither images"),
    ):
        with pytest.raises(UserError, match=line):
            find_trees(paths, names)


def test_scores_are_kept_by_image_prompt_and_weights(tmp_path: Path) -> None:
    one = Tree("one", write_tree(tmp_path / "one", [[10, 20], [30], [40]]))
    two = Tree("two", write_tree(tmp_path / "two", [[11, 20], [31], [41]]))  # an image of one's
    path = tmp_path / "scores.csv"
    with ScoreFile(path) as file:
        scores, counts = score_pictures(judge(), *pictures_of(one), file)
        assert (counts.scored, counts.known) == (4, 0)
        assert scores == {"one": {(PROMPTS[0], 0): 10, (PROMPTS[0], 1): 20, (PROMPTS[1], 0): 30, (PROMPTS[2], 0): 40}}
    with ScoreFile(path) as file:
        scores, counts = score_pictures(judge(), *pictures_of(one, two), file)
        assert (counts.scored, counts.known) == (3, 5)
        assert list(scores["two"].values()) == [11, 20, 31, 41]
        _, counts = score_pictures(judge(load=None), *pictures_of(one, two), file)  # not even loaded
        assert counts.known == 8
        _, counts = score_pictures(judge(fingerprint="f" * 16), *pictures_of(one, two), file)
        assert counts.scored == 7
    assert len(path.read_text().splitlines()) > 9  # the prompt with breaks has lines of its own
    with ScoreFile(path) as file:
        assert len(file.rows) == 8  # superseded rows went
        Image.new("RGB", (4, 4), (99, 99, 99)).save(one.folder / "00000" / "samples" / "0000.png")
        scores, counts = score_pictures(judge(fingerprint="f" * 16), *pictures_of(one, two), file)
        assert counts.scored == 1 and scores["one"][PROMPTS[0], 0] == 99


def test_a_file_that_was_cut_anywhere_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    rows = [Score("one", prompt, i, "bright", 1 / (i + 3), "a" * 16, "b" * 16) for i, prompt in enumerate(PROMPTS)]
    with ScoreFile(path) as file:
        file.add(rows)
    whole = path.read_bytes()
    ends = [whole.index(b"\n") + 1]
    for _ in rows:
        ends.append(whole.index(b"b" * 16 + b"\n", ends[-1]) + 17)
    assert ends[-1] == len(whole)
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with ScoreFile(path) as file:
            assert file.rows == rows[: max(0, sum(end <= cut for end in ends) - 1)], cut
            file.add(rows)
        assert path.read_bytes() == whole, cut


def test_a_file_that_is_none_or_is_held(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    with ScoreFile(path), pytest.raises(UserError, match="another process writes there"):
        ScoreFile(path).__enter__()
    path.write_text("name,clip\na,1\n")
    with pytest.raises(UserError, match="columns name,clip; expected name,prompt"):
        ScoreFile(path).__enter__()
    assert path.read_text() == "name,clip\na,1\n"
    path.unlink()
    with ScoreFile(path) as file:
        file.add([Score("one", "p", i, "bright", 0.5, "a" * 16, "b" * 16) for i in range(3)])
    path.write_text(path.read_text().replace("1,bright,0.5", "1,bright,half"))
    with pytest.raises(UserError, match="line 3 is damaged"):
        ScoreFile(path).__enter__()


def test_stopped_between_batches_and_scores_that_are_none(tmp_path: Path) -> None:
    tree = Tree("one", write_tree(tmp_path / "one", [list(range(10)), [], []]))
    with ScoreFile(tmp_path / "scores.csv") as file:
        stops = iter([False, False, True])
        with pytest.raises(Preempted, match="8 of 10 images"):
            score_pictures(judge(), *pictures_of(tree), file, stop=lambda: next(stops))
        _, counts = score_pictures(judge(), *pictures_of(tree), file)
        assert (counts.scored, counts.known) == (2, 8)
        broken = judge(fingerprint="e" * 16, load=lambda: lambda images, pictures: np.full(len(images), np.nan))
        with pytest.raises(UserError, match="score=nan of"):
            score_pictures(broken, *pictures_of(tree), file)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("pickscores=x", "did you mean 'pickscore'"),
        ("pickscore", "expected pickscore=FOLDER"),
        ("scorer=/x", "expected no folder"),
    ],
)
def test_judges_that_are_none(spec: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        open_judge(spec, Options())


def test_packages_that_are_not_installed() -> None:
    with pytest.raises(UserError, match=r"judge=hpsv2: needs no_such_package; pip install 'mmdit-jax\[judges\]'"):
        torch_files.need("hpsv2", ("json", "no_such_package"))


def test_pixels_by_hand() -> None:
    image = np.zeros((48, 30, 3), np.uint8)
    image[9:39] = 255
    assert (fit(image, 30, down=True) == 255).all()  # the middle
    np.testing.assert_allclose(normalise(image)[:, 0, 0], [-1.7922626, -1.7520971, -1.4802198], rtol=1e-5)
    np.testing.assert_allclose(normalise(image)[:, 20, 20], [1.9303361, 2.0748838, 2.1459069], rtol=1e-5)
