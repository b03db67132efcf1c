"""Train the small contrastive models that ship with the package, on the training splits of `scenes` and `emoji`.

    python -m mmdit_jax.evaluation.train_judge                   # the judge, under two minutes on two cores
    python -m mmdit_jax.evaluation.train_judge --model encoder   # the text encoder `tower`, from another seed

Writes float16 weights into the package and prints how well images and captions of the held-out splits find each other.
The encoder is another model than the judge, so that no model is judged by the eyes it was taught with.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmdit_jax.data.emoji import assets
from mmdit_jax.data.scenes.captions import examples as scene_examples
from mmdit_jax.evaluation import contrastive, judge
from mmdit_jax.evaluation.near_misses import KINDS, near_miss, near_misses
from mmdit_jax.host import onednn_options, prepare_host
from mmdit_jax.models.text import tower, weights
from mmdit_jax.models.text.tokens import LENGTH, bucket, word_vector, words

_VARIANTS = 4
"""Captions of an emoji to choose from, and near misses of a scene's caption."""
_WRONG = 2
"""Near misses an image is shown against in one step."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained. The judge and the encoder differ in seed, hence in data and initial weights."""

    path: Path
    seed: int
    steps: int = 500
    batch: tuple[int, int] = (88, 48)
    """Scenes and emoji of a batch."""
    scenes: int = 20_000
    learning_rate: float = 2e-3
    muon_rate: float = 0.02


RECIPES = {
    "judge": Recipe(judge.WEIGHTS, seed=1),
    "encoder": Recipe(tower.WEIGHTS, seed=2),
}


class Pool(NamedTuple):
    """Images with numbered captions. Captions are rows of ``Vocabulary.rows``."""

    images: np.ndarray
    """uint8 [N, 32, 32, 3]"""
    captions: np.ndarray
    """int [N, V]: captions that are true of the image"""
    wrong: np.ndarray
    """int [N, V]: near misses; V is 0 for emoji, which have none"""


class Vocabulary:
    """Every caption once, as rows of word numbers: a step looks hashes and vectors up instead of making them."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {"": 0}
        self._captions: dict[str, int] = {}
        self._rows: list[list[int]] = []

    def add(self, caption: str) -> int:
        """The number of a caption."""
        if caption not in self._captions:
            self._captions[caption] = len(self._rows)
            row = [self._words.setdefault(word, len(self._words)) for word in words(caption)[:LENGTH]]
            self._rows.append(row + [0] * (LENGTH - len(row)))
        return self._captions[caption]

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rows int32 [captions, 16] of words; ids int32 [words]; vectors float32 [words, 64]. Word 0 is padding."""
        known = list(self._words)[1:]
        ids = np.array([0] + [bucket(word, tower.TextTower.buckets) for word in known], np.int32)
        width = tower.TextTower.vector_width
        vectors = np.stack([np.zeros(width, np.float32)] + [word_vector(word, width) for word in known])
        return np.array(self._rows, np.int32), ids, vectors


def scenes_pool(recipe: Recipe, vocabulary: Vocabulary) -> Pool:
    """Freshly rendered training scenes, with near misses of their captions."""
    rng = np.random.default_rng((recipe.seed, 0))
    size = contrastive.RESOLUTION
    images, captions = scene_examples(recipe.seed, "train", 0, recipe.scenes, size)
    right = np.array([vocabulary.add(caption) for caption in captions])
    wrong = [[vocabulary.add(miss) for miss in near_misses(caption, _VARIANTS, rng)] for caption in captions]
    return Pool(images, np.repeat(right[:, None], _VARIANTS, axis=1), np.array(wrong))


