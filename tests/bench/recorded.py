"""What README.md, LOG.md and SEARCH_LOG.md say of measurements, printed from the files that hold them.

python -m tests.bench.recorded

tests/unit/test_recorded.py holds the three texts against it, so a file that is recorded anew brings new lines. Needs no
GPU.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.bench import memory_shapes, search
from trainables.cost.predicted_memory import MAX_ERROR_MIB, MAX_ERROR_SHARE

REPO = Path(__file__).resolve().parents[2]
RECORDED = REPO / "mlflow_runs" / "recorded"
UNSEEN_SHAPES = REPO / "tests" / "bench" / "memory_shapes_h200_unseen.jsonl"
SPEED_RUNS = ("speed-h200-run1.json", "speed-h200-run2.json", "speed-h200.json")
"""In the order in which they were run; the README says what the last one came to."""
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
    report = (RECORDED / "standin-h200" / "report.md").read_text(encoding="utf-8")
    log, search_log = "[log](tests/bench/LOG.md)", "[log](tests/bench/SEARCH_LOG.md)"
    yield row("question", "answer", "from")
    yield row("---", "---", "---")
    yield row("What do 4 bits save?", memory(report), "report; `make bench ARGS=measurement`")
    yield row("What does that cost?", step_time(report), "report")
    yield row("Is it as good as 16 bits? (stand-in)", similarity(report), "report")
    yield row("Where are 4 bits felt? (stand-in)", sensitivity_line(), "`qlora-sweep sensitivity`")
    yield row("How far are predicted peaks off?", predicted_peaks(), "`make bench ARGS=memory`")
    yield row("How fast? (random weights)", trials_an_hour(), f"`make bench ARGS=speed`; {log}")
    yield row("How soon is a good front there? (demo)", soon(), f"`make bench ARGS=search`; {search_log}")
    yield row("What does stopping trials early lose? (demo)", lost(), f"`make bench ARGS=search`; {search_log}")
    yield row("Do equal trials agree?", equal_trials(), "`make bench ARGS=measurement`")


def row(*cells: str) -> str:
    """Of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def memory(report: str) -> str:
    mib, lean = found(r"4 bits save (\S+) MiB, (\S+) % of the peak", report)
    standard = read("measurement-h200.json")["memory"]["saved_by_nf4"]["standard"]["per_cent"]
    return f"{mib} MiB: {lean} % of the peak in the lean loop, {standard:.1f} % in a stock script's loop"


def step_time(report: str) -> str:
    (times,) = found(r"a step takes (\S+) times as long", report)
    batch, length = found(r"dropout on, (\d+) x (\d+) tokens", report)
    full, nf4 = found(r"\| ms a step .*\| (\S+) \([^|]*\) \| (\S+) \([^|]*\) \|", report)
    return f"a step takes {times} times as long ({nf4} ms against {full} ms at {batch} x {length} tokens)"


def similarity(report: str) -> str:
    (number,) = found(r"\*\*Lowest loss [^*]*\*\* trial (\d+), 4 bits", report)
    own = report.split(f"**Trial {number}, rank")[1]
    cosine, seed, untuned = found(r"\| embedding cosine \| (\S+) \([^|]*\) \| (\S+) \| (\S+) \|", own)
    return f"cosine to its 16-bit baseline {cosine}; another seed of that baseline {seed}, the untuned base {untuned}"


def sensitivity_line() -> str:
    variants = read("sensitivity-standin-h200/sensitivity.json")["variants"]
    worst = max((one for one in variants if one["scope"] == "module"), key=lambda one: one["kl_nats"])
    (whole,) = (one["kl_nats"] for one in variants if one["scope"] == "all")
    block = "the first block" if worst["block"] == 0 else f"block {worst['block']}"
    return f"in `{worst['kind']}` of {block}: KL {worst['kl_nats']:.5f} of {whole:.5f} nats"


def predicted_peaks() -> str:
    one = memory_shapes.errors(memory_shapes.read(UNSEEN_SHAPES))[-1]
    return (
        f"median {one['median_per_cent']:.2f} %, worst {one['worst_per_cent']:.2f} % over {one['n_shapes']} unseen "
        f"shapes, {one['n_outside'] or 'none'} over the larger of {MAX_ERROR_SHARE:.0%} and {MAX_ERROR_MIB:g} MiB"
    ).replace("3%", "3 %")


def trials_an_hour() -> str:
    *earlier, run = (read(name) for name in SPEED_RUNS)
    before = " and ".join(f"{one['peer']['ms_per_step']:.0f}" for one in earlier)
    return (
        f"{run['ours']['trials_an_hour']:,.0f} trials of {run['n_steps']} steps an hour, half of them NF4, comparison "
        f"included: {run['ratio']:.1f} times Ray Tune with the Trainer, whose step waits for the host's processor: "
        f"{run['peer']['ms_per_step']:.0f} ms in that run, {before} in those before"
    )


def soon() -> str:
    result = read("search-replay.json")
    (quartile, median, third), random = (
        result["methods"][name]["gpu_seconds_quartiles"] for name in ("ours", "random")
    )
    return (
        f"{search.WANTED_SHARE:.0%}".replace("%", " %") + f" of a recorded front's volume in {median:.0f} GPU-seconds "
        f"(quartiles {quartile:.0f} and {third:.0f}), random search in {random[1]:.0f}"
    )


def lost() -> str:
    one = read("search-replay.json")["lost"]["ours"]
    low, high = one["lost_members_share_range"]
    return (
        f"carried on until every point was taken up, {100 * one['lost_members_share']:.0f} % of that front's members "
        f"({100 * low:.0f} to {100 * high:.0f} over {one['n_seeds']} seeds), {100 * one['lost_volume_share']:.1f} % of "
        "its volume"
    )


def equal_trials() -> str:
    spread = read("measurement-h200.json")["spread"]
    ranges = [spread[precision][name]["range"] for precision in ("16bit", "nf4") for name in EQUAL_METRICS]
    ranges += [one["range"] for one in spread["similarity"].values()]
    return f"{spread['n_runs']} runs: losses, similarity and peak memory differ by {max(ranges):g}"


def found(pattern: str, text: str) -> tuple[str, ...]:
    """The groups of the first match.

    Raises:
        ValueError: there is none.
    """
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"nothing there like {pattern!r}")
    return match.groups()


# --- the logs


def log_lines() -> Iterator[str]:
    """The recorded runs of `make bench ARGS=speed` beside each other."""
    runs = [read(name) for name in SPEED_RUNS]
    yield row("", *(f"run {number}" for number in range(1, len(runs) + 1)))
    yield row("---", *("---:" for _ in runs))
    for label, value in SPEED_FIGURES.items():
        yield row(label, *map(value, runs))


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
    "time in which a kernel runs": busy,
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
    for name, lines in (("README.md", readme_rows()), ("LOG.md", log_lines()), ("SEARCH_LOG.md", search_log_lines())):
        print(f"--- {name}", *lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
