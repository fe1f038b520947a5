"""`best`: the one config to use."""

import json

from orchestrator.analysis import choice
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli.options import AsJson, Knee, MaxMemory, NameOrNewest
from orchestrator.report.content import newest
from orchestrator.settings import ROOT


def best(name: NameOrNewest = None, max_memory: MaxMemory = None, knee: Knee = False, as_json: AsJson = False) -> None:
    """Name one config: the lowest validation loss of the completed search trials that count for the front."""
    limit = None if max_memory is None else choice.mib_of(max_memory)
    sweep = SweepSnapshot.read(name or newest(ROOT))
    found = choice.choose(sweep.trials, sweep.settings, sweep.reference, max_memory_mib=limit, at_knee=knee)
    print(json.dumps(found.to_dict()) if as_json else found.text)
