"""Whether a sweep came to the same as an earlier one that the same command ran; if not, which proposal differs first.

On a CPU nothing may differ. On a GPU the time of a step may, where it was measured anew: what the sampler is told of it
then changes what it proposes.
"""

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.driver.in_order import LAG
from orchestrator.ledger import Ledger
from orchestrator.security.folder_access import refuse_shared
from orchestrator.settings import stored
from trainables.values.errors import ConfigError, LedgerDamaged

if TYPE_CHECKING:
    from orchestrator.settings import SweepSettings
    from trainables.values.results import TrialResult

SAME_COMMAND = "same_command"
"""Fact: in words, how a sweep compares with the oldest one of the same command; absent where there is none."""
OWN = ("name", "reuse", "reuse_across_versions")
"""Settings that a second run of a command may have of its own."""
WORKLOAD = ("base_fingerprint", "data_digest", "compute_dtype")


def note(settings: "SweepSettings", ledger: Ledger, root: Path) -> str | None:
    """Keep, of a search that is over, how it compares with an earlier one; returns it in words."""
    ours = _command(ledger)
    if ours is None:
        return None
    for path in sorted((root / "sweeps").glob("*/ledger.db"), key=lambda path: path.stat().st_ctime):
        if path.parent.name == settings.name:
            continue
        try:
            refuse_shared(path.parent, root, field="name")
            other = Ledger(path, read_only=True)
        except (ConfigError, LedgerDamaged):
            continue
        with closing(other):
            if _command(other) == ours:
                text = in_words(path.parent.name, _proposals(other), _proposals(ledger))
                ledger.set_fact(SAME_COMMAND, text)
                return text
    return None


def _command(ledger: Ledger) -> Mapping[str, Any] | None:
    """What decides a sweep's answer; None where timing does, and as long as the search goes on."""
    asked, lag, workload = ledger.fact(stored.ASKED), ledger.fact(LAG), ledger.fact("workload")
    if asked is None or lag is None or workload is None or not ledger.fact("search_ended"):
        return None
    chosen = {name: value for name, value in json.loads(asked).items() if name not in OWN}
    return {"settings": chosen, "lag": lag, "workload": [workload.get(name) for name in WORKLOAD]}


def _proposals(ledger: Ledger) -> "list[TrialResult]":
    return [trial for trial in ledger.trials() if trial.origin == "search"]


def in_words(name: str, theirs: "list[TrialResult]", ours: "list[TrialResult]") -> str:
    """How two searches by the same command compare.

    Args:
        name: of the other sweep.
        theirs, ours: proposals by place.
    """
    for place, (their, our) in enumerate(zip(theirs, ours, strict=False)):
        if what := _difference(their, our):
            return f"trial {place} is the first that differs from sweep {name}, which the same command ran: {what}"
    if len(theirs) != len(ours):
        return f"the same command ran sweep {name}, whose search ended after {len(theirs)} configs, here {len(ours)}"
    return f"the same configs and losses as in sweep {name}, which the same command ran"


def _difference(their: "TrialResult", our: "TrialResult") -> str | None:
    if their.key != our.key:
        return "its config"
    ends = [f"{trial.state} at step {trial.history[-1].step if trial.history else 0}" for trial in (their, our)]
    if ends[0] != ends[1]:
        return f"{ends[0]}, here {ends[1]}"
    if their.history != our.history:
        return "its losses"
    return None
