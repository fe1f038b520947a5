"""The pictures of a sweep: known trials in, what was drawn out."""

import math
import re
from dataclasses import asdict, replace
from random import Random

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis.front import objective_value
from orchestrator.analysis.pareto import hypervolume
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures import gallery as figures
from orchestrator.figures import hypervolume as figure_hypervolume
from orchestrator.figures import importance as figure_importance
from orchestrator.figures import memory as figure_memory
from orchestrator.figures import page as figure_page
from orchestrator.figures import parallel as figure_parallel
from orchestrator.figures import scatter as figure_scatter
from orchestrator.figures import similarity as figure_similarity
from orchestrator.figures.columns import Columns
from orchestrator.figures.style import PRECISION_COLOURS, LeftOut, Picture, finished_png
from orchestrator.objectives import DEFAULT
from orchestrator.report import outputs
from tests.support.sweeps import GRID, TPE, WORKLOAD, cost, likeness, make, measurement, similarity, snapshot, trial
from trainables.values.config import TrialConfig
from trainables.values.results import PARTS, MemoryBreakdown, TrialResult
from trainables.values.spans import Span

ALL = (*DEFAULT, "embedding_cosine", "token_match_rate")


def result_of(*trials: TrialResult, workload=WORKLOAD, base=TPE, **values) -> SweepSnapshot:
    return snapshot(make(base, **values), trials, {"workload": asdict(workload)})


def one(number: int, random: Random) -> TrialResult:
    """A trial whose memory, time and loss follow its settings, with noise."""
    precision, rank = random.choice(["nf4", "16bit"]), random.choice([1, 2, 4, 8])
    rate = 10 ** random.uniform(-5, -2)
    config = TrialConfig(precision=precision, rank=rank, alpha=8, max_steps=8, learning_rate=rate)
    peak, seconds = (200.0 if precision == "nf4" else 260.0) + rank, random.uniform(0.04, 0.05)
    loss = 3 - 0.3 * abs(5 + math.log10(rate)) + random.gauss(0, 0.03)
    parts = dict.fromkeys(MemoryBreakdown.__dataclass_fields__, 5.0) | {"base_weights_mib": peak - 30.0}
    cell = cost(peak_memory_mib=peak, seconds_per_step=seconds, breakdown=MemoryBreakdown(**parts))
    return trial(
        number,
        config=config,
        history=(measurement(8, loss),),
        cost=cell,
        similarity=similarity(random.uniform(0.9, 0.99), random.random()) if precision == "nf4" else None,
        train_seconds=random.uniform(10, 20),
        ended_at=1000.0 + number,
    )


@pytest.fixture(scope="module")
def sweep() -> SweepSnapshot:
    """30 trials of both precisions."""
    random = Random(0)
    spans = (Span(process="worker 0", phase="training", began=0.0, ended=9.0),)
    return replace(result_of(*(one(number, random) for number in range(30))), spans=spans)


def ringed(html) -> set[tuple[float, float]]:
    """Points with a black ring in an interactive figure."""
    return {
        (x, y)
        for trace in html.data
        if trace.mode == "markers" and trace.hoverinfo != "skip"
        for x, y, width in zip(trace.x, trace.y, trace.marker.line.width, strict=True)
        if width
    }


@pytest.mark.parametrize("objectives", [DEFAULT, ALL])
def test_the_ringed_points_are_exactly_the_fronts(sweep, objectives):
    result = result_of(*sweep.trials, objectives=objectives)
    figure = figure_scatter.pair(result, "peak_memory_mib", "eval_loss_nats")
    values = {
        (objective_value(m, "peak_memory_mib"), objective_value(m, "eval_loss_nats")) for m in result.front.members
    }
    assert 1 < len(values) < len(result.trials)
    assert ringed(figure.html()) == values
    (rings,) = [c for c in figure.png().axes[0].collections if c.get_gid() == "front"]
    assert {tuple(point) for point in rings.get_offsets()} == values


@pytest.mark.parametrize("pair", [("peak_memory_mib", "eval_loss_nats"), ("eval_loss_nats", "embedding_cosine")])
def test_the_line_joins_the_members_that_none_beats_in_both_objectives(sweep, pair):
    members = result_of(*sweep.trials, objectives=ALL).front.members
    points = {
        m.key: tuple((-1 if o == "embedding_cosine" else 1) * objective_value(m, o) for o in pair) for m in members
    }

    def beaten(a):
        return any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points.values())

    line = figure_scatter.edge(members, *pair)
    assert {m.key for m in line} == {key for key, point in points.items() if not beaten(point)}
    assert np.all(np.diff([points[m.key][0] for m in line]) >= 0)
    assert np.all(np.diff([points[m.key][1] for m in line]) <= 0)


