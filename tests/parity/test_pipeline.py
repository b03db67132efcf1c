"""The tiny pipeline by diffusers and by us; and the golden is what diffusers gives today."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_text_to_image import check
from tiny_pipeline import CASES, write_pipeline

from parity.pipeline import GOLDEN, trajectory


@pytest.mark.parametrize("case", CASES)
def test_trajectories(case: str, tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "sd3")
    theirs = trajectory(folder, case)
    image = np.round(theirs["image"] * 255).astype(np.uint8)
    check(folder, case, theirs["latents"], image)
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(golden[f"{case}/latents"], theirs["latents"], rtol=1e-4, atol=1e-5)
        assert np.abs(golden[f"{case}/image"].astype(int) - image.astype(int)).max() <= 1
