"""diffusers' SD3Transformer2DModel on the cases of mmdit_cases, and the golden of what it gives.

cd tests && python -m parity.mmdit
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from deterministic import sketch, weights
from diffusers import SD3Transformer2DModel
from mmdit_cases import CASES, COMMITTED, TABLE, Case

GOLDEN = Path(__file__).parents[1] / "goldens" / "mmdit.npz"


def model(case: Case) -> tuple[SD3Transformer2DModel, dict[str, np.ndarray]]:
    """The model with deterministic weights, and its tensors by name; the position table is its own."""
    torch.set_num_threads(1)
    network = SD3Transformer2DModel(**case.diffusers()).eval()
    state = network.state_dict()
    tensors = weights({name: tuple(tensor.shape) for name, tensor in state.items() if name != TABLE})
    tensors[TABLE] = state[TABLE].numpy()
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in tensors.items()})
    return network, tensors


def theirs(case: Case, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """As ``mmdit_cases.ours``: prediction [2, H, W, C] and gradients by name."""
    network, _ = model(case)
    given = {key: torch.from_numpy(value) for key, value in case.inputs(name).items()}
    inputs = {
        "latents": given["latents"].permute(0, 3, 1, 2).contiguous(),
        "context": given["context"],
        "pooled": given["pooled"],
    }
    for tensor in inputs.values():
        tensor.requires_grad_()
    out = network(inputs["latents"], inputs["context"], inputs["pooled"], 1000 * given["t"]).sample.permute(0, 2, 3, 1)
    (out * given["direction"]).sum().backward()
    gradients = {key: parameter.grad.numpy() for key, parameter in network.named_parameters()}
    gradients |= {key: tensor.grad.numpy() for key, tensor in inputs.items()}
    gradients["latents"] = gradients["latents"].transpose(0, 2, 3, 1)
    return out.detach().numpy(), gradients


def golden() -> dict[str, np.ndarray]:
    """Per case: shapes of all tensors (JSON), the prediction, sketches of the gradients and of the position table."""
    arrays: dict[str, np.ndarray] = {}
    for name in COMMITTED:
        case = CASES[name]
        _, tensors = model(case)
        out, gradients = theirs(case, name)
        shapes = {key: array.shape for key, array in tensors.items()}
        arrays[f"{name}/shapes"] = np.array(json.dumps(shapes))
        arrays[f"{name}/out"] = out
        arrays[f"{name}/gradients"] = np.stack([sketch(key, gradients[key]) for key in sorted(gradients)])
        arrays[f"{name}/table"] = sketch(TABLE, tensors[TABLE])
    return arrays


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **golden())
    print(GOLDEN, GOLDEN.stat().st_size)
