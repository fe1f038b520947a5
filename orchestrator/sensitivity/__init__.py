"""Where in the base 4 bits are felt, without training."""
