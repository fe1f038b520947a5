"""All sweeps under a root, each in a few figures: what `list` shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.analysis.budgets import FINISHED
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger.ownership import owner_of
from orchestrator.settings import RECORDED
from orchestrator.settings.stored import is_recorded, load
from trainables.values.errors import SweepError

State = Literal["running", "finished", "stopped", "recorded", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One sweep.

    Attributes:
        state: "stopped" is one that `resume` goes on with; "recorded" one that git keeps, which is only read;
            "unreadable" one that `fault` says more of.
        n_done, n_expected: trials in a final state, and those that the sweep will come to as far as is known.
        eval_loss_nats: the lowest on the validation rows among the front's members.
        began_at: seconds since the epoch.
    """

    name: str
    state: State
    n_done: int = 0
    n_expected: int = 0
    front_size: int = 0
    eval_loss_nats: float | None = None
    began_at: float
    fault: str | None = None


def overviews(root: Path) -> list[Overview]:
    """Of every sweep under `root`, the one whose settings were written last first; after them those that git keeps."""
    files = sorted((root / "sweeps").glob("*/settings.json"), key=lambda path: -path.stat().st_mtime)
    files += sorted((root / RECORDED).glob("*/settings.json"))
    return [overview_of(file.parent, file.stat().st_mtime) for file in files]


def overview_of(folder: Path, began_at: float) -> Overview:
    """Of one sweep, be it damaged.

    Args:
        began_at: seconds since the epoch, of a sweep whose ledger does not say when.
    """
    try:
        if not is_recorded(folder):
            load(folder)
        snapshot = SweepSnapshot.read_in(folder)
        status, front = snapshot.status(), snapshot.front
    except SweepError as error:
        return Overview(name=folder.name, state="unreadable", began_at=began_at, fault=str(error))
    return Overview(
        name=folder.name,
        state=state_of(snapshot),
        n_done=status.n_done,
        n_expected=status.n_expected,
        front_size=len(front.members),
        eval_loss_nats=min((member.history[-1].eval_loss_nats for member in front.members), default=None),
        began_at=snapshot.facts.get("created_at") or began_at,
    )


def state_of(snapshot: SweepSnapshot) -> State:
    """Of a sweep that can be read."""
    if is_recorded(snapshot.folder):
        return "recorded"
    if owner_of(snapshot.folder) is not None:
        return "running"
    return "finished" if snapshot.facts.get(FINISHED) else "stopped"
