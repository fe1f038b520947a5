"""A report's Markdown as one HTML file that needs nothing else: no script, pictures inside."""

import base64
import html
from pathlib import Path

from markdown_it import MarkdownIt

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin-top: 2em; } h1 { margin-top: 0; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 14px; margin: 1em 0; }
th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; }
td { font-variant-numeric: tabular-nums; }
td:first-child { white-space: nowrap; }
img { max-width: 100%; }
code { background: #f2f2f2; padding: 0 .2em; }
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
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                picture = base64.b64encode((folder / str(child.attrs["src"])).read_bytes()).decode()
                child.attrs["src"] = f"data:image/png;base64,{picture}"
    body = reader.renderer.render(tokens, reader.options, {})
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'
