"""A sweep's report: known ledgers in, figures worked out by hand out, and nothing from outside read as markup."""

import json
import re
from dataclasses import asdict, replace
from html import unescape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from scipy import stats

from orchestrator import settings as settings_file
from orchestrator.analysis.costs import cost_table, savings
from orchestrator.analysis.repeats import figure, over_seeds, smallest_sufficient_rank
from orchestrator.analysis.sufficient_rank import sufficient_rank
from orchestrator.cli.group import commands
from orchestrator.ledger import Ledger
from orchestrator.report import outputs, render
from orchestrator.report.content import report_of
from orchestrator.report.markdown import MAX_CHARS, safe
from orchestrator.report.page import Section, page
from orchestrator.settings import stored
from tests.support.in_process import called
from tests.support.sweeps import (
    GRID,
    TPE,
    WORKLOAD,
    Desk,
    breaks,
    completes,
    cost,
    estimate,
    evaluated_on_test,
    likeness,
    make,
    measurement,
    sample,
    similarity,
    snapshot,
    space,
    trial,
)
from trainables.models.layout import Coverage
from trainables.values.config import TrialConfig
from trainables.values.errors import ConfigError
from trainables.values.findings import BiasShift, Comparison, KlShare
from trainables.values.results import MemoryBreakdown

NF4 = TrialConfig(precision="nf4", rank=4, alpha=8)
BASELINE = NF4.at_other_precision
EVIL = "<script>alert(1)</script> | [x](javascript:alert(2)) `code` **bold** <img src=x onerror=alert(3)>\n# heading"
FACTS = {"workload": asdict(WORKLOAD), "created_at": 100.0}
LOSS = make(objectives=("eval_loss_nats",))


def measured(number, config, peak, seconds=0.05, **values):
    """A trial whose cost key was measured on the full batch."""
    rung = measurement(200, values.pop("loss", 2.0))
    own = cost(peak_memory_mib=peak, seconds_per_step=seconds, **values.pop("costs", {}))
    return trial(number, config=config, history=(rung,), cost=own, **values)


def compared(*, seeds=(0.9, 0.8)):
    """4 bits at a cosine of 0.99 beside its references."""
    return Comparison(
        quantized=likeness(0.99, low=0.98, kl_nats=0.01),
        untuned=likeness(0.5, kl_nats=1.5),
        replicates=tuple(likeness(cosine, kl_nats=0.2) for cosine in seeds),
        quantization_to_seed_ratio=estimate(0.07, 0.05) if seeds else None,
    )


def text_of(trials, settings=LOSS, predict=lambda config: None, **facts):
    return render.markdown(report_of(snapshot(settings, trials, FACTS | facts), predict), {})


def headlines(text):
    return re.findall(r"^- (.*)", text.split("## Question and answer")[1].split("\n## ")[0], re.MULTILINE)


# --- figures over seeds


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6))
def test_an_interval_over_seeds_is_the_t_interval_of_the_mean(values):
    found = over_seeds(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values) + 1e-300)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert (found.value, found.n_seeds) == (pytest.approx(sum(values) / len(values)), len(values))


def test_loss_is_of_the_test_rows_where_all_runs_were_evaluated_and_of_the_validation_rows_elsewhere():
    runs = [trial(n, test_evaluation=evaluated_on_test()) for n in range(3)]  # 2 nats there
    searched = [replace(run, history=(measurement(200, 5.0),)) for run in runs]
    assert figure(searched, "eval_loss_nats").value == pytest.approx(2.0)
    half = [searched[0], replace(searched[1], test_evaluation=None)]
    assert figure(half, "eval_loss_nats").value == pytest.approx(5.0)


def test_memory_and_time_claim_no_interval_over_seeds():
    runs = [measured(n, replace(BASELINE, seed=n), 100.0, costs={"seconds_per_step_p10": 0.04}) for n in range(3)]
    peak, step = (figure(runs, name) for name in ("peak_memory_mib", "seconds_per_step"))
    assert (peak.value, peak.low, peak.n_seeds) == (100.0, None, 0)
    assert (step.value, step.low, step.high, step.n_seeds) == (0.05, 0.04, 1.0, 0)


