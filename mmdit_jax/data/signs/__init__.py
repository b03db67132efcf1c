"""`signs`: procedural images of a written word, with captions that spell it; some words are never trained on.

`signs_fixed` are short words in one size, place and colour, which a small model learns to write in minutes.

Nothing here needs a download. The TFDS builder is in ``builder`` (it imports tensorflow_datasets).
"""

from mmdit_jax.data.signs.captions import example, examples, word_of
from mmdit_jax.data.signs.renderer import Sign, render
from mmdit_jax.data.signs.words import HELD_OUT, TRAINED, WORDS

SIGNS = ("signs", "signs_fixed")
"""Names of the data sets."""

__all__ = ["HELD_OUT", "SIGNS", "TRAINED", "WORDS", "Sign", "example", "examples", "render", "word_of"]
