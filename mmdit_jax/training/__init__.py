"""Training: state, step, optimizer, shardings, checkpoints, and the loop that ties them."""
