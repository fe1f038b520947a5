"""A report as Markdown: a list of sections, the answer first."""

from collections.abc import Mapping

from orchestrator.objectives import OBJECTIVES
from orchestrator.report import tables
from orchestrator.report.answer import WHOSE, WHOSE_COST, answer, bullets, counted, whose
from orchestrator.report.content import Report
from orchestrator.report.markdown import duration, safe, table
from trainables.values.config import BITS

MEANING = (
    "*Preserved*: the cosine keeps its threshold and the KL to the 16-bit baseline is at most that of another seed. "
    "`quantization_to_seed_ratio` is (1 - cosine) at 4 bits over (1 - cosine) of another seed: under 1, a seed moves "
    "the model further. *Evaluation failed*: nothing is said of such a trial, see what became of the trials. "
    "Intervals are 95 % over rows, given the seed."
)
NOT_EVALUATED = (
    "Rows *search*: not all its runs were evaluated on the test rows, so its loss is of the rows it was chosen on."
)
SAID = frozenset({"compute_dtype", "weights"})
"""Of the environment, what the workload says already."""
Pictures = Mapping[str, str]
"""Path of each picture, relative to the report -> what it shows."""


def markdown(report: Report, pictures: Pictures) -> str:
    """The whole report."""
    return "\n\n".join(sections(report, pictures)) + "\n"


def description(report: Report, max_chars: int, links: str = "", picture: str = "") -> str:
    """What to take for which memory, the answer, as many of the first sections as fit, and where the rest is.

    Args:
        links: first of all, as little is shown of a description before it is opened.
        picture: of the front, in Markdown.
    """
    rest = "The whole report: artifacts `report.html` and `report.md`."
    budgets = _budgets(report)
    others = [section for section in sections(report, {}) if section not in (answer(report), budgets)]
    text = ""
    for section in filter(None, [links, budgets, picture, bullets(report), *others]):
        if len(text) + len(section) + len(rest) + 4 > max_chars:
            break
        text += section + "\n\n"
    return text + rest


def sections(report: Report, pictures: Pictures) -> list[str]:
    """In the order in which a reader needs them; those that have nothing to say are left out."""
    found = [
        _head(report),
        answer(report),
        _budgets(report),
        _front(report),
        _similarity(report),
        _costs(report),
        _ranks(report),
        "\n\n".join(["## Pictures", *(f"![{what}]({path})" for path, what in pictures.items())]) if pictures else "",
        _breakdown(report),
        _outcomes(report),
        _measured(report),
    ]
    return [section for section in found if section]


def caption(report: Report) -> str:
    """Whose figures these are, and where they were taken."""
    if report.workload is None:
        return "Nothing was measured yet."
    devices = ", ".join(report.measured.environment.get("device", ())) or "no device yet"
    return safe(f"{report.workload.base_caption}; {devices}, {report.workload.compute_dtype}")


def _head(report: Report) -> str:
    lines = [f"# Sweep {safe(report.name)}", f"Measured on: {caption(report)}"]
    if not report.finished:
        how = (
            f"still running: {report.n_done} of {report.n_expected} trials have ended"
            if report.n_running
            else f"not finished: {report.n_done} of {report.n_expected} trials have ended; "
            f"go on with `qlora-sweep resume {report.name}`"
        )
        lines.append(f"**This sweep is {how}. Every figure below can still change.**")
    elif not report.states.get("completed"):
        lines.append("**No trial completed, so there is nothing to compare; the reasons are below.**")
    if report.faults:
        which = ", ".join(dict.fromkeys(str(fault.trial) for fault in report.faults))
        lines.append(
            f"**The evaluation of trial {which} failed; the reasons are below. To try again: "
            f"`qlora-sweep resume {report.name}`.**"
        )
    return "\n\n".join(lines)


def _budgets(report: Report) -> str:
    if not report.within_memory:
        return ""
    texts = [
        "## Which rank for which memory",
        f"The lowest validation loss of the trials that need no more peak memory{whose(report, WHOSE)}:",
        tables.of_budgets(report.within_memory),
        f"For one budget: `qlora-sweep best {report.name} --max-memory 2GiB`; its adapter: `qlora-sweep export "
        f"{report.name} DEST --max-memory 2GiB`.",
    ]
    return "\n\n".join(texts)


def _front(report: Report) -> str:
    if not report.finalists:
        return ""
    repeats = report.settings.finalist_seeds
    n_front = sum(finalist.on_front for finalist in report.finalists)
    objectives = ", ".join(OBJECTIVES[objective].heading for objective in report.settings.objectives)
    texts = [
        "## Front",
        f"{counted(n_front, 'trial')} on the Pareto front over {objectives}; 4-bit trials enter it where the lower end "
        f"of their cosine is at least {report.settings.min_similarity:g}. {counted(len(report.finalists), 'finalist')}"
        f"{whose(report, WHOSE)}:",
        tables.of_finalists(report.finalists),
        f"Asked for: {counted(repeats, 'run')} of each finalist, each under a seed of its own. Loss: mean and 95 % "
        "t-interval over seeds, or the value of one. Memory and time are measured once for all seeds (equal trials "
        "have equal peaks); the range of time is p10 to p90 over steps.",
    ]
    if any(finalist.rows == "validation" for finalist in report.finalists):
        texts.append(NOT_EVALUATED)
    if any(finalist.verdict for finalist in report.finalists):
        texts += [f"### Verdict on 4 bits{whose(report, WHOSE)}", tables.of_verdicts(report.finalists), MEANING]
    return "\n\n".join(texts)


