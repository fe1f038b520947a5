"""MLflow as a projection of the ledger.

`Tracker.sync` brings MLflow up to date with a ledger and may be called again and again: it looks
first for the runs that are there (by tags), and every metric carries the ledger's own time, so
that writing twice changes nothing. MLflow is never read to decide anything.
"""

from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import Ledger
from orchestrator.ledger.rows import Entry
from orchestrator.report.content import report_of
from orchestrator.report.digests import FILES
from orchestrator.settings import SweepSettings, sweep_folder
from orchestrator.tracking import live as tracking_live
from orchestrator.tracking import view
from orchestrator.tracking.artifacts import texts
from orchestrator.tracking.client import entities, open_client
from orchestrator.tracking.contents import Contents, Point, has_picture, last_end_ms, of_sweep
from orchestrator.tracking.inputs import log_data
from orchestrator.tracking.models import FrontModels
from orchestrator.tracking.runs import Runs
from orchestrator.tracking.store import UI_PORT, page_of, store_uri
from orchestrator.tracking.trials import Standing, later_tags, name_of, of_trial, standings

MAX_METRICS = 800
"""Written at once: MLflow takes 1000 values, params and tags included."""


class Tracker:
    """Writes one sweep into MLflow: a parent run, and a child run for each trial.

    Any call may fail; what it leaves undone, the next one does, after a `look` at what is there by now.
    """

    def __init__(
        self, settings: SweepSettings, ledger: Ledger, root: Path, opened: tuple[Any, str] | None = None
    ) -> None:
        """Open MLflow, unless it is `opened`: see client.open_client."""
        self._settings = settings
        self._ledger = ledger
        self._folder = sweep_folder(settings.name, root)
        uri = settings.tracking_uri or store_uri(root)
        self._client, self.experiment_id = opened or open_client(uri, root)
        self._sweep_id = ledger.fact("id")
        self._runs = Runs(self._client, self.experiment_id, self._sweep_id, settings.name, ledger.fact("created_at"))
        self._tags: dict[str, dict[str, str]] = {}  # run id -> tags as last written
        self._points: dict[str, set[Point]] = {}  # run id -> points as written, of runs that go on
        self._ended: dict[str, tuple[Any, ...]] = {}  # run id -> state, when, whether evaluated, by how many seeds
        self._shared_written = False  # the rows, and the view of the trials
        self._live = tracking_live.Live(self._client, self.run_id)

    @property
    def run_id(self) -> str:
        """Of the sweep's own run."""
        return self._runs.parent_id

    @property
    def page(self) -> str:
        """Where to look at the sweep's run."""
        if self._settings.tracking_uri is not None:
            return f"run {self.run_id}"
        return f"http://127.0.0.1:{UI_PORT}/{page_of(self.experiment_id, self.run_id)}"

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
        snapshot = SweepSnapshot.of(self._settings, self._ledger).begun()
        if not self._shared_written:
            log_data(self._client, self.run_id, snapshot.workload, snapshot.facts.get("data_counts", {}))
            self._client.set_experiment_tag(self.experiment_id, *view.tag_of(self._sweep_id))
            self._shared_written = True
        of_trials = standings(snapshot)
        for entry in snapshot.entries:
            if entry.result.state != "queued":
                self._sync_trial(entry, of_trials[entry.result.key], final=final)
        if live:
            self._live.update(snapshot)
        contents = of_sweep(
            snapshot,
            report_of(snapshot),
            self._sweep_id,
            (self.experiment_id, self.run_id),
            has_front=self._live.has_front or has_picture(snapshot.facts.get(FILES)),
            final=final,
        )
        self._write(self.run_id, contents)

    def _sync_trial(self, entry: Entry, standing: Standing, *, final: bool) -> None:
        trial, verdict = entry.result, standing.verdict
        n_pairs = len(verdict.by_pairs) if final and verdict else None
        end = (trial.state, trial.ended_at, trial.test_evaluation is not None, trial.failed_evaluations, n_pairs)
        run_id = self._runs.children.get(trial.key, "")
        if self._ended.get(run_id) == end:
            self._runs.rename(run_id, name_of(trial, standing.place))
            self._set_tags(run_id, later_tags(trial, standing))
            return
        contents = of_trial(entry, self._sweep_id, self.run_id, standing, final=final)
        run_id = self._runs.child(trial.key, contents, trial.started_at)
        self._write(run_id, contents)
        if contents.status == "RUNNING":
            return
        for name, text in contents.texts.items():
            self._client.log_text(run_id, text, name)
        adapter = self._folder / "adapters" / trial.key
        if trial.state == "completed" and adapter.is_dir():
            self._client.log_artifacts(run_id, str(adapter), "adapter")
        self._client.set_terminated(run_id, status=contents.status, end_time=contents.ended_ms)
        self._ended[run_id] = end
        del self._points[run_id]

    def _write(self, run_id: str, contents: Contents) -> None:
        """Write the params, tags and points that were not written yet."""
        if run_id not in self._points:
            self._client.log_batch(run_id, params=[*starmap(entities.Param, contents.params.items())])
        written = self._points.setdefault(run_id, set())
        new = [point for point in contents.points if point not in written]
        for i in range(0, len(new), MAX_METRICS):
            part = new[i : i + MAX_METRICS]
            self._client.log_batch(run_id, metrics=[*starmap(entities.Metric, part)])
            written.update(part)
        self._set_tags(run_id, contents.tags)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        known = self._tags.setdefault(run_id, {})
        changed = {name: value for name, value in tags.items() if known.get(name) != value}
        if changed:
            self._client.log_batch(run_id, tags=[*starmap(entities.RunTag, changed.items())])
            known.update(changed)

    def finish(self, snapshot: SweepSnapshot, files: Sequence[Path], *, interrupted: bool) -> None:
        """Bring everything up to date, log the sweep's files, and end the parent run."""
        self.sync(final=not interrupted)
        if self.look():  # a call that was given up as lost had been heard after all
            self.sync(final=not interrupted)
        tracking_live.log_files(self._client, self.run_id, files)
        for name, text in texts(snapshot).items():
            self._client.log_text(self.run_id, text, name)
        if interrupted:
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self.run_id, status="FINISHED", end_time=last_end_ms(snapshot))
            self._write_models(snapshot)

    def _write_models(self, snapshot: SweepSnapshot) -> None:
        """Of the front's members, once it is final; the one that the report calls best is registered."""
        adapters = self._folder / "adapters"
        models = FrontModels(self._client, self.experiment_id, self._sweep_id, adapters, self._runs.children)
        written = models.write([entry for entry in snapshot.entries if entry.result.key in snapshot.front.keys])
        best = report_of(snapshot).best_loss
        for trial in snapshot.front.members:
            if trial.number == best and trial.key in written:
                models.register(self._settings.name, trial, written[trial.key])
