"""An HTML file that needs nothing else, in the reader's colours: its style, its scripts, and a policy for both."""

import base64
import hashlib
import html
from collections.abc import Sequence

STYLE = """
:root { color-scheme: light dark; --line: #ddd; --strong: #888; --shade: #f2f2f2; --text: #1b1b1b; --ground: #fff;
  --soft: #444; --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --strong: #999; --shade: #2a2a2a; --text: #e6e6e6; --ground: #161616; --soft: #bbb;
    --link: #7fb7ff; }
  img { background: #fff; border-radius: 4px; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
a { color: var(--link); }
h1, h2, h3 { line-height: 1.2; margin-top: 2em; } h1 { margin-top: 0; }
nav { columns: 15rem; font-size: 14px; } nav a { display: block; }
img { max-width: 100%; }
@media (max-width: 700px) { body { font-size: 15px; margin: 1rem auto; } }
"""
"""Colours, text and links."""
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'"
"""For the browser: whatever stands in the file, it asks nobody, and runs no script but those named after this."""


HELD = "held"
"""Id of the script that waits until another one runs it."""


def document(title: str, body: str, style: str = "", scripts: Sequence[str] = (), held: str | None = None) -> str:
    """The file.

    Args:
        title: plain text.
        body: HTML.
        style: beside STYLE.
        scripts: JavaScript, run in this order once the body is there.
        held: JavaScript that the page opens without: it is text until one of the scripts runs it.
    """
    named = [*scripts, *([held] if held else [])]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in named]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = f"{POLICY}; script-src 'unsafe-eval' {allowed}" if scripts else POLICY
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
    )
    run = "".join(f"<script>{script}</script>\n" for script in scripts)
    if held:
        run = f'<script type="text/plain" id="{HELD}">{held}</script>\n{run}'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n{run}</body></html>\n'
