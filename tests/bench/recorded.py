"""What README.md, LOG.md and SEARCH_LOG.md say of measurements, printed from the files that hold them.

python -m tests.bench.recorded

tests/unit/test_recorded.py holds the three texts against it, so a file that is recorded anew brings new lines. Needs no
GPU.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.analysis.answers import Answers, answers_of
from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.analysis.verdict import COSINE
from orchestrator.report.answers import label, share
from orchestrator.report.render import spread
from tests.bench import memory_families, search
from trainables.cost.predicted_memory import MAX_ERROR_MIB, MAX_ERROR_SHARE

REPO = Path(__file__).resolve().parents[2]
RECORDED = REPO / "mlflow_runs" / "recorded"
SWEEPS = ("smollm2-grid", "smollm2-rates", "smollm2-keep", "smollm2-loops", "smollm2-pareto")
"""Of protocol 2, over SmolLM2-135M, whose weights had been rounded once before; see mlflow_runs/recorded/NOTICE.md."""
FAMILY_SHAPES = REPO / "tests" / "bench" / "memory_families_h200.jsonl"
SPEED_RUNS = ("speed-h200-run1.json", "speed-h200-run2.json", "speed-h200.json")
"""Of protocol 1, in the order in which they were run."""
PROTOCOL_RUNS = {
    f"protocol {protocol}, run {run}": f"speed-h200-protocol{protocol}-run{run}.json"
    for run in (1, 2)
    for protocol in (1, 2)
}
"""The last commit of protocol 1 beside one of protocol 2, both at once, on two hosts, a GPU each."""
BUSY = "time in which a kernel runs"
"""The figure that takes a profiler."""
EQUAL_METRICS = ("eval_loss_nats", "peak_memory_mib")
"""What equal trials are compared by, beside similarity."""

Run = Mapping[str, Any]
"""A recorded run of `make bench ARGS=speed`."""


def read(name: str) -> dict[str, Any]:
    """A recorded JSON file."""
    return json.loads((RECORDED / name).read_text(encoding="utf-8"))


# --- the README's table


def readme_rows() -> Iterator[str]:
    """Question, answer, and where the answer is from."""
    found = answers_of([SweepSnapshot.read_in(RECORDED / name) for name in SWEEPS])
    answers, fit = "`answers`", "`make bench ARGS=memory`"
    yield row("question", "answer", "from")
    yield row("---", "---", "---")
    yield row("What do 4 bits save?", memory(found), answers)
    yield row("What do they cost in loss?", lost_range(found), answers)
    yield row("Do rank, targets or rate buy it back?", bought_back(found), answers)
    yield row("Does the worst block at 16 bits?", kept_block(found), answers)
    yield row("Is the cosine to 16 bits at least 0.95?", cosine(found), answers)
    yield row("Where are 4 bits felt?", sensitivity_line(), "`sensitivity`")
    yield row("How far are predicted peaks off?", predicted_peaks(), fit)
    yield row("How fast? (random weights)", trials_an_hour(), "`make bench ARGS=speed`")
    yield row("Do equal trials agree? (random weights, protocol 1)", equal_trials(), "`make bench ARGS=measurement`")


def row(*cells: str) -> str:
    """Of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def memory(found: Answers) -> str:
    """Measured; medians over pairs that differ in precision alone."""
    said = []
    for saving in found.savings:
        if saving.rank is None:
            said.append(
                f"{saving.loop} loop: {saving.saved_mib:.1f} MiB, {100 * saving.saved_share:.1f} % of the peak"
                f"{spread(saving.saved_share_range, '.1f', 100)}; steps {saving.time_ratio:.2f} times as long"
                f"{spread(saving.time_ratio_range, '.2f')} ({saving.n_pairs} pairs)"
            )
    return "; ".join(said)


def lost_range(found: Answers) -> str:
    """The share lost by each 4-bit cell to its 16-bit one: least and largest."""
    shares = sorted((one.lost for one in found.by_rank), key=lambda lost: lost.share or 0.0)
    answers = [lost.answer(found.sweeps[0].settings.verdict_margin) for lost in shares]
    pairs = [lost.n_pairs for lost in shares]
    ranks = sorted({one.four.config.rank for one in found.by_rank})
    return (
        f"{share(shares[0])} to {share(shares[-1])} of what tuning at 16 bits gains; ranks {ranks[0]} to {ranks[-1]}, "
        f"{min(pairs)} to {max(pairs)} seeds each; *lost* in {answers.count('lost')} of {len(answers)} cells"
    )


