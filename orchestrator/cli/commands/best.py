"""`best`: the one config to use."""

import sys

from orchestrator.analysis import choice
from orchestrator.analysis.snapshot import SweepSnapshot, newest
from orchestrator.cli.lines import for_stream
from orchestrator.cli.options import AsJson, Knee, MaxMemory, NameOrNewest
from orchestrator.cli.output import print_json
from orchestrator.settings import ROOT


def best(name: NameOrNewest = None, max_memory: MaxMemory = None, knee: Knee = False, as_json: AsJson = False) -> None:
    """Name one config: the lowest validation loss of the completed search trials that count for the front."""
    limit = None if max_memory is None else choice.mib_of(max_memory)
    found = choice.choose(SweepSnapshot.read(name or newest(ROOT)), max_memory_mib=limit, at_knee=knee)
    if as_json:
        print_json(found.to_dict())
    else:
        print(for_stream(found.text, sys.stdout))
