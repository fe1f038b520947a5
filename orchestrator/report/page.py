"""A report's Markdown as one HTML file that needs nothing else: no script, pictures inside."""

import base64
import html
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

STYLE = """
:root { color-scheme: light dark; --line: #ddd; --strong: #888; --shade: #f2f2f2; --text: #1b1b1b; --ground: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --strong: #999; --shade: #2a2a2a; --text: #e6e6e6; --ground: #161616; }
  img { background: #fff; border-radius: 4px; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; margin-top: 2em; } h1 { margin-top: 0; }
nav { columns: 15rem; font-size: 14px; } nav a { display: block; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 14px; margin: 1em 0; }
th, td { padding: .3em .8em; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  min-width: 3rem; overflow-wrap: normal; }
th { border-bottom: 2px solid var(--strong); }
td { font-variant-numeric: tabular-nums; }
td:first-child { white-space: nowrap; }
img { max-width: 100%; }
code { background: var(--shade); padding: 0 .2em; }
@media (max-width: 700px) { body { font-size: 15px; margin: 1rem auto; } td:first-child { white-space: normal; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""For the browser: whatever stands in the page, it runs no script and asks nobody."""


def page(text: str, title: str, folder: Path) -> str:
    """Markdown -> HTML. Raw HTML in `text` is shown, not read.

    Args:
        folder: where the pictures lie that `text` names.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(text)
    contents = _anchored(tokens)
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                picture = base64.b64encode((folder / str(child.attrs["src"])).read_bytes()).decode()
                child.attrs["src"] = f"data:image/png;base64,{picture}"
    body = reader.renderer.render(tokens, reader.options, {})
    first = body.find("<h2")  # the answer comes first, then where to find what
    body = body[:first] + contents + body[first:] if contents else body
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'


def _anchored(tokens: list[Token]) -> str:
    """Links to all headings of the second order, which are given ids; empty where there are fewer than two."""
    links: list[str] = []
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open" and heading.tag == "h2":
            heading.attrSet("id", f"s{len(links) + 1}")
            links.append(f'<a href="#s{len(links) + 1}">{html.escape(inline.content.replace("`", ""))}</a>')
    return f"<nav>{''.join(links)}</nav>\n" if len(links) > 1 else ""
