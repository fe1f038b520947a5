"""CUDA-graph capture and attached matrices: what training and evaluation share."""
