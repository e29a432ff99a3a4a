"""PyTorch: files, the names of its parameters, and live modules."""
