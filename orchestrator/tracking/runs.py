"""The runs of one sweep in MLflow: a parent, and a child for each trial; found by their tags, else created.

MLflow takes no name of the caller's for a run, so a call to create one whose answer was lost may have made it, now or
a moment later. Nothing is created without looking first, and what came twice all the same is found and deleted.
"""

from collections.abc import Mapping
from typing import Any

from orchestrator.ledger import Ledger
from orchestrator.settings import SweepSettings
from orchestrator.tracking.store import text_of
from trainables.config import State
from trainables.results import TrialResult

SWEEP, CHILD_OF, PARENT = "sweep_id", "child_of_sweep", "mlflow.parentRunId"
"""Tags: of the parent and of each child the sweep's id, and of each child its parent's run id."""
STATUS: Mapping[State, str] = {
    "completed": "FINISHED",
    "pruned": "KILLED",
    "refused": "KILLED",
    "oom": "FAILED",
    "diverged": "FAILED",
    "failed": "FAILED",
}
"""Of a run, by the state in which its trial ended."""


def search(client: Any, experiment_id: str, tag: str, value: str) -> list[Any]:
    """All runs that are not deleted with this tag."""
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def families(client: Any, experiment_id: str, sweep_id: str) -> list[tuple[Any | None, list[Any]]]:
    """Each run of a sweep with its children, the one with the most first; last None with those of no run of it."""
    of_parent: dict[str | None, list[Any]] = {}
    for run in search(client, experiment_id, CHILD_OF, sweep_id):
        of_parent.setdefault(run.data.tags.get(PARENT), []).append(run)
    parents = search(client, experiment_id, SWEEP, sweep_id)
    found = [(run, of_parent.pop(run.info.run_id, [])) for run in parents]
    found.sort(key=lambda family: (-len(family[1]), family[0].info.start_time, family[0].info.run_id))
    return [*found, (None, [run for strays in of_parent.values() for run in strays])]


class Runs:
    """The runs of one sweep.

    Args:
        client: an MlflowClient.
    Attributes:
        parent_id: run id of the sweep's own run.
    """

    def __init__(self, client: Any, experiment_id: str, settings: SweepSettings, ledger: Ledger) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._settings = settings
        self._sweep_id = ledger.fact("id")
        self._created_at = ledger.fact("created_at")
        self._children: dict[str, str] = {}
        self.parent_id = ""
        self.look()

    @property
    def children(self) -> Mapping[str, str]:
        """Run id of each trial by key."""
        return self._children

    def look(self) -> int:
        """Find what is there, create the parent where there is none, and delete what is there twice or belongs nowhere.

        Returns:
            How many runs were deleted.
        """
        first, *others = families(self._client, self._experiment_id, self._sweep_id)
        parent, children = first
        if parent is None:
            children, others = [], [first]
            parent = self._create_parent()
        self.parent_id = parent.info.run_id
        if not parent.data.params:  # a program was killed after it created the run
            self._write_params()
        surplus = [run for _, theirs in others for run in theirs] + [run for run, _ in others if run]
        of_trial: dict[str, list[Any]] = {}
        for run in children:
            if "trial_key" in run.data.tags:
                of_trial.setdefault(run.data.tags["trial_key"], []).append(run)
        self._children = {}
        for key, runs in of_trial.items():
            runs.sort(key=lambda run: (run.info.status == "RUNNING", -len(run.data.metrics), run.info.run_id))
            self._children[key] = runs[0].info.run_id
            surplus += runs[1:]
        for run in surplus:
            self._client.delete_run(run.info.run_id)
        return len(surplus)

    def child(self, trial: TrialResult) -> str:
        """Run id of a trial, whose run is created where there is none."""
        if trial.key not in self._children:
            self._children[trial.key] = self._create_child(trial)
        return self._children[trial.key]

    def _create_parent(self) -> Any:
        tags = {SWEEP: self._sweep_id, "space": self._settings.space.name}
        return self._client.create_run(
            self._experiment_id, start_time=int(self._created_at * 1000), tags=tags, run_name=self._settings.name
        )

    def _write_params(self) -> None:
        from mlflow.entities import Param

        asked = self._settings.model_dump(mode="json", exclude={"space", "name", "address"})
        self._client.log_batch(self.parent_id, params=[Param(name, text_of(value)) for name, value in asked.items()])

    def _create_child(self, trial: TrialResult) -> str:
        config = trial.config
        tags = {
            PARENT: self.parent_id,
            CHILD_OF: self._sweep_id,
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