def seeds_of(config: TrialConfig, *losses: float, first: int = 200) -> list[TrialResult]:
    """Seed replicates of a baseline."""
    runs = []
    for seed, loss in enumerate(losses, start=1):
        shown = {"config": replace(config, seed=seed), "history": (measurement(8, loss),)}
        runs.append(trial(first + seed, origin="baseline replicate", cost=cost(peak_memory_mib=250.0), **shown))
    return runs


def test_baselines_outside_the_space_and_seed_replicates_are_hollow_and_points_of_the_space_filled(sweep):
    config = TrialConfig(precision="16bit", rank=32, alpha=8)
    baseline = trial(200, config=config, origin="baseline", history=(measurement(8, 2.0),))
    result = result_of(*sweep.trials, baseline, *seeds_of(config, 2.1, 2.2))
    figure = figure_scatter.loss_memory(result)
    n_filled = n_hollow = 0
    for trace in figure.html().data:
        if trace.mode == "markers" and trace.hoverinfo != "skip":
            n_hollow += trace.marker.symbol.count("circle-open")
            n_filled += trace.marker.symbol.count("circle")
    assert (n_filled, n_hollow) == (len(sweep.trials), 3)
    drawn = [
        c.get_facecolor() for c in figure.png().axes[0].collections if len(c.get_offsets()) and c.get_gid() is None
    ]
    whites = sum((colours[:, :3] == 1).all(axis=1).sum() for colours in drawn)
    assert whites == 3


def test_a_baseline_is_filled_where_the_space_holds_it_and_hollow_where_the_space_is_of_4_bits_alone(sweep):
    full = [trial for trial in sweep.trials if trial.config.precision == "16bit"]
    trials = [replace(trial, origin="baseline") if trial in full else trial for trial in sweep.trials]
    both = result_of(*trials)
    assert full
    assert Columns.of(trials, both).searched.all()
    own = both.settings.space
    of_4_bits = own.model_copy(
        update={
            "parameters": {name: one for name, one in own.parameters.items() if name != "precision"},
            "fixed": {**own.fixed, "precision": "nf4"},
        }
    )
    alone = replace(both, settings=both.settings.model_copy(update={"space": of_4_bits}))
    assert Columns.of(trials, alone).searched.tolist() == [trial.config.precision == "nf4" for trial in trials]


def test_hollow_points_are_drawn_beneath_filled_ones_and_the_front_on_top(sweep):
    member = next(t for t in sweep.front.members if t.origin == "search")
    twin = replace(member, key="f" * 64, number=300, origin="replicate", config=replace(member.config, seed=7))
    figure = figure_scatter.loss_memory(result_of(twin, *sweep.trials))
    (trace,) = [t for t in figure.html().data if t.hoverinfo == "text" and t.legendgroup == member.config.precision]
    order = [
        (width > 0, symbol == "circle")
        for width, symbol in zip(trace.marker.line.width, trace.marker.symbol, strict=True)
    ]
    assert order[0] == (False, False)
    assert order == sorted(order)
    symbols = trace.marker.symbol
    at = [place for place, x in enumerate(trace.x) if x == member.cost.peak_memory_mib]
    assert symbols[at[-1]] == "circle"


def test_a_config_that_ran_under_several_seeds_has_a_bar_and_what_is_within_the_noise_of_the_line_a_band(sweep):
    config = TrialConfig(precision="16bit", rank=32, alpha=8)
    baseline = trial(200, config=config, origin="baseline", history=(measurement(8, 2.0),))
    result = result_of(*sweep.trials, baseline, *seeds_of(config, 2.01, 2.02))
    html = figure_scatter.loss_memory(result).html()
    (sixteen,) = [t for t in html.data if t.hoverinfo == "text" and t.name == "16 bits"]
    reach = {round(y, 4): up for y, up in zip(sixteen.y, sixteen.error_y.array, strict=True) if up is not None}
    assert reach == {2.0: pytest.approx(stats.t.ppf(0.95, 2) * 0.01)}
    near, far = (t for t in html.data if t.mode == "lines" and t.line.width == 0)
    assert np.subtract(far.y, near.y) == pytest.approx(stats.t.ppf(0.95, 2) * 2**0.5 * 0.01)
    assert far.fill == "tonexty"
    before = figure_scatter.loss_memory(sweep).html()
    assert not any(t.fill for t in before.data), "no noise is known, so none is drawn"


