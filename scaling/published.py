"""What the SD3 paper prints (Esser et al. 2024, Tables 1, 2, 5 and 6), under this project's names."""

from __future__ import annotations

import pandas as pd

TABLE_1: dict[str, tuple[float, float, float]] = {
    "rf/lognorm(0.00,1.00)": (1.54, 1.25, 1.50),
    "rf/lognorm(1.00,0.60)": (2.08, 3.50, 2.00),
    "rf/lognorm(0.50,0.60)": (2.71, 8.50, 1.00),
    "rf/mode(1.29)": (2.75, 3.25, 3.00),
    "rf/lognorm(0.50,1.00)": (2.83, 1.50, 2.50),
    "eps/linear": (2.88, 4.25, 2.75),
    "rf/mode(1.75)": (3.33, 2.75, 2.75),
    "rf/cosmap": (4.13, 3.75, 4.00),
    "edm(0.00,0.60)": (5.63, 13.25, 3.25),
    "rf": (5.67, 6.50, 5.75),
    "v/linear": (6.83, 5.75, 7.75),
    "edm(0.60,1.20)": (9.00, 13.00, 9.00),
    "v/cos": (9.17, 12.25, 8.75),
    "edm/cos": (11.04, 14.25, 11.25),
    "edm/rf": (13.04, 15.25, 13.25),
    "edm(-1.20,1.20)": (15.58, 20.25, 15.00),
}
"""Average rank over all 24 settings, over those of 5 steps, over those of 50 steps. The ranks are among all 61."""

TABLE_2: dict[str, tuple[float, float, float, float]] = {
    "rf": (0.247, 49.70, 0.217, 94.90),
    "edm(-1.20,1.20)": (0.236, 63.12, 0.200, 116.60),
    "eps/linear": (0.245, 48.42, 0.222, 90.34),
    "v/cos": (0.244, 50.74, 0.209, 97.87),
    "v/linear": (0.246, 51.68, 0.217, 100.76),
    "rf/lognorm(0.50,0.60)": (0.256, 80.41, 0.233, 120.84),
    "rf/mode(1.75)": (0.253, 44.39, 0.218, 94.06),
    "rf/lognorm(1.00,0.60)": (0.254, 114.26, 0.234, 147.69),
    "rf/lognorm(-0.50,1.00)": (0.248, 45.64, 0.219, 89.70),
    "rf/lognorm(0.00,1.00)": (0.250, 45.78, 0.224, 89.91),
}
"""CLIP score and FID on ImageNet, then on CC12M, with 25 Euler steps."""

GENEVAL_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's tasks, in the order of Table 5's columns after the overall score."""

TABLE_5: tuple[tuple[str, int, int, tuple[float, ...]], ...] = (
    ("depth 18, 512²", 18, 512, (0.58, 0.97, 0.72, 0.52, 0.78, 0.16, 0.34)),
    ("depth 24, 512²", 24, 512, (0.62, 0.98, 0.74, 0.63, 0.67, 0.34, 0.36)),
    ("depth 30, 512²", 30, 512, (0.64, 0.96, 0.80, 0.65, 0.73, 0.33, 0.37)),
    ("depth 38, 512²", 38, 512, (0.68, 0.98, 0.84, 0.66, 0.74, 0.40, 0.43)),
    ("depth 38, 512², DPO", 38, 512, (0.71, 0.98, 0.89, 0.73, 0.83, 0.34, 0.47)),
    ("depth 38, 1024², DPO", 38, 1024, (0.74, 0.99, 0.94, 0.72, 0.89, 0.33, 0.60)),
)
"""GenEval: model, depth, side of an image in pixels, then the overall score and those of GENEVAL_TASKS."""

TABLE_6: dict[int, tuple[float, float, float, float]] = {
    15: (4.30, 0.86, 0.21, 191.13),
    30: (3.59, 0.70, 0.24, 187.96),
    38: (2.71, 0.14, 0.08, 185.96),
}
"""By depth: CLIP score lost in % at 5, 10 and 20 of 50 steps, then the path length Σ‖v dt‖."""
TABLE_6_STEPS = (5, 10, 20)

REFERENCE = "sd3"
"""What ``rank --reference`` calls Table 1's first column."""
SCORES = "sd3-table2"
"""What ``rank`` calls Table 2 in place of a file."""


def ranks() -> pd.DataFrame:
    """Table 1: columns ``name``, ``rank`` (average over all settings), ``rank_5``, ``rank_50``."""
    return pd.DataFrame(
        [{"name": name, "rank": a, "rank_5": few, "rank_50": many} for name, (a, few, many) in TABLE_1.items()]
    )


def scores() -> pd.DataFrame:
    """Table 2 as a table to rank: columns ``name``, ``setting``, ``dataset``, ``steps``, ``clip``, ``fid``."""
    rows = []
    for name, printed in TABLE_2.items():
        for dataset, clip, fid in (("ImageNet", *printed[:2]), ("CC12M", *printed[2:])):
            setting = f"{dataset}/euler-25"
            rows.append({"name": name, "setting": setting, "dataset": dataset, "steps": 25, "clip": clip, "fid": fid})
    return pd.DataFrame(rows)
