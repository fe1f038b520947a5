"""The runs of one sweep in MLflow: a parent, and a child for each trial; found by their tags, else created.

MLflow takes no name of the caller's for a run, so a call to create one whose answer was lost may have made it, now or
a moment later. Nothing is created without looking first, and what came twice all the same is found and deleted.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from orchestrator.tracking.contents import PARENT, SWEEP, Contents
from orchestrator.tracking.view import CHILD_OF


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
    return [*found, (None, list(chain.from_iterable(of_parent.values())))]


class Runs:
    """The runs of one sweep.

    Args:
        client: an MlflowClient.
        name, created_at: of the sweep.
    Attributes:
        parent_id: run id of the sweep's own run.
    """

    def __init__(self, client: Any, experiment_id: str, sweep_id: str, name: str, created_at: float) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._sweep_id = sweep_id
        self._name = name
        self._created_at = created_at
        self._children: dict[str, str] = {}
        self._names: dict[str, str] = {}  # by run id, of children
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
        if parent.info.run_name != self._name:
            self._client.update_run(self.parent_id, name=self._name)
        surplus = []
        for run, theirs in others:
            surplus += theirs if run is None else [*theirs, run]
        of_trial: dict[str, list[Any]] = {}
        for run in children:
            if "trial_key" in run.data.tags:
                of_trial.setdefault(run.data.tags["trial_key"], []).append(run)
        self._children = {}
        for key, runs in of_trial.items():
            runs.sort(key=lambda run: (run.info.status == "RUNNING", -len(run.data.metrics), run.info.run_id))
            self._children[key] = runs[0].info.run_id
            self._names[runs[0].info.run_id] = runs[0].info.run_name
            surplus += runs[1:]
        for run in surplus:
            self._client.delete_run(run.info.run_id)
        return len(surplus)

    def child(self, key: str, contents: Contents, started_at: float | None) -> str:
        """Run id of a trial, whose run is created, with its tags, where there is none."""
        if key not in self._children:
            began, tags = int((started_at or 0) * 1000), dict(contents.tags)
            run = self._client.create_run(self._experiment_id, start_time=began, tags=tags, run_name=contents.name)
            self._children[key] = run.info.run_id
            self._names[run.info.run_id] = contents.name
        self.rename(self._children[key], contents.name)
        return self._children[key]

    def rename(self, run_id: str, name: str) -> None:
        """Give a trial's run its name, which other seeds of its config change."""
        if self._names[run_id] != name:
            self._client.update_run(run_id, name=name)
            self._names[run_id] = name

    def _create_parent(self) -> Any:
        return self._client.create_run(
            self._experiment_id,
            start_time=int(self._created_at * 1000),
            tags={SWEEP: self._sweep_id},
            run_name=self._name,
        )