def test_every_pair_of_objectives_has_a_figure_of_its_own(sweep):
    names = [figure.name for figure in figures.of_sweep(sweep)]
    assert {"loss_memory", "time_memory", "loss_time"} <= set(names)
    assert len(set(names)) == len(names)
    many = result_of(*sweep.trials, objectives=ALL)
    assert len(figure_scatter.pairs(many)) + 1 == math.comb(len(ALL), 2)


def test_the_hypervolume_never_falls_and_ends_at_the_fronts(sweep):
    moments = figure_hypervolume.curve(sweep)
    shares, seconds = [m.share for m in moments], [m.seconds for m in moments]
    assert np.all(np.diff(shares) >= 0)
    assert np.all(np.diff(seconds) >= 0)
    counted = [[objective_value(t, o) for o in DEFAULT] for t in sweep.trials]
    box = np.prod(np.array(sweep.front.reference_point) - np.min(counted, axis=0))
    assert shares[-1] == pytest.approx(sweep.front.hypervolume / box)
    assert 0 < hypervolume(counted[:5], sweep.front.reference_point) < sweep.front.hypervolume
    assert seconds[-1] == pytest.approx(sum(t.train_seconds for t in sweep.trials))


def test_pruned_trials_spend_time_without_raising_the_hypervolume(sweep):
    lost = trial(99, state="pruned", history=(), train_seconds=500.0, ended_at=2000.0)
    before, after = (figure_hypervolume.curve(r)[-1] for r in (sweep, result_of(*sweep.trials, lost)))
    assert after.seconds == pytest.approx(before.seconds + 500)
    assert (after.share, after.trial) == (before.share, None)


def test_a_4bit_trial_counts_from_when_its_baseline_has_ended():
    config = TrialConfig(precision="nf4", rank=4, alpha=8)
    quick = trial(0, config=config, similarity=similarity(0.99), train_seconds=10.0, ended_at=100.0)
    other = trial(1, state="pruned", history=(), train_seconds=20.0, ended_at=150.0)
    baseline = trial(2, config=config.at_other_precision, origin="baseline", train_seconds=30.0, ended_at=200.0)
    moments = figure_hypervolume.curve(result_of(quick, other, baseline))
    assert {m.seconds for m in moments if m.share == 0} == {0.0, 10.0, 30.0, 60.0}
    assert next(m.trial for m in moments if m.trial) is quick


def test_a_shared_gpu_counts_by_its_share(sweep):
    whole = replace(sweep, settings=sweep.settings.model_copy(update={"device": "cuda"}))
    half = replace(sweep, settings=whole.settings.model_copy(update={"gpus_per_trial": 0.5}))
    assert figure_hypervolume.curve(half)[-1].seconds == figure_hypervolume.curve(whole)[-1].seconds / 2


def test_the_parts_of_each_bar_add_up_to_the_peak(sweep):
    html = figure_memory.draw(sweep).html()
    totals = np.sum([trace.x for trace in html.data], axis=0)
    peaks = sorted({t.cost.peak_memory_mib for t in sweep.trials})
    assert len(html.data) == len(PARTS)
    assert totals == pytest.approx(peaks)


def test_of_too_many_cells_those_of_the_front_are_kept(sweep):
    wide = [
        replace(t, number=100 + i, key=f"{100 + i:064x}", config=replace(t.config, batch_size=100 + i))
        for i, t in enumerate(sweep.trials)
    ]
    result = result_of(*sweep.trials, *wide)
    shown = figure_memory.bars(result)
    assert len(shown) == figure_memory.MAX_BARS
    assert {m.config.cost_key for m in result.front.members} <= {bar.config.cost_key for bar in shown}


def test_similarity_stands_beside_its_seed_replicates_and_the_threshold():
    seeds = (likeness(cosine=0.97, kl_nats=0.05), likeness(cosine=0.96, kl_nats=0.06))
    comparison = replace(similarity(0.995), replicates=seeds)
    config = TrialConfig(precision="nf4", rank=4, alpha=8)
    figure = figure_similarity.draw(result_of(trial(0, config=config, similarity=comparison)))
    drawn = figure.html()
    found = {t.name: sorted(1 - x for x in t.x) for t in drawn.data if t.xaxis == "x"}
    assert found == {
        "4 bits": pytest.approx([0.995]),
        "another seed, 16 bits": pytest.approx([0.96, 0.97]),
        "not trained, 16 bits": pytest.approx([0.5]),
    }
    assert [1 - line.x0 for line in drawn.layout.shapes] == pytest.approx([0.95])
    assert figure.notes[-1] == "Trial 0 on 128 validation rows."


