"""Pictures of a sweep, as PNG and on one interactive page."""
