"""A sweep shown while it runs, with the exit code of what became of it.

It imports what a sweep needs, so it is imported only once settings are sound.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console

from orchestrator.api.published import fault_of, run_published
from orchestrator.cli.output import print_error
from orchestrator.cli.progress import ProgressDisplay, print_front, print_pages, print_result
from orchestrator.cluster import heartbeat, ray_cluster
from orchestrator.ledger.ownership import leave_nothing, owner_of
from orchestrator.ledger.schema import bring_into_one_file
from orchestrator.settings import ROOT, SweepSettings, sweep_folder
from orchestrator.settings.command import command
from orchestrator.tracking.store import has_whole_run, store_file
from orchestrator.verify import ledger as ledgers
from orchestrator.verify.files import is_over
from trainables.values.errors import INTERRUPTED, Interrupted

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.analysis.snapshot import SweepSnapshot

logger = logging.getLogger(__name__)

LAST_SECONDS = 1.0
"""For what was written last to be brought into the ledger's one file, at a second Ctrl-C."""


def run_sweep(settings: SweepSettings, *, resume: bool, as_json: bool, **stand_ins: Any) -> None:
    """Run and publish a sweep; `stand_ins` go to `run_published`: `notice`, `verdict_seeds`, those of tests."""
    ledger = sweep_folder(settings.name) / "ledger.db"
    display = ProgressDisplay(settings, ledger, Console(stderr=True))

    def answered(snapshot: "SweepSnapshot") -> None:
        display.stop()
        if not as_json:
            print_front(snapshot)
        ray_cluster.leave()

    stand_ins |= {"answered": answered, "again": partial(_die, ledger)}
    try:
        with _ended_at_once(ledger):
            snapshot, run_page = run_published(settings, resume=resume, display=display, **stand_ins)
    except KeyboardInterrupt:
        raise _interrupted(ledger) from None
    fault = fault_of(snapshot)
    if as_json:
        print_result(snapshot, run_page, as_json=True, fault=fault)
    else:
        print_pages(snapshot, run_page)
    if fault is None:
        return
    logger.info(str(fault) if isinstance(fault, Interrupted) else f"error: {fault}")
    raise typer.Exit(fault.exit_code)  # not the fault itself: with --json that would be a second object


def _interrupted(ledger: "Path") -> Interrupted:
    name = ledger.parent.name
    return Interrupted(f"go on with: {command()} resume {name}" if ledger.is_file() else f"{name} had not begun")


@contextmanager
def _ended_at_once(ledger: "Path") -> Iterator[None]:
    """Inside, Ctrl-C ends this process, until trials begin: no library can take the exception for one of its own.

    Not so the interrupt of a Ray that was lost, which is said where it is watched.
    """

    def end(*_: Any) -> None:
        if heartbeat.has_interrupted():
            raise KeyboardInterrupt
        try:
            interrupted = _interrupted(ledger)
            logger.error(str(interrupted))
            print_error("Interrupted", str(interrupted), INTERRUPTED)
            sys.stdout.flush()
            if ledger.is_file():  # of a sweep that a signal before this one was ending already
                bring_into_one_file(ledger, LAST_SECONDS)
            if owner_of(ledger.parent) == os.getpid():
                leave_nothing(ledger.parent)
        finally:
            os._exit(INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # a shell's background job ignores it
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _die(ledger: "Path") -> NoReturn:
    """End this process at once, and Ray's with it; the ledger is whole at any moment, and then in its one file."""
    with suppress(OSError):  # not by the logger, which may have been writing when the signal came
        os.write(2, f"interrupted; go on with: {command()} resume {ledger.parent.name}\n".encode())
    if ledger.is_file():
        bring_into_one_file(ledger, LAST_SECONDS)
    os._exit(INTERRUPTED)


def shown_if_finished(settings: SweepSettings, *, as_json: bool) -> bool:
    """Print a sweep of which nothing is left to do, and write nothing; False of any other."""
    folder, name = sweep_folder(settings.name), settings.name
    snapshot = ledgers.read(settings, folder) if (folder / "ledger.db").is_file() else None
    if snapshot is None or snapshot.workload is None or not is_over(snapshot):
        return False
    print_result(replace(snapshot, settings=settings), None, as_json=as_json)
    logger.info(f"sweep {name} is finished, nothing is left to run; what it came to: {command()} report {name}")
    if settings.tracking_uri is not None:
        logger.info(f"whether MLflow has all of it says: {command()} verify {name}")
    elif not has_whole_run(store_file(ROOT), str(snapshot.facts.get("id"))):
        logger.info(f"MLflow lacks some of it; complete it with: {command()} sync {name}")
    return True
