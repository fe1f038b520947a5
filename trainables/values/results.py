"""What a trial reports: frozen, keyword-only, standard library only; names as in trainables.values.config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from trainables.values.config import Origin, State, TrialConfig, rungs
from trainables.values.findings import Comparison, TestEvaluation

MIB = 2**20
"""Bytes."""
CURVE_STEPS = 10
"""Between two points of a training curve."""

Evaluation = Literal["compare", "evaluate"]
"""What is done with a completed trial: "compare" a 4-bit one with its baseline on the validation rows, "evaluate" a
finalist on the test rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBreakdown:
    """What the bytes are at the moment of a training step's peak, in MiB; they add up to the peak.

    Attributes:
        base_weights_mib: of the frozen base; 4-bit ones packed two a byte.
        quantization_constants_mib: scales and code books of 4-bit weights.
        adapter_mib: LoRA's A and B.
        gradients_mib: of the adapter, as far as they exist at the peak.
        optimizer_mib: AdamW's two moments and step counts.
        activations_mib: what the forward pass keeps for the backward pass.
        rest_mib: the temporary results of that moment, workspaces of libraries, rounding of the allocator.
    """

    base_weights_mib: float
    quantization_constants_mib: float
    adapter_mib: float
    gradients_mib: float
    optimizer_mib: float
    activations_mib: float
    rest_mib: float


PARTS: Mapping[str, str] = {
    "base_weights_mib": "base weights",
    "quantization_constants_mib": "quantization constants",
    "adapter_mib": "adapter",
    "gradients_mib": "gradients",
    "optimizer_mib": "optimizer",
    "activations_mib": "activations",
    "rest_mib": "rest",
}
"""What the parts of a breakdown are called, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Memory and time of one cost key on one device, on a full synthetic batch.

    Attributes:
        peak_memory_mib: allocated bytes at the peak of a step, only this trial's base resident.
        reserved_memory_mib: what the allocator held from the device then; the peak on a CPU.
        seconds_per_step: median over the timed steps.
        seconds_per_step_p10: 10th percentile of them.
        seconds_per_step_p90: 90th percentile of them.
        tokens_per_second: batch_size * max_length_tokens / seconds_per_step.
        device: name of the device it was measured on.
        breakdown: of peak_memory_mib; None in ledgers from before it was measured.
    """

    peak_memory_mib: float
    reserved_memory_mib: float
    seconds_per_step: float
    seconds_per_step_p10: float
    seconds_per_step_p90: float
    tokens_per_second: float
    device: str
    breakdown: MemoryBreakdown | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was measured at one rung of one trial; memory and time are those of its cost key, see Cost.

    Attributes:
        step: optimizer steps done.
        train_loss_nats: mean over the steps since the rung before.
        eval_loss_nats: token-weighted mean over the validation rows.
        train_curve: of the steps since the last measurement, see curve_of; empty in ledgers from before it was kept.
    """

    step: int
    train_loss_nats: float
    eval_loss_nats: float
    train_curve: tuple[tuple[int, float], ...] = ()


def curve_of(losses: Sequence[float], step: int) -> tuple[tuple[int, float], ...]:
    """The training loss over the steps of a rung: at each multiple of CURVE_STEPS, and at its end.

    Args:
        losses: in nats, of the steps up to `step`, at least one.
    Returns:
        Step and mean loss over the steps since the last point, to a millionth of a nat.

    >>> curve_of([4.0, 2.0, 1.0], step=11)
    ((10, 3.0), (11, 1.0))
    """
    points: list[tuple[int, float]] = []
    since: list[float] = []
    for at, loss in enumerate(losses, start=step - len(losses) + 1):
        since.append(loss)
        if at % CURVE_STEPS == 0 or at == step:
            points.append((at, round(fmean(since), 6)))
            since = []
    return tuple(points)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One trial as the ledger knows it.

    Attributes:
        key: see Workload.key.
        number: order in which the sweep took it up, from 0.
        config: its settings.
        state: see State; only "completed" trials enter a front.
        origin: why it exists; a baseline is the 16-bit half of a 4-bit trial.
        history: one Measurement at each of `rungs` that it came to, by step; older ledgers have all of replicates.
        similarity: of a 4-bit trial with a completed baseline, on the validation rows, else None.
        test_evaluation: of a finalist and its seed replicates, on the test rows, else None.
        failed_evaluations: why its comparison with its baseline, or its evaluation on the test rows, failed; until it
            succeeds.
        cost: of its cost key, else None.
        environment: device, versions and dtype it ran under.
        reason: why it stopped early, else None.
        train_seconds: wall time on the worker, start to end.
        started_at, ended_at: seconds since the epoch, else None.
    """

    key: str
    number: int
    config: TrialConfig
    state: State
    origin: Origin
    history: tuple[Measurement, ...] = ()
    similarity: Comparison | None = None
    test_evaluation: TestEvaluation | None = None
    failed_evaluations: Mapping[Evaluation, str] = field(default_factory=dict)
    cost: Cost | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    train_seconds: float | None = None
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def is_of_search(self) -> bool:
        """True of what the search proposed and of the baselines that it needed; false of seed replicates."""
        return self.origin in ("search", "baseline")

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps at which it is measured: a seed replicate, which no rule stops or learns from, at its end alone."""
        return rungs(self.config.max_steps) if self.is_of_search else (self.config.max_steps,)

    @property
    def is_whole(self) -> bool:
        """True if the trial reached max_steps, even if it was then recorded as pruned."""
        return bool(self.history) and self.history[-1].step == self.config.max_steps
