"""MLflow's logged models: one for each member of the front, the best of them in the model registry."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.ledger.rows import Entry
from orchestrator.tracking.client import MlflowException, entities
from orchestrator.tracking.contents import MODEL_TYPE, SWEEP
from orchestrator.tracking.trials import of_model
from trainables.values.results import TrialResult

ALIAS = "best"
"""Of the registered version, so that `models:/SWEEP@best` finds it."""
NEW_STATE_SECONDS = 10
"""How long MLflow may take to make a registered version ready."""


def models_of(client: Any, experiment_id: str, sweep_id: str) -> list[Any]:
    """All logged models of a sweep; each has the tag trial_key."""
    models, token = [], None
    while True:
        page = client.search_logged_models([experiment_id], f"tags.{SWEEP} = '{sweep_id}'", page_token=token)
        models += page
        token = page.token
        if not token:
            return models


class FrontModels:
    """The logged models of one sweep; writing them again changes nothing.

    Args:
        client: an MlflowClient.
        adapters: where the sweep keeps its trials' adapters.
        children: run id of each trial by key.
    """

    def __init__(
        self, client: Any, experiment_id: str, sweep_id: str, adapters: Path, children: Mapping[str, str]
    ) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._sweep_id = sweep_id
        self._adapters = adapters
        self._children = children

    def write(self, members: Iterable[Entry]) -> dict[str, str]:
        """Log a model for each member that has an adapter, and delete those of trials that left the front.

        Returns:
            Model id by trial key.
        """
        known = self._known()
        written = {}
        for entry in members:
            key = entry.result.key
            if (self._adapters / key).is_dir():
                written[key] = self._log(entry, known.get(key))
        for key in known.keys() - written.keys():
            self._client.delete_logged_model(known[key].model_id)
        return written

    def _known(self) -> dict[str, Any]:
        """This sweep's models by trial key; what is there twice, or of another run, is deleted."""
        found = models_of(self._client, self._experiment_id, self._sweep_id)
        models: dict[str, Any] = {}
        for model in sorted(found, key=lambda model: (model.status != "READY", model.model_id)):
            key = model.tags["trial_key"]
            if key in models or model.source_run_id != self._children.get(key):  # its run was deleted, and came again
                self._client.delete_logged_model(model.model_id)
            else:
                models[key] = model
        return models

    def _log(self, entry: Entry, model: Any) -> str:
        """Whole once its status is READY; one that a killed program left half written is written on."""
        trial = entry.result
        run_id, contents = self._children[trial.key], of_model(entry, self._sweep_id)
        if model is None:
            model = self._client.create_logged_model(
                self._experiment_id,
                name=contents.name,
                source_run_id=run_id,
                tags=dict(contents.tags),
                params=dict(contents.params),
                model_type=MODEL_TYPE,
            )
        there = {(metric.key, metric.value) for metric in model.metrics or ()}
        metrics = [
            entities.Metric(name, value, at, step, model_id=model.model_id)
            for name, value, at, step in contents.points
            if (name, value) not in there
        ]
        if metrics:
            self._client.log_batch(run_id, metrics=metrics)
        if model.status != entities.LoggedModelStatus.READY:
            self._client.log_model_artifacts(model.model_id, str(self._adapters / trial.key))
            outputs = self._client.get_run(run_id).outputs
            if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
                self._client.log_outputs(run_id, [entities.LoggedModelOutput(model.model_id, trial.config.max_steps)])
            self._client.finalize_logged_model(model.model_id, entities.LoggedModelStatus.READY)
        return model.model_id

    def register(self, name: str, trial: TrialResult, model_id: str) -> None:
        """Make a model the registered one of its sweep, under ALIAS; the registry keeps earlier choices as versions."""
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name, description=f"The best adapter of sweep {name}.")
        versions = self._client.search_model_versions(f"name = '{name}'")
        version = next((v for v in versions if v.tags.get("model_id") == model_id), None)
        if version is None:
            version = self._client.create_model_version(
                name,
                # not models:/ID, which MLflow looks up in the process's own store instead of this client's
                self._client.get_logged_model(model_id).artifact_location,
                run_id=self._children[trial.key],
                tags={"model_id": model_id, "sweep_id": self._sweep_id, "trial_key": trial.key},
                await_creation_for=NEW_STATE_SECONDS,
                model_id=model_id,
            )
        try:
            current = self._client.get_model_version_by_alias(name, ALIAS).version
        except MlflowException:
            current = None
        if str(current) != str(version.version):
            self._client.set_registered_model_alias(name, ALIAS, version.version)
