"""The words of reports and cards: templates filled with the values of orchestrator.report.values."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.analysis.describe import describe, interval, targets
from orchestrator.objectives import OBJECTIVES
from orchestrator.report.markdown import counted, duration, safe
from orchestrator.report.values import Finalist, SweepReport
from trainables.values.config import BITS, Loop
from trainables.values.findings import MIN_GROUPS, Similarity
from trainables.values.results import PARTS

METRICS = {
    "token_match_rate": "token match rate",
    "embedding_cosine": "embedding cosine",
    "centered_cosine": "centred cosine",
    "recovered_cosine": "recovered cosine",
    "top1_agreement": "top-1 agreement",
    "kl_nats": "KL (nats)",
}
"""Of similarities, each with its heading."""
RECOVERED = "recovered_cosine"
SAME = {"base_fingerprint": "base model", "data_digest": "rows", "compute_dtype": "arithmetic"}
"""Of the workload, with the word for it, without which losses and likenesses are of different things."""
Pictures = Mapping[str, str]
"""Path of each picture, relative to the report -> what it shows."""


def figure(finalist: Finalist, objective: str) -> str:
    """A finalist's value of an objective with its interval, or with the remark that it is of one seed."""
    found, shown = finalist.figures.get(objective), OBJECTIVES[objective].shown
    if found is None:
        return "-"
    value = shown(found.value)
    if found.low is not None:
        value += f" ({shown(found.low)} to {shown(found.high)})"
    return value + (", one seed" if found.n_seeds == 1 else f", {found.n_seeds} seeds" if found.n_seeds else "")


def spread(values: tuple[float, float], digits: str, factor: float = 1.0) -> str:
    """Least and largest, to stand behind a median; nothing where they read the same.

    >>> spread((0.1, 0.25), ".0f", 100)
    ' (10 to 25)'
    """
    low, high = (format(factor * value, digits) for value in values)
    return "" if low == high else f" ({low} to {high})"


def mean_of(replicates: Sequence[Similarity], metric: str) -> float | None:
    """A metric over seed replicates; None without any."""
    values = [getattr(similarity, metric).value for similarity in replicates]
    return mean(values) if values else None


def beyond(metric: str, value: float) -> str:
    """What a negative recovered cosine means; nothing of other figures."""
    return " (under 0: further from the baseline than the untuned base)" if value < 0 and metric == RECOVERED else ""


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=False,  # Markdown: whatever comes from outside goes through `safe`, which escapes that
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {
    function.__name__: function
    for function in (safe, duration, describe, targets, interval, figure, counted, spread, mean_of)
}
ENVIRONMENT.globals |= {
    "OBJECTIVES": OBJECTIVES,
    "METRICS": METRICS,
    "PARTS": PARTS,
    "BITS": BITS,
    "LOOPS": get_args(Loop),
    "MIN_GROUPS": MIN_GROUPS,
    "beyond": beyond,
}


def render(template: str, **values: Any) -> str:
    """A template's text; of several empty lines in a row one is left."""
    return _tidy(ENVIRONMENT.get_template(template).render(values)) + "\n"


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def headlines(report: SweepReport) -> dict[str, str]:
    """What each is about -> what it says, in Markdown."""
    lines: dict[str, str] = {}

    def headline(about: str, caller: Callable[[], str]) -> str:
        lines[about] = caller().strip()
        return ""

    render("headlines.md", report=report, headline=headline)
    return lines


def sections(report: SweepReport, pictures: Pictures) -> dict[str, str]:
    """By name, in the order in which a reader needs them; those that have nothing to say are left out."""
    template = ENVIRONMENT.get_template("report.md")
    context = template.new_context({"report": report, "headlines": headlines(report), "pictures": pictures})
    texts = {name: _tidy("".join(block(context))) for name, block in template.blocks.items()}
    return {name: text for name, text in texts.items() if text}


def markdown(report: SweepReport, pictures: Pictures) -> str:
    """The whole report."""
    return joined(sections(report, pictures))


def joined(texts: Mapping[str, str]) -> str:
    """Sections as one text."""
    return "\n\n".join(texts.values()) + "\n"


def bullets(report: SweepReport) -> str:
    """The headlines as a list."""
    return render("bullets.md", headlines=headlines(report)).strip()


def description(report: SweepReport, max_chars: int, links: str = "", picture: str = "") -> str:
    """The answer, what to take for which memory, as many of the first sections as fit, and where the rest is.

    MLflow shows 100 pixels of it, of which the lower 60 fade out and cannot be clicked: one line of links, and right
    below it two of the answer, which the whole one follows.

    Args:
        links: one line before all else.
        picture: of the front, in Markdown.
    """
    rest = "The whole report: artifacts `report.html` and `report.md`."
    others = sections(report, {})
    del others["answer"]
    text, answer = "", f"{safe(report.answer)} Measured on: {safe(report.caption)}"
    top = "  \n".join(filter(None, [links, f"**{safe(report.short_answer)}**"]))  # two spaces break the line
    first = [top, answer, others.pop("budgets", ""), picture, bullets(report)]
    for section in filter(None, [*first, *others.values()]):
        if len(text) + len(section) + len(rest) + 4 > max_chars:
            break
        text += section + "\n\n"
    return text + rest


def compare(one: SweepReport, other: SweepReport) -> str:
    """Two reports side by side; says first where their figures cannot be compared."""
    reports = (one, other)
    return render("compare.md", reports=reports, sides=[*map(headlines, reports)], differences=_differences(*reports))


def _differences(one: SweepReport, other: SweepReport) -> list[str]:
    if one.workload is None or other.workload is None:
        return []
    pairs = {word: (getattr(one.workload, name), getattr(other.workload, name)) for name, word in SAME.items()}
    pairs["training loop"] = (_loops(one), _loops(other))
    pairs["protocol"] = (one.measured.protocol_version, other.measured.protocol_version)
    pairs["device"] = (one.measured.environment.get("device"), other.measured.environment.get("device"))
    return [word for word, (left, right) in pairs.items() if left != right]


def _loops(report: SweepReport) -> set[str]:
    """Of its finalists: memory and time are of a loop."""
    return {finalist.config.loop for finalist in report.finalists}