def bought_back(found: Answers) -> str:
    """The 4-bit cell of the lowest loss against the 16-bit ones, those of its own targets and others."""
    margin = found.sweeps[0].settings.verdict_margin
    best = min({id(one.four): one.four for one in found.against_all}.values(), key=lambda cell: cell.loss_nats)
    same, other = [], []
    for one in found.against_all:
        if one.four is best:
            (same if one.sixteen.config.targets == best.config.targets else other).append(one)
    n_kept = [sum(one.lost.answer(margin) == "kept" for one in group) for group in (same, other)]
    nearest = min(same, key=lambda one: one.lost.share or 0.0)
    furthest = max(other, key=lambda one: one.lost.share or 0.0)
    return (
        f"the best 4-bit cell ({label(best.config)}) is within the margin of {n_kept[0]} of {len(same)} 16-bit cells "
        f"on its targets (at least {share(nearest.lost)} lost) and of {n_kept[1]} of {len(other)} on fewer (at most "
        f"{share(furthest.lost)}; below 0 it gains)"
    )


def kept_block(found: Answers) -> str:
    """What keeping one block at 16 bits buys back, and its memory."""
    (one,) = found.kept
    (block,) = one.kept.config.keep_16bit
    return (
        f"`{block}` kept: {share(one.lost_after)} lost, not {share(one.lost_before)}, for {one.more_mib:.1f} of the "
        f"{one.saved_mib:.1f} MiB saved (rank {one.kept.config.rank}, {one.lost_after.n_pairs} and "
        f"{one.lost_before.n_pairs} seeds)"
    )


def cosine(found: Answers) -> str:
    """Of all 4-bit cells beside the untuned base and other seeds."""
    values = sorted(one.value for one in found.cosines)
    untuned = sorted(one.untuned for one in found.cosines)
    blind = sum(not one.tells(COSINE) for one in found.cosines)
    return (
        f"yes, {values[0]:.3f} to {values[-1]:.3f}; but so is the untuned base's in {blind} of {len(values)} cells "
        f"({untuned[0]:.3f} to {untuned[-1]:.3f}): there it tells nothing"
    )


def sensitivity_line() -> str:
    """The part of the base that adds most loss when it alone is at 4 bits."""
    variants = read("sensitivity-smollm2/sensitivity.json")["variants"]
    (whole,) = (one["loss_nats"] for one in variants if one["scope"] == "all")
    said = []
    for scope in ("block", "kind", "module"):
        worst = max((one for one in variants if one["scope"] == scope), key=lambda one: one["loss_nats"])
        said.append(f"{worst['label']} {worst['loss_nats']:+.4f}")
    return f"all at 4 bits adds {whole:.4f} nats, untrained; alone {', '.join(said)}"


def predicted_peaks() -> str:
    """Over shapes that nothing was fitted to."""
    lines = [one for one in memory_families.read(FAMILY_SHAPES) if one["part"] == memory_families.SECOND_DRAW]
    errors = [abs(memory_families.predicted(one) / one["peak_mib"] - 1) for one in lines]
    n_outside = sum(
        abs(memory_families.predicted(one) - one["peak_mib"]) > memory_families.tolerance_mib(one["peak_mib"])
        for one in lines
    )
    return (
        f"median {100 * median(errors):.2f} %, worst {100 * max(errors):.2f} %; of {len(lines)} unseen shapes of "
        f"{len({one['family'] for one in lines})} families {n_outside or 'none'} by more than the larger of "
        f"{100 * MAX_ERROR_SHARE:g} % and {MAX_ERROR_MIB:g} MiB"
    )


def trials_an_hour() -> str:
    """Of protocol 2, and beside the peer."""
    runs = [read(name) for of, name in PROTOCOL_RUNS.items() if of.startswith("protocol 2")]
    ratios = sorted(run["ratio"] for run in runs)
    steps = sorted(run["peer"]["n_steps"] for run in runs)
    return (
        f"GPT-2 Medium's shape, one {runs[0]['device'].removeprefix('NVIDIA ')}: {an_hour(runs)} trials of "
        f"{runs[0]['n_steps']} steps an hour, half NF4, comparison included: {ratios[0]:.0f} to "
        f"{ratios[-1]:.0f} times Ray Tune with the Trainer, reckoned from {steps[0]} to {steps[-1]} of its steps, "
        "which wait for the host"
    )


def an_hour(runs: Iterable[Run]) -> str:
    """Least and most trials an hour."""
    return " to ".join(f"{trials:,.0f}" for trials in sorted(run["ours"]["trials_an_hour"] for run in runs))


