"""Cells of grids: one config under several seeds, evaluated on the test rows, and what one loses to another. Pure.

A grid that varies nothing but the seed of a config gives a cell of all its seeds. Where it tries several learning rates
of otherwise equal configs, the lowest validation loss chooses one, and the seed that chose takes no part in the cell.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean

from orchestrator.analysis.lost_share import LostShare, PairedLosses, lost_share
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.sufficient_rank import MIN_SEEDS
from trainables.values.config import TrialConfig
from trainables.values.results import TrialResult

ANY_RATE = 1.0
"""Learning rate of a config that stands for all of them."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One config under several seeds.

    Attributes:
        config: at seed 0.
        runs: completed and evaluated on the test rows, by seed.
        sweeps: that it is from.
    """

    config: TrialConfig
    runs: Mapping[int, TrialResult]
    sweeps: tuple[str, ...] = ()

    @cached_property
    def loss_nats(self) -> float:
        """Mean over seeds of the loss on the test rows."""
        return mean(run.test_evaluation.eval_loss_nats for run in self.runs.values())

    @property
    def peak_mib(self) -> float | None:
        """Measured peak memory of its cost key; None where it was not measured."""
        costs = [run.cost for run in self.runs.values() if run.cost]
        return costs[0].peak_memory_mib if costs else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Validation losses of otherwise equal configs by learning rate, under the seed that chooses.

    Attributes:
        config: of the lowest loss, at seed 0.
        loss_nats: by learning rate, from the lowest rate to the highest; a run that diverged is not there.
    """

    config: TrialConfig
    loss_nats: Mapping[float, float]

    @property
    def at_edge(self) -> bool:
        """The best is the lowest or highest that was tried: a better one may lie beyond."""
        return self.config.learning_rate in (min(self.loss_nats), max(self.loss_nats))


def at_any_rate(config: TrialConfig) -> TrialConfig:
    """What configs that differ in learning rate and seed have in common."""
    return replace(config, seed=0, learning_rate=ANY_RATE)


def rates_of(sweep: SweepSnapshot) -> list[Rates]:
    """Of a grid's configs that were tried at several rates, those of its search, in their order."""
    return [rates for rates in _choices(sweep).values() if len(rates.loss_nats) > 1]


def _choices(sweep: SweepSnapshot) -> dict[TrialConfig, Rates]:
    """Of each group of configs that differ in their rate alone, or of a single one, the losses under the first seed."""
    groups: dict[TrialConfig, dict[float, float]] = {}
    for trial in sweep.trials:
        if trial.is_of_search and trial.state == "completed" and trial.history:
            losses = groups.setdefault(at_any_rate(trial.config), {})
            losses.setdefault(trial.config.learning_rate, trial.history[-1].eval_loss_nats)
    found = {}
    for group, losses in groups.items():
        best = min(losses, key=lambda rate: (losses[rate], rate))
        found[group] = Rates(config=replace(group, learning_rate=best), loss_nats=dict(sorted(losses.items())))
    return found


def cells_of(sweeps: Iterable[SweepSnapshot]) -> list[Cell]:
    """The cells of all grids among some sweeps over one base and its rows, of at least MIN_SEEDS seeds each.

    In the order of precision, targets, rank and rate; a cell of several sweeps has the seeds of all.
    """
    runs: dict[TrialConfig, dict[int, TrialResult]] = {}
    names: dict[TrialConfig, dict[str, None]] = {}
    for sweep in sweeps:
        if sweep.settings.space.method != "grid":
            continue
        for rates in _choices(sweep).values():
            for trial in sweep.trials:
                same = trial.state == "completed" and replace(trial.config, seed=0) == rates.config
                has_chosen = len(rates.loss_nats) > 1 and trial.is_of_search
                if same and trial.test_evaluation and not has_chosen:
                    runs.setdefault(rates.config, {}).setdefault(trial.config.seed, trial)
                    names.setdefault(rates.config, {})[sweep.settings.name] = None
    cells = []
    for config, by_seed in runs.items():
        if len(by_seed) >= MIN_SEEDS:
            cells.append(Cell(config=config, runs=dict(sorted(by_seed.items())), sweeps=tuple(names[config])))
    return sorted(cells, key=lambda cell: _order(cell.config))


def _order(config: TrialConfig) -> tuple[object, ...]:
    return (
        config.precision != "nf4",
        config.keep_16bit,
        len(config.targets),
        config.alpha,
        config.rank,
        config.learning_rate,
    )


def untuned_rows(cells: Sequence[Cell], precision: str) -> tuple[float, ...] | None:
    """Summed losses of each test row by the base without an adapter; None where no cell tells.

    Of a 4-bit base with modules at 16 bits that is another one, so only plain ones are asked.
    """
    for cell in cells:
        if cell.config.precision == precision and not cell.config.keep_16bit:
            return next(iter(cell.runs.values())).test_evaluation.untuned_row_nats
    return None


def contrast(one: Cell, other: Cell, cells: Sequence[Cell]) -> LostShare | None:
    """What `one` loses to `other`, as a share of what the latter gained over the untuned 16-bit base, paired by seed.

    None where they have fewer than MIN_SEEDS seeds in common, or no 16-bit cell tells the loss of the untuned base.
    No pair took part in a choice; `lost_share` is told of none that did not, so its upper end is on the safe side.
    """
    untuned, rounded = untuned_rows(cells, "16bit"), untuned_rows(cells, "nf4")
    seeds = [seed for seed in one.runs if seed in other.runs]
    if untuned is None or len(seeds) < MIN_SEEDS:
        return None
    pairs = []
    for seed in seeds:
        mine, theirs = one.runs[seed].test_evaluation, other.runs[seed].test_evaluation
        pairs.append(
            PairedLosses(
                quantized=mine.row_nats,
                baseline=theirs.row_nats,
                untuned=untuned,
                quantized_untuned=rounded or untuned,
            )
        )
    rows = one.runs[seeds[0]].test_evaluation
    return lost_share(pairs, row_tokens=rows.row_tokens, row_groups=rows.row_groups)
