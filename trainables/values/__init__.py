"""Frozen values: what a trial is asked, and what it came to. Standard library and NumPy only."""
