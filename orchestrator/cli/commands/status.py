"""`status`: how far a sweep is."""

import json
from dataclasses import asdict
from time import time

from rich.console import Console

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli.options import AsJson, Name
from orchestrator.cli.progress import status_view
from orchestrator.cluster.gpu_memory import gpu_memory, text_of


def status(name: Name, as_json: AsJson = False) -> None:
    """Show how far a sweep is."""
    found = SweepSnapshot.read(name).status(now=time())
    if as_json:
        print(json.dumps({"name": name, **asdict(found)}))
    else:
        Console().print(status_view(name, found, text_of(gpu_memory()) if found.n_done < found.n_expected else ""))