def equal_trials() -> str:
    spread = read("measurement-h200.json")["spread"]
    ranges = [spread[precision][name]["range"] for precision in ("16bit", "nf4") for name in EQUAL_METRICS]
    ranges += [one["range"] for one in spread["similarity"].values()]
    return f"{spread['n_runs']} runs: losses, similarity and peak memory differ by {max(ranges):g}"


# --- the logs


def log_lines() -> Iterator[str]:
    """The recorded runs of `make bench ARGS=speed` beside each other."""
    yield from table({f"run {number}": name for number, name in enumerate(SPEED_RUNS, 1)}, SPEED_FIGURES)


def protocol_lines() -> Iterator[str]:
    """Both protocols on one host."""
    yield from table(PROTOCOL_RUNS, {what: SPEED_FIGURES[what] for what in SPEED_FIGURES if what != BUSY})


def table(names: Mapping[str, str], figures: Mapping[str, Callable[[Run], str]]) -> Iterator[str]:
    """Recorded runs beside each other; - for what a run did not measure."""
    runs = [read(name) for name in names.values()]
    yield row("", *names)
    yield row("---", *("---:" for _ in runs))
    for what, value in figures.items():
        yield row(what, *(shown(value, run) for run in runs))


def shown(value: Callable[[Run], str], run: Run) -> str:
    """A figure; - where the run did not come to it."""
    try:
        return value(run)
    except (KeyError, TypeError):
        return "-"


def ms(engine: str, loop: str, precision: str) -> Callable[[Run], str]:
    """Of a step, the median."""

    def value(run: Run) -> str:
        cell = {"engine": engine, "loop": loop, "precision": precision}
        (own,) = (one for one in run["steps"] if cell.items() <= one.items())
        return f"{own['ms_per_step']:.2f}"

    return value


def busy(run: Run) -> str:
    """Kernels' seconds of the profiled trials over the same trials' time without a profiler."""
    own = run["busy"]
    return f"{100 * own.get('busy_over_wall_without_profiler', own['busy_share']):.1f} %"


SPEED_FIGURES: Mapping[str, Callable[[Run], str]] = {
    "trials, half of them NF4": lambda run: str(run["ours"]["n_trials"]),
    "trials an hour": lambda run: f"{run['ours']['trials_an_hour']:,.0f}",
    "the same, last turn": lambda run: f"{run['ours']['trials_an_hour_in_last_turn']:,.0f}",
    "a trial's begin at 16 bits (s)": lambda run: f"{run['ours']['16bit']['median_begin_seconds']:.3f}",
    "a trial's end at 16 bits (s)": lambda run: f"{run['ours']['16bit']['median_end_seconds']:.3f}",
    "a pair's comparison (s)": lambda run: f"{run['ours']['16bit']['median_compare_seconds']:.2f}",
    BUSY: busy,
    "step, 16 bits, eager, standard (ms)": ms("eager", "standard", "16bit"),
    "step, 16 bits, eager, lean (ms)": ms("eager", "lean", "16bit"),
    "step, 16 bits, graph, standard (ms)": ms("graph", "standard", "16bit"),
    "step, 16 bits, graph, lean (ms)": ms("graph", "lean", "16bit"),
    "step, NF4, graph, lean (ms)": ms("graph", "lean", "nf4"),
    "NF4 over 16 bits, graph, lean": lambda run: f"{run['nf4_over_16bit']['graph lean']:.2f}",
    "peak of NF4 at 4 x 512, lean (MiB)": lambda run: f"{run['peak']['lean_mib']:,.0f}",
    "the same, standard (MiB)": lambda run: f"{run['peak']['standard_mib']:,.0f}",
    "the peer's step (ms)": lambda run: f"{run['peer']['ms_per_step']:.0f}",
    "the peer's trial, extrapolated (s)": lambda run: f"{run['peer']['seconds_per_trial']:.1f}",
    "times the peer's trials an hour": lambda run: f"{run['ratio']:.1f}",
}


def search_log_lines() -> Iterator[str]:
    """What `make bench ARGS=search` printed of the recorded run."""
    return search.report(read("search-replay.json"))


def main() -> int:
    """Print all three."""
    texts = {
        "README.md": readme_rows(),
        "LOG.md": log_lines(),
        "LOG.md, protocols": protocol_lines(),
        "SEARCH_LOG.md": search_log_lines(),
    }
    for name, lines in texts.items():
        print(f"--- {name}", *lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
