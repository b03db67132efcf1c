"""Laws: how long resampled fits take, whether intervals cover, and whether published laws come back.

    python -m benchmarks.laws --speed
    python -m benchmarks.laws --coverage --studies 1000
    python -m benchmarks.laws --chinchilla svg_extracted_data.csv

``--speed``: a joint law refitted to 4,000 resampled tables of 240 points, 100 starts each. ``--coverage``: how many of
so many simulated studies have the truth in their 95 % intervals. ``--chinchilla``: the points that Besiroglu et al.
(2404.10102) read from figure 4 of Hoffmann et al. 2022, public on GitHub as epoch-research/analyzing-chinchilla, file
data/svg_extracted_data.csv; their fit without the five highest losses is printed beside ours.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import numpy as np

from scaling.law_bootstrap import Problem
from scaling.law_kinds import JOINT, POWER
from scaling.laws import Law, fit_law
from scaling.powers import Powers

TRUE = {"E": 0.08, "A": 20.0, "alpha": 0.4, "B": 30.0, "beta": 0.5}
DESIGNS = {"6 sizes × 3 budgets × 2 seeds": (6, 3, 2), "8 sizes × 6 budgets × 3 seeds": (8, 6, 3)}
NOISES = ("normal", "t3")
HUBERS = (1e-3, 0.1)
PUBLISHED = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
"""Besiroglu et al. 2024, table 1: their refit of Hoffmann et al.'s approach 3."""


