"""diffusers' StableDiffusion3Pipeline on the tiny pipeline: every latent of a trajectory, and the image at its end.

`python -m parity.pipeline` (in tests/) writes tests/goldens/pipeline.npz.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from tiny_pipeline import CASES, NEGATIVE, PROMPT, noise, write_pipeline

GOLDEN = Path(__file__).parents[1] / "goldens" / "pipeline.npz"


def trajectory(folder: Path, case: str) -> dict[str, np.ndarray]:
    """Latents [steps, h, w, C] after each step and the image [H, W, 3] in [0, 1], by diffusers."""
    told = CASES[case]
    torch.set_num_threads(1)
    left_out = {} if told["t5"] else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32, **left_out)
    pipeline.set_progress_bar_config(disable=True)
    latents = []

    def keep(pipeline: object, step: int, t: object, state: dict) -> dict:
        latents.append(state["latents"][0].permute(1, 2, 0).numpy().copy())
        return state

    result = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=told["height"],
        width=told["width"],
        num_inference_steps=told["steps"],
        guidance_scale=told["guidance"],
        max_sequence_length=told["t5_length"],
        latents=torch.from_numpy(noise(case)).permute(0, 3, 1, 2),
        callback_on_step_end=keep,
        output_type="np",
    )
    return {"latents": np.stack(latents), "image": np.asarray(result.images[0], np.float32)}


def main() -> None:
    """Write the golden; images as they are rounded."""
    arrays = {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_pipeline(Path(name) / "sd3")
        for case in CASES:
            found = trajectory(folder, case)
            arrays[f"{case}/latents"] = found["latents"]
            arrays[f"{case}/image"] = np.round(found["image"] * 255).astype(np.uint8)
    np.savez_compressed(GOLDEN, **arrays)
    print(GOLDEN, GOLDEN.stat().st_size)


if __name__ == "__main__":
    main()
