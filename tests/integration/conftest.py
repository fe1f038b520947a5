"""What the tests that look at pages share: a headless Chromium."""

import pytest

from tests.support.chromium import CHROMIUM, NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def browser():
    """As Playwright drives it; who asks for it is skipped on a machine that has none."""
    if CHROMIUM is None:
        pytest.skip(NEEDS_CHROMIUM)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield chromium
        chromium.close()
