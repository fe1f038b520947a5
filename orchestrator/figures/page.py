"""All interactive figures of a sweep on one HTML page that needs nothing else; plotly's script is in it once."""

import html
from collections.abc import Sequence

from orchestrator.figures.style import LeftOut, Picture, finished_html

CONFIG = {"displaylogo": False, "responsive": True}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; margin: 1rem; }
nav { padding: .4rem 0; border-bottom: 1px solid #ddd; }
nav a { margin-right: 1.2em; } h1 { font-size: 1.2rem; margin: 0; } section { padding-top: 2rem; }
"""


def page(found: Sequence[Picture | LeftOut], title: str, caption: str) -> str:
    """The whole page; what has nothing to show is named at its end with the reason.

    Args:
        title, caption: plain text.
    """
    links = sections = reasons = ""
    for figure in found:
        if isinstance(figure, LeftOut):
            reasons += f"<li>{html.escape(figure.name)}: {html.escape(figure.reason)}</li>"
            continue
        division = _division(figure, caption, with_script=not sections)
        links += f'<a href="#{figure.name}">{html.escape(figure.title)}</a>'
        sections += f'<section id="{figure.name}">{division}</section>'
    left_out = f"<section><p>Nothing to show yet:</p><ul>{reasons}</ul></section>" if reasons else ""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    body = f"<nav><h1>{html.escape(title)}</h1>{links}</nav>{sections}{left_out}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _division(figure: Picture, caption: str, *, with_script: bool) -> str:
    drawn = finished_html(figure, caption)
    return drawn.to_html(
        config=CONFIG,
        include_plotlyjs=with_script,
        full_html=False,
        default_width="100%",
        div_id=f"plot-{figure.name}",
    )
