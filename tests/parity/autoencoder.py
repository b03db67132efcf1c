"""diffusers' AutoencoderKL on the cases of tests/autoencoder_cases.py; run as a module, it writes the goldens.

PYTHONPATH=tests python -m parity.autoencoder
"""

from __future__ import annotations

import autoencoder_cases as cases
import numpy as np
import torch
from deterministic import sketch
from diffusers import AutoencoderKL

from mmdit_jax.models.autoencoder.config import AutoencoderConfig

torch.set_num_threads(1)


def model(config: AutoencoderConfig, tensors: dict[str, np.ndarray]) -> AutoencoderKL:
    """diffusers' model of a config, with these weights."""
    fields = {name: value for name, value in config.to_diffusers().items() if not name.startswith("_")}
    made = AutoencoderKL(**fields)
    made.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=True)
    return made.eval()


def nchw(array: np.ndarray) -> torch.Tensor:
    """NHWC numpy to NCHW torch."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    """NCHW torch to NHWC numpy."""
    return np.ascontiguousarray(tensor.detach().numpy().transpose(0, 2, 3, 1))


@torch.no_grad()
def outputs(name: str) -> dict[str, np.ndarray]:
    """As ``cases.outputs``, by diffusers."""
    given = {key: nchw(value) for key, value in cases.inputs(name).items()}
    made = model(cases.CONFIGS[name], cases.tensors(name))
    posterior = made.encode(given["images"]).latent_dist
    decoded = made.decode(given["z"]).sample
    made.enable_tiling()
    return {
        "mean": nhwc(posterior.mean),
        "logvar": nhwc(posterior.logvar),
        "decoded": nhwc(decoded),
        "tiled_moments": nhwc(made.encode(given["tiled_images"]).latent_dist.parameters),
        "tiled_decoded": nhwc(made.decode(given["tiled_z"]).sample),
    }


def gradients(name: str) -> dict[str, np.ndarray]:
    """As ``cases.gradients``, by diffusers."""
    given = {key: nchw(value) for key, value in cases.inputs(name).items()}
    made = model(cases.CONFIGS[name], cases.tensors(name))
    images, z = given["images"].requires_grad_(), given["z"].requires_grad_()
    posterior = made.encode(images).latent_dist
    total = (posterior.mean * given["to_mean"]).sum() + (posterior.logvar * given["to_logvar"]).sum()
    total = total + (made.decode(z).sample * given["to_images"]).sum()
    total.backward()
    found = {key: parameter.grad.numpy() for key, parameter in made.named_parameters()}
    return {**found, "images": nhwc(images.grad), "z": nhwc(z.grad)}


def golden(name: str) -> dict[str, np.ndarray]:
    """What a golden holds: outputs, and sketches of gradients under ``grad/``."""
    found = dict(outputs(name))
    found["tiled_decoded"] = found["tiled_decoded"][:, ::2, ::3]
    grads = {f"grad/{key}": sketch(key, value).astype(np.float32) for key, value in gradients(name).items()}
    return {**found, **grads}


if __name__ == "__main__":
    for case in cases.CONFIGS:
        path = cases.golden(case)
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **golden(case))
        print(f"{path}: {path.stat().st_size} bytes")
