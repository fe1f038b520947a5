"""Sweeps whose trials report one loss and one cost at every rung: what a stopping rule makes of them."""

from dataclasses import asdict

from tests.support.sweeps import GRID, MOASHA, completes, cost

SIXTEEN = GRID | {
    "parameters": {"rank": {"values": [1, 2, 3, 4, 5, 6]}},
    "fixed": {"alpha": 8, "max_steps": 8, "precision": "16bit"},
}
WIDE = SIXTEEN | {"parameters": {"rank": {"values": list(range(1, 41))}}, "early_terminate": MOASHA}


def shows(task, *, loss: float, mib: float, seconds: float = 1.0):
    """A worker that trains at a constant loss in a cell of that cost."""
    values = {"peak_memory_mib": mib, "seconds_per_step": seconds}
    spread = {"seconds_per_step_p10": seconds, "seconds_per_step_p90": seconds}
    for report in completes(task, loss=loss):
        report["cost"] = asdict(cost(**values, **spread))
        report["measurement"] |= values
        yield report
