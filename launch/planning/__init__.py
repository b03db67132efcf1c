"""What a training step will cost on machines that are not here: read from the program that was compiled for them."""
