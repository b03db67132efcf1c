"""Faults on a real Slurm with real processes: each run ends as one that was left alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import missing
from lab import Lab, Outcome, same
from scenarios import AT_ONCE, SCENARIOS, reference, start_all
from study_of_faults import EVERY

REQUIRED = "MMDIT_REQUIRE_SLURM"
"""Variable by which CI says that there must be one."""
UNLIKE = {"not_finite": "no result", "rewound": None, "other_counts": None}
"""Those that don't end with the same bits."""
NOTHING_LOST = ("untouched", "time_limit", "preempted", "other_counts", "not_finite", "two_submitters")
KILLED = ("kill_one", "kill_all", "stop_one", "hang", "array")


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Outcome]]]:
    """All scenarios, under way."""
    if (why := missing()) is not None:
        if os.environ.get(REQUIRED):
            pytest.fail(f"no Slurm here: {why}")
        pytest.skip(f"no Slurm here: {why}; apt-get install slurmctld slurmd slurm-client munge")
    lab = Lab(tmp_path_factory.mktemp("faults") / "lab")
    began = time.monotonic()
    lab.start()
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield start_all(lab, pool)
    finally:
        pool.shutdown(cancel_futures=True)
        lab.cluster.stop()
        print(f"faults: {time.monotonic() - began:.0f} s")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_run_ends_as_if_nothing_had_happened(outcomes: dict[str, Future[Outcome]], name: str) -> None:
    found, untouched = outcomes[name].result(), outcomes[reference(name)].result()
    verdict = same(found, untouched)
    if name in NOTHING_LOST:
        assert found.steps_lost == 0
    if name in KILLED:  # what came after the newest checkpoint; a step that was being written may not have been one
        assert 0 < found.steps_lost < 2 * EVERY
    if name not in UNLIKE:
        assert verdict == "same bits"
    elif name == "other_counts":
        assert found.result is not None and untouched.result is not None
        assert found.result["val_loss"] == pytest.approx(untouched.result["val_loss"], rel=1e-6)
    elif name == "rewound":
        assert found.result is not None and found.result["rewinds"] == 1 and found.steps_lost > 0
    else:
        assert verdict == "no result" and found.ends == ["diverged"]
