"""The coordinate check on the devices of a run's hardware."""

from __future__ import annotations

import pytest
from conftest import TINY_STUDY, on_fake_devices
from test_parametrization import MUP, OPTIMIZER, batch, probe_of, run_of

from launch.coordinates import watched
from mmdit_jax.config import HardwareConfig

MUP_STUDY = TINY_STUDY.replace(
    "position_table=8\n", "position_table=8,\n        parametrization='mup', base_width=32, base_depth=2\n"
)


def changes(**hardware: int) -> list[float]:
    """How far activations move in two steps of batches of four."""
    run = run_of(OPTIMIZER, HardwareConfig(**hardware))
    return [row["change"] for row in watched(run, MUP, {0: [batch(i, 4) for i in range(2)]}, probe_of(1))]


@pytest.mark.slow
def test_any_mesh_shows_the_same() -> None:
    """Eight devices could not share a batch of four: the run's hardware has them along other axes."""
    alone = changes()
    assert max(alone) > 0.01
    spread = on_fake_devices(8, "test_coordinates", "t.changes(fsdp=2, tensor=2, sequence=2)")
    assert spread == pytest.approx(alone, rel=1e-3, abs=1e-6)
    assert changes(accumulation=2) == pytest.approx(alone, rel=1e-3, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "words", "says"),
    [
        (3, [], "batch=8: expected a multiple of 3, data x fsdp = 3 devices"),
        (4, ["--set", "hardware.tensor=4"], "hardware.tensor=4: expected a divisor of the model's 2 heads (1, 2)"),
        (4, ["--set", "hardware.fsdp=3"], "fsdp=3: expected a divisor of the 4 devices (1, 2, 4)"),
    ],
)
def test_what_does_not_divide_is_said_in_one_line(mmdit, devices: int, words: list[str], says: str) -> None:
    mmdit.study.write_text(MUP_STUDY)
    done = mmdit("coordinates", "tiny.py", "--widths", "32", "64", *words, devices=devices)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].endswith(says), done.stderr
    assert "Traceback" not in done.stderr and not list(mmdit.folder.glob("studies/_data/*"))
