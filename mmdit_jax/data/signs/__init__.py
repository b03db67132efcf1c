"""`signs`: procedural images of a written word, with captions that spell it; some words are never trained on.

Nothing here needs a download. The TFDS builder is in ``builder`` (it imports tensorflow_datasets).
"""

from mmdit_jax.data.signs.captions import example, examples, word_of
from mmdit_jax.data.signs.renderer import Sign, render
from mmdit_jax.data.signs.words import HELD_OUT, TRAINED, WORDS

__all__ = ["HELD_OUT", "TRAINED", "WORDS", "Sign", "example", "examples", "render", "word_of"]
