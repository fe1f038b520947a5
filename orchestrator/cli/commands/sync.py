"""`sync`: what MLflow lacks of a sweep."""

from orchestrator.cli.options import Name
from orchestrator.cli.sweeps import read
from orchestrator.driver.sweep import owned
from orchestrator.settings import ROOT, sweep_folder
from trainables.values.errors import SweepError


def sync(name: Name) -> None:
    """Bring MLflow up to date with a sweep's ledger."""
    settings, *_ = read(name)
    from orchestrator.tracking.publishing import publish  # which draws: no wrong name waits for that

    with owned(sweep_folder(name)):  # a running sweep writes MLflow itself; two writers would double its runs
        _, trials, _ = read(name)
        open_trials = [t for t in trials if t.state in ("queued", "running")]
        page = publish(settings, ROOT, interrupted=bool(open_trials))
    if page is None:
        raise SweepError("MLflow could not be written")
    print(page)
