"""`list`: the sweeps that are here."""

import time
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.analysis.overview import Overview, overviews
from orchestrator.cli.options import AsJson
from orchestrator.cli.output import print_json, print_text
from orchestrator.settings import ROOT
from orchestrator.settings.command import command


def list(as_json: AsJson = False) -> None:
    """List the sweeps under mlflow_runs/, the newest first, then those that git keeps."""
    found = overviews(ROOT)
    if as_json:
        print_json({"sweeps": [asdict(one) for one in found]})
        return
    if all(one.state == "recorded" for one in found):
        print_text(f"no sweep under {ROOT / 'sweeps'} yet; run one: {command()} run")
    if found:
        Console().print(_table(found))
    for one in found:
        if one.fault:
            print_text(f"{one.name}: {one.fault}")


def _table(found: "list[Overview]") -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("name", overflow="fold")
    table.add_column("state", no_wrap=True)
    for heading in ("trials", "front", "loss\n(nats)"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("began", no_wrap=True)
    for one in found:
        loss = "-" if one.eval_loss_nats is None else f"{one.eval_loss_nats:.4f}"
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.began_at))
        table.add_row(one.name, one.state, f"{one.n_done}/{one.n_expected}", str(one.front_size), loss, began)
    return table
