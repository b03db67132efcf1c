"""Scenes: exact geometry, true captions, examples that depend on (seed, split, index) alone, the TFDS builder."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from scene_oracle import genevals_relations

from mmdit_jax.data.scenes import TASKS, Prompt, all_prompts, example, examples, prompts, render
from mmdit_jax.data.scenes.builder import Scenes, ScenesConfig
from mmdit_jax.data.scenes.captions import MAX_WORDS, Group, caption
from mmdit_jax.data.scenes.geometry import AREA, REACH, SHAPES, bounds, coverage, rotate, signed_distance
from mmdit_jax.data.scenes.vocabulary import BACKGROUNDS, COLOURS, MAX_OBJECTS, RELATIONS, phrase
from mmdit_jax.errors import UserError


def outline(shape: str) -> np.ndarray:
    """Corners of the unit shape, in order; the circle as a polygon of 720 sides."""
    if shape == "square":
        return 0.88 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if shape == "cross":
        a, b = 1.12, 0.38
        quarter = np.array([(-b, -a), (b, -a), (b, -b)])
        turn = np.array([[0, 1], [-1, 0]])
        return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])
    count, tip, notch = {"triangle": (3, 1.42, 0.71), "star": (5, 1.45, 0.58), "circle": (360, 1, 1)}[shape]
    angle = -np.pi / 2 + np.pi * np.arange(2 * count) / count
    radius = np.where(np.arange(2 * count) % 2 == 0, tip, notch)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def polygon_distance(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Signed distance by brute force: nearest edge, and the sign by counting crossings of a ray."""
    nearest, inside = np.full(len(points), np.inf), np.zeros(len(points), bool)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge = b - a
        along = np.clip((points - a) @ edge / (edge @ edge), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(points - a - along[:, None] * edge, axis=1))
        if edge[1] != 0:
            straddles = (a[1] > points[:, 1]) != (b[1] > points[:, 1])
            inside ^= straddles & (points[:, 0] < a[0] + (points[:, 1] - a[1]) * edge[0] / edge[1])
    return np.where(inside, -nearest, nearest)


@pytest.mark.parametrize("shape", SHAPES)
def test_signed_distance_is_that_of_the_polygon(shape: str) -> None:
    points = np.random.default_rng(0).uniform(-2, 2, (20_000 if shape != "circle" else 1_000, 2))
    error = signed_distance(shape, points[:, 0], points[:, 1]) - polygon_distance(outline(shape), points)
    assert np.abs(error).max() < (1e-12 if shape != "circle" else 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_area_reach_and_bounds_are_the_outline_s(shape: str) -> None:
    corners = outline(shape)
    x, y = corners.T
    assert math.isclose(AREA[shape], abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2, rel_tol=1e-4)
    assert math.isclose(REACH[shape], np.hypot(x, y).max(), rel_tol=1e-9)
    # Painted, and turned by 0.1 radians: same area, and a box like the turned outline's.
    angle, radius, size = 0.1, 20.0, 64
    centres = np.arange(size) + 0.5 - size / 2
    x, y = rotate(centres[None, :] + 0 * centres[:, None], centres[:, None] + 0 * centres[None, :], angle)
    alpha = coverage(shape, x, y, radius)
    assert math.isclose(alpha.sum(), AREA[shape] * radius**2, rel_tol=0.01)
    turned = corners @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    np.testing.assert_allclose(bounds(shape, angle), [*turned.min(axis=0), *turned.max(axis=0)], atol=1e-4)
    columns = np.flatnonzero((alpha > 0.5).any(axis=0))
    assert abs(centres[columns[0]] / radius - bounds(shape, angle)[0]) < 0.08


def test_no_caption_exceeds_sixteen_words() -> None:
    """Every caption is built from phrases; replace each by the longest there is."""
    every = [Group(s, c, n, named) for s in SHAPES for c in COLOURS for n in (1, 2, 3, 4) for named in (True, False)]
    lengths = {len(phrase(g.shape, g.count, g.colour if g.named else None).split()) for g in every}
    assert lengths == {2, 3}
    longest = Group("star", "orange", 1)
    backgrounds = [None, *BACKGROUNDS]
    texts = [caption([longest] * k, None, b) for k in (1, 2, 3) for b in backgrounds]
    texts += [caption([longest] * 2, r, b) for r in RELATIONS for b in backgrounds]
    assert max(len(text.split()) for text in texts) == 15 <= MAX_WORDS
    assert max(len(re.findall(r"\w+|,", text)) for text in texts) <= MAX_WORDS  # even where a comma is a token


def test_captions_are_true_and_objects_stay_apart() -> None:
    """Read each caption with a grammar of its own and compare with the scene."""
    one = rf"(an?|two|three|four)(?: ({'|'.join(COLOURS)}))? ({'|'.join(SHAPES)})(?:e?s)?"
    counts, named = dict.fromkeys(range(1, MAX_OBJECTS + 1), 0), 0
    for index in range(1500):
        text, scene = example(3, "train", index)
        head, _, background = text.partition(" on a ")
        if background:
            assert background == f"{scene.background} background"
        relation = next((name for name in RELATIONS if f" {name} " in head), None)
        groups = re.findall(one, head)
        assert re.sub(one, "#", head) in ("#", "# and #", "#, # and #", f"# {relation} #"), text
        members = []
        for word, colour, shape in groups:
            number = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}[word]
            alike = [o for o in scene.objects if o.shape == shape and colour in ("", o.colour)]
            assert len(alike) == number, text
            members.append(alike)
            named += bool(colour)
        assert sum(map(len, members)) == len(scene.objects)
        if relation:
            assert relation in genevals_relations(members[0][0].box, members[1][0].box), text
        counts[len(scene.objects)] += 1
        circles = [(o.x, o.y, o.radius * REACH[o.shape]) for o in scene.objects]
        for i, (x, y, reach) in enumerate(circles):
            assert min(x, y) - reach > 0 and max(x, y) + reach < 1
            assert all(math.hypot(x - a, y - b) > reach + other + 0.049 for a, b, other in circles[:i])
    assert min(counts.values()) > 100 and named > 800  # the set shows every number of objects, and many colours


