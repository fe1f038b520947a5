"""The model card's questions, on made-up sweeps whose truth is known; shares and means against plain NumPy."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count

import numpy as np
import pytest

from orchestrator.analysis.answers import answers_of
from orchestrator.analysis.cells import contrast, rates_of
from orchestrator.report import answers as texts
from tests.support.sweeps import GRID, WORKLOAD, cost, likeness, make, measurement, snapshot, space, trial
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError
from trainables.values.findings import Comparison, KlShare, TestEvaluation

N_ROWS = 48
RANDOM = np.random.default_rng(7)
TOKENS = RANDOM.integers(5, 40, N_ROWS)
UNTUNED, ROUNDED = TOKENS * (3.0 + RANDOM.normal(0, 0.1, N_ROWS)), TOKENS * (3.2 + RANDOM.normal(0, 0.1, N_ROWS))
SEEDS = range(5)
BLOCK = "transformer.h.0"
ALL = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
NUMBERS = count()
CONFIG_STEPS = 200


def config(precision, rank, rate=2e-4, *, targets=("attn.c_attn",), alpha=16, seed=0, keep=()) -> TrialConfig:
    return TrialConfig(
        precision=precision,
        rank=rank,
        alpha=alpha,
        learning_rate=rate,
        targets=targets,
        seed=seed,
        keep_16bit=keep,
    )


def row_nats(own: TrialConfig, loss: float) -> np.ndarray:
    """Losses of the test rows: a trial's mean, its seed's own shift, and what each row has of its own."""
    random = np.random.default_rng([own.seed, own.rank, own.precision == "nf4", round(1e6 * own.learning_rate)])
    return TOKENS * (loss + random.normal(0, 0.002) + random.normal(0, 0.01, N_ROWS))


def compared(own: TrialConfig) -> Comparison:
    replicates = tuple(likeness(cosine=0.98 + 0.001 * i, kl_nats=0.02 + 0.01 * i) for i in (0, own.seed))
    quantized = likeness(cosine=0.96 + 0.002 * own.seed, kl_nats=0.1, low=0.955 + 0.002 * own.seed)
    return Comparison(quantized=quantized, untuned=likeness(cosine=0.94 + 0.01 * own.seed), replicates=replicates)


def run_of(own: TrialConfig, loss: float, *, origin="search", validation=None, evaluated=True, peak=100.0):
    nf4 = own.precision == "nf4"
    estimate = likeness(kl_nats=0.1 * (1 + own.seed)).kl_nats
    shares = (KlShare(by="kind of task", group="classify", kl_nats=estimate, n_tokens=9, n_rows=3),) if nf4 else ()
    evaluation = TestEvaluation(
        row_nats=tuple(row_nats(own, loss)),
        row_tokens=tuple(TOKENS.tolist()),
        untuned_row_nats=tuple(ROUNDED if nf4 else UNTUNED),
        row_groups=tuple(range(N_ROWS)),
        comparison=compared(own) if nf4 else None,
        breakdown=shares,
    )
    return trial(
        next(NUMBERS),
        key=WORKLOAD.key(own),
        config=own,
        origin=origin,
        history=(measurement(own.max_steps, loss if validation is None else validation),),
        test_evaluation=evaluation if evaluated else None,
        cost=cost(peak_memory_mib=peak, seconds_per_step=1.0),
    )


def sweep_of(name, trials, method="grid", **workload):
    facts = {"workload": asdict(replace(WORKLOAD, **workload))}
    return snapshot(make(space(GRID, method=method), name=name), trials, facts)


LOSSES = {("nf4", 2): 2.3, ("nf4", 8): 2.15, ("16bit", 2): 2.1, ("16bit", 8): 2.0}


@pytest.fixture(scope="module")
def grid():
    trials = []
    for (precision, rank), loss in LOSSES.items():
        for seed in SEEDS:
            origin = "replicate" if seed else "search"
            peak = 100.0 if precision == "nf4" else 150.0
            trials.append(run_of(config(precision, rank, seed=seed), loss, origin=origin, peak=peak))
    return sweep_of("grid", trials)


def rate_trials() -> Iterator:
    """Of all targets: at 4 bits the highest of three rates is best, at 16 bits the middle one; 3 fresh seeds each."""
    for precision, best in (("nf4", 1e-3), ("16bit", 3e-4)):
        for rate in (1e-4, 3e-4, 1e-3):
            own = config(precision, 8, rate, targets=ALL, alpha=32)
            is_best = rate == best
            validation = 1.9 if is_best else 2.5
            yield run_of(own, 1.0 if is_best else 2.4, validation=validation, evaluated=is_best)
            for seed in (1, 2, 3) if is_best else ():
                yield run_of(replace(own, seed=seed), 1.95, origin="replicate")


@pytest.fixture(scope="module")
def rates():
    return sweep_of("rates", [*rate_trials()])


@pytest.fixture(scope="module")
def keep():
    trials = []
    for seed in (0, 1, 2):
        own = config("nf4", 8, seed=seed, keep=(BLOCK,))
        trials.append(run_of(own, 2.05, origin="replicate" if seed else "search", peak=110.0))
    return sweep_of("keep", trials)


@pytest.fixture(scope="module")
def answers(grid, rates, keep):
    return answers_of([grid, rates, keep])


def cell(answers, precision, rank, targets=("attn.c_attn",), keep=()):
    wanted = precision, rank, targets, keep
    (found,) = [
        one
        for one in answers.cells
        if (one.config.precision, one.config.rank, one.config.targets, one.config.keep_16bit) == wanted
    ]
    return found


def plain_share(one, other, seeds, losses) -> float:
    """(L4 - L16) / (U - L16), of sums over seeds and rows."""
    lost = gained = 0.0
    for seed in seeds:
        mine = row_nats(replace(one, seed=seed), losses[0]).sum()
        theirs = row_nats(replace(other, seed=seed), losses[1]).sum()
        lost, gained = lost + mine - theirs, gained + UNTUNED.sum() - theirs
    return lost / gained


def test_every_pair_of_cells_loses_the_share_that_plain_sums_give(answers):
    found = {(v.four.config.rank, v.sixteen.config.rank): v.lost for v in answers.against_all if v.lost.n_pairs == 5}
    assert found.keys() == {(2, 2), (2, 8), (8, 2), (8, 8)}
    for (four, sixteen), lost in found.items():
        losses = LOSSES["nf4", four], LOSSES["16bit", sixteen]
        expected = plain_share(config("nf4", four), config("16bit", sixteen), SEEDS, losses)
        assert lost.share == pytest.approx(expected, rel=1e-9)
        assert lost.low < lost.share < lost.high
        assert lost.n_groups == N_ROWS
    rounding = (
        (ROUNDED - UNTUNED).sum()
        * 5
        / sum(UNTUNED.sum() - row_nats(config("16bit", 8, seed=seed), 2.0).sum() for seed in SEEDS)
    )
    assert found[8, 8].rounding_share == pytest.approx(rounding, rel=1e-9)


def test_the_seed_that_chose_a_rate_takes_no_part_and_cells_of_two_sweeps_share_their_fresh_seeds(answers):
    chosen = cell(answers, "nf4", 8, ALL)
    assert chosen.config.learning_rate == 1e-3
    assert list(chosen.runs) == [1, 2, 3]
    own, other = chosen.config, config("16bit", 8)
    lost = contrast(chosen, cell(answers, "16bit", 8), answers.cells)
    assert lost.n_pairs == 3
    assert lost.share == pytest.approx(plain_share(own, other, (1, 2, 3), (1.95, 2.0)), rel=1e-9)


def test_each_precision_is_compared_at_its_own_best_rate(answers):
    (own,) = [v for v in answers.by_rank if v.four.config.targets == ALL]
    assert (own.four.config.learning_rate, own.sixteen.config.learning_rate) == (1e-3, 3e-4)


def test_rates_are_those_of_the_seed_that_chooses_and_the_edge_is_said(rates):
    found = {one.config.precision: one for one in rates_of(rates)}
    assert found["nf4"].loss_nats == {1e-4: 2.5, 3e-4: 2.5, 1e-3: 1.9}
    assert found["nf4"].at_edge
    assert not found["16bit"].at_edge
    assert found["16bit"].config.learning_rate == 3e-4


def test_a_rate_at_which_the_first_config_diverged_has_a_column_all_the_same(rates):
    own = [entry for entry in rates.entries if entry.result.config.precision == "16bit"]
    diverged = [entry for entry in rates.entries if entry not in own and entry.result.config.learning_rate != 1e-4]
    text = texts.markdown(answers_of([replace(rates, entries=(*diverged, *own))]), None, [])
    assert "| | 1e-04 | 3e-04 | 1e-03 | best |" in text
    assert "| 4 bits, rank 8 | - | 2.5000 | 1.9000 | 1e-03, at the edge of what was tried |" in text


def test_the_factor_between_best_rates_is_that_of_the_highest_and_the_lowest(answers):
    spread = texts.rate_spreads(answers)
    assert spread.keys() == {"precisions, rank 8"}
    assert spread["precisions, rank 8"].ratio == pytest.approx(1e-3 / 3e-4)


@pytest.mark.parametrize(
    ("ratio", "n_steps", "said"),
    [
        (1.0, 0, "are the same"),
        (10 / 3, 1, "differ by a factor of 3.33, within one step of the grid"),
        (10.0, 2, "differ by a factor of 10 (beyond 3)"),
        (3.0, 2, "differ by a factor of 3 (within 3)"),
    ],
)
def test_best_rates_one_step_of_the_grid_apart_are_not_told_apart(ratio, n_steps, said):
    assert texts.RateSpread(ratio=ratio, n_steps=n_steps).text == said


def test_the_cosine_stands_beside_the_untuned_bases_and_the_seed_replicates(answers):
    found = {one.cell.config.rank: one for one in answers.cosines if one.cell.config.targets != ALL}[2]
    assert found.value == pytest.approx(np.mean([0.96 + 0.002 * seed for seed in SEEDS]))
    assert found.low == pytest.approx(0.955)
    assert found.untuned == pytest.approx(np.mean([0.94 + 0.01 * seed for seed in SEEDS]))
    assert (found.seeds_low, found.seeds_high) == (pytest.approx(0.98), pytest.approx(0.984))
    assert found.kl_nats == pytest.approx(0.1)
    assert found.seeds_kl_nats == pytest.approx(np.mean([0.02 + 0.01 * i for seed in SEEDS for i in (0, seed)]))
    assert not found.tells(0.95), "an untuned base above it, so that it says nothing"
    assert found.tells(1.01)


def test_what_a_kept_block_buys_back_and_takes(answers):
    (kept,) = answers.kept
    seeds, kept_config = (0, 1, 2), config("nf4", 8, keep=(BLOCK,))
    bought = plain_share(config("nf4", 8), kept_config, seeds, (2.15, 2.05))
    after = plain_share(kept_config, config("16bit", 8), seeds, (2.05, 2.0))
    assert kept.bought.share == pytest.approx(bought, rel=1e-9)
    assert kept.lost_after.share == pytest.approx(after, rel=1e-9)
    assert (kept.more_mib, kept.saved_mib) == (10.0, 50.0)
    assert texts.memory_share(kept) == pytest.approx(0.2)


def test_a_sufficient_rank_is_told_of_each_precision_and_choice_of_targets_with_several_ranks(answers):
    assert answers.sufficient.keys() == {(("attn.c_attn",), "nf4"), (("attn.c_attn",), "16bit")}
    assert {found.rank for found in answers.sufficient.values()} == {8}


def test_kl_by_kind_of_task_is_the_mean_over_the_seeds_of_the_largest_4_bit_cell(answers):
    (found,) = answers.tokens
    assert found.kl_nats == pytest.approx(np.mean([0.1 * (1 + seed) for seed in (1, 2, 3)]))
    assert (found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.4))


def test_a_search_that_is_no_grid_gives_no_cells(grid):
    assert answers_of([replace(grid, settings=make(space(GRID, method="tpe")))]).cells == ()


def test_sweeps_over_different_rows_are_refused(grid, keep):
    with pytest.raises(ConfigError, match="'grid' and 'other' differ in data_digest"):
        answers_of([grid, sweep_of("other", keep.trials, data_digest="other")])


def test_sweeps_of_different_protocols_are_refused(grid):
    earlier = [replace(trial, key=WORKLOAD.key(trial.config, protocol=1)) for trial in grid.trials]
    with pytest.raises(ConfigError, match="'grid' and 'before' differ in protocol"):
        answers_of([grid, sweep_of("before", earlier)])


def test_the_text_says_each_share_with_its_interval_seeds_and_command(answers):
    text = texts.markdown(answers, None, ["qlora-sweep run --name grid"])
    assert "$ qlora-sweep run --name grid" in text
    for versus in answers.by_rank:
        lost = versus.lost
        assert f"{100 * lost.share:.1f} % ({100 * lost.low:.1f} to {100 * lost.high:.1f})" in text
        assert f"| {lost.answer(0.05)} | {lost.n_pairs} |" in text
    assert "at the edge of what was tried" in text
    assert f"In {len(answers.cosines)} of {len(answers.cosines)} rows the untuned base" in text
    assert "within one step of the grid" in text
    assert "10.0 MiB, 20.0 % of the 50.0 MiB that 4 bits save" in text
    assert "By kind of task" in text
    assert "None" not in text
    tables = [line.count("|") for line in text.splitlines() if line.startswith("| ")]
    assert min(tables) > 2


def test_a_single_sweep_without_seeds_says_what_was_not_measured(grid):
    alone = replace(grid, entries=grid.entries[:1])
    text = texts.markdown(answers_of([alone]), None, [])
    assert text.count("Not measured") >= 5


def test_cells_of_other_steps_are_neither_paired_nor_ranked_with_these(grid):
    long = []
    for run in grid.trials:
        config = replace(run.config, max_steps=400)
        long.append(replace(run, config=config, key=WORKLOAD.key(config)))
    only = [run for run in long if (run.config.precision, run.config.rank) == ("nf4", 2)]
    found = answers_of([grid, sweep_of("long", only)])
    assert {versus.four.config.max_steps for versus in found.by_rank} == {CONFIG_STEPS}
    assert found.sufficient == answers_of([grid]).sufficient


def test_a_sufficient_rank_counts_groups_of_rows_and_not_rows(grid):
    few = tuple(row // 2 for row in range(N_ROWS))  # 24 groups
    trials = []
    for run in grid.trials:
        evaluation = run.test_evaluation and replace(run.test_evaluation, row_groups=few)
        trials.append(replace(run, test_evaluation=evaluation))
    found = answers_of([sweep_of("grouped", trials)])
    assert found.sufficient
    assert all(rank.rank is None and "24 groups" in rank.reason for rank in found.sufficient.values())


def test_two_alphas_at_one_rank_are_two_recipes_of_which_none_stands_for_the_other(grid):
    alone = answers_of([grid]).sufficient
    other = [
        run_of(config("nf4", 8, alpha=64, seed=seed), 2.9, origin="replicate" if seed else "search") for seed in SEEDS
    ]
    both = answers_of([sweep_of("both", [*grid.trials, *other])])
    assert {cell.config.alpha for cell in both.cells if cell.config.rank == 8} == {16, 64}
    assert both.sufficient == alone


def test_ranks_whose_alpha_grows_with_them_are_one_recipe():
    trials = []
    for rank, loss in ((2, 2.3), (8, 2.15)):
        trials += [run_of(config("nf4", rank, alpha=2 * rank, seed=seed), loss) for seed in SEEDS]
    ((group, found),) = answers_of([sweep_of("ratio", trials)]).sufficient.items()
    assert group == (("attn.c_attn",), "nf4")
    assert [row.rank for row in found.ranks] == [2, 8]
