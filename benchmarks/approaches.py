"""Approach 1 and 2 on simulated studies of known exponents, and approach 2 on published points: docs/laws.md.

    python -m benchmarks.approaches                          # 3 minutes on one core
    python -m benchmarks.approaches --chinchilla svg_extracted_data.csv

The file is that of github.com/epoch-research/analyzing-chinchilla, data/svg_extracted_data.csv: points of a figure of
Hoffmann et al. 2022, with columns "Model Size", "Training FLOP" and "loss".
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks import command, markdown
from mmdit_jax.errors import UserError
from scaling.allocation import Allocation
from scaling.envelope import optimal_sizes
from scaling.errors import TableError
from scaling.isoflop import isoflops
from scaling.tables import numbers, read_table

E, A, B = 0.1, 40.0, 40.0
"""Of the simulated law L = E + A N^−alpha + B D^−beta, with C = 6 N D."""
BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)
"""Of Hoffmann et al. 2022, section 3.2."""
OUTLIERS = 5
"""Highest losses that are left out, as in Besiroglu et al. 2024 (2404.10102)."""
DRAWS = 400


@dataclass(frozen=True)
class Design:
    """A study: exponents; sizes of a budget, from e^−half to e^half about e^centre times the best; noise of a loss."""

    alpha: float
    beta: float
    sizes: int
    half: float
    noise: float
    budgets: int = 5
    centre: float = 0.0

    @property
    def a(self) -> float:
        """The exponent of N_opt (Hoffmann et al. 2022, eq. 4)."""
        return self.beta / (self.alpha + self.beta)

    def loss(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Without noise."""
        value: np.ndarray = E + A * n**-self.alpha + B * d**-self.beta
        return value

    def draw(self, rng: np.random.Generator) -> pd.DataFrame:
        """One study's table."""
        compute = np.repeat(np.geomspace(1e15, 1e18, self.budgets), self.sizes)
        best = (self.alpha / self.beta) ** (1 / (self.alpha + self.beta)) * (compute / 6) ** self.a
        n = best * np.exp(self.centre + np.tile(np.linspace(-self.half, self.half, self.sizes), self.budgets))
        d = compute / (6 * n)
        loss = self.loss(n, d) * np.exp(self.noise * rng.normal(size=len(n)))
        return pd.DataFrame({"c": compute, "n": n, "d": d, "loss": loss})


DESIGNS = (
    Design(0.35, 0.35, 5, 1.0, 0.003),
    Design(0.35, 0.35, 7, 1.5, 0.003),
    Design(0.35, 0.35, 7, 1.0, 0.01),
    Design(0.3, 0.45, 7, 1.0, 0.003),
    Design(0.3, 0.45, 9, 2.5, 0.003),
    Design(0.3, 0.45, 9, 1.5, 0.003, centre=0.7),
    Design(0.35, 0.35, 7, 1.0, 0.003, budgets=3),
)


def approach_2(design: Design, studies: int) -> list[str]:
    """How often intervals hold the truth: of a, and of the vertices; and what of the error is the method's own."""
    rng = np.random.default_rng(0)
    held, vertices, widths, errors = [], [], [], []
    for study in range(studies):
        table = design.draw(rng)
        found = isoflops(table, compute="c", n="n", d="d", loss="loss", draws=DRAWS, bias_draws=-1, seed=study)
        low, high = found.allocation.intervals["a"]
        if np.isfinite(low):
            held.append(low <= design.a <= high)
            widths.append(high - low)
            errors.append(found.allocation.params["a"] - design.a)
        for budget in found.budgets:
            if not budget.reason:
                best = (design.alpha / design.beta) ** (1 / (design.alpha + design.beta))
                vertices.append(budget.low <= best * (budget.compute / 6) ** design.a <= budget.high)
    exact = isoflops(design.draw(rng).assign(loss=lambda t: design.loss(t["n"], t["d"])), compute="c", n="n", d="d",
                     loss="loss", draws=0, bias_draws=0)  # fmt: skip
    assert exact.bias is not None
    shape = f"{design.budgets} × {design.sizes}, e^±{design.half:g}" + (f" + {design.centre:g}" * (design.centre != 0))
    return [
        f"{design.alpha:g}, {design.beta:g}", shape, f"{100 * design.noise:g} %", f"{len(held)}",
        f"{100 * np.mean(held):.1f} %", f"{100 * np.mean(vertices):.1f} %", f"{np.median(widths):.3f}",
        f"{np.mean(errors):+.4f}", f"{100 * exact.bias.sizes[0].value:+.1f} %", f"{exact.bias.exponent.value:+.4f}",
    ]  # fmt: skip


