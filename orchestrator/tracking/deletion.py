"""A sweep's runs, models and saved view taken out of MLflow, which keeps deleted runs until its garbage collection."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.tracking.client import open_client
from orchestrator.tracking.models import models_of
from orchestrator.tracking.runs import families
from orchestrator.tracking.store import store_uri
from orchestrator.tracking.view import tag_of

if TYPE_CHECKING:
    from orchestrator.settings import SweepSettings


def delete(settings: "SweepSettings", root: Path) -> int:
    """Delete the runs of a sweep, its logged models and the view of its trials; returns how many runs."""
    sweep_id = SweepSnapshot.read(settings.name, root).facts.get("id")
    if sweep_id is None:  # which never began
        return 0
    client, experiment_id = open_client(settings.tracking_uri or store_uri(root), root)
    n_runs = 0
    for model in models_of(client, experiment_id, sweep_id):
        client.delete_logged_model(model.model_id)
    for parent, children in families(client, experiment_id, sweep_id):
        for run in [*children, *([parent] if parent else [])]:
            client.delete_run(run.info.run_id)
            n_runs += 1
    saved_view, _ = tag_of(sweep_id)
    if saved_view in client.get_experiment(experiment_id).tags:
        client.delete_experiment_tag(experiment_id, saved_view)
    return n_runs
