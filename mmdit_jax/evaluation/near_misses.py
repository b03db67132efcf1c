"""Captions of scenes with one thing wrong: the hard negatives that teach, and test, a judge."""

from __future__ import annotations

import numpy as np

from mmdit_jax.data.scenes.vocabulary import BACKGROUNDS, COLOURS, NUMBERS, SHAPES

KINDS = ("colour", "shape", "number", "relation", "swap", "background")
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_PLURAL = {shape + ("es" if shape.endswith("s") else "s"): shape for shape in SHAPES}
_COUNTS = {**{word: number for number, word in enumerate(NUMBERS) if number > 1}, "a": 1, "an": 1}


def near_miss(caption: str, kind: str, rng: np.random.Generator) -> str | None:
    """A caption that is false where ``caption`` is true, by one change of that kind; None where there is none to make.

    Kinds: another colour, shape, number, background; the opposite relation; two objects' colours exchanged.
    """
    words = caption.replace(",", " ,").split()
    changed = _CHANGES[kind](list(words), rng)
    if changed is None:
        return None
    return _articles(changed).replace(" ,", ",")


def near_misses(caption: str, count: int, rng: np.random.Generator) -> list[str]:
    """``count`` near misses of different kinds; the same may come twice where a caption allows few.

    A caption about something else than scenes has none: then the list is empty.
    """
    out: list[str] = []
    for kind in rng.permutation(KINDS):
        made = near_miss(caption, str(kind), rng)
        if made is not None:
            out.append(made)
    return [out[i % len(out)] for i in range(count)] if out else []


def _colour(words: list[str], rng: np.random.Generator) -> list[str] | None:
    places = [i for i, word in enumerate(words) if word in COLOURS]
    if not places:
        return None
    words[places[rng.integers(len(places))]] = _other(COLOURS, words, rng)
    return words


def _shape(words: list[str], rng: np.random.Generator) -> list[str] | None:
    singular = [_PLURAL.get(word, word) for word in words]
    places = [i for i, word in enumerate(singular) if word in SHAPES]
    if not places:
        return None
    place = places[rng.integers(len(places))]
    other = _other(SHAPES, singular, rng)
    words[place] = next(p for p, s in _PLURAL.items() if s == other) if words[place] in _PLURAL else other
    return words


def _number(words: list[str], rng: np.random.Generator) -> list[str] | None:
    nouns = [i for i, word in enumerate(words) if _PLURAL.get(word, word) in SHAPES]
    if not nouns:
        return None
    noun = nouns[rng.integers(len(nouns))]
    count = next((i for i in range(noun - 1, -1, -1) if words[i] in _COUNTS), None)
    if count is None:
        return None
    now = _COUNTS[words[count]]
    new = now + 1 if now == 1 or (now < len(NUMBERS) - 1 and rng.random() < 0.5) else now - 1
    shape = _PLURAL.get(words[noun], words[noun])
    words[noun] = shape if new == 1 else next(p for p, s in _PLURAL.items() if s == shape)
    words[count] = "a" if new == 1 else NUMBERS[new]
    return words


def _relation(words: list[str], rng: np.random.Generator) -> list[str] | None:
    for i, word in enumerate(words):
        if word in _OPPOSITE:
            words[i] = _OPPOSITE[word]
            return words
    return None


def _swap(words: list[str], rng: np.random.Generator) -> list[str] | None:
    places = [i for i, word in enumerate(words) if word in COLOURS]
    # Exchanging the colours of two circles may well say the same thing again.
    pairs = [
        (i, j)
        for i in places
        for j in places
        if i < j and words[i] != words[j] and _noun(words, i) not in (None, _noun(words, j))
    ]
    if not pairs or len({_noun(words, i) for i in places}) < len(places):
        return None
    i, j = pairs[rng.integers(len(pairs))]
    words[i], words[j] = words[j], words[i]
    return words


def _background(words: list[str], rng: np.random.Generator) -> list[str] | None:
    if words[-1] != "background":
        return None
    start = max(i for i, word in enumerate(words) if word == "a") + 1
    now = " ".join(words[start:-1])
    names = [name for name in BACKGROUNDS if name != now]
    return [*words[:start], *names[rng.integers(len(names))].split(), "background"]


_CHANGES = {
    "colour": _colour,
    "shape": _shape,
    "number": _number,
    "relation": _relation,
    "swap": _swap,
    "background": _background,
}


def _noun(words: list[str], place: int) -> str | None:
    following = words[place + 1] if place + 1 < len(words) else ""
    singular = _PLURAL.get(following, following)
    return singular if singular in SHAPES else None


def _other(
    names: tuple[str, ...] | dict[str, tuple[float, float, float]], words: list[str], rng: np.random.Generator
) -> str:
    free = [name for name in names if name not in words] or list(names)
    return free[rng.integers(len(free))]


def _articles(words: list[str]) -> str:
    following = [*words[1:], ""]
    return " ".join(
        ("an" if after[:1] in "aeiou" and after else "a") if word in ("a", "an") else word
        for word, after in zip(words, following, strict=True)
    )
