"""What runs are called beside each other that differ by seed alone, and so have one name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def names_of(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What runs are called by their configs (of config.json): as ``seed_names`` where those of one name differ by seed
    alone, else each by its name.

    Raises KeyError of a config without a name.
    """
    known = [str(config["name"]) for config in configs]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, config in zip(known, configs, strict=True):
        groups.setdefault(name, []).append(config)
    apart = {name for name, group in groups.items() if _by_seed_alone(group)}
    seeds = [config["seed"] if name in apart else 0 for name, config in zip(known, configs, strict=True)]
    return seed_names(list(zip(known, seeds, strict=True)))


def _by_seed_alone(configs: Sequence[Mapping[str, Any]]) -> bool:
    kinds = {json.dumps({**config, "seed": None, "hardware": None}, sort_keys=True) for config in configs}
    seeds = [config.get("seed") for config in configs]
    return len(kinds) == 1 and all(isinstance(seed, int) for seed in seeds) and len(set(seeds)) == len(seeds)


def seed_names(runs: Sequence[tuple[str, int]]) -> list[str]:
    """Of (name, seed) pairs: of one name the least seed keeps it, the others are ``NAME seed=K``.

    Runs of one name and one seed stay of one name.
    """
    names = {name for name, _ in runs}
    least: dict[str, int] = {}
    for name, seed in runs:
        least[name] = min(seed, least.get(name, seed))
    found = []
    for name, seed in runs:
        label = name if seed == least[name] else f"{name} seed={seed}"
        while label != name and label in names:  # somebody called a run so
            label += "*"
        found.append(label)
    return found