def emoji_pool(recipe: Recipe, vocabulary: Vocabulary) -> Pool:
    """The training emoji, each with its caption, its label alone, and its label with other tags."""
    rng = np.random.default_rng((recipe.seed, 1))
    rows, images = assets.load()[0], assets.images_at(contrastive.RESOLUTION)
    kept = [i for i, row in enumerate(rows) if assets.split_of(row.code) == "train"]
    captions = []
    for i in kept:
        texts = [rows[i].caption(), rows[i].label]
        while len(texts) < _VARIANTS:
            tags = rng.permutation(np.array(rows[i].tags, dtype=str))[: rng.integers(1, 4)]
            texts.append(", ".join([rows[i].label, *map(str, tags)]))
        captions.append([vocabulary.add(text) for text in texts])
    return Pool(images[kept], np.array(captions), np.zeros((len(kept), 0), int))


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Slightly moved, recoloured and noisy copies of images float [N, 32, 32, 3] in [-1, 1]."""
    count = images.shape[0]
    keys = jax.random.split(key, 4)
    moves = jax.random.randint(keys[0], (count, 2), -1, 2)
    moved = jax.vmap(lambda image, by: jnp.roll(image, by, axis=(0, 1)))(images, moves)
    tint = 0.06 * jax.random.normal(keys[1], (count, 1, 1, 3))
    sigma = 0.08 * jax.random.uniform(keys[2], (count, 1, 1, 1))
    return jnp.clip(moved + tint + sigma * jax.random.normal(keys[3], images.shape), -1, 1)


def damage(key: jax.Array, images: jax.Array) -> jax.Array:
    """Copies that are worse pictures of the same thing: noisy, blurred, recoloured, faded into the next, or torn.

    Shown to the model as wrong images of the caption, so that it prefers the clean one.
    """
    count = images.shape[0]
    keys = jax.random.split(key, 5)
    strength = jax.random.uniform(keys[0], (count, 1, 1, 1), minval=0.15, maxval=1.0)
    noisy = images + 0.8 * strength * jax.random.normal(keys[1], images.shape)
    blurred = images
    for axis in (1, 2):
        for _ in range(2):
            blurred = (jnp.roll(blurred, 1, axis) + blurred + jnp.roll(blurred, -1, axis)) / 3
    blurred = images + (blurred - images) * (0.5 + 0.5 * strength)
    recoloured = jnp.roll(images, 1, axis=3)
    faded = images + (jnp.roll(images, 1, axis=0) - images) * (0.3 + 0.4 * strength)
    rows = jax.random.randint(keys[2], (count, 2), 4, 28)
    torn = jax.vmap(lambda image, by: jnp.roll(image, by, axis=(0, 1)))(images, rows)
    choice = jax.random.randint(keys[3], (count, 1, 1, 1), 0, 5)
    kinds = (noisy, blurred, recoloured, faded, torn)
    return jnp.clip(sum(jnp.where(choice == i, kind, 0.0) for i, kind in enumerate(kinds)), -1, 1)


class Tables(NamedTuple):
    """``Vocabulary.arrays`` on the device."""

    rows: jax.Array
    ids: jax.Array
    vectors: jax.Array


class Batch(NamedTuple):
    """Scenes first, then emoji."""

    images: jax.Array | np.ndarray
    """uint8 [N, 32, 32, 3]"""
    right: jax.Array | np.ndarray
    """int [N]: a caption of each"""
    wrong: jax.Array | np.ndarray
    """int [M, 2]: near misses of the M scenes"""


def loss_of(model: contrastive.Contrastive, key: jax.Array, batch: Batch, tables: Tables) -> jax.Array:
    """Contrastive loss of a batch, augmented and with damaged copies of every fourth image."""
    count, (scenes, misses) = len(batch.right), batch.wrong.shape
    right, wrong = jnp.asarray(batch.right), jnp.asarray(batch.wrong)
    clean = jnp.asarray(batch.images, jnp.float32) / 127.5 - 1
    # Not of every image: the image tower is what a step costs.
    both = jnp.concatenate([augment(key, clean), damage(jax.random.fold_in(key, 1), clean[::4])])
    texts = tables.rows[jnp.concatenate([right, wrong.reshape(-1)])]
    image, damaged = jnp.split(model.embed_images(both), [count])
    text, missed = jnp.split(model.embed_texts(tables.ids[texts], tables.vectors[texts]), [count])
    scale = model.scale()
    near = jnp.einsum("nd,nkd->nk", image[:scenes], missed.reshape(scenes, misses, -1))
    worse = jnp.full((count,), -jnp.inf).at[::4].set(scale * jnp.sum(damaged * text[::4], axis=1))
    same = (right[:, None] == right[None, :]) & ~jnp.eye(count, dtype=bool)
    return contrastive.contrastive_loss(scale * image @ text.T, same, scale * near, worse)


@functools.lru_cache(maxsize=1)
def make_step(
    steps: int, learning_rate: float, muon_rate: float
) -> tuple[optax.GradientTransformation, Callable[..., tuple[nnx.State, optax.OptState, jax.Array]]]:
    """The optimizer, and the compiled step (params, optimizer state, key, batch, tables) to both anew and the loss."""
    optimizer = _optimizer(steps, learning_rate, muon_rate)
    graph = nnx.graphdef(contrastive.abstract())

    @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=onednn_options())
    def step(
        params: nnx.State, state: optax.OptState, key: jax.Array, batch: Batch, tables: Tables
    ) -> tuple[nnx.State, optax.OptState, jax.Array]:
        loss, gradient = jax.value_and_grad(lambda p: loss_of(nnx.merge(graph, p), key, batch, tables))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return optimizer, step


def train(recipe: Recipe) -> contrastive.Contrastive:
    """A trained model; the same for the same recipe on the same machine."""
    start = time.perf_counter()
    vocabulary = Vocabulary()
    pools = [scenes_pool(recipe, vocabulary), emoji_pool(recipe, vocabulary)]
    tables = Tables(*(jnp.asarray(array) for array in vocabulary.arrays()))
    graph, params = nnx.split(contrastive.blank(recipe.seed), nnx.Param)
    optimizer, step = make_step(recipe.steps, recipe.learning_rate, recipe.muon_rate)
    state = jax.jit(optimizer.init)(params)
    rng = np.random.default_rng((recipe.seed, 2))
    for number in range(recipe.steps):
        picked = [rng.integers(len(pool.images), size=n) for pool, n in zip(pools, recipe.batch, strict=True)]
        images = np.concatenate([pool.images[chosen] for pool, chosen in zip(pools, picked, strict=True)])
        right = np.concatenate(
            [
                pool.captions[chosen, rng.integers(_VARIANTS, size=len(chosen))]
                for pool, chosen in zip(pools, picked, strict=True)
            ]
        )
        columns = rng.integers(_VARIANTS, size=(recipe.batch[0], _WRONG))
        wrong = np.take_along_axis(pools[0].wrong[picked[0]], columns, axis=1)
        key = jax.random.fold_in(jax.random.key(recipe.seed), number)
        params, state, loss = step(params, state, key, Batch(images, right, wrong), tables)
        if number % 50 == 0 or number == recipe.steps - 1:
            print(f"step {number:4d}  loss {float(loss):.3f}  {time.perf_counter() - start:.0f} s", flush=True)
    return nnx.merge(graph, params)


def retrieval(trained: judge.Judge, images: np.ndarray, captions: Sequence[str], among: int = 100) -> float:
    """Share of images whose own caption is the most similar of ``among`` different ones."""
    found = []
    distinct = sorted({caption: i for i, caption in reversed(list(enumerate(captions)))}.values())
    for start in range(0, len(distinct) - among + 1, among):
        rows = distinct[start : start + among]
        similar = trained.embed_images(images[rows]) @ trained.embed_texts([captions[i] for i in rows]).T
        found.append(np.mean(similar.argmax(axis=1) == np.arange(among)))
    return float(np.mean(found))


def _optimizer(steps: int, learning_rate: float, muon_rate: float) -> optax.GradientTransformation:
    """Muon for the blocks' matrices, Adam for the rest (Jordan 2024); both warm up and fall to nearly nothing."""
    warm_up = min(50, steps // 4)
    muon, adam = (
        optax.warmup_cosine_decay_schedule(0.0, rate, warm_up, steps, rate / 100) for rate in (muon_rate, learning_rate)
    )

    def matrices(params: nnx.State) -> nnx.State:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: optax.contrib.MuonDimensionNumbers() if _is_block(path) else None, params
        )

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(muon, adam_learning_rate=adam, muon_weight_dimension_numbers=matrices),
    )


