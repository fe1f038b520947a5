"""A sweep of trials: settings, search, pruning, the ledger, and its projections (MLflow, figures).

`from orchestrator import run, open_sweep` is the way in from Python; see orchestrator.api.
"""

from typing import Any

__all__ = ["Sweep", "open_sweep", "run"]


def __getattr__(name: str) -> Any:
    """What `__all__` names, from orchestrator.api, imported when it is asked for: the command line needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchestrator import api

    return getattr(api, name)