def test_an_example_depends_on_seed_split_and_index_alone() -> None:
    images, captions = examples(0, "train", 0, 300)
    part, part_captions = examples(0, "train", 130, 140)
    np.testing.assert_array_equal(part, images[130:140])
    assert part_captions == captions[130:140]
    assert not np.array_equal(images[:10], examples(1, "train", 0, 10)[0])
    held_out, _ = examples(0, "validation", 0, 300)
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in held_out}
    with pytest.raises(UserError, match="split='test': unknown; did you mean"):
        example(0, "test", 0)


def test_a_scene_looks_the_same_at_both_resolutions() -> None:
    scenes = [example(0, "train", index)[1] for index in range(64)]
    small, large = render(scenes, 32).astype(float), render(scenes, 64).astype(float)
    shrunk = large.reshape(64, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(small - shrunk).mean() < 1.0 and np.sqrt(((small - shrunk) ** 2).mean()) < 6.0  # of 255
    for scene, image in zip(scenes, large, strict=True):
        for item in scene.objects:
            pixel = image[int(item.y * 64), int(item.x * 64)] / 255
            assert np.abs(pixel - COLOURS[item.colour]).max() < 0.04
    with pytest.raises(UserError, match="resolution=8: scenes need 24 pixels"):
        render(scenes, 8)


def test_prompts_are_genevals() -> None:
    assert [len(list(all_prompts(task))) for task in TASKS] == [5, 20, 15, 40, 80, 1120]
    chosen = prompts(30, seed=4)
    assert chosen == prompts(30, seed=4) != prompts(30, seed=5)
    assert [p.task for p in chosen] == [task for task in TASKS for _ in range(30)]
    assert len(set(chosen[:30])) == 5 and all(chosen[:30].count(p) == 6 for p in chosen[:30])  # evenly, where few
    assert len(set(chosen[90:120])) == 30
    for p in {p for task in TASKS for p in all_prompts(task)}:
        assert Prompt.from_json(p.to_json()) == p
        assert len(p.prompt.split()) <= MAX_WORDS
    position = next(p for p in all_prompts("position") if p.prompt == "a star left of a cross")
    assert json.loads(position.to_json()) == {
        "tag": "position",
        "include": [{"class": "cross", "count": 1}, {"class": "star", "count": 1, "position": ["left of", 0]}],
        "prompt": "a star left of a cross",
    }
    counting = next(p for p in all_prompts("counting") if p.prompt == "three crosses")
    assert json.loads(counting.to_json())["exclude"] == [{"class": "cross", "count": 4}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "metadata="),
        ('{"tag": "colors", "prompt": "a dog"}', "metadata="),
        ('{"tag": "x", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}', "class='dog': unknown"),
        ('{"tag": "x", "include": [{"class": "star", "count": 1, "color": "brown"}], "prompt": ""}', "color='brown'"),
    ],
)
def test_bad_metadata_says_what_is_wrong(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Prompt.from_json(line)


def test_builder_writes_and_reads_the_examples(tmp_path) -> None:
    config = ScenesConfig(resolution=24, examples=600, validation_examples=30, seed=7)
    builder = Scenes(data_dir=tmp_path, config=config)
    builder.download_and_prepare()
    for split, count in (("train", 600), ("validation", 30)):
        images, captions = examples(7, split, 0, count, 24)
        source = builder.as_data_source(split=split)
        assert len(source) == count
        for index in (0, count // 2, count - 1):
            record = source[index]
            assert record["image"].dtype == np.uint8
            np.testing.assert_array_equal(record["image"], images[index])
            assert record["caption"].decode() == captions[index]
    assert dataclasses.replace(config, seed=8).name != config.name  # never two sets in one folder
    wrong: dict[str, Any] = {"examples": 0, "resolution": 8, "seed": -1}
    for field, value in wrong.items():
        with pytest.raises(UserError, match=f"{field}={value}: expected"):
            dataclasses.replace(config, **{field: value})