def _is_block(path: tuple[object, ...]) -> bool:
    name = jax.tree_util.keystr(path)
    return "blocks" in name and "kernel" in name


def tie_threshold(trained: judge.Judge, scenes: int = 3000) -> float:
    """The median difference in similarity between two held-out scenes that the same caption describes."""
    images, captions = scene_examples(0, "validation", 0, scenes, contrastive.RESOLUTION)
    similar = trained.similarity(images, captions)
    last: dict[str, float] = {}
    differences = []
    for caption, value in zip(captions, similar.tolist(), strict=True):
        if caption in last:
            differences.append(abs(value - last.pop(caption)))
        else:
            last[caption] = value
    return float(np.median(differences))


def report(trained: judge.Judge) -> dict[str, float]:
    """Accuracies on the held-out splits: of retrieval, and of telling a scene's caption from near misses of it."""
    images, captions = scene_examples(0, "validation", 0, 1000, contrastive.RESOLUTION)
    rng = np.random.default_rng(0)
    rows = assets.load()[0]
    held = [i for i, row in enumerate(rows) if assets.split_of(row.code) == "validation"]
    emoji = assets.images_at(contrastive.RESOLUTION)[held]
    right = trained.similarity(images, captions)
    found = {
        "scenes: right caption of 100": retrieval(trained, images, captions),
        "emoji: right caption of 100": retrieval(trained, emoji, [rows[i].caption() for i in held]),
    }
    for kind in KINDS:
        misses = [near_miss(caption, kind, rng) for caption in captions]
        chosen = [i for i, miss in enumerate(misses) if miss is not None]
        wrong = trained.similarity(images[chosen], [miss for miss in misses if miss is not None])
        found[f"scenes: caption before one with another {kind}"] = float(np.mean(right[chosen] > wrong))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Train one model, write it, print what it can do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(RECIPES), default="judge")
    parser.add_argument("--seed", type=int, help="another one than the recipe's")
    parser.add_argument("--steps", type=int, help="fewer or more than the recipe's")
    parser.add_argument("--output", type=Path, help="npz file; default: the one in the package")
    arguments = parser.parse_args(argv)
    changes = {"seed": arguments.seed, "steps": arguments.steps, "path": arguments.output}
    recipe = dataclasses.replace(RECIPES[arguments.model], **{k: v for k, v in changes.items() if v is not None})

    prepare_host()
    start = time.perf_counter()
    model = train(recipe)
    print(f"trained in {time.perf_counter() - start:.0f} s")
    if arguments.model == "judge":
        tie = np.array(tie_threshold(judge.Judge(model, "")))
        weights.save(recipe.path, {**weights.flatten(model), "tie": tie})
        print(f"a difference within {tie:.4f} is a tie")
    else:
        weights.save(recipe.path, weights.flatten(model.text))
    print(f"{recipe.path}: {recipe.path.stat().st_size / 1e6:.2f} MB")
    for name, value in report(judge.Judge(model, "")).items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
