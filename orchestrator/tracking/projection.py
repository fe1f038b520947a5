"""MLflow as a projection of the ledger: only this package imports mlflow.

`Tracker.sync` brings MLflow up to date with a ledger and may be called again and again: it looks
first for the runs that are there (by tags), and every metric carries the ledger's own time, so
that writing twice changes nothing. MLflow is never read to decide anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.analysis.front import REFERENCE
from orchestrator.analysis.verdict import figures_of, verdict_of
from orchestrator.figures import gallery
from orchestrator.ledger import Ledger
from orchestrator.ledger.rows import Entry
from orchestrator.report import content as report
from orchestrator.report import text as report_text
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.sweep import SweepResult, result_of
from orchestrator.tracking import live as tracking_live
from orchestrator.tracking.inputs import log_data
from orchestrator.tracking.models import FrontModels
from orchestrator.tracking.runs import STATUS, Runs
from orchestrator.tracking.store import open_client, store_uri, text_of
from trainables.config import State, canonical_json

NOTE_CHARS = 5000
"""Of the parent run's description; MLflow takes 8000."""
MAX_METRICS = 1000
"""That MLflow takes at once."""


class Tracker:
    """Writes one sweep into MLflow: a parent run, and a child run for each trial.

    Any call may fail; what it leaves undone, the next one does, after a `look` at what is there by now.
    """

    def __init__(
        self, settings: SweepSettings, ledger: Ledger, root: Path, opened: tuple[Any, str] | None = None
    ) -> None:
        """Open MLflow, unless it is `opened`: see store.open_client."""
        self._settings = settings
        self._ledger = ledger
        self._folder = sweep_folder(settings.name, root)
        uri = settings.tracking_uri or store_uri(root)
        self._client, self.experiment_id = opened or open_client(uri, root)
        self._tags: dict[str, dict[str, str]] = {}  # run id -> tags as last written
        self._n_rungs: dict[str, int] = {}
        self._ended: dict[str, tuple[State, bool]] = {}  # run id -> state, and whether it was judged
        self._runs = Runs(self._client, self.experiment_id, settings, ledger)
        self._data_logged = False
        self._growth: set[tuple[str, float, int, int]] = set()  # points as written
        self._live = tracking_live.Live(self._client, self.run_id)

    @property
    def run_id(self) -> str:
        """Of the sweep's own run."""
        return self._runs.parent_id

    @property
    def n_whole(self) -> int:
        """Trials whose runs are written to the end."""
        return sum(run_id in self._ended for run_id in tuple(self._runs.children.values()))

    def look(self) -> int:
        """Look again at the runs that are there, after a call whose answer did not come; see Runs.look."""
        return self._runs.look()

    def sync(self, *, final: bool = False, live: bool = False) -> None:
        """Write what the ledger holds and MLflow does not.

        Args:
            final: no similarity will come any more, so trials that wait for theirs end too.
            live: trials come in, so keep the figures up to date and watch the machine.
        """
        result = result_of(self._settings, self._ledger)
        if not self._data_logged:
            log_data(self._client, self.run_id, result.workload, self._ledger.fact("data_counts", {}))
            self._data_logged = True
        for entry in self._ledger.entries():
            if entry.result.state != "queued":
                self._sync_trial(entry, on_front=entry.result.key in result.front.keys, final=final)
        self._sync_growth(result, final=final)
        if live:
            self._live.update(result)
        links = tracking_live.links(self.experiment_id, self.run_id)
        has_front = self._live.has_front or (self._folder / gallery.FOLDER / gallery.FRONT).is_file()
        picture = tracking_live.picture(self.run_id) if has_front else ""
        note = report_text.description(report.read(self._settings, self._ledger), NOTE_CHARS, links, picture)
        self._set_tags(self.run_id, {"mlflow.note.content": note, **_workload_tags(result)})

    def _sync_growth(self, result: SweepResult, *, final: bool) -> None:
        from mlflow.entities import Metric

        fixed = self._ledger.fact(REFERENCE) is not None
        points = set(tracking_live.growth(result, reference_is_fixed=fixed, final=final)) - self._growth
        if points:
            metrics = [Metric(*point) for point in sorted(points)]
            for i in range(0, len(metrics), MAX_METRICS):
                self._client.log_batch(self.run_id, metrics=metrics[i : i + MAX_METRICS])
            self._growth |= points

    def _sync_trial(self, entry: Entry, *, on_front: bool, final: bool) -> None:
        trial = entry.result
        run_id = self._runs.child(trial)
        self._sync_metrics(run_id, entry)
        tags = {"state": trial.state, "on_pareto_front": str(on_front).lower(), "origin": trial.origin}
        tags |= {"reason": trial.reason} if trial.reason else {}
        verdict = verdict_of(trial, self._settings.min_similarity) if trial.state in STATUS else None
        self._set_tags(run_id, tags | ({"verdict": str(verdict)} if verdict else {}))
        waits = trial.state == "completed" and trial.config.precision == "nf4" and trial.similarity is None
        if (
            trial.state in STATUS
            and self._ended.get(run_id) != (trial.state, trial.judgement is not None)
            and (final or not waits)
        ):
            self._end_child(run_id, entry)

    def _sync_metrics(self, run_id: str, entry: Entry) -> None:
        from mlflow.entities import Metric, Param

        trial = entry.result
        first = run_id not in self._n_rungs
        done = self._n_rungs.get(run_id, 0)
        if done > len(trial.history):  # the trial was taken up again
            done = 0
        new = list(zip(trial.history, entry.measured_at, strict=True))[done:]
        if first:
            params = [Param(name, text_of(value)) for name, value in trial.config.to_dict().items()]
            self._client.log_batch(run_id, params=params)
        for measurement, at in new:
            values = asdict(measurement) | {"rank": trial.config.rank}
            step = values.pop("step")
            metrics = [Metric(name, float(value), int(at * 1000), step) for name, value in values.items()]
            self._client.log_batch(run_id, metrics=metrics)
        self._n_rungs[run_id] = len(trial.history)

    def _end_child(self, run_id: str, entry: Entry) -> None:
        from mlflow.entities import Metric

        trial = entry.result
        ended = int((trial.ended_at or 0) * 1000)
        values = figures_of(trial)
        if trial.train_seconds is not None:
            values["train_seconds"] = trial.train_seconds
        metrics = [Metric(name, float(value), ended, trial.config.max_steps) for name, value in values.items()]
        if metrics:
            self._client.log_batch(run_id, metrics=metrics)
        self._set_tags(run_id, {f"env.{name}": value for name, value in trial.environment.items()})
        adapter = self._folder / "adapters" / trial.key
        if trial.state == "completed" and adapter.is_dir():
            self._client.log_artifacts(run_id, str(adapter), "adapter")
        self._client.set_terminated(run_id, status=STATUS[trial.state], end_time=ended)
        self._ended[run_id] = (trial.state, trial.judgement is not None)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        known = self._tags.setdefault(run_id, {})
        changed = {name: value for name, value in tags.items() if known.get(name) != value}
        if changed:
            self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in changed.items()])
            known.update(changed)

    def finish(self, result: SweepResult, files: Sequence[Path]) -> None:
        """Bring everything up to date, log the sweep's files, and end the parent run."""
        from mlflow.entities import Metric

        self.sync(final=not result.interrupted)
        if self.look():  # a call that was given up as lost had been heard after all
            self.sync(final=not result.interrupted)
        tracking_live.log_files(self._client, self.run_id, files)
        asked = self._settings.model_dump(mode="json", exclude={"address"})
        self._client.log_dict(self.run_id, asked, "settings.json")
        facts = {"workload": asdict(result.workload), "data_counts": self._ledger.fact("data_counts")}
        facts["environments"] = sorted({canonical_json(dict(t.environment)) for t in result.trials if t.environment})
        self._client.log_dict(self.run_id, facts, "environment.json")
        end = int(max((t.ended_at or 0 for t in result.trials), default=0) * 1000)
        values = {"front_size": float(len(result.front.members))}
        if not result.interrupted and not any(name == "hypervolume" for name, *_ in self._growth):
            values["hypervolume"] = result.front.hypervolume
        values |= {f"n_{state}": float(sum(t.state == state for t in result.trials)) for state in STATUS}
        self._client.log_batch(self.run_id, metrics=[Metric(k, v, end, 0) for k, v in values.items()])
        if result.interrupted:
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self.run_id, status="FINISHED", end_time=end)
            self._write_models(result)

    def _write_models(self, result: SweepResult) -> None:
        """Of the front's members, once it is final; the one that the report calls best is registered."""
        adapters, sweep_id = self._folder / "adapters", self._ledger.fact("id")
        models = FrontModels(self._client, self.experiment_id, sweep_id, adapters, self._runs.children)
        on_front = [entry for entry in self._ledger.entries() if entry.result.key in result.front.keys]
        written = models.write(on_front)
        best = report.read(self._settings, self._ledger).best_loss
        for trial in result.front.members:
            if trial.number == best and trial.key in written:
                models.register(self._settings.name, trial, written[trial.key])


def _workload_tags(result: SweepResult) -> dict[str, str]:
    names = ("base_model", "weights", "data", "compute_dtype")
    return {name: str(getattr(result.workload, name)) for name in names}
