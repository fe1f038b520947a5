"""The report's one HTML file in a headless Chromium: sorted, filtered, drawn, on a telephone, at night, without script.

Of recorded sweeps, so that nothing has to run before. Screenshots are left in build/screenshots, to be looked at.
"""

import shutil
from pathlib import Path

import pytest

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures import gallery
from orchestrator.figures.style import Picture
from orchestrator.report import outputs
from orchestrator.report.content import report_of
from tests.support.chromium import SCREENSHOTS, SECONDS, drawn, needs_chromium
from tests.support.sweeps import REPO

RECORDED = REPO / "mlflow_runs" / "recorded" / "smollm2-rates"
WIDTHS = (390, 1440, 1920)

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def sweep() -> SweepSnapshot:
    return SweepSnapshot.read_in(RECORDED)


@pytest.fixture(scope="module")
def report(sweep, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(RECORDED / gallery.FOLDER, folder / gallery.FOLDER)
    return outputs.write_report(sweep, report_of(sweep), gallery.of_sweep(sweep), folder)[1]


@pytest.fixture
def opened(browser, report):
    """Opens the report as a reader has it; at the end nothing was asked for, and nothing complained."""
    contexts, asked, complaints = [], [], []

    def open_page(width: int = 1440, scheme: str = "light", script: bool = True):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
        )
        context.set_default_timeout(SECONDS * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(report.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {report.as_uri()}


def column(page, heading: str) -> list[str]:
    """Cells of the rows that are shown, from top to bottom."""
    table = page.locator(".trials table")
    place = [text.strip() for text in table.locator("thead th").all_text_contents()].index(heading)
    return table.evaluate(
        "(table, place) => [...table.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[place].textContent)",
        place,
    )


def expected(sweep, value) -> list[str]:
    """Numbers of all trials in the order of a value, those of equal value in their own."""
    return [str(trial.number) for trial in sorted(sweep.trials, key=value)]


def test_a_press_on_a_head_sorts_up_and_another_down_and_says_so(opened, sweep):
    page = opened()
    assert column(page, "trial") == expected(sweep, lambda trial: trial.number)
    button = page.locator(".trials thead").get_by_role("button", name="loss (nats)")
    head = page.locator(".trials thead th", has_text="loss (nats)")
    button.click()
    assert column(page, "trial") == expected(sweep, lambda trial: trial.history[-1].eval_loss_nats)
    assert head.get_attribute("aria-sort") == "ascending"
    button.click()
    assert column(page, "trial") == expected(sweep, lambda trial: -trial.history[-1].eval_loss_nats)
    assert head.get_attribute("aria-sort") == "descending"
    page.locator(".trials thead").get_by_role("button", name="rank").click()
    assert [int(rank) for rank in column(page, "rank")] == sorted(trial.config.rank for trial in sweep.trials)
    assert page.locator(".trials [aria-sort]").count() == 1


def test_what_is_not_known_stands_last_in_either_order(opened):
    page = opened()
    button = page.locator(".trials thead").get_by_role("button", name="verdict")
    for _ in range(2):
        button.click()
        verdicts = column(page, "verdict")
        n_known = sum(verdict != "-" for verdict in verdicts)
        assert 0 < n_known < len(verdicts)
        assert "-" not in verdicts[:n_known]


CHOSEN = {
    "front": lambda trial, sweep: trial.key in sweep.front.keys,
    "rank=4": lambda trial, sweep: trial.config.rank == 4,
    "BASE=4 Rank=16 search": lambda trial, sweep: (
        trial.config.precision == "nf4" and trial.config.rank == 16 and trial.origin == "search"
    ),
    "no such words": lambda trial, sweep: False,
    "": lambda trial, sweep: True,
}
"""What is typed -> whether a trial is still shown."""


def test_the_field_leaves_the_rows_that_have_all_its_words_and_counts_them(opened, sweep):
    page = opened()
    for words, chosen in CHOSEN.items():
        page.get_by_label("Filter").fill(words)
        wanted = [str(trial.number) for trial in sweep.trials if chosen(trial, sweep)]
        assert column(page, "trial") == wanted, words
        assert page.locator(".filter output").inner_text() == f"{len(wanted)} of {len(sweep.trials)} trials"


def test_the_table_is_worked_with_the_keyboard_alone(opened):
    page = opened()
    page.get_by_label("Filter").focus()
    page.keyboard.type("rank=16")
    assert set(column(page, "rank")) == {"16"}
    page.keyboard.press("Tab")  # the box that scrolls
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "All trials"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "trial"
    for key, numbers in {"Enter": sorted, "Space": lambda found: sorted(found, reverse=True)}.items():
        page.keyboard.press(key)
        found = list(map(int, column(page, "trial")))
        assert found == numbers(found)


def test_without_script_the_table_the_captions_and_the_pictures_are_read_as_they_are(opened, sweep):
    page = opened(script=False)
    assert page.locator(".trials tbody tr").count() == len(sweep.trials)
    assert page.locator(".filter").is_hidden()
    assert page.locator(".trials button").count() == 0
    pngs = [path.stem for path in RECORDED.glob("figures/*.png")]
    for name in pngs:
        assert page.locator(f"#{name} img").is_visible()
        assert sweep.caption in page.locator(f"#{name} figcaption").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_drawn_in_the_readers_colours_and_the_page_is_no_wider_than_the_window(
    width, scheme, opened, sweep
):
    page = opened(width, scheme)
    names = [figure.name for figure in gallery.of_sweep(sweep) if isinstance(figure, Picture)]
    assert len(names) >= 8
    for name in names:
        drawn(page, name)
        assert page.locator(f"#plot-{name} .no-webgl").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    of_figure = drawn(page, "loss_memory").evaluate("e => getComputedStyle(e).backgroundColor")
    assert ground == of_figure == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 22)"}[scheme]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=SCREENSHOTS / f"report-{width}-{scheme}.png", full_page=True)


def test_a_figure_is_a_picture_until_it_comes_near_and_is_then_drawn_and_anew_when_night_falls(opened):
    page = opened()
    assert page.evaluate("typeof Plotly") == "undefined", "the page is there before plotly is read"
    picture = page.locator("#plot-rank_memory img")
    assert picture.is_visible()
    height = page.locator("#plot-rank_memory").evaluate("e => e.offsetHeight")
    page.evaluate("scrollTo(0, document.querySelector('#rank_memory').offsetTop)")
    svg = page.locator("#plot-rank_memory .main-svg").first
    svg.wait_for()
    assert picture.count() == 0
    assert page.locator("#plot-rank_memory").evaluate("e => e.offsetHeight") == height, "nothing below it moves"
    assert page.locator(".plot").last.locator(".main-svg").count() == 0
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("e => getComputedStyle(e).backgroundColor === 'rgb(22, 22, 22)'", arg=svg.element_handle())


def test_on_paper_every_figure_is_drawn(opened, sweep):
    page = opened()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    n_figures = sum(isinstance(figure, Picture) for figure in gallery.of_sweep(sweep))
    assert page.locator(".plot").filter(has=page.locator(".main-svg")).count() == n_figures
