"""`sync`: what MLflow lacks of a sweep."""

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.cli.options import AsJson, NameOrNewest, named
from orchestrator.cli.output import print_json
from orchestrator.ledger.ownership import owned
from orchestrator.settings import ROOT, sweep_folder
from trainables.values.errors import SweepError


def sync(name: NameOrNewest = None, as_json: AsJson = False) -> None:
    """Bring MLflow up to date with a sweep's ledger."""
    name = named(name)
    settings = SweepSnapshot.read(name).settings
    from orchestrator.tracking.publishing import publish  # which draws: no wrong name waits for that

    with owned(sweep_folder(name)):  # a running sweep writes MLflow itself; two writers would double its runs
        page = publish(settings, ROOT, interrupted=SweepSnapshot.read(name).is_open)
    if page is None:
        raise SweepError("MLflow could not be written")
    if as_json:
        print_json({"name": name, "mlflow_run": page})
    else:
        print(page)