def test_intervals_reach_as_far_as_the_estimates():
    comparison = similarity(0.99, low=0.97)
    trials = [trial(0, config=TrialConfig(precision="nf4", rank=4, alpha=8), similarity=comparison)]
    (point, *_) = figure_similarity.draw(result_of(*trials)).html().data
    assert point.x[0] + point.error_x.array[0] == pytest.approx(1 - 0.97)
    assert point.x[0] - point.error_x.arrayminus[0] == pytest.approx(figure_similarity.NEAREST)  # high is 1


def test_importance_finds_what_moves_each_objective(sweep):
    shares = {
        trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in figure_importance.draw(sweep).html().data
    }
    assert max(shares["peak memory"], key=shares["peak memory"].get) == "precision"
    assert max(shares["validation loss"], key=shares["validation loss"].get) == "learning rate"
    assert all(sum(found.values()) == pytest.approx(1) for found in shares.values())


def test_importance_says_its_evaluator_and_seed_and_repeats_itself(sweep):
    first, second = (figure_importance.draw(sweep) for _ in range(2))
    assert "FanovaImportanceEvaluator, seed 0" in first.notes[0]
    assert first.html().to_json() == second.html().to_json()


@pytest.mark.parametrize("n_trials", [0, figure_importance.MIN_TRIALS - 1])
def test_importance_of_too_few_trials_is_left_out_with_the_reason(sweep, n_trials):
    found = figure_importance.draw(result_of(*sweep.trials[:n_trials]))
    assert isinstance(found, LeftOut)
    assert found.reason == f"{n_trials} completed trials with all objectives, at least 10 are needed"


def test_an_alpha_that_follows_the_rank_is_found_again_as_the_searched_ratio():
    searched = {"rank": {"values": [3, 7]}, "alpha_ratio": {"values": [0.1, 0.7]}, "precision": {"values": ["16bit"]}}
    base = GRID | {"parameters": searched, "fixed": {"max_steps": 8}}
    settings = make(base)
    points = list(settings.space.grid())
    trials = [trial(i, config=settings.config(point)) for i, point in enumerate(points)]
    assert [params for params, _ in figure_importance.known_points(result_of(*trials, base=base))] == points


def test_a_line_of_the_parallel_coordinates_is_a_trial_and_its_places_are_its_values(sweep):
    (lines,) = figure_parallel.draw(sweep).html().data
    places = {dimension.label: dimension.values for dimension in lines.dimensions}
    assert "dropout" not in places  # the same for all
    assert places["validation loss<br>(nats per token)"] == pytest.approx(
        [t.history[-1].eval_loss_nats for t in sweep.trials]
    )
    assert 10 ** np.array(places["learning rate"]) == pytest.approx([t.config.learning_rate for t in sweep.trials])
    assert [bool(on) for on in places["on the front"]] == [t.key in sweep.front.keys for t in sweep.trials]


def test_a_precision_has_one_colour_in_every_figure(sweep):
    pair = figure_scatter.loss_memory(sweep).html()
    curve = figure_hypervolume.draw(sweep).html()
    for html in (pair, curve):
        for trace in html.data:
            if trace.mode == "markers":
                assert trace.marker.color == PRECISION_COLOURS["nf4" if "NF4" in trace.name else "16bit"]
    (lines,) = figure_parallel.draw(sweep).html().data
    assert [colour for _, colour in lines.line.colorscale] == [PRECISION_COLOURS["nf4"], PRECISION_COLOURS["16bit"]]


# --- files


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("random", "random weights (demo): memory and time are real, loss and similarity are not"),
        ("stand-in", "a stand-in base trained from nothing for 130 s"),
        ("demo", "the embedded demo model, not GPT-2 Medium"),
    ],
)
def test_every_figure_says_whose_weights_device_and_arithmetic_it_is_of(sweep, weights, said):
    result = result_of(*sweep.trials, workload=replace(WORKLOAD, weights=weights, stand_in_seconds=130.0))
    drawn = [figure for figure in figures.of_sweep(result) if isinstance(figure, Picture)]
    assert len(drawn) >= 8
    for figure in drawn:
        png = " ".join(text.get_text() for text in finished_png(figure, result.caption).texts)
        html = figure_page.figure_html(figure, result.caption)
        assert all(said in text and "CPU, float32" in text for text in (png, html)), figure.name


