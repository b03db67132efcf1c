"""Study files: each defines ``study() -> Study``, a grid of runs in plain Python."""
