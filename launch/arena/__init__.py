"""Blind votes of people on pairs of images: a local page, where votes are kept, which pair is shown next, the board."""
