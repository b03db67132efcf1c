"""Checkpoints of tiny SD3 models, by the names and shapes that diffusers gave the golden; read back independently."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from deterministic import weights
from mmdit_cases import CASES, TABLE

from mmdit_jax.models.sd3.table import whole

GOLDEN = Path(__file__).parent / "goldens" / "mmdit.npz"
VARIANTS = ("SD3-medium", "SD3.5-medium", "SD3.5-large")
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def diffusers_tensors(name: str, dtype: str = "F32") -> dict[str, np.ndarray]:
    """A tiny model's tensors by diffusers' names."""
    with np.load(GOLDEN) as golden:
        shapes = json.loads(str(golden[f"{name}/shapes"]))
    tensors = weights({key: shape for key, shape in shapes.items() if key != TABLE})
    tensors[TABLE] = whole(CASES[name].config())
    return {key: array.astype(DTYPES[dtype]) for key, array in tensors.items()}


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write with the safetensors library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors.numpy.save({key: np.ascontiguousarray(value) for key, value in tensors.items()}))
    return path


def contents(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a file or folder by name: dtype, shape, bytes; read with the safetensors library."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    out: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for file in files:
        for name, item in safetensors.deserialize(file.read_bytes()):
            assert name not in out
            out[name] = (item["dtype"], tuple(item["shape"]), bytes(item["data"]))
    return out


def sparse_stability(path: Path, depth: int, width: int, table: int = 32, dtype: str = "F16") -> int:
    """A Stability checkpoint of zeros that takes no room on disk, as large as wanted; returns its size in bytes.

    The names are written out here once more, from Stability's own code.
    """
    d = width
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, table**2, d), "x_embedder.proj.weight": (d, 16, 2, 2)}

    def dense(name: str, size_out: int, size_in: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size_out, size_in), (size_out,)

    shapes["x_embedder.proj.bias"] = (d,)
    dense("context_embedder", d, 4096)
    for name, size_in in (("t_embedder.mlp.0", 256), ("y_embedder.mlp.0", 2048)):
        dense(name, d, size_in)
        dense(name.replace(".0", ".2"), d, d)
    for block in range(depth):
        for side in ("x_block", "context_block"):
            where, last = f"joint_blocks.{block}.{side}", side == "context_block" and block == depth - 1
            dense(f"{where}.adaLN_modulation.1", (2 if last else 6) * d, d)
            dense(f"{where}.attn.qkv", 3 * d, d)
            shapes[f"{where}.attn.ln_q.weight"] = shapes[f"{where}.attn.ln_k.weight"] = (64,)
            if not last:
                dense(f"{where}.attn.proj", d, d)
                dense(f"{where}.mlp.fc1", 4 * d, d)
                dense(f"{where}.mlp.fc2", d, 4 * d)
    dense("final_layer.adaLN_modulation.1", 2 * d, d)
    dense("final_layer.linear", 64, d)
    header, end = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * DTYPES[dtype].itemsize
        header[f"model.diffusion_model.{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)
    return end
