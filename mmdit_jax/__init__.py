"""mmdit-jax: scaling studies of text-to-image rectified-flow transformers."""

__version__ = "0.1.0"
