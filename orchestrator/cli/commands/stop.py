"""`stop`: end a sweep that another process runs."""

import logging
import os
import signal
from time import monotonic, sleep

from orchestrator.cli.options import AsJson, NameOrNewest, named
from orchestrator.cli.output import print_json, print_text
from orchestrator.ledger.ownership import owner_of
from orchestrator.settings import ROOT, sweep_folder
from orchestrator.settings.command import command
from orchestrator.settings.stored import load
from trainables.values.errors import ConfigError, SweepError

logger = logging.getLogger(__name__)

WAIT_SECONDS = 300.0
"""For the sweep to write what it has: figures, report, MLflow."""


def stop(name: NameOrNewest = None, as_json: AsJson = False) -> None:
    """Stop a sweep that runs in another process, as Ctrl-C does there; `resume` goes on with it."""
    name = named(name)
    load(sweep_folder(name))
    folder = sweep_folder(name, ROOT)
    owner = owner_of(folder)
    resume = f"{command()} resume {name}"
    if owner is None:
        raise ConfigError(f"NAME: sweep {name!r} does not run; to go on with it: {resume}")
    if owner <= 0:  # to os.kill these are groups of processes, this one's own among them
        raise SweepError(f"the process that runs sweep {name!r} has not said its number yet; try again in a moment")
    try:
        os.kill(owner, signal.SIGTERM)
    except (ProcessLookupError, PermissionError, OverflowError) as error:
        raise SweepError(
            f"process {owner}, which runs sweep {name!r}, cannot be reached from here ({error}); stop it where it runs"
        ) from None
    logger.info(f"stopping {name} (process {owner}); it writes what it has")
    end = monotonic() + WAIT_SECONDS
    while owner_of(folder) == owner:
        if monotonic() > end:
            raise SweepError(f"sweep {name!r} still runs after {WAIT_SECONDS:.0f} s; to kill it: kill -9 {owner}")
        sleep(0.2)
    if as_json:
        print_json({"name": name, "stopped": True, "process": owner})
    else:
        print_text(f"stopped; go on with: {resume}")