def curves(sizes: int, seeds: int, noise: float, rng: np.random.Generator) -> pd.DataFrame:
    """Curves of runs from D = N/2 to 500 N under alpha = 0.4, beta = 0.3; each run has a level of its own."""
    parts = []
    for n in np.geomspace(1e5, 1e9, sizes):
        d = n * np.geomspace(0.5, 500, 60)
        for seed in range(seeds):
            loss = (E + A * n**-0.4 + B * d**-0.3) * np.exp(noise * rng.normal())
            parts.append(pd.DataFrame({"c": 6 * n * d, "n": n, "d": d, "loss": loss, "run": f"{n:.0f}-{seed}"}))
    return pd.concat(parts)


def approach_1(sizes: int, seeds: int, noise: float, studies: int) -> list[str]:
    """How often the interval of a holds the truth, and what the same grid has without luck."""
    rng, truth = np.random.default_rng(0), 3 / 7

    def fitted(table: pd.DataFrame, draws: int, seed: int) -> Allocation:
        return optimal_sizes(
            table, compute="c", loss="loss", run="run", n="n", burn_in=0.0, draws=draws, seed=seed
        )  # fmt: skip

    settled = fitted(curves(sizes, 1, 0.0, rng), 0, 0).params["a"]
    found = [fitted(curves(sizes, seeds, noise, rng), DRAWS // 2, study).intervals["a"] for study in range(studies)]
    ends = np.array(found)
    shares = [f"{100 * ((ends[:, 0] <= value) & (value <= ends[:, 1])).mean():.1f} %" for value in (truth, settled)]
    width = f"{np.median(ends[:, 1] - ends[:, 0]):.3f}"
    return [f"{sizes} × {seeds}", f"{100 * noise:g} %", *shares, width, f"{settled:.3f}", f"{truth:.3f}"]


def chinchilla(path: str) -> list[list[str]]:
    """Approach 2 on the published points, with the nine budgets and what the window about them holds."""
    table = read_table(path)
    loss = numbers(table, "loss", positive=True)
    kept = table[loss < np.sort(loss)[-OUTLIERS]]
    rows = []
    for of in ("log", "loss"):
        for tolerance in (0.1, 0.13):
            found = isoflops(
                kept, compute="Training FLOP", n="Model Size", loss="loss", budgets=BUDGETS, tolerance=tolerance, of=of
            )
            used = sum(not budget.reason for budget in found.budgets)
            told = [
                f"{found.allocation.params[name]:.3f} ({low:.3f} to {high:.3f})"
                for name, (low, high) in found.allocation.intervals.items()
                if name in ("a", "b")
            ]
            bias = found.bias
            assert bias is not None
            off = f"{bias.exponent.value:+.3f} ({bias.exponent.low:+.3f} to {bias.exponent.high:+.3f})"
            rows.append([of, f"{tolerance:g}", f"{used} of 9", *told, off, f"{bias.exponent_of_law:.3f}"])
    return rows


def told(columns: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown, its columns parted by bars."""
    print("\n".join(markdown.table(columns.split("|"), rows)), end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="simulated of each design (%(default)s)")
    parser.add_argument("--chinchilla", metavar="CSV", help="approach 2 on these published points, and no simulation")
    args = parser.parse_args()
    if args.chinchilla:
        try:
            rows = chinchilla(args.chinchilla)
        except TableError as error:
            raise UserError(str(error)) from None
        told(
            "parabola of|tolerance|budgets|a|b|the method's own error of a|a of the joint law",
            rows,
        )
        return
    told(
        "alpha, beta|budgets × sizes, grid|noise|studies|a is held|N_opt is held|median width|mean error of a|"
        "told bias of the first N_opt|told bias of a",
        [approach_2(design, args.studies) for design in DESIGNS],
    )
    told(
        "sizes × seeds|noise of a run|truth is held|the grid's own a is held|median width|grid's own a|truth",
        [approach_1(*design, args.studies) for design in ((9, 2, 0.005), (9, 1, 0.01), (6, 2, 0.01))],
    )


if __name__ == "__main__":
    command.run(main)
