"""The runs of one sweep in MLflow: a parent, and a child for each trial; found by their tags, else created."""

from collections.abc import Mapping
from typing import Any

from orchestrator.ledger import Ledger
from orchestrator.settings import SweepSettings
from orchestrator.tracking_store import text_of
from trainables.results import TrialResult


class Runs:
    """The runs of one sweep.

    Args:
        client: an MlflowClient.
    Attributes:
        parent_id: run id of the sweep's own run.
        children: run id of each trial by key.
    """

    def __init__(self, client: Any, experiment_id: str, settings: SweepSettings, ledger: Ledger) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._settings = settings
        self._sweep_id = ledger.fact("id")
        self.parent_id = self._find_parent() or self._create_parent(ledger.fact("created_at"))
        self._children = self._find_children()

    @property
    def children(self) -> Mapping[str, str]:
        return self._children

    def child(self, trial: TrialResult) -> str:
        """Run id of a trial, whose run is created where there is none."""
        if trial.key not in self._children:
            self._children[trial.key] = self._create_child(trial)
        return self._children[trial.key]

    def _search(self, tag: str, value: str) -> list[Any]:
        runs, token = [], None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], f"tags.`{tag}` = '{value}'", max_results=1000, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _find_parent(self) -> str | None:
        found = self._search("sweep_id", self._sweep_id)
        return found[0].info.run_id if found else None

    def _find_children(self) -> dict[str, str]:
        children = {}
        for run in self._search("mlflow.parentRunId", self.parent_id):
            children[run.data.tags["trial_key"]] = run.info.run_id
        return children

    def _create_parent(self, created: float) -> str:
        from mlflow.entities import Param

        tags = {"sweep_id": self._sweep_id, "space": self._settings.space.name}
        run = self._client.create_run(
            self._experiment_id, start_time=int(created * 1000), tags=tags, run_name=self._settings.name
        )
        asked = self._settings.model_dump(mode="json", exclude={"space", "name", "tracking_uri", "address"})
        self._client.log_batch(run.info.run_id, params=[Param(name, text_of(value)) for name, value in asked.items()])
        return run.info.run_id

    def _create_child(self, trial: TrialResult) -> str:
        config = trial.config
        tags = {
            "mlflow.parentRunId": self.parent_id,
            "trial_key": trial.key,
            "precision": config.precision,
            "rank": str(config.rank),
        }
        run = self._client.create_run(
            self._experiment_id,
            start_time=int((trial.started_at or 0) * 1000),
            tags=tags,
            run_name=f"{trial.number:03d} {config.precision} r{config.rank}",
        )
        return run.info.run_id
