"""Where in the base 4 bits shows, without training."""
