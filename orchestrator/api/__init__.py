"""Sweeps from Python: `run` starts one, `open_sweep` reads one that runs, has ended or was recorded."""

from orchestrator.api.opened import Report, Sweep, open_sweep
from orchestrator.api.start import run

__all__ = ["Report", "Sweep", "open_sweep", "run"]
