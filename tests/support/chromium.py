"""The Chromium of this machine, for tests that look at pages; where pictures lie, and how long a page may take."""

import shutil

import pytest

from tests.support.sweeps import REPO

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = "needs Chromium; on Debian: apt-get install chromium"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=NEEDS_CHROMIUM)
SCREENSHOTS = REPO / "build" / "screenshots"
SECONDS = 600
"""That a page may take on a busy machine."""
