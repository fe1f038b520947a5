"""Makes the demo's files: `python -m trainables.demo.build`. Left out of the wheel."""