def _similarity(report: Report) -> str:
    compared = [finalist for finalist in report.finalists if finalist.comparison and finalist.verdict]
    if not compared:
        return ""
    texts = [
        "## How like its 16-bit baseline",
        "Every figure stands beside its references: the same baseline under another seed, and the base without an adapter. "
        f"Intervals are 95 % over rows, given the seed{whose(report, WHOSE)}.",
    ]
    for finalist in compared:
        comparison = finalist.comparison
        n_rows, n_decoded = comparison.quantized.n_rows, comparison.quantized.n_decoded_rows  # type: ignore[union-attr]
        texts += [
            f"**Trial {finalist.number}, rank {finalist.config.rank}** on {n_rows} {finalist.verdict.rows} rows, "  # type: ignore[union-attr]
            f"match and cosines on {n_decoded} of them:",
            tables.of_similarity(comparison),  # type: ignore[arg-type]
        ]
    return "\n\n".join(texts)


def _costs(report: Report) -> str:
    if report.costs is None:
        return ""
    c = report.costs.config
    texts = [
        "## What it costs",
        f"One training step at rank {c.rank}, targets {tables.targets(c)}, dropout {'on' if c.dropout else 'off'}, "
        f"{c.batch_size} x {c.max_length_tokens} tokens, {c.engine} engine; the parts add up to the "
        f"peak{whose(report, WHOSE_COST)}.",
        tables.of_costs(report.costs),
    ]
    if report.savings:
        texts += [
            "What 4 bits save, medians over pairs that differ in nothing else:",
            tables.of_savings(report.savings),
        ]
    return "\n\n".join(texts)


def _ranks(report: Report) -> str:
    found = {precision: rank for precision, rank in report.sufficient_ranks.items() if rank.ranks}
    if not found:
        return ""
    texts = [
        "## Which rank is enough",
        "Each rank by its best config of the search, on the test rows, under the seeds that all ranks have.",
    ]
    for precision, rank in found.items():
        texts += [f"{BITS[precision]}: {rank.reason}{whose(report, WHOSE)}.", tables.of_ranks(rank)]
    return "\n\n".join(texts)


def _breakdown(report: Report) -> str:
    if report.breakdown is None:
        return ""
    texts = [f"## Where quantization shows{whose(report, WHOSE)}"]
    if report.breakdown.shares:
        texts += [
            f"KL of trial {report.best_4bit} to its 16-bit baseline by how often a token occurs in the training rows, "
            "by its place in the response and by kind of task, on the test rows:",
            tables.of_breakdown(report.breakdown),
        ]
    if report.breakdown.bias:
        texts += [
            "A probe of bias: the same prompt with one group word changed; the gap between the two next-token "
            "distributions (total variation, 0 to 1), and whether 4 bits change it:",
            tables.of_bias(report.breakdown),
        ]
    return "\n\n".join(texts)


def _outcomes(report: Report) -> str:
    counts = ", ".join(f"{n} {state}" for state, n in report.states.items()) or "no trial was started"
    texts = ["## What became of the trials", f"{counts[0].upper()}{counts[1:]}."]
    if report.outcomes:
        texts.append(tables.of_outcomes(report.outcomes))
    if report.faults:
        texts.append("Evaluations that failed (their trials stay completed):")
        texts.append("\n".join(f"- {safe(str(fault))}" for fault in report.faults))
    return "\n\n".join(texts)


def _measured(report: Report) -> str:
    measured, settings, workload = report.measured, report.settings, report.workload
    protocol = measured.protocol_version
    facts = {"protocol": "another version than this program's" if protocol is None else str(protocol)}
    if workload:
        facts |= {
            "base model": f"{safe(workload.base_model)}: {safe(workload.base_caption)}",
            "base fingerprint": workload.base_fingerprint[:16],
            "data": safe(workload.data),
            "data digest": workload.data_digest[:16],
            "arithmetic": workload.compute_dtype,
        }
    facts["rows"] = ", ".join(f"{safe(what)} {n}" for what, n in measured.data_counts.items()) or tables.NONE
    facts |= {name: ", ".join(map(safe, values)) for name, values in measured.environment.items() if name not in SAID}
    facts["asked"] = (
        f"{settings.n_trials} configs, {counted(settings.finalist_seeds, 'run')} of each finalist, seed {settings.seed}"
    )
    noise = [f"{OBJECTIVES[o].heading} {value * OBJECTIVES[o].factor:.3g}" for o, value in measured.epsilon.items()]
    facts["differences that decide no dominance"] = ", ".join(noise)
    facts["from start to last end"] = tables.NONE if measured.wall_seconds is None else duration(measured.wall_seconds)
    facts["training, summed over trials"] = duration(measured.train_seconds)
    if report.spent:
        on = "GPU" if settings.device == "cuda" else "CPU worker"
        usd = report.spent.usd(settings)
        money = "" if usd is None else f"; {usd:.2f} USD at {settings.usd_per_gpu_hour:g} an hour"
        facts[f"time on a {on}, all tasks"] = duration(report.spent.device_seconds) + money
    if report.search_ended:
        facts["the search ended"] = safe(report.search_ended)
    rows = [[safe(name), value] for name, value in facts.items()]
    return "\n\n".join(["## How it was measured", table(["what", "value"], rows, n_words=2)])
