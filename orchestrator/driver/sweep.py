"""SweepSettings -> Tuner -> SweepSnapshot: the whole life of one sweep on the driver."""

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.moment import BEGAN_AT, WRITING
from orchestrator.analysis.snapshot import COVERAGE, GENERIC, LEARNED, SweepSnapshot
from orchestrator.driver import base_targets, plan, reuse, same_command, time_repeats, warm_start
from orchestrator.driver.ready import Begun, Ready
from orchestrator.ledger import Ledger
from orchestrator.ledger.ownership import owned
from orchestrator.ledger.schema import ID_FILE
from orchestrator.security.folder_access import narrowed, refuse_shared
from orchestrator.settings import SweepSettings, stored, sweep_folder
from orchestrator.settings.command import command
from orchestrator.workers import checkpoints
from trainables.cost.timeline import Timeline
from trainables.values.config import PROTOCOL_VERSION
from trainables.values.errors import ConfigError
from trainables.values.files import write_whole
from trainables.values.workload import Workload

if TYPE_CHECKING:
    from orchestrator.driver.driver import Driver

logger = logging.getLogger(__name__)

Prepare = Callable[[SweepSettings, Path], AbstractContextManager[Callable[[], Ready]]]
"""Connects to Ray and checks what can be checked at once; gives what brings the rest, while workers start."""


def run(
    settings: SweepSettings,
    root: Path,
    *,
    resume: bool,
    started: Callable[[Ledger, Workload], None],
    meanwhile: Callable[[], object] = lambda: None,
    verdict_seeds: int | None = None,
    trainable: type | None = None,
    prepare: Prepare | None = None,
) -> SweepSnapshot:
    """Run a sweep to its end, or until it is interrupted.

    Args:
        root: folder of all state, see orchestrator.settings.ROOT.
        resume: go on with the sweep of that name; otherwise the name must be new.
        started: called once when everything is ready and trials are about to start.
        meanwhile: called before that, once workers start, while base and tokens are brought.
        verdict_seeds: in place of the setting, which stays as it is: what it adds lies in the ledger.
        trainable, prepare: in place of SweepTrainable and of orchestrator.driver.prepare.
    Raises:
        KeyboardInterrupt: before anything is kept of the sweep.
        SweepError: with the exit code of its kind.
    """
    folder, timeline = sweep_folder(settings.name, root), Timeline()
    if resume and folder.exists():
        refuse_shared(folder, root)
    with narrowed(root), owned(folder), ExitStack() as opened:
        _refuse_unfit(settings, root, resume=resume)
        with timeline.span("inputs"):
            bring = opened.enter_context((prepare or _prepare)(settings, root))
        from orchestrator.driver.tuning import run_tasks  # brings Ray Tune

        def begin() -> Begun:
            with timeline.span("inputs"):
                meanwhile()
                ready = bring()
            tasks.enter_context(timeline.span("tasks"))
            ledger = opened.enter_context(closing(Ledger(folder / "ledger.db")))
            begun = _begun(settings, ready, root, ledger, verdict_seeds)
            ledger.keep_spans(timeline.take("driver"))  # for who looks while it runs
            started(ledger, ready.workload)
            return begun

        with ExitStack() as tasks:
            driver = run_tasks(settings, folder, begin, trainable, _resume(settings))
        return _ended(driver, settings, driver.ledger, root, timeline)


def _begun(settings: SweepSettings, ready: Ready, root: Path, ledger: Ledger, verdict_seeds: int | None) -> Begun:
    """Have the sweep's folder say what it is about; with what other sweeps know."""
    stored.save(settings, ledger.path.parent)
    _note_start(settings, ledger, ready)
    elsewhere = _from_other_sweeps(settings, ready, root, ledger)
    asked = settings if verdict_seeds is None else settings.model_copy(update={"verdict_seeds": verdict_seeds})
    return Begun(settings=asked, workload=ready.workload, ledger=ledger, known=elsewhere)


def _prepare(settings: SweepSettings, root: Path) -> AbstractContextManager[Callable[[], Ready]]:
    from orchestrator.driver.prepare import prepare  # brings what reads rows

    return prepare(settings, root)


def _ended(driver: "Driver", settings: SweepSettings, ledger: Ledger, root: Path, timeline: Timeline) -> SweepSnapshot:
    """What the tasks came to; what ran when they were given up is queued again."""
    ledger.keep_spans(timeline.take("driver"))
    _queue_running(ledger)
    if text := same_command.note(settings, ledger, root):
        logger.info(text)
    return replace(SweepSnapshot.of(settings, ledger), interrupted=not driver.finished, stopped=driver.stopped)


