"""The Chromium of this machine, for tests that look at pages; where pictures lie, and how long a page may take."""

import shutil
import time

import pytest

from tests.support.sweeps import REPO

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = "needs Chromium; on Debian: apt-get install chromium"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=NEEDS_CHROMIUM)
SCREENSHOTS = REPO / "build" / "screenshots"
SECONDS = 600
"""That a page may take on a busy machine."""
SECONDS_A_FRAME = 10
"""After so long without what a page draws on its next frame, it is asked for one: a busy Chromium has been seen to give
a page none for minutes, and a screenshot is one."""


def drawn(frame, figure: str):
    """The figure of a page or frame, scrolled to and, as only then it is, drawn; returns its first drawing."""
    frame.locator(f"#plot-{figure}").evaluate("element => element.scrollIntoView({block: 'center'})")
    drawing = frame.locator(f"#plot-{figure} .main-svg").first
    end = time.monotonic() + SECONDS
    asked = time.monotonic()
    page = getattr(frame, "page", frame)
    while not drawing.is_visible():
        assert time.monotonic() < end, f"{figure} is not drawn"
        page.wait_for_timeout(50)
        if time.monotonic() > asked + SECONDS_A_FRAME:
            page.screenshot()
            asked = time.monotonic()
    return drawing
