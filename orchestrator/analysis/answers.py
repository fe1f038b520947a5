"""The model card's questions, answered from the grids of several sweeps over one base and its rows. Pure.

Every share is of what tuning at 16 bits gains over the untuned base, on the test rows, paired by group and by seed, and
has the interval of orchestrator.analysis.lost_share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from orchestrator.analysis.cells import Cell, Rates, at_any_rate, cells_of, contrast, rates_of
from orchestrator.analysis.costs import Saving, savings
from orchestrator.analysis.lost_share import LostShare
from orchestrator.analysis.repeats import sufficient_rank_of
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.sufficient_rank import SufficientRank
from trainables.values.config import Precision, TrialConfig
from trainables.values.errors import ConfigError
from trainables.values.results import TrialResult
from trainables.values.workload import Workload

SAME = ("base_fingerprint", "data_digest", "compute_dtype")
"""Of the workload, without which losses are of different things."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Versus:
    """A cell at 4 bits against one at 16 bits."""

    four: Cell
    sixteen: Cell
    lost: LostShare


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Cosine of a 4-bit cell to its 16-bit baselines, beside what it would be without 4 bits; test rows.

    Attributes:
        value, low: mean over seeds, and the lowest lower end of their intervals.
        untuned, untuned_high: the same of the untuned 16-bit base against these baselines, and its highest upper end.
        seeds_low, seeds_high: least and largest of the baselines' own seed replicates; None without any.
        kl_nats, seeds_kl_nats: mean over seeds, of the 4-bit cell and of the replicates.
    """

    cell: Cell
    value: float
    low: float
    untuned: float
    untuned_high: float
    seeds_low: float | None
    seeds_high: float | None
    kl_nats: float
    seeds_kl_nats: float | None

    def tells(self, cosine: float) -> bool:
        """Whether the untuned base, which no tuning has moved, stays under this cosine: else it says nothing."""
        return self.untuned_high < cosine


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Parts of a 4-bit base at 16 bits: what that buys back, and what it takes of the memory that 4 bits save.

    Attributes:
        four, kept, sixteen: cells that differ in nothing but precision and what is kept.
        bought: what `four` loses to `kept`, as a share of what `kept` gains.
        lost_before, lost_after: what `four` and `kept` lose to `sixteen`.
        more_mib: peak memory of `kept` beyond that of `four`; None where one was not measured.
        saved_mib: peak memory of `sixteen` beyond that of `four`, likewise.
    """

    four: Cell
    kept: Cell
    sixteen: Cell
    bought: LostShare
    lost_before: LostShare
    lost_after: LostShare
    more_mib: float | None
    saved_mib: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenShare:
    """KL of 4-bit trials to their baselines on one group of tokens or rows; mean, least and largest over seeds."""

    by: str
    group: str
    kl_nats: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What sweeps over one base come to.

    Attributes:
        sweeps: that were read, in the order given.
        workload: what all of them share.
        cells: see orchestrator.analysis.cells.
        by_rank: each 4-bit cell against the 16-bit one that differs in nothing else, or in its own best rate.
        against_all: each 4-bit cell against every 16-bit one.
        cosines: of each 4-bit cell with comparisons on the test rows.
        sufficient: of each choice of targets with several ranks, and precision.
        rates: of each config that was tried at several.
        kept: of each 4-bit cell with parts at 16 bits that has its like without.
        tokens: of the 4-bit cell of most parameters, see TrialResult's breakdown.
        savings: in measured memory and time.
    """

    sweeps: tuple[SweepSnapshot, ...]
    workload: Workload
    cells: tuple[Cell, ...]
    by_rank: tuple[Versus, ...]
    against_all: tuple[Versus, ...]
    cosines: tuple[Cosine, ...]
    sufficient: Mapping[tuple[tuple[str, ...], Precision], SufficientRank]
    rates: tuple[Rates, ...]
    kept: tuple[Kept, ...]
    tokens: tuple[TokenShare, ...]
    savings: tuple[Saving, ...]

    @property
    def trials(self) -> list[TrialResult]:
        """Of all sweeps, each once."""
        return _each_once(self.sweeps)


def answers_of(sweeps: Sequence[SweepSnapshot]) -> Answers:
    """Answer what some sweeps can answer.

    Raises:
        ConfigError: one has not started, or they are of different bases, rows, arithmetic or protocols.
    """
    workload = _shared_workload(sweeps)
    cells = cells_of(sweeps)
    plain = [cell for cell in cells if not cell.config.keep_16bit]
    versus = _against_all(plain)
    by_rank = [one for one in versus if _like(one.four.config) == _like(one.sixteen.config)]
    rates: list[Rates] = []
    for sweep in sweeps:
        rates += rates_of(sweep) if sweep.settings.space.method == "grid" else []
    return Answers(
        sweeps=tuple(sweeps),
        workload=workload,
        cells=tuple(cells),
        by_rank=tuple(by_rank),
        against_all=tuple(versus),
        cosines=tuple(found for cell in plain if (found := cosine_of(cell))),
        sufficient=_sufficient(plain),
        rates=tuple(rates),
        kept=tuple(_kept(cells)),
        tokens=tuple(_tokens(plain)),
        savings=savings(trial for trial in _each_once(sweeps) if not trial.config.keep_16bit),
    )


def _shared_workload(sweeps: Sequence[SweepSnapshot]) -> Workload:
    first = sweeps[0].begun()
    for sweep in sweeps[1:]:
        differ = [name for name in SAME if getattr(sweep.begun().workload, name) != getattr(first.workload, name)]
        differ += ["protocol"] if sweep.protocols != first.protocols else []
        if differ:
            raise ConfigError(
                f"NAME: sweeps {first.settings.name!r} and {sweep.settings.name!r} differ in {differ[0]}, so that "
                "their losses are of different things; give sweeps over one base and its rows"
            )
    return first.workload


def _each_once(sweeps: Sequence[SweepSnapshot]) -> list[TrialResult]:
    by_key: dict[str, TrialResult] = {}
    for sweep in sweeps:
        for trial in sweep.trials:
            by_key.setdefault(trial.key, trial)
    return list(by_key.values())


def _like(config: TrialConfig) -> TrialConfig:
    """What a 4-bit cell and the 16-bit one that it is held against have in common."""
    return at_any_rate(config.at("16bit"))


def _against_all(cells: Sequence[Cell]) -> list[Versus]:
    found = []
    for four in cells:
        for sixteen in cells:
            if (four.config.precision, sixteen.config.precision) == ("nf4", "16bit"):
                lost = contrast(four, sixteen, cells)
                if lost is not None:
                    found.append(Versus(four=four, sixteen=sixteen, lost=lost))
    return found


def cosine_of(cell: Cell) -> Cosine | None:
    """None of a cell at 16 bits, or without comparisons on the test rows."""
    compared = [run.test_evaluation.comparison for run in cell.runs.values() if run.test_evaluation.comparison]
    if cell.config.precision == "16bit" or not compared:
        return None
    quantized = [comparison.quantized.embedding_cosine for comparison in compared]
    untuned = [comparison.untuned.embedding_cosine for comparison in compared]
    seeds, seeds_kl = [], []
    for comparison in compared:
        for replicate in comparison.replicates:
            seeds.append(replicate.embedding_cosine.value)
            seeds_kl.append(replicate.kl_nats.value)
    return Cosine(
        cell=cell,
        value=mean(found.value for found in quantized),
        low=min(found.low for found in quantized),
        untuned=mean(found.value for found in untuned),
        untuned_high=max(found.high for found in untuned),
        seeds_low=min(seeds, default=None),
        seeds_high=max(seeds, default=None),
        kl_nats=mean(comparison.quantized.kl_nats.value for comparison in compared),
        seeds_kl_nats=mean(seeds_kl) if seeds_kl else None,
    )


def _sufficient(cells: Sequence[Cell]) -> dict[tuple[tuple[str, ...], Precision], SufficientRank]:
    """Of each choice of targets and precision, over the recipe of which most ranks are there.

    Ranks of one recipe have one alpha, or one alpha / rank: two alphas at one rank are two recipes.
    """
    recipes: dict[tuple[str, TrialConfig], dict[int, Cell]] = {}
    for cell in cells:
        alpha, rank = cell.config.alpha, cell.config.rank
        for held, value in (("alpha", alpha), ("alpha / rank", alpha / rank)):
            recipe = replace(at_any_rate(cell.config), rank=1, alpha=value)
            recipes.setdefault((held, recipe), {})[rank] = cell
    groups: dict[tuple[tuple[str, ...], Precision], dict[int, Cell]] = {}
    for (_, recipe), by_rank in recipes.items():
        group = recipe.targets, recipe.precision
        groups[group] = max(groups.get(group, {}), by_rank, key=len)
    found = {}
    for group, by_rank in groups.items():
        shared = sorted(set.intersection(*(set(cell.runs) for cell in by_rank.values())))
        if len(by_rank) > 1 and shared:
            rows = {rank: [cell.runs[seed].test_evaluation for seed in shared] for rank, cell in by_rank.items()}
            found[group] = sufficient_rank_of(rows, next(iter(rows.values()))[0])
    return found


def _kept(cells: Sequence[Cell]) -> list[Kept]:
    by_config = {cell.config: cell for cell in cells}
    found = []
    for kept in cells:
        if not kept.config.keep_16bit:
            continue
        sixteen = by_config.get(kept.config.at_other_precision)
        four = by_config.get(kept.config.at_other_precision.at_other_precision)
        if sixteen is None or four is None:
            continue
        bought, after = contrast(four, kept, cells), contrast(kept, sixteen, cells)
        before = contrast(four, sixteen, cells)
        if bought and before and after:
            found.append(
                Kept(
                    four=four,
                    kept=kept,
                    sixteen=sixteen,
                    bought=bought,
                    lost_before=before,
                    lost_after=after,
                    more_mib=_difference(kept.peak_mib, four.peak_mib),
                    saved_mib=_difference(sixteen.peak_mib, four.peak_mib),
                )
            )
    return found


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _tokens(cells: Sequence[Cell]) -> list[TokenShare]:
    broken = [cell for cell in cells if any(run.test_evaluation.breakdown for run in cell.runs.values())]
    if not broken:
        return []
    largest = max(broken, key=lambda cell: (len(cell.config.targets), cell.config.rank))
    values: dict[tuple[str, str], list[float]] = {}
    for run in largest.runs.values():
        for share in run.test_evaluation.breakdown:
            values.setdefault((share.by, share.group), []).append(share.kl_nats.value)
    found = []
    for (by, group), kls in values.items():
        found.append(TokenShare(by=by, group=group, kl_nats=mean(kls), low=min(kls), high=max(kls)))
    return found
