"""The base model and its adapter; the only room that knows an architecture."""
