"""What lies in a sweep's folder beside its ledger, against the ledger: adapters, data files, figures and report."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow.parquet as pq

from orchestrator.analysis.budgets import FINISHED
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.ledger import FAULTS, adapter_store
from orchestrator.report import digests
from orchestrator.report.digests import FILES
from orchestrator.report.rows import trial_row
from orchestrator.verify.ledger import Difference, Part, of_ledger

FILE_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a damaged file raises; Arrow's errors are among them."""


COMPARED = ("front.json", "trials.parquet")


def of_adapters(kept: SweepSnapshot) -> Iterator[Difference]:
    """Every completed trial's adapter is there, with the checksums that were recorded."""
    for entry in kept.entries:
        if entry.result.state != "completed":
            continue
        adapter = kept.folder / "adapters" / entry.result.key
        fault = adapter_store.fault(adapter, entry.adapter_sha256)
        if fault:
            text = f"trial {entry.result.number}: {fault} in {adapter}"
            yield Difference(part="adapters", text=text, key=entry.result.key)


def of_front_file(kept: SweepSnapshot) -> Iterator[Difference]:
    """front.json is the ledger's front."""
    expected = json.loads(json.dumps(kept.front.to_dict()))
    try:
        found = json.loads((kept.folder / "front.json").read_text(encoding="utf-8"))
        theirs = [member["key"] for member in found["members"]]
    except FILE_ERRORS as error:
        yield Difference(part="front.json", text=_fault(error))
        return
    yield from _of_keys("front.json", "on the front", theirs, kept.front.keys, kept)
    for name in sorted({*expected, *found}):
        if found.get(name) != expected.get(name) and (name != "members" or set(theirs) == kept.front.keys):
            yield Difference(part="front.json", text=f"{name} is not what the ledger gives")


def of_table(kept: SweepSnapshot) -> Iterator[Difference]:
    """trials.parquet has one row a trial, each value as the ledger gives it; so has its front."""
    try:
        rows = pq.read_table(kept.folder / "trials.parquet").to_pylist()
        theirs, on_front = [], []
        for row in rows:
            theirs.append(row["key"])
            if row["on_pareto_front"]:
                on_front.append(row["key"])
    except FILE_ERRORS as error:
        yield Difference(part="trials.parquet", text=_fault(error))
        return
    yield from _of_keys("trials.parquet", "in a row", theirs, {trial.key for trial in kept.trials}, kept)
    yield from _of_keys("trials.parquet", "on the front", on_front, kept.front.keys, kept)
    by_key = dict(zip(theirs, rows, strict=True))
    for trial in kept.trials:
        found = by_key.get(trial.key)
        if found is None:
            continue
        expected = trial_row(trial, trial.key in kept.front.keys, kept.verdicts.get(trial.key))
        if expected.items() <= found.items():
            continue
        wrong = [n for n in expected if n != "on_pareto_front" and not _same(found.get(n), expected[n])]
        if wrong:
            was, now = found.get(wrong[0]), expected[wrong[0]]
            text = f"trial {trial.number}: {wrong[0]} is {was!r}, the ledger has {now!r}"
            more = f" (and {len(wrong) - 1} columns more)" if len(wrong) > 1 else ""
            yield Difference(part="trials.parquet", text=text + more)


def of_drawn(kept: SweepSnapshot) -> Iterator[Difference]:
    """Figures and report are what was written; front.json and trials.parquet are compared value by value."""
    for name, fault in digests.faults(kept.folder, kept.facts.get(FILES) or {}):
        if name not in COMPARED:
            yield Difference(part="files", text=f"{name} {fault}")


def is_over(kept: SweepSnapshot) -> bool:
    """Whether a resumed sweep would find nothing to do: its trials are settled, none of what followed them failed, and
    the files beside the ledger were written after the last. MLflow, which `sync` completes, is not asked."""
    done = kept.facts.get(FINISHED) and not kept.facts.get(FAULTS) and any(t.state == "completed" for t in kept.trials)
    return bool(done) and not any(chain(of_ledger(kept), of_front_file(kept), of_table(kept)))


def _of_keys(
    part: Part, what: str, found: Sequence[str], expected: set[str] | frozenset[str], kept: SweepSnapshot
) -> Iterator[Difference]:
    numbers = {trial.key: f"trial {trial.number}" for trial in kept.trials}
    for key, count in Counter(found).items():
        name = numbers.get(key, f"{str(key)[:12]}, which is no trial of the ledger,")
        if key not in expected:
            yield Difference(part=part, text=f"{name} is {what} there only")
        elif count > 1:
            yield Difference(part=part, text=f"{name} stands {count} times as {what}")
    for key in sorted(expected - set(found), key=lambda key: numbers[key]):
        yield Difference(part=part, text=f"{numbers[key]} is not {what}")


def _same(a: Any, b: Any) -> bool:
    return a == b or (a != a and b != b)  # NaN is NaN


def _fault(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is not there"
    return f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
