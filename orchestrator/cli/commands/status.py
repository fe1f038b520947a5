"""`status`: how far a sweep is."""

from dataclasses import asdict
from time import time
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.analysis.answer import answer_of
from orchestrator.analysis.overview import state_of
from orchestrator.analysis.snapshot import SweepSnapshot, newest
from orchestrator.analysis.timeline import lines
from orchestrator.cli.options import AsJson, NameOrNewest
from orchestrator.cli.output import print_json, print_text
from orchestrator.cli.status_text import status_view
from orchestrator.cluster.gpu_memory import gpu_memory, text_of
from orchestrator.settings import ROOT
from orchestrator.settings.command import command


def status(
    name: NameOrNewest = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="where its time went, process by process")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a sweep is."""
    name = name or newest(ROOT)
    snapshot = SweepSnapshot.find(name)
    found, state = snapshot.status(now=time()), state_of(snapshot)
    if as_json:
        spans = list(map(asdict, snapshot.spans)) if timeline else None
        print_json({"name": name, "state": state, **asdict(found), "timeline": spans})
    elif timeline:
        print_text("\n".join(lines(snapshot.spans, Console().width)))
    else:
        memory = text_of(gpu_memory()) if found.n_done < found.n_expected else ""
        print_text(answer_of(snapshot))
        hint, is_cut = "", state == "finished" and found.phase != "ended"  # its process was killed while it wrote
        if state == "stopped":
            hint = f"{command()} resume {name} goes on"
        elif is_cut:
            hint = f"{command()} sync {name} writes what is missing"
        halted = "stopped" if hint else "recorded" if state == "recorded" and found.phase != "ended" else ""
        Console().print(status_view(name, found, memory, hint=hint, halted=halted))
