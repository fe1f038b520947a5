"""What goes to a worker and what comes back: frozen values, pickled once by Ray and read as they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trainables.values.config import State, TrialConfig
from trainables.values.findings import Comparison, TestEvaluation
from trainables.values.results import Cost, Measurement
from trainables.values.spans import Span

TaskName = tuple[str, str]
"""Kind of a task and key of its trial: at any moment at most one task has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a worker is asked to do.

    Attributes:
        kind: "train" a trial, "compare" a completed 4-bit trial with its completed 16-bit baseline on the validation
            rows, or "evaluate" a completed trial on the test rows.
        key, config: the trial; of a comparison the 4-bit one.
        baseline_key: of a comparison, and of the test evaluation of a 4-bit trial whose baseline completed.
        replicate_keys: of such an evaluation: the baseline's config under other seeds.
        costs: of the config's cost key, on each kind of device where the ledger knows them.
        rungs: of a trial: steps after which it is measured, the last of them its end.
    """

    kind: Literal["train", "compare", "evaluate"]
    key: str
    config: TrialConfig
    baseline_key: str | None = None
    replicate_keys: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()
    rungs: tuple[int, ...] = ()

    @property
    def name(self) -> TaskName:
        return self.kind, self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """What a worker says of its task: at each rung of a trial, and once at the end.

    Attributes:
        state: "running" at a rung before the last; then how the task ended. That of a comparison or test evaluation is
            the task's, not the trial's.
        measurement: of a trial at this rung.
        cost: of the trial's cost key on this kind of device.
        adapter: of a trial that trained to its end: peft's files by name. Not a part of the text of a report: Tune
            makes that of each, twice, for messages that it does not write.
        adapter_at: where those lie instead, see orchestrator.workers.storage.
        similarity: key of the 4-bit trial that was compared with its baseline, and what that came to.
        environment: device, versions and dtype, at the end.
        reason: why the task ended early.
        train_seconds: wall time on the worker, start to end of training.
        spans: at the end, what the worker did when since the end before.
    """

    state: State
    measurement: Measurement | None = None
    cost: Cost | None = None
    adapter: Mapping[str, bytes] | None = field(default=None, repr=False)
    adapter_at: tuple[str, str] | None = None
    similarity: tuple[str, Comparison] | None = None
    test_evaluation: TestEvaluation | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    train_seconds: float | None = None
    spans: tuple[Span, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether the task ended with it."""
        return self.state != "running"


FaultKind = Literal["worker", "node", "incompatible node", "host memory", "device", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFault:
    """Why a task was given up from outside.

    Attributes:
        kind: the worker process was lost, or its whole node; it found its node unfit before it began; Ray killed it
            because the host (never the GPU) was out of memory; its GPU was of no more use to it; or the task's own
            code raised. Only the last is never tried again.
        text: in words.
    """

    kind: FaultKind
    text: str

    @property
    def is_own(self) -> bool:
        return self.kind == "own"
