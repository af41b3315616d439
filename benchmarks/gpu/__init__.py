"""What needs a CUDA device: equality, speed and memory at true scale, with random weights."""
