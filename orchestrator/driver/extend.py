"""More trials for a sweep that has begun, or has ended: the one setting that may change, and only grow."""

from contextlib import closing
from pathlib import Path

from orchestrator.analysis.budgets import ENDED, FINISHED
from orchestrator.driver.sweep import refuse_edited
from orchestrator.ledger import Ledger
from orchestrator.ledger.ownership import owned
from orchestrator.settings import SweepSettings, make, stored, sweep_folder
from trainables.values.errors import ConfigError


def with_trials(settings: SweepSettings, n_trials: int, root: Path) -> SweepSettings:
    """Ask a sweep for more trials, and open its search again; returns its settings as they are then.

    The ledger is written first: `verify --repair` brings settings.json back to it, should this process die in between.

    Raises:
        ConfigError: these are no more than before, another process runs the sweep, or its settings were edited.
    """
    if n_trials <= settings.n_trials:
        raise ConfigError(
            f"trials is {n_trials}, but sweep {settings.name!r} has {settings.n_trials}; say more, as all of them count"
        )
    values = {name: getattr(settings, name) for name in SweepSettings.model_fields}
    extended, folder = make(**values | {"n_trials": n_trials}), sweep_folder(settings.name, root)
    with owned(folder), closing(Ledger(folder / "ledger.db")) as ledger:
        refuse_edited(settings, folder, ledger.fact(stored.ASKED))
        with ledger.together():
            ledger.set_fact(stored.ASKED, extended.model_dump_json())
            ledger.set_fact(ENDED, None)
            ledger.set_fact(FINISHED, False)
        stored.save(extended, folder)
    return extended
