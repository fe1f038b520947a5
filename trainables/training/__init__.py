"""The training step: one engine eager, one as CUDA graphs; the batches that both read."""
