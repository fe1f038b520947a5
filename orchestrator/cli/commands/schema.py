"""`schema`: what programs can rely on."""

import json

from orchestrator.cli import results


def schema() -> None:
    """Print the JSON Schema of what --json prints."""
    print(json.dumps(results.schema(), indent=2))
