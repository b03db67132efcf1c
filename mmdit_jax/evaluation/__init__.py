"""Evaluation: sampling from trained weights, GenEval's tasks, the judge, battles between runs, and grids to look at."""
