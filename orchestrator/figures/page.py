"""Interactive figures as HTML, and all of a sweep's on one page; plotly's script is in a page once, and held there.

To read and run that script takes a browser longer than all the rest of a page, so that waits for the first figure."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from orchestrator.figures.document import document
from orchestrator.figures.style import LeftOut, Picture, finished_html

DRAW = Path(__file__).with_name("draw.js")
STYLE = """
figure { margin: 0 0 2rem; } figure h3 { margin-bottom: .3em; } figcaption { font-size: 14px; color: var(--soft); }
.box { overflow-x: auto; } .wide .plot { min-width: 42rem; }
.plot img { display: block; width: 100%; height: 100%; object-fit: contain; }
@media (scripting: none) { .plot { height: auto !important; } .plot img { height: auto; } }
"""
"""Of figures; one that is wide scrolls inside its own box where the page is narrower."""


def figure_html(figure: Picture, caption: str, png: Path | None = None) -> str:
    """One figure under its title, with what it is of as a caption; drawn by `draw_script` once it is looked at.

    Args:
        caption: plain text, as the figure's notes are.
        png: shown until then, and where no script runs.
    """
    drawn = finished_html(figure)
    data = drawn.to_json().replace("<", "\\u003c")
    still = ""
    if png is not None:
        picture = base64.b64encode(png.read_bytes()).decode()
        still = f'<img alt="{html.escape(figure.title)}" src="data:image/png;base64,{picture}">'
    notes = " ".join(map(html.escape, (f"{caption}.", *figure.notes)))
    plot = f'<div class="plot" id="plot-{figure.name}" style="height:{drawn.layout.height}px">{still}</div>'
    return (
        f'<figure id="{figure.name}"{" class=wide" if figure.wide else ""}><h3>{html.escape(figure.title)}</h3>\n'
        f'<div class="box">{plot}</div><script type="application/json" id="data-{figure.name}">{data}</script>\n'
        f"<figcaption>{notes}</figcaption></figure>\n"
    )


def draw_script() -> str:
    """When figures are drawn."""
    return DRAW.read_text(encoding="utf-8")


def plotly_script() -> str:
    """What draws them, to be held."""
    from plotly.offline import get_plotlyjs  # slow, which no page without a figure waits for

    return get_plotlyjs()


def reasons_html(found: Sequence[Picture | LeftOut]) -> str:
    """Which figures have nothing to show, and why; empty where all have."""
    reasons = ""
    for figure in found:
        if isinstance(figure, LeftOut):
            reasons += f"<li>{html.escape(figure.name)}: {html.escape(figure.reason)}</li>"
    return f"<p>Nothing to show yet:</p><ul>{reasons}</ul>\n" if reasons else ""


def page(found: Sequence[Picture | LeftOut], title: str, caption: str) -> str:
    """The whole page; what has nothing to show is named at its end with the reason.

    Args:
        title, caption: plain text.
    """
    links = figures = ""
    for figure in found:
        if isinstance(figure, Picture):
            links += f'<a href="#{figure.name}">{html.escape(figure.title)}</a>'
            figures += figure_html(figure, caption)
    body = f"<h1>{html.escape(title)}</h1><nav>{links}</nav>{figures}{reasons_html(found)}"
    if not figures:
        return document(title, body, STYLE)
    return document(title, body, STYLE, [draw_script()], plotly_script())
