"""The values of a report: what a sweep came to, for templates and JSON."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, get_args

from orchestrator.analysis.budgets import Spent
from orchestrator.analysis.costs import CostTable, Saving
from orchestrator.analysis.noise import Noise
from orchestrator.analysis.repeats import Figure, Rows
from orchestrator.analysis.sufficient_rank import SufficientRank
from orchestrator.analysis.verdict import Answer, FailedEvaluation, Verdict, cosine_asked
from orchestrator.driver.time_repeats import is_timed
from trainables.models.layout import Coverage
from trainables.values.config import Precision, State, TrialConfig, Weights
from trainables.values.findings import BiasShift, Comparison, KlShare, Sample
from trainables.values.workload import Workload

if TYPE_CHECKING:
    from orchestrator.settings import SweepSettings


CAVEATS: Mapping[Weights, str] = {
    "pretrained": "",
    "random": ", with random weights: says nothing about a trained model",
    "stand-in": ", on a stand-in base trained from nothing",
    "demo": ", on the embedded demo model",
}
"""Said in the line of every headline figure of quality, by whose weights it is of."""
COST_CAVEATS: Mapping[Weights, str] = CAVEATS | {"random": ", with random weights, which cost the same"}


def caveat_of(workload: "Workload", caveats: Mapping[Weights, str] = CAVEATS) -> str:
    """What is said beside a figure of the weights that it is of: by their kind, and the base's own note."""
    return caveats[workload.weights] + (f", {workload.base_note}" if workload.base_note else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """A trial that the report is about.

    Attributes:
        front_share: in what share of resamples it is on the front: its stability; None where it does not count.
        tied_with: numbers of the front's members that are within the noise of it in every objective.
        rows: those that its loss and similarity objectives are of.
        figures: the default objectives and the sweep's own.
        verdict, comparison: of a 4-bit trial, where there are any.
        compared_on: rows of the comparison.
    """

    number: int
    key: str
    config: TrialConfig
    on_front: bool
    rows: Rows
    figures: Mapping[str, Figure]
    verdict: Verdict | None
    comparison: Comparison | None
    compared_on: Rows
    front_share: float | None = None
    tied_with: tuple[int, ...] = ()

    @property
    def is_lost(self) -> bool:
        """Whether 4 bits lose more than the margin of what tuning gained."""
        return self.verdict is not None and self.verdict.is_lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Trials that ended alike.

    Attributes:
        reason: of the first of them; the others' differ in their figures only.
    """

    state: State
    n_trials: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where quantization shows, of the best 4-bit finalist."""

    shares: tuple[KlShare, ...]
    bias: tuple[BiasShift, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How the figures were taken.

    Attributes:
        protocol_version: None where it is not one version that this program knows.
        data_counts: rows read, dropped by reason and in each split.
        environment: name -> values, several where trials ran under different ones.
        peak_resident_mib: of the host, by the worker process with the most; None where none said it.
        noise: of each objective; differences within it decide no dominance.
        wall_seconds: from the sweep's start to its last trial's end, pauses included; None before the first.
        train_seconds: summed over trials.
    """

    protocol_version: int | None
    data_counts: Mapping[str, int]
    environment: Mapping[str, tuple[str, ...]]
    peak_resident_mib: int | None
    noise: tuple[Noise, ...]
    wall_seconds: float | None
    train_seconds: float

    @property
    def protocol(self) -> str:
        """In words."""
        return "not one that this program knows" if self.protocol_version is None else str(self.protocol_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class WithinMemory:
    """The cheapest trial with the lowest validation loss, as far as can be told, of all that need no more peak memory,
    from its own peak on to the next's.

    Attributes:
        eval_loss_nats: on the validation rows, by which it was chosen.
        reach_nats: how far equal runs lie on either side of it, 90 % of them; None where it is not known.
        alike: trials that cost more, and whose lower loss cannot be told from its own.
        is_lost: its verdict says that 4 bits lose more than the margin.
    """

    number: int
    config: TrialConfig
    peak_memory_mib: float
    seconds_per_step: float
    eval_loss_nats: float
    reach_nats: float | None = None
    alike: "tuple[WithinMemory, ...]" = ()
    is_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """Everything that a report says.

    Attributes:
        workload: None before the sweep's first trial.
        n_done, n_expected: trials in a final state, and those that the sweep will come to as far as is known.
        n_running: trials at work, as the ledger has it.
        states: trials by state.
        best_loss: number of the answer: the cheapest with the lowest validation loss, within noise, of those that count
            for the front.
        best_memory: number of the front's member with the lowest peak.
        best_4bit: number of the 4-bit finalist with the lowest such loss, of those evaluated if any were.
        samples: what the best 4-bit finalist, its baseline and the untuned base write after a few test prompts.
        sufficient_ranks: by precision.
        within_memory: the best trial for each budget of peak memory.
        knee: number of the front's member that gives up least in every objective, see orchestrator.analysis.choice.
        answer: what the sweep answers, in one sentence with its uncertainty.
        short_answer: the trial of it alone, with its loss.
        sure: which trials have a validation loss that cannot be told from the best one's, in words.
        nearly: number of each trial off the front that noise alone may keep from it -> its share of resamples.
        search_ended: why the search is over, in words; None while it is not.
        nothing_counts: why the front is empty, in words; None where it is not.
        spent: by the whole sweep; None in ledgers from before that was kept.
        coverage: what each choice of targets covers; empty in ledgers from before that was kept.
        same_command: how it compares with an earlier sweep of the same command, in words; None where there is none.
        generic_base: type of a base that no family describes, else None.
        is_recorded: git keeps it without its adapters, and it is only read.
    """

    name: str
    settings: "SweepSettings"
    workload: Workload | None
    n_done: int
    n_expected: int
    n_running: int
    states: Mapping[State, int]
    savings: tuple[Saving, ...]
    best_loss: int | None
    best_memory: int | None
    best_4bit: int | None
    sufficient_ranks: Mapping[Precision, SufficientRank]
    finalists: tuple[Finalist, ...]
    costs: CostTable | None
    breakdown: Breakdown | None
    outcomes: tuple[Outcome, ...]
    faults: tuple[FailedEvaluation, ...]
    measured: Measured
    samples: tuple[Sample, ...] = ()
    within_memory: tuple[WithinMemory, ...] = ()
    knee: int | None = None
    answer: str = ""
    short_answer: str = ""
    sure: str | None = None
    nearly: Mapping[int, float] = field(default_factory=dict)
    search_ended: str | None = None
    nothing_counts: str | None = None
    spent: Spent | None = None
    coverage: tuple[Coverage, ...] = ()
    same_command: str | None = None
    generic_base: str | None = None
    is_recorded: bool = False

    @property
    def finished(self) -> bool:
        return self.n_done >= self.n_expected

    @property
    def caveat(self) -> str:
        """Of figures of quality; of memory and time see `cost_caveat`."""
        return caveat_of(self.workload) if self.workload else ""

    @property
    def cost_caveat(self) -> str:
        return caveat_of(self.workload, COST_CAVEATS) if self.workload else ""

    @property
    def time_caveat(self) -> str:
        """Of a step's time; empty where each was taken while nothing else was at work on the device."""
        return (
            ""
            if is_timed(self.settings)
            else "Steps were timed while other trials ran on this CPU: their times are rough."
        )

    @property
    def caption(self) -> str:
        """Whose figures these are, and where they were taken."""
        if self.workload is None:
            return "Nothing was measured yet."
        devices = ", ".join(self.measured.environment.get("device", ())) or "no device yet"
        return f"{self.workload.base_caption}; {devices}, {self.workload.compute_dtype}"

    @property
    def cosine_asked(self) -> float:
        """What cosines to a 16-bit baseline are held against in words."""
        return cosine_asked(self.settings)

    @property
    def answers(self) -> Mapping[Answer, int]:
        """Of the verdicts on 4-bit finalists: how many have each answer."""
        counts = Counter(finalist.verdict.answer for finalist in self.finalists if finalist.verdict)
        return {answer: counts[answer] for answer in get_args(Answer) if counts[answer]}

    @property
    def finalist_objectives(self) -> list[str]:
        """Those that a finalist has a figure of."""
        return list(dict.fromkeys(chain.from_iterable(map(attrgetter("figures"), self.finalists))))

    def covered_by(self, config: TrialConfig) -> Coverage | None:
        """What the targets of one trial cover."""
        return next((found for found in self.coverage if found.targets == config.targets), None)

    def finalist(self, number: int | None) -> Finalist | None:
        """The finalist of that number."""
        return next((found for found in self.finalists if found.number == number), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        values: dict[str, Any] = {"settings": self.settings.model_dump(mode="json")}
        for name in self.__dataclass_fields__:
            values.setdefault(name, _plain(getattr(self, name)))
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(map(_plain, value))
    if isinstance(value, Mapping):
        return dict(zip(value, map(_plain, value.values()), strict=True))
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
