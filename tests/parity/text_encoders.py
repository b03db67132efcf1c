"""transformers' side of the text encoders' parity; ``python -m parity.text_encoders`` (in tests/) writes the golden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from deterministic import sketch
from text_cases import CASES, Case
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

GOLDEN = Path(__file__).parents[1] / "goldens" / "text_encoders.npz"


def torch_model(case: Case) -> torch.nn.Module:
    """transformers' model of a case with its deterministic weights, float32."""
    if case.is_t5:
        model: torch.nn.Module = T5EncoderModel(T5Config(**case.config))
    else:
        cls = CLIPTextModelWithProjection if case.projected else CLIPTextModel
        model = cls(CLIPTextConfig(**case.config))
    arrays = {name: torch.from_numpy(array) for name, array in case.weights().items()}
    if case.is_t5:
        arrays["encoder.embed_tokens.weight"] = arrays["shared.weight"]
    elif not case.projected:  # transformers 5 names them without the prefix that files have
        arrays = {name.removeprefix("text_model."): array for name, array in arrays.items()}
    model.load_state_dict(arrays)
    return model.eval()


@torch.no_grad()
def theirs(case: Case) -> dict[str, np.ndarray]:
    """What transformers makes of a case, under the names of `text_cases.ours`."""
    out = torch_model(case)(torch.from_numpy(case.ids()).long(), output_hidden_states=True)
    states = {"last": out.last_hidden_state, "hidden": torch.stack(list(out.hidden_states))}
    if not case.is_t5:
        states["pooled"] = out.text_embeds if case.projected else out.pooler_output
        states["penultimate"] = out.hidden_states[-2]
    return {name: tensor.numpy() for name, tensor in states.items()}


def golden() -> dict[str, np.ndarray]:
    """What the golden file holds: all states but the hidden ones, of which it has a sketch a layer."""
    arrays = {}
    for name, case in CASES.items():
        states = theirs(case)
        hidden = states.pop("hidden")
        arrays |= {f"{name}/{key}": array for key, array in states.items()}
        arrays[f"{name}/hidden"] = np.stack([sketch("hidden", layer) for layer in hidden])
    return arrays


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **golden())  # type: ignore[arg-type]
    print(GOLDEN, GOLDEN.stat().st_size)
