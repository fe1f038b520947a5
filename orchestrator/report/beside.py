"""Two reports side by side, in Markdown; says first where their figures cannot be compared."""

from orchestrator.report import tables
from orchestrator.report.answer import headlines
from orchestrator.report.content import Report
from orchestrator.report.markdown import safe, table
from orchestrator.report.text import caption
from trainables.values.config import Workload

SAME = ("base_fingerprint", "data_digest", "compute_dtype")
"""Of the workload, without which losses and likenesses are of different things."""


def beside(one: Report, other: Report) -> str:
    """What both came to, each headline in a row of its own, then both fronts."""
    sides = [
        {"Measured on": caption(report), "Trials": f"{report.n_done} of {report.n_expected} have ended"}
        | headlines(report)
        for report in (one, other)
    ]
    rows = [[what, *(side.get(what, tables.NONE) for side in sides)] for what in sides[0] | sides[1]]
    names = [safe(report.name) for report in (one, other)]
    texts = [f"# Sweeps {names[0]} and {names[1]}", *_warning(one.workload, other.workload, one, other)]
    texts.append(table(["", *names], rows, n_words=3))
    for name, report in zip(names, (one, other), strict=True):
        if report.finalists:
            texts += [f"## Front of {name}", tables.of_finalists(report.finalists)]
    return "\n\n".join(texts) + "\n"


def _warning(one: Workload | None, other: Workload | None, *reports: Report) -> list[str]:
    if one is None or other is None:
        return []
    differ = [name for name in SAME if getattr(one, name) != getattr(other, name)]
    differ += ["protocol"] if len({report.measured.protocol_version for report in reports}) > 1 else []
    devices = {report.measured.environment.get("device") for report in reports}
    differ += ["device"] if len(devices) > 1 else []
    return [f"**These sweeps differ in {', '.join(differ)}: mind it when you compare.**"] if differ else []
