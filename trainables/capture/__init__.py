"""CUDA-graph capture, which training and evaluation share."""
