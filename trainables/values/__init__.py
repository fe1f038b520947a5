"""Frozen values: settings of a trial and its results. Standard library and NumPy only."""
