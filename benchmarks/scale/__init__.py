"""Checkpoints of full size with random weights: whether they load offline and draw, and in how much memory."""