def test_a_caption_is_read_neither_as_markup_nor_as_mathematics(sweep):
    result = result_of(*sweep.trials, workload=replace(WORKLOAD, weights="pretrained", base_model="a$b</script><i>$"))
    figure = figure_scatter.rank_memory(result)
    html = figure_page.figure_html(figure, result.caption)
    assert "&lt;/script&gt;&lt;i&gt;" in html
    assert "</script><i>" not in html
    png = finished_png(figure, result.caption)
    png.draw_without_rendering()
    assert any("a$b</script><i>$" in text.get_text() for text in png.texts)


def test_the_page_has_every_figure_asks_nobody_and_holds_the_script_once(sweep):
    page = figures.page(sweep, figures.of_sweep(sweep))
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)\s*=", page)
    assert page.count("plotly.js v") == page.count('<script type="text/plain" id="held">') == 1
    names = [figure.name for figure in figures.of_sweep(sweep)]
    for holder in (r'id="plot-(\w+)"', r'<script type="application/json" id="data-(\w+)"'):
        assert re.findall(holder, page) == names
    assert re.findall(r'href="#(\w+)"', page) == names


def test_a_sweeps_name_is_text_on_the_page():
    page = figure_page.page([LeftOut(name="a", reason="<b> is why")], "<b> is the name", "a caption")
    assert "<b>" not in page
    assert "a: &lt;b&gt; is why" in page


def test_what_has_nothing_to_show_is_left_out_and_said(tmp_path):
    old = tmp_path / figures.FOLDER / "similarity.png"
    old.parent.mkdir()
    old.write_bytes(b"of an earlier time")
    only = trial(0, cost=cost(), ended_at=1.0, train_seconds=1.0)
    files = figures.write(result_of(only), figures.of_sweep(result_of(only)), tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(files)
    names = {path.stem for path in files if path.suffix == ".png"}
    assert names == {"front", "rank_memory", "loss_memory", "time_memory", "loss_time", "hypervolume"}
    reasons = dict(line.split(": ", 1) for line in (old.parent / figures.LEFT_OUT).read_text().splitlines())
    assert reasons.keys() == {"memory_breakdown", "similarity", "parallel_coordinates", "importance", "timeline"}
    assert reasons["similarity"] == "no 4-bit finalist was compared with a 16-bit baseline"


def test_a_sweep_without_a_completed_trial_has_no_figure_and_no_fault(tmp_path):
    failed = trial(0, state="failed", history=(), reason="no", ended_at=1.0, train_seconds=1.0)
    result = result_of(failed)
    files = figures.write(result, figures.of_sweep(result), tmp_path)
    assert [path.name for path in files] == [figures.PAGE, figures.LEFT_OUT]


def test_one_point_is_drawn_where_a_figure_needs_no_more(sweep):
    only = next(trial for trial in sweep.trials if trial.config.precision == "nf4")
    drawn = [figure for figure in figures.of_sweep(result_of(only)) if isinstance(figure, Picture)]
    assert {"rank_memory", "loss_memory", "memory_breakdown", "hypervolume"} <= {figure.name for figure in drawn}
    for figure in drawn:
        finished_png(figure, "c").draw_without_rendering()
        assert figure.html().data


def test_trials_with_equal_figures_are_drawn(sweep):
    equal = [replace(sweep.trials[0], number=i, key=f"{i:064x}") for i in range(12)]
    for figure in figures.of_sweep(result_of(*equal)):
        if isinstance(figure, Picture):
            finished_png(figure, "c").draw_without_rendering()
            assert figure.html().data


def test_the_pictures_fit_their_page(sweep):
    for figure in figures.of_sweep(replace(result_of(*sweep.trials, objectives=ALL), spans=sweep.spans)):
        png = finished_png(figure, "a base of a long name, " * 8)
        png.draw_without_rendering()
        width, height = png.get_size_inches() * png.dpi
        labels = [label for axes in png.axes for label in (axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels())]
        for part in (*png.legends, *(text for text in (*png.texts, *labels) if text.get_text())):
            box = part.get_window_extent()
            assert min(box.x0, box.y0) >= -1, (figure.name, part)
            assert (box.x1 <= width + 1, box.y1 <= height + 1) == (True, True), (figure.name, part)


def test_the_reports_pictures_are_those_that_draw_writes(sweep, tmp_path):
    outputs.draw(sweep, figures.of_sweep(sweep), tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")} == set(outputs.PICTURES)
