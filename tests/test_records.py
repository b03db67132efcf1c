"""An encoded example is what was packed, to bfloat16's precision."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import safetensors
from deterministic import values

from mmdit_jax.data.records import Encoded, pack, unpack
from mmdit_jax.models.text import TextStates


def test_round_trip() -> None:
    text = {
        "clip_l": TextStates(values("tokens", (7, 6)), values("pooled", (6,))),
        "t5": TextStates(values("t5", (9, 5)), np.zeros(0, np.float32)),
    }
    example = Encoded(values("mean", (4, 6, 8)), values("logvar", (4, 6, 8)), text, "a “red”\ncircle", "tar/00001#7")
    back = unpack(pack(example))
    assert (back.caption, back.key) == (example.caption, example.key)
    for found, given in (
        (back.mean, example.mean),
        (back.logvar, example.logvar),
        *((back.text[name][i], text[name][i]) for name in text for i in (0, 1)),
    ):
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found, given.astype(ml_dtypes.bfloat16))


def test_size_is_that_of_the_paper() -> None:
    """Table 7's 65.5 kB for the latents of a 256 px image is mean and variance in two bytes each."""
    latents = np.zeros((32, 32, 16), np.float32)
    none = Encoded(np.zeros((0,)), np.zeros((0,)), {}, "", "")
    data = len(pack(Encoded(latents, latents, {}, "", ""))) - len(pack(none))
    assert abs(data - 65_536) < 64


def test_bytes_depend_on_the_example_only() -> None:
    """In processes whose hashes are salted differently, too; and the library reads what is written."""
    script = (
        "import numpy as np, hashlib; from mmdit_jax.data.records import Encoded, pack;"
        "from mmdit_jax.models.text import TextStates;"
        "a = np.arange(24, dtype=np.float32).reshape(2, 3, 4);"
        "print(hashlib.sha256(pack(Encoded(a, -a, {'t5': TextStates(a[0], a[0, 0])}, 'é', 'k'))).hexdigest())"
    )
    printed = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(printed) == 1
    array = values("mean", (3, 2, 4))
    data = pack(Encoded(array, array, {}, "“é”\n", "k"))
    names = {name: item["shape"] for name, item in safetensors.deserialize(data)}
    assert names == {"mean": [3, 2, 4], "logvar": [3, 2, 4]}
