"""Pre-encoded data sets: latents and text states of captioned images, computed once (SD3 §5.1, Table 7)."""
