"""A report as one HTML file that needs nothing else: its Markdown, the figures, all trials as a table."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from markdown_it.token import Token

from orchestrator.figures import gallery
from orchestrator.figures import page as figures
from orchestrator.figures.document import document
from orchestrator.figures.style import LeftOut, Picture
from orchestrator.report import trial_table

if TYPE_CHECKING:
    from orchestrator.analysis.snapshot import SweepSnapshot

STYLE = """
table { border-collapse: collapse; font-size: 14px; margin: 1em 0; }
th, td { padding: .3em .8em; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  min-width: 3rem; overflow-wrap: normal; }
th { border-bottom: 2px solid var(--strong); }
td { font-variant-numeric: tabular-nums; }
td:first-child { white-space: nowrap; }
code { background: var(--shade); padding: 0 .2em; }
@media (max-width: 700px) {
  table { width: max-content; } td { max-width: 18rem; } td:first-child { white-space: normal; }
}
"""
FIRST = frozenset({"head", "answer", "budgets", "front"})
"""Sections of the text that stand before the figures and the table."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page that is not in the report's Markdown."""

    title: str
    body: str


def of_report(
    snapshot: "SweepSnapshot", texts: Mapping[str, str], found: Sequence[Picture | LeftOut], folder: Path
) -> str:
    """The page of a report.

    Args:
        texts: sections of the report in Markdown, by name.
        found: the figures; each is shown as the PNG that lies in the folder, until a script draws it.
    """
    pictures = [figure for figure in found if isinstance(figure, Picture)]
    own, scripts, held = [], [], None
    if pictures:
        own.append(Section("Pictures", _pictures(pictures, snapshot.caption, folder) + figures.reasons_html(found)))
        scripts, held = [figures.draw_script()], figures.plotly_script()
    if snapshot.trials:
        own.append(Section("All trials", trial_table.trial_table(snapshot)))
        scripts.insert(0, trial_table.SCRIPT.read_text(encoding="utf-8"))
    before = [text for name, text in texts.items() if name in FIRST]
    after = [text for name, text in texts.items() if name not in FIRST and name != "pictures"]
    return page([*before, *own, *after], f"Sweep {snapshot.settings.name}", scripts, held)


def page(parts: Sequence[str | Section], title: str, scripts: Sequence[str] = (), held: str | None = None) -> str:
    """Parts as one HTML file. Of those in Markdown raw HTML is shown, not read, and no picture is loaded."""
    return document(title, _body(parts), STYLE + figures.STYLE + trial_table.STYLE, scripts, held)


def _pictures(pictures: Sequence[Picture], caption: str, folder: Path) -> str:
    parts = ""
    for picture in pictures:
        png = folder / gallery.FOLDER / f"{picture.name}.png"
        parts += figures.figure_html(picture, caption, png if png.is_file() else None)
    return parts


def _body(parts: Sequence[str | Section]) -> str:
    """All parts in a row; the answer comes first, then links to what has a heading of the second order."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    titles: list[str] = []
    body = ""
    for part in parts:
        if isinstance(part, Section):
            titles.append(part.title)
            body += f'<h2 id="s{len(titles)}">{html.escape(part.title)}</h2>\n{part.body}'
        else:
            tokens = reader.parse(part)
            titles += _numbered(tokens, len(titles))
            body += _boxed(reader.renderer.render(tokens, reader.options, {}))
    links = [f'<a href="#s{i}">{html.escape(title)}</a>' for i, title in enumerate(titles, start=1)]
    first = body.find("<h2")
    return f"{body[:first]}<nav>{''.join(links)}</nav>\n{body[first:]}" if len(links) > 1 else body


def _boxed(text: str) -> str:
    """Each table in a box that scrolls where the page is narrower; of rendered Markdown, where no text has this tag."""
    return text.replace("<table>", '<div class="box"><table>').replace("</table>", "</table></div>")


def _numbered(tokens: Sequence[Token], n_before: int) -> list[str]:
    """Titles of all headings of the second order, which are given ids."""
    titles: list[str] = []
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open" and heading.tag == "h2":
            titles.append(inline.content.replace("`", ""))
            heading.attrSet("id", f"s{n_before + len(titles)}")
    return titles