def _from_other_sweeps(settings: SweepSettings, ready: Ready, root: Path, ledger: Ledger) -> dict[str, Any]:
    """What the sampler learns from, and what need not be run again, which is said; repeats' times are kept."""
    workload, devices = ready.workload, ready.device.names
    learned = warm_start.entries(settings, workload, root, devices)
    cached = reuse.cached_trials(settings, workload, root, devices)
    ledger.set_fact(LEARNED, len(learned))
    reuse.keep_costs(settings, workload, root, devices, ledger)
    time_repeats.keep_earlier(settings, workload, root, devices, ledger)
    have = {trial.key for trial in ledger.trials()}
    if line := reuse.known_line(settings, workload, cached, have):
        logger.info(line)
    return {"learned": learned, "cached": cached}


def _resume(settings: SweepSettings) -> str:
    """The command that goes on with a sweep."""
    return f"{command()} resume {settings.name}"


def _refuse_unfit(settings: SweepSettings, root: Path, *, resume: bool) -> None:
    """Refuse a new sweep in place of another, and to go on with one under other settings than it began with.

    Raises:
        ConfigError: names the first field that differs.
        LedgerDamaged: it cannot be gone on with, which is said before anything is begun.
    """
    folder = sweep_folder(settings.name, root)
    if not (folder / "ledger.db").exists():
        return
    if not resume:
        plan.refuse_taken(settings.name, root)
    with closing(Ledger(folder / "ledger.db", read_only=True)) as ledger:
        refuse_edited(settings, folder, ledger.fact(stored.ASKED))


def refuse_edited(settings: SweepSettings, folder: Path, began: str | None) -> None:
    """Refuse settings that are not those that a sweep began with.

    Args:
        began: the fact ASKED of its ledger.
    Raises:
        ConfigError: names the first field that differs.
    """
    for name, then, now in stored.edits(settings, began):
        raise ConfigError(
            f"{folder / 'settings.json'}: {name} is {now!r}, but the sweep began with {then!r}; bring it back with "
            f"`qlora-sweep verify {settings.name} --repair`, or start under a new NAME"
        )


def _note_start(settings: SweepSettings, ledger: Ledger, ready: Ready) -> None:
    """Keep what the sweep is about, and beside the ledger its name, by which a new one is told from an emptied one.

    What was at work is taken up again.

    Raises:
        ConfigError: the ledger holds trials on another base model, data set or arithmetic.
    """
    before = ledger.workload()
    if before is None:
        ledger.set_fact("id", uuid.uuid4().hex)
        ledger.set_fact("created_at", time.time())
    else:
        _refuse_other(before, ready.workload, ledger)
    ledger.set_fact("workload", asdict(ready.workload))
    ledger.set_fact("data_counts", dict(ready.counts))
    ledger.set_fact(COVERAGE, [asdict(found) for found in base_targets.coverages(settings)])
    ledger.set_fact(GENERIC, base_targets.generic_type(settings))
    write_whole(ledger.path.with_name(ID_FILE), ledger.fact("id"))
    ledger.set_fact(stored.ASKED, settings.model_dump_json())
    ledger.set_fact("device_memory_mib", ready.device.memory_mib)
    ledger.set_fact(BEGAN_AT, time.time())
    ledger.set_fact(WRITING, None)  # a process that was killed while it wrote left it
    _queue_running(ledger)


def _refuse_other(before: Workload, workload: Workload, ledger: Ledger) -> None:
    """Refuse to add trials to a ledger whose trials cannot be compared with them."""
    for trial in ledger.trials()[:1]:
        version = before.protocol_of(trial.config, trial.key)
        if version not in (None, PROTOCOL_VERSION):
            raise ConfigError(
                f"NAME: this sweep's trials were measured under protocol {version}, new ones are under "
                f"{PROTOCOL_VERSION}; it can be read as it is, but go on under another NAME"
            )
    for name in warm_start.SAME:
        if getattr(before, name) != getattr(workload, name):
            raise ConfigError(f"{name} has changed since this sweep began; its trials cannot be compared with new ones")


def _queue_running(ledger: Ledger) -> None:
    """Take up what was at work; of trials that have ended, forget checkpoints that came in after their end."""
    ledger.requeue_running()
    queued = {trial.key for trial in ledger.trials() if trial.state == "queued"}
    checkpoints.keep_only(ledger.path.parent / checkpoints.FOLDER, queued)
