"""What is measured, the most important first; standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PRODUCT_SHARE, SAMPLING_SECONDS, SAMPLING_BYTES = 0.6, 6.0, 24e9
"""The goals: of a training step at depth 24, over the measured product; of sampling at depth 38 with 1024 pixels."""


@dataclass(frozen=True)
class Job:
    """A measurement, a process. ``message`` is what the process is sent."""

    name: str
    kind: str
    """``ceilings``, ``training`` or ``sampling``."""
    least_seconds: float
    """Below which it is not begun."""
    most_seconds: float
    """After which it is ended."""
    goals: dict[str, float] = field(default_factory=dict)
    """``product_share`` at least; ``seconds`` and ``bytes`` at most."""
    shape: dict[str, Any] = field(default_factory=dict)

    def message(self, rates: dict[str, float] | None, seconds: float | None = None) -> dict[str, Any]:
        """``rates``: of the ceilings, if they were measured; ``seconds``: until it is ended, if not its most."""
        limit = self.most_seconds if seconds is None else seconds
        return {**asdict(self), **self.shape, "rates": rates, "seconds": limit}


def jobs(*, tiny: bool = False) -> list[Job]:
    """All of them. ``tiny``: the same ways in shapes that a CPU takes, no goals."""
    common: dict[str, Any] = {
        "tiny": tiny,
        "text_tokens": 154,
        "rounds": 5,
        "overrides": {"model.head_size": 8} if tiny else {},
    }

    def depth(of: int) -> int:
        return of // 8 + 1 if tiny else of

    def pixels(of: int) -> int:
        return of // 8 if tiny else of

    def training(of: int, side: int, remat: str = "none", accumulation: int = 1, scan: bool | None = None) -> Job:
        told = "" if remat == "none" else f", remat {remat}"
        told += ", scanned" if scan else ""
        told += "" if accumulation == 1 else f", accumulation {accumulation}"
        shape = {
            **common,
            "depth": depth(of),
            "resolution": pixels(side),
            "accumulation": accumulation,
            "limit_bytes": 2**26 if tiny else None,
            "warm": 3,
            "calls": 4 if tiny else 10,
            "round_seconds": 0.2 if tiny else 1.0,
            "overrides": {
                **common["overrides"],
                "model.remat": remat,
                "model.scan": scan,
                "hardware.accumulation": accumulation,
            },
        }
        goals = {"product_share": PRODUCT_SHARE} if of == 24 and not tiny else {}
        return Job(f"training depth {depth(of)}, {pixels(side)} px{told}", "training", 60, 200, goals, shape)

    def sampling(of: int, batch: int = 1) -> Job:
        shape = {
            **common,
            "depth": depth(of),
            "resolution": pixels(1024),
            "batch": batch,
            "steps": 5 if tiny else 50,
            "rounds": 3 if batch == 1 else 1,
        }
        told = "" if batch == 1 else f", batch {batch}"
        goals = {}
        if of == 38 and batch == 1 and not tiny:
            goals = {"seconds": SAMPLING_SECONDS, "bytes": SAMPLING_BYTES}
        return Job(f"sampling depth {depth(of)}, {pixels(1024)} px{told}", "sampling", 40, 130, goals, shape)

    ceilings = {
        **common,
        "product_size": 256 if tiny else 8192,
        "copy_bytes": 2**20 if tiny else 2**30,
        "warm": 3 if tiny else 30,
        "rounds": 9,
    }
    return [
        Job("ceilings", "ceilings", 10, 60, {}, ceilings),
        sampling(38),
        training(24, 256),
        training(24, 512),
        sampling(24),
        training(15, 256),
        training(18, 256),
        training(15, 512),
        training(18, 512),
        training(24, 256, scan=True),
        training(24, 256, remat="dots"),
        training(24, 512, remat="dots"),
        training(24, 256, accumulation=2),
        sampling(38, batch=4),
    ]