def test_a_single_run_is_marked_as_one_seed_and_several_as_so_many():
    alone = trial(0, test_evaluation=evaluated_on_test())
    assert "2.0000, one seed" in text_of([alone])
    nats = {1: (2.5, 4.0, 6.0), 2: (1.5, 4.0, 6.0)}
    others = [
        trial(
            n,
            config=replace(BASELINE, seed=n),
            origin="replicate",
            test_evaluation=replace(evaluated_on_test(), row_nats=rows),
        )
        for n, rows in nats.items()
    ]
    low, high = stats.t.interval(0.95, 2, loc=2.0, scale=stats.sem([2.0, 12.5 / 6, 11.5 / 6]))
    text = text_of([alone, *others], make(objectives=("eval_loss_nats",), finalist_seeds=3))
    assert f"2.0000 ({low:.4f} to {high:.4f}), 3 seeds" in text


@pytest.mark.parametrize("n_groups", [40, 1])
def test_the_smallest_sufficient_rank_pairs_the_fresh_seeds_that_all_ranks_have_over_groups_of_rows(n_groups):
    settings = make(objectives=("eval_loss_nats",), finalist_seeds=4)
    trials, by_rank = [], {1: [], 8: []}
    groups = (*range(40), *range(40))
    for rank, seed in ((1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (8, 0), (8, 2), (8, 3), (8, 4)):  # rank 8 lost seed 1
        rows = tuple(10.0 + i % 7 + (1.0 if rank == 1 else 0.0) + 0.001 * seed * rank for i in range(80))
        found = replace(
            evaluated_on_test(),
            row_nats=rows,
            row_tokens=(5,) * 80,
            untuned_row_nats=(99.0,) * 80,
            row_groups=groups if n_groups == 40 else (0,) * 80,
        )
        config = replace(BASELINE, rank=rank, seed=seed)
        kind = "replicate" if seed else "search"
        trials.append(
            trial(
                len(trials), config=config, origin=kind, test_evaluation=found, history=(measurement(200, 9.0 - rank),)
            )
        )
        if seed > 1:  # that of the search took part in choosing the config
            by_rank[rank].append([rows[i] + rows[i + 40] for i in range(40)])
    chosen = [t for t in trials if t.origin == "search"]
    found = smallest_sufficient_rank("16bit", chosen, trials, settings)
    if n_groups == 1:
        assert found.rank is None
        assert "1 groups of equal instruction are too few" in found.reason
        return
    assert found == sufficient_rank(by_rank, row_tokens=[10] * 40, untuned_row_nats=[198.0] * 40)
    assert found.rank is not None
    assert smallest_sufficient_rank("nf4", chosen, trials, settings).rank is None
    two = settings.model_copy(update={"finalist_seeds": 2})
    assert "asked for 2" in smallest_sufficient_rank("16bit", chosen, trials, two).reason


# --- costs


def test_savings_are_medians_of_pairs_that_differ_in_precision_only_and_never_mix_loops():
    lean = replace(NF4, loop="lean")
    trials = [
        measured(0, NF4, 90.0, 0.10),
        measured(1, BASELINE, 100.0, 0.05),
        measured(2, replace(NF4, rank=8), 60.0, 0.10),
        measured(3, replace(BASELINE, rank=8), 100.0, 0.10),
        measured(4, lean, 20.0),
        measured(5, lean.at_other_precision, 50.0),
        measured(6, replace(NF4, rank=16), 1.0),  # no other half
        measured(7, replace(NF4, batch_size=8), 1.0),
        measured(8, replace(BASELINE, batch_size=8), 9.0, costs={"device": "another"}),
    ]
    found = {(s.loop, s.rank): (s.n_pairs, s.saved_mib, s.saved_share, s.time_ratio) for s in savings(trials)}
    assert found == {
        ("standard", None): (2, 25.0, 0.25, 1.5),
        ("standard", 4): (1, 10.0, 0.1, 2.0),
        ("standard", 8): (1, 40.0, 0.4, 1.0),
        ("lean", None): (1, 30.0, 0.6, 1.0),
        ("lean", 4): (1, 30.0, 0.6, 1.0),
    }
    text = text_of(trials)
    assert "**Memory, standard loop:** 4 bits save 25.0 MiB, 25.0 %" in text
    assert "**Memory, lean loop:** 4 bits save 30.0 MiB, 60.0 %" in text


@pytest.mark.parametrize(
    ("settings", "is_rough"),
    [
        (LOSS, True),
        (make(objectives=("eval_loss_nats", "seconds_per_step")), False),
        (make(device="cuda", objectives=LOSS.objectives), False),
    ],
)
def test_times_that_were_taken_beside_other_trials_are_said_to_be_rough_wherever_they_are_compared(settings, is_rough):
    pair = [TrialConfig(precision=precision, rank=8, alpha=16) for precision in ("16bit", "nf4")]
    text = text_of([trial(n, config=config) for n, config in enumerate(pair)], settings)
    compared = re.findall(r".*times as long.*|One training step at rank.*", text)
    assert len(compared) == 2
    rough = "Steps were timed while other trials ran on this CPU: their times are rough."
    assert [line.endswith(rough) for line in compared] == 2 * [is_rough]


def test_the_cost_table_is_of_the_config_with_most_cells_and_marks_what_is_only_predicted():
    full = [measured(0, replace(BASELINE, rank=2), 7.0), measured(1, BASELINE, 100.0), measured(2, NF4, 90.0)]
    found = cost_table(full, replace(BASELINE, rank=2), lambda config: 55.0 if config.precision == "nf4" else None)
    assert found.config.rank == 4
    cells = {(c.precision, c.loop): (c.cost and c.cost.peak_memory_mib, c.predicted_peak_mib) for c in found.cells}
    assert cells == {
        ("16bit", "standard"): (100.0, None),
        ("nf4", "standard"): (90.0, None),
        ("16bit", "lean"): (None, None),
        ("nf4", "lean"): (None, 55.0),
    }
    row = next(line for line in text_of(full, predict=lambda c: 55.0).splitlines() if line.startswith("| peak (MiB)"))
    assert row == "| peak (MiB) | 100.0 | 90.0 | not measured (predicted: 55) | not measured (predicted: 55) |"
    assert cost_table([trial(0, cost=None, history=())], None, lambda config: 1.0) is None


def test_every_part_of_the_peak_is_shown():
    parts = MemoryBreakdown(**{name: 11.0 + i for i, name in enumerate(MemoryBreakdown.__dataclass_fields__)})
    text = text_of([measured(0, BASELINE, 98.0, costs={"breakdown": parts})])
    assert [f"| {11 + i}.0 |" in text for i in range(7)] == [True] * 7


# --- likeness


def test_every_metric_stands_beside_its_seed_replicates_and_says_its_rows():
    found = trial(0, config=NF4, similarity=similarity(0.5), test_evaluation=evaluated_on_test(compared()))
    text = text_of([found])
    assert "| embedding cosine | 0.9900 (0.9800 to 1.0000) | 0.8500 | 0.5000 |" in text
    assert "| KL (nats) | 0.0100 (0.0100 to 1.0000) | 0.2000 | 1.5000 |" in text
    assert "test rows, match and cosines on 64 of them" in text
    assert "**`quantization_to_seed_ratio`:** 0.07 (0.05 to 1.00)" in text
    assert "protocol 1" in text
    assert "4 bits move texts less than half as much as another seed" in text
    on_search = text_of([replace(found, test_evaluation=None, similarity=compared(seeds=()))])
    assert "| embedding cosine | 0.9900 (0.9800 to 1.0000) | - | 0.5000 |" in on_search
    assert "128 validation rows" in on_search
    assert "no 4-bit finalist was evaluated on the test rows" in on_search


def test_where_quantization_shows_is_of_the_best_4_bit_finalist_that_was_evaluated():
    def evaluated(kl_nats):
        share = KlShare(by="kind of task", group="write", kl_nats=estimate(kl_nats), n_tokens=30, n_rows=3)
        shift = BiasShift(
            about="age", gap_16bit=estimate(0.1), gap_nf4=estimate(0.2), change=estimate(kl_nats), n_prompts=24
        )
        return replace(evaluated_on_test(compared()), breakdown=(share,), bias=(shift,))

    settings = make(objectives=("eval_loss_nats", "peak_memory_mib"))
    other = replace(NF4, rank=8)
    trials = [
        measured(0, NF4, 9.0, loss=3.0, similarity=similarity(), test_evaluation=evaluated(0.25)),
        measured(1, other, 10.0, loss=2.0, similarity=similarity(), test_evaluation=evaluated(0.75)),
        measured(2, replace(NF4, rank=16), 11.0, loss=1.0, similarity=similarity()),  # best, but not evaluated
    ]
    text = text_of(trials, settings)
    assert "KL of trial 1" in text
    assert "| kind of task | write | 0.7500 (0.7500 to 1.0000) | 30 | 3 |" in text
    assert "| age | 0.1000 | 0.2000 | 0.7500 (0.7500 to 1.0000) | 24 |" in text


# --- whose figures, and what became of the trials


@pytest.mark.parametrize(
    ("weights", "said"),
    [("random", "random weights"), ("demo", "the embedded demo model"), ("stand-in", "a stand-in base")],
)
def test_a_report_says_once_whose_weights_its_figures_are_of_and_begins_with_the_answer(weights, said):
    workload = asdict(replace(WORKLOAD, weights=weights))
    trials = [
        measured(0, BASELINE, 100.0, test_evaluation=evaluated_on_test()),
        measured(1, NF4, 90.0, similarity=similarity(), test_evaluation=evaluated_on_test(compared())),
    ]
    text = text_of(trials, workload=workload)
    assert text.count(said) == 1
    assert re.match(r"# Sweep t\n\n\*\*(Answer|So far): trial 1 ", text)


def test_a_negative_recovered_cosine_says_what_it_means():
    off = replace(compared().quantized, recovered_cosine=estimate(-0.25))
    trials = [trial(1, config=NF4, test_evaluation=evaluated_on_test(replace(compared(), quantized=off)))]
    assert "(under 0: further from the baseline than the untuned base)" in text_of(trials)
    assert "under 0: further" not in text_of([replace(trials[0], test_evaluation=evaluated_on_test(compared()))])


def test_trials_that_ended_alike_are_counted_together_whatever_their_figures():
    reasons = [
        ("pruned", "loss 1.5 nats at step 25 is too high"),
        ("pruned", "loss 2.25 nats at step 50 is too high"),
        ("oom", "needs 9 GiB"),
    ]
    trials = [trial(n, state=state, reason=why, history=()) for n, (state, why) in enumerate(reasons)]
    text = text_of(trials)
    assert "| pruned | 2 | loss 1.5 nats at step 25 is too high |" in text
    assert "| oom | 1 | needs 9 GiB |" in text
    assert "2 pruned, 1 oom" in text


def test_a_test_evaluation_that_failed_is_told_with_its_trial():
    text = text_of([trial(3, failed_evaluations={"evaluate": "out of memory"})])
    assert "- trial 3 could not be evaluated: evaluating it on the test rows failed (out of memory)" in text
    assert "**The evaluation of trial 3 failed;" in text


def test_how_it_was_measured_names_rows_versions_noise_and_wall_time():
    found = measured(
        0, BASELINE, 9.0, environment={"torch": "2.13.0", "device": "H200"}, ended_at=165.0, train_seconds=3.0
    )
    other = replace(found, number=1, key="e" * 64, environment={"torch": "2.12.0"})
    lines = text_of([found, other], data_counts={"read": 1384, "train": 1000}).splitlines()
    assert "| torch | 2.13.0, 2.12.0 |" in lines
    assert "| rows | read 1384, train 1000 |" in lines
    assert "| from start to last end | 1 min 5 s |" in lines
    assert "| training, summed over trials | 6 s |" in lines
    assert "| protocol | not one that this program knows |" in lines  # keys of these trials are made up
    for version in (1, 2):
        under = replace(found, key=WORKLOAD.key(BASELINE, protocol=version))
        assert f"| protocol | {version} |" in text_of([under])


# --- sweeps at any stage


def test_a_sweep_without_a_trial_gives_a_report():
    text = render.markdown(report_of(snapshot(LOSS, [], {}), lambda config: None), {})
    assert "Nothing was measured yet" in text
    assert "not finished: 0 of 6" in text
    assert "No trial was started" in text


def test_a_running_sweep_says_so_at_the_top():
    ended = [trial(n, config=replace(BASELINE, rank=n + 1)) for n in range(3)]
    runs = trial(3, config=replace(NF4, rank=9), state="running", history=())
    endless = make(TPE, objectives=("eval_loss_nats",), n_trials=32)
    head = text_of([*ended, runs], endless).split("## ")[0]
    assert "still running: 3 of 32 trials have ended" in head


def test_a_sweep_whose_trials_all_failed_says_why():
    text = text_of([trial(0, state="failed", reason="no such device", history=())], make(n_trials=1, base=GRID_OF_ONE))
    assert "No trial completed" in text
    assert "| failed | 1 | no such device |" in text
    assert "none: the front is empty" in text


GRID_OF_ONE = GRID | {"parameters": {"rank": {"values": [4]}, "precision": {"values": ["16bit"]}}}


def test_one_16_bit_trial_alone_gives_a_report_that_claims_nothing_about_4_bits():
    text = text_of([measured(0, BASELINE, 9.0)])
    assert "no 4-bit finalist was evaluated on the test rows" in text
    assert "no config was measured at both precisions" in text
    assert "How like" not in text
    assert "Verdict" not in text


def test_the_description_is_whole_sections_that_fit_with_links_and_the_answer_first():
    trials = [measured(n, replace(NF4, rank=n + 1), 9.0, similarity=compared()) for n in range(9)]
    settings = make(objectives=("eval_loss_nats",))
    report = report_of(snapshot(settings, trials, FACTS), lambda config: None)
    answered = render.bullets(report)
    sections = render.sections(report, {}).values()
    (budgets,) = [s for s in sections if s.startswith("## Which rank for which memory")]
    rest = [s for s in sections if answered not in s and s != budgets]
    answer = f"{safe(report.answer)} Measured on: {safe(report.caption)}"
    whole = [f"[all](#)  \n**{safe(report.short_answer)}**", answer, budgets, "![front](x.png)", answered, *rest]
    for limit in (2500, 5000):
        note = render.description(report, limit, "[all](#)", "![front](x.png)")
        assert len(note) <= limit
        assert answered in note
        kept = note.rsplit("\n\n", 1)[0]
        assert kept in ["\n\n".join(whole[:n]) for n in range(2, len(whole) + 1)]


# --- nothing from outside is markup


@given(st.text(max_size=60))
@example("\\| a")
def test_safe_text_comes_out_of_the_page_as_the_words_that_went_in(text):
    plain = "".join(c for c in text if c.isprintable())
    expected = " ".join(f"start {plain} end".split())
    for written in (f"start {safe(plain)} end", f"| what |\n| --- |\n| start {safe(plain)} end |"):
        body = page([written], "t").split("<body>")[1]
        shown = re.search(r"<(p|td)>(.*?)</(p|td)>", body, re.DOTALL).group(2)
        assert " ".join(unescape(shown).split()) == expected


def test_a_page_reads_no_html_and_lets_no_script_run():
    shown = page(["a <script>alert(1)</script>"], "t")
    assert "<script" not in shown
    assert "default-src 'none'" in shown


def test_safe_text_is_one_line_of_bounded_length():
    assert "\n" not in safe("a\nb")
    assert len(safe("x" * 10_000)) <= MAX_CHARS


def test_markup_in_names_reasons_and_data_is_shown_and_not_read():
    settings = make(space(name=EVIL, description=EVIL), objectives=("eval_loss_nats",))
    workload = asdict(replace(WORKLOAD, base_model=EVIL, data=EVIL, weights="pretrained"))
    share = KlShare(by=EVIL, group=EVIL, kl_nats=estimate(0.1), n_tokens=1, n_rows=1)
    nf4 = replace(evaluated_on_test(compared()), breakdown=(share,), samples=(sample(EVIL), sample(EVIL)))
    trials = [
        trial(0, environment={EVIL: EVIL, "device": EVIL}, failed_evaluations={"evaluate": EVIL}),
        trial(1, config=NF4, similarity=similarity(), test_evaluation=nf4),
        trial(2, state="failed", reason=EVIL, history=()),
    ]
    facts = {"workload": workload, "data_counts": {EVIL: 1}}
    text = text_of(trials, settings, **facts)
    html = page([text], EVIL)
    assert "alert(1)" in html
    body = re.sub(r'<a href="#s\d+">', "", html.split("<body>")[1])  # to the page's own sections
    assert not re.search(r"<(script|img|a|strong>bold)\b", body, re.IGNORECASE)
    assert "<h1>heading" not in html
    assert "<title>&lt;script&gt;" in html
    tables = html.count("<table>")
    assert tables == text_of([replace(t, environment={}) for t in trials], settings).count("\n| ---") >= 4


def test_samples_are_those_of_the_best_4_bit_finalist_side_by_side_and_an_empty_text_is_said():
    own, other = (replace(evaluated_on_test(compared()), samples=(sample(name),)) for name in ("best", "other"))
    trials = [
        trial(1, config=NF4, test_evaluation=own, history=(measurement(200, 1.0),)),
        trial(2, config=replace(NF4, rank=2), test_evaluation=other, history=(measurement(200, 1.5),)),
    ]
    text = text_of(trials)
    row = "| best | response text of best | quantized text of best | baseline text of best | (nothing) |"
    assert row in text.split("## What they write")[1]
    assert "of other" not in text
    assert "## What they write" not in text_of([trial(1, config=NF4, test_evaluation=evaluated_on_test())])
    assert report_of(snapshot(LOSS, trials, FACTS)).to_dict()["samples"] == [asdict(sample("best"))]


def test_a_value_that_no_one_hands_to_a_template_is_an_error_and_no_gap_in_the_text():
    with pytest.raises(UndefinedError, match="headlines"):
        render.render("bullets.md")


# --- files and the command


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A working directory with one finished sweep, as its ledger and settings alone."""
    cwd = tmp_path_factory.mktemp("report")
    settings = make(GRID)
    folder = settings_file.sweep_folder("t", cwd / "mlflow_runs")
    stored.save(settings, folder)
    desk = Desk(folder, settings)
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.finish(lambda task: completes(task, loss=1.0 + task.config.rank))
    desk.crash()
    return cwd


def test_the_command_writes_one_self_contained_page_and_names_it(swept):
    done = called("report", cwd=swept)  # without a name the newest
    assert done.code == 0, done.err
    folder = swept / "mlflow_runs" / "sweeps" / "t"
    html = (folder / "report.html").read_text()
    assert html.count("<img ") == sum((folder / path).is_file() for path in outputs.PICTURES) >= 2
    assert html.count("plotly.js v") == 1
    assert html.index('<script type="text/plain" id="held">') < html.index("plotly.js v"), "held, not run"
    own = re.sub(r"<script>.*?</script>|<script type=.text/plain.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"https?://|src=\"(?!data:)|href=\"(?!#s\d)", own)
    assert str(folder.relative_to(swept)) in done.err


def test_the_command_gives_the_same_content_as_one_json_object(swept):
    found = called("report", "t", "--json", cwd=swept).json
    ledger = Ledger(swept / "mlflow_runs" / "sweeps" / "t" / "ledger.db")
    evaluated = sum(t.test_evaluation is not None for t in ledger.trials())
    ledger.close()
    assert found["name"] == "t"
    assert found["states"] == {"completed": found["n_done"]}
    assert len(found["finalists"]) == evaluated
    assert found["savings"][0]["n_pairs"] == 3
    assert json.dumps(found, allow_nan=False)


def test_an_unknown_sweep_is_an_error_that_names_the_nearest(swept, tmp_path):
    done = called("report", "tt", cwd=swept)
    assert (done.code, done.out) == (2, "")
    assert "did you mean 't'" in done.err
    nothing = called("report", cwd=tmp_path)
    assert nothing.code == 2
    assert "no sweep" in nothing.err


def test_two_sweeps_side_by_side_say_where_they_cannot_be_compared():
    one = report_of(snapshot(LOSS, [measured(0, NF4, 90.0), measured(1, BASELINE, 100.0)], FACTS), lambda config: None)
    elsewhere = asdict(replace(WORKLOAD, data_digest="e" * 64))
    other = report_of(snapshot(LOSS, [measured(0, BASELINE, 100.0)], {"workload": elsewhere}), lambda config: None)
    text = render.compare(one, other)
    assert "differ in rows:" in text
    assert re.search(r"\| Memory, standard loop \| 4 bits save 10.0 MiB.* \| - \|", text)
    assert "These sweeps differ" not in render.compare(one, one)
    of_loop = [
        report_of(snapshot(LOSS, [measured(0, replace(BASELINE, loop=loop), 100.0)], FACTS), lambda config: None)
        for loop in ("standard", "lean")
    ]
    assert "differ in training loop:" in render.compare(*of_loop)


def empty(desk):
    """A sweep that was interrupted before its first trial."""


def begun(desk):
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.do(completes)
    desk.take()


def failed(desk):
    desk.ledger.set_fact("workload", asdict(WORKLOAD))
    desk.finish(breaks)


@pytest.mark.parametrize(
    ("state", "said", "written", "n_pictures"),
    [
        (
            empty,
            "not finished: 0 of",
            ["Nothing was measured yet", "not finished: 0 of", "qlora-sweep resume s", "none: the front is empty"],
            0,
        ),
        (begun, "still running: 1 of", ["still running: 1 of", "Every figure below can still change"], 3),
        (
            failed,
            "no trial completed: diverged here",
            ["No trial completed", "diverged here", "none: the front is empty"],
            0,
        ),
    ],
    ids=["empty", "running", "all failed"],
)
def test_a_sweep_in_any_state_has_a_report_that_says_so(
    state, said, written, n_pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    folder = settings_file.sweep_folder("s")
    asked = make(name="s")
    stored.save(asked, folder)
    desk = Desk(folder, asked)
    state(desk)
    desk.ledger.close()
    commands(["report", "s"], standalone_mode=False)
    assert said in capsys.readouterr().out
    page = unescape((folder / "report.html").read_text())
    text = (folder / "report.md").read_text()
    for words in written:
        assert words in text
        assert words in page.replace("<code>", "").replace("</code>", "")
    assert page.count("<img ") == n_pictures
    assert "All trials" in page or state is empty


def test_a_sweep_without_its_ledger_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored.save(make(name="s"), settings_file.sweep_folder("s"))
    with pytest.raises(ConfigError, match=r"ledger\.db"):
        commands(["report", "s"], standalone_mode=False)


# --- what was read, and what of the base was adapted

QKV = ("q_proj", "v_proj")
COVERED = Coverage(targets=QKV, n_blocks=16, n_blocks_with=dict.fromkeys(QKV, 16), share=0.086)
LINE = "q_proj v_proj in 16 of 16 blocks, 8.6 % of their linear weights"


def test_what_adapters_cover_stands_in_the_report_and_its_json_and_is_read_from_the_ledger_alone():
    facts = FACTS | {"coverage": [json.loads(json.dumps(asdict(COVERED)))]}
    report = report_of(snapshot(LOSS, [trial()], facts))
    assert f"**What adapters cover:** {LINE}." in render.markdown(report, {})
    assert report.to_dict()["coverage"] == [asdict(COVERED)]
    assert LINE in render.description(report, 5000)


def test_an_older_ledger_says_nothing_of_coverage_of_rows_found_or_of_the_generic_path():
    text = text_of([trial()])
    assert "cover" not in text
    assert "| found |" not in text
    assert "no family here" not in text


def test_a_base_of_no_family_is_said_in_one_line():
    (line,) = [line for line in text_of([trial()], generic_base="gpt_neox").splitlines() if "gpt_neox" in line]
    assert "no family here describes gpt_neox, so the base ran eagerly, by the standard loop" in line
    assert "measured, not predicted" in line


def test_the_rows_are_named_with_their_split_their_columns_and_what_was_found():
    found = "1,500 chat rows, 3,200 assistant turns"
    rows = replace(WORKLOAD, data="a/b", data_split="c/test", columns="messages=turns", rows_found=found)
    text = text_of([trial()], workload=asdict(rows), data_counts={"read": 1503, "dropped: messages empty": 3})
    assert "| data | a/b, split c/test, columns messages=turns |" in text
    assert f"| found | {found} |" in text
    assert "| rows | read 1503, dropped: messages empty 3 |" in text


def test_a_page_links_to_each_of_its_sections_after_its_first_words():
    made = page(["# A\n\nthe answer\n\n## One `x` <b>\n", Section("<i>", "all"), "text\n\n## Two\n\nmore\n"], "t")
    before, contents = made.split("<nav>")
    links, after = contents.split("</nav>")
    assert "the answer" in before
    assert links == '<a href="#s1">One x &lt;b&gt;</a><a href="#s2">&lt;i&gt;</a><a href="#s3">Two</a>'
    assert [after.count(f'<h2 id="s{n}">') for n in (1, 2, 3)] == [1, 1, 1]
    assert "<nav>" not in page(["# A\n\n## One\n"], "t")