def main() -> None:
    """Run what is asked for, and print a JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--studies", type=int, default=1000, help="of --coverage, a design (%(default)s)")
    parser.add_argument("--bootstrap", type=int, default=0, help="draws a study, for percentile intervals too")
    parser.add_argument("--chinchilla", metavar="CSV")
    args = parser.parse_args()
    if args.speed:
        print(json.dumps(speed()), flush=True)
    if args.chinchilla:
        print(json.dumps(chinchilla(args.chinchilla)), flush=True)
    if args.coverage:
        spawn = multiprocessing.get_context("spawn")
        free = spawn.Queue()
        cores = sorted(os.sched_getaffinity(0))
        for core in cores:
            free.put(core)
        with ProcessPoolExecutor(len(cores), mp_context=spawn, initializer=_one_core, initargs=(free,)) as pool:
            for huber, noise, (name, design) in itertools.product(HUBERS, NOISES, DESIGNS.items()):
                found = coverage(design, noise, huber, args.studies, args.bootstrap, pool)
                print(json.dumps({"design": name, "noise": noise, "huber": huber, **found}), flush=True)


def simulated(design: tuple[int, int, int], rng: np.random.Generator, noise: str, size: float = 0.005) -> Any:
    """(N, D, loss) of a joint law whose runs miss it by 0.5 %."""
    sizes, budgets, seeds = design
    span = 10.0 if budgets < 4 else 100.0
    grid = np.meshgrid(np.geomspace(2e5, 7e6, sizes), np.geomspace(1e4, 1e4 * span, budgets), np.arange(seeds))
    n, d = grid[0].ravel(), grid[1].ravel()
    shock = rng.normal(size=n.size) if noise == "normal" else rng.standard_t(3, size=n.size) / np.sqrt(3)
    return n, d, truth(n, d) * np.exp(size * shock)


def truth(n: Any, d: Any) -> Any:
    """The simulated law."""
    return TRUE["E"] + TRUE["A"] * n ** -TRUE["alpha"] + TRUE["B"] * d ** -TRUE["beta"]


def coverage(
    design: tuple[int, int, int], noise: str, huber: float, studies: int, draws: int, pool: Executor
) -> dict[str, Any]:
    """Shares of studies whose 95 % interval holds the truth: of every parameter, of the law and of a new run at twice
    the largest N and D; of the power law along the budgets that are best for each size too."""
    started = time.perf_counter()
    one = functools.partial(_study, design, noise, huber, draws)
    told = list(pool.map(one, range(studies), chunksize=5))
    shares = {name: round(float(np.mean([hits[name] for hits in told])), 4) for name in told[0]}
    return {"studies": studies, "covered": shares, "seconds": round(time.perf_counter() - started, 1)}


def _study(design: tuple[int, int, int], noise: str, huber: float, draws: int, study: int) -> dict[str, bool]:
    """Whether each interval of one simulated study, made from the seed ``study``, holds the truth."""
    rng = np.random.default_rng(study)
    n, d, loss = simulated(design, rng, noise)
    law = fit_law(JOINT, [n, d], loss, huber=huber, draws=draws, seed=study)
    hits = _hits(law, TRUE, draws)
    far = (2 * n.max(), 2 * d.max())
    there = float(truth(*far))
    low, high = law.profile_band(*far)
    hits["law at 2N, 2D"] = bool(low <= there <= high)
    shock = rng.normal() if noise == "normal" else rng.standard_t(3) / np.sqrt(3)
    low, high = law.new_run(*far)
    hits["new run at 2N, 2D"] = bool(low <= there * np.exp(0.005 * shock) <= high)
    compute = np.geomspace(1e12, 1e15, len(n))
    known = {"a": 30.0, "b": 0.15, "floor": 0.05}
    power = (known["floor"] + known["a"] * compute ** -known["b"]) * (loss / truth(n, d))
    return hits | _hits(fit_law(POWER, [compute], power, huber=huber, draws=draws, seed=study), known, draws)


def _hits(law: Law, known: dict[str, float], draws: int) -> dict[str, bool]:
    found = {}
    for name, value in known.items():
        low, high = law.intervals[name]
        found[name] = bool(low <= value <= high)
        if draws:
            low, high = law.percentiles[name]
            found[f"{name} (percentiles)"] = bool(low <= value <= high)
    return found


def _one_core(free: Any) -> None:
    """Keep a worker on a core of its own: a fit on several threads takes twice the processor time."""
    os.sched_setaffinity(0, {free.get()})


def speed(rows: int = 240, draws: int = 4000, starts: int = 100) -> dict[str, Any]:
    """Seconds of the resampled fits; the floor is the exponentials of one visit of every table by every start."""
    rng = np.random.default_rng(0)
    n, d = (np.exp(rng.uniform(np.log(low), np.log(high), rows)) for low, high in ((1e7, 1e10), (1e9, 3e11)))
    target = np.log(1.8 + 480 * n**-0.35 + 2100 * d**-0.37) + rng.normal(0, 0.005, rows)
    u = np.log(np.stack([n, d], axis=1))
    problem = Problem(Powers(2, True), u - u.mean(0), target, np.arange(rows), 1e-3, u.mean(0), starts)
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=draws).astype(np.float64)
    problem.refit(target[None], weights[:600])  # compiles
    started = time.perf_counter()
    thetas = problem.refit(target[None], weights)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    np.exp(np.broadcast_to(u[:, 0], (400, rows))).sum()
    each = (time.perf_counter() - started) / (400 * rows)
    # Whether the two that descend are as low as the best of all that could: on some of the tables.
    few = 20
    best = problem.refit(target[None], weights[:few])
    every = Problem(problem.form, problem.u, target, problem.member, problem.delta, problem.centre, starts)
    gaps = [_gap(every, target, weights[k], best[k]) for k in range(few)]
    return {
        "rows": rows,
        "draws": draws,
        "starts": starts,
        "seconds": round(seconds, 2),
        "floor_seconds": round(each * rows * draws * starts * 2, 2),
        "finite": bool(np.isfinite(thetas).all()),
        "above_the_best_of_all_starts": float(np.max(gaps)),
    }


def _gap(problem: Problem, target: np.ndarray, weight: np.ndarray, theta: np.ndarray) -> float:
    """By how much, relative, the objective at ``theta`` is above the lowest of full descents from every start."""
    from scaling.descent import huber
    from scaling.projection import projected_starts

    seeds = projected_starts(
        problem.form,
        problem.u,
        target[None],
        weight[None],
        delta=problem.delta,
        lower=problem.lower,
        upper=problem.upper,
        starts=problem.starts,
        keep=problem.starts,
    )[0]
    _, objectives = problem.descend(seeds, target[None], weight[None])
    ours = float((weight * huber(problem.form.log_loss(theta[None], problem.u)[0] - target, problem.delta)).sum())
    return ours / float(objectives.min()) - 1


def chinchilla(path: str) -> dict[str, Any]:
    """Our fit of the published points beside the published fit of them."""
    from scaling.tables import numbers, read_table

    table = read_table(path)
    n, c, loss = (numbers(table, name, positive=True) for name in ("Model Size", "Training FLOP", "loss"))
    law = fit_law(JOINT, [n, c / (6 * n)], loss, drop_highest=5, draws=1000)
    return {"published": PUBLISHED, **law.to_json()}


if __name__ == "__main__":
    main()
