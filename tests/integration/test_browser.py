"""What a person sees: MLflow's pages, the page of figures and the report, in a headless Chromium.

Looks at what was drawn, not only at what was loaded. Screenshots are left in build/screenshots, to be looked at.
"""

import os
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from subprocess import Popen

import pytest

from orchestrator.analysis.snapshot import SweepSnapshot
from orchestrator.figures import gallery as figures
from orchestrator.figures.style import PRECISION_COLOURS
from orchestrator.settings import sweep_folder
from orchestrator.settings.stored import save
from orchestrator.tracking import trials
from orchestrator.tracking.client import open_client
from orchestrator.tracking.publishing import publish
from orchestrator.tracking.store import page_of, store_uri
from tests.support.chromium import SCREENSHOTS, SECONDS, drawn, needs_chromium
from tests.support.stores import place_store
from tests.support.sweeps import (
    COMMAND,
    GRID,
    WORKLOAD,
    Desk,
    completes,
    cost,
    environment,
    evaluated_pair,
    make,
    space,
)
from trainables.values.results import MemoryBreakdown, curve_of

LEARNS = space(
    GRID,
    parameters=GRID["parameters"] | {"learning_rate": {"values": [1e-4, 1e-3]}},
    fixed=GRID["fixed"] | {"max_steps": 40},
)
SIZES = ((1440, 900), (1920, 1080))
MAX_CLICKS = 3
COUNT_CLICKS = """addEventListener("click", event => {
    if (event.isTrusted) localStorage.clicks = 1 + Number(localStorage.clicks || 0);
}, true)"""

pytestmark = needs_chromium


def trains(task):
    """Rank and learning rate lower the loss, rank and precision raise memory: fronts of both precisions."""
    config = task.config
    base, adapter = (50.0 if config.precision == "nf4" else 80.0), 2.0 * config.rank
    parts = dict.fromkeys(MemoryBreakdown.__dataclass_fields__, 1.0)
    parts |= {"base_weights_mib": base, "adapter_mib": adapter}
    seconds = 0.012 if config.precision == "nf4" else 0.010
    cell = cost(
        peak_memory_mib=sum(parts.values()),
        seconds_per_step=seconds,
        seconds_per_step_p10=seconds,
        seconds_per_step_p90=seconds,
        breakdown=MemoryBreakdown(**parts),
    )
    loss, done = 3 - config.rank / 10 - 100 * config.learning_rate, 0
    for report in completes(task, loss=loss, costs=cell):
        step = report.measurement.step
        if task.kind == "evaluate":
            lost = 0.02 if config.precision == "nf4" else 0.0
            report = replace(report, test_evaluation=evaluated_pair(lost, seed=config.seed))
        curve = curve_of([loss + 1 / (1 + at) for at in range(done, step)], step)
        yield replace(report, measurement=replace(report.measurement, train_curve=curve))
        done = step


@dataclass(frozen=True)
class Shown:
    """A finished sweep behind `qlora-sweep ui`.

    Attributes:
        address: that the command printed.
        page: of the sweep's run, as the sweep prints it but for the port.
    """

    root: Path
    result: SweepSnapshot
    address: str
    page: str

    @property
    def folder(self) -> Path:
        return sweep_folder("shown", self.root)

    def run_page(self, key: str) -> str:
        """Of a trial's run, at the same server."""
        client, experiment_id = open_client(store_uri(self.root), self.root)
        (run,) = client.search_runs([experiment_id], f"tags.trial_key = '{key}'")
        return self.page.partition("#")[0] + page_of(experiment_id, run.info.run_id)


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Iterator[Shown]:
    cwd = tmp_path_factory.mktemp("browser")
    (cwd / "random.py").write_text("raise SystemExit('not the library')")
    root = cwd / "mlflow_runs"
    settings = make(LEARNS, name="shown")
    folder = sweep_folder("shown", root)
    save(settings, folder)
    desk = Desk(folder, settings)
    for name, value in {"id": "5" * 32, "created_at": time.time() - 60, "workload": asdict(WORKLOAD)}.items():
        desk.ledger.set_fact(name, value)
    desk.finish(trains)
    result = SweepSnapshot.of(settings, desk.ledger)
    desk.ledger.close()
    place_store(root)
    printed = publish(settings, root, interrupted=False)
    assert printed is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = cwd / "said"  # a pipe that nobody reads would stop the server
    command = [*COMMAND, "ui", "--port", str(port)]
    with said.open("w") as out:
        server = Popen(command, cwd=cwd, env=environment(), stdout=out, stderr=out, start_new_session=True)
    try:
        address = printed_address(said, f"http://127.0.0.1:{port}/")
        yield Shown(root, result, address, printed.replace(":5000/", f":{port}/"))
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it would wait for the browser
        server.wait(timeout=60)


def printed_address(said: Path, server: str) -> str:
    """What `ui` printed, once the server answers there."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(server, timeout=10).close()
            break
        except OSError:
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.5)
    address = said.read_text().split("MLflow: ")[1].split()[0]
    assert address.startswith(server)
    return address


@contextmanager
def fresh_page(browser, width: int, height: int):
    """A page of a new profile that can reach nothing but this machine; at its end nothing else was asked for."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(SECONDS * 1000)
    asked = []

    def only_here(route):
        if route.request.url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")):
            route.continue_()
        else:
            asked.append(route.request.url)
            route.abort()

    context.route("**/*", only_here)
    context.add_init_script(COUNT_CLICKS)
    yield context.new_page()
    context.close()
    assert not asked


@pytest.fixture
def page(browser):
    with fresh_page(browser, 1500, 1000) as opened:
        yield opened


@pytest.fixture(params=SIZES, ids=lambda size: str(size[0]))
def first_visit(request, browser):
    with fresh_page(browser, *request.param) as opened:
        yield opened


def shoot(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def shoot_at(page, name: str) -> None:
    shoot(page, f"{name}-{page.viewport_size['width']}")


def n_clicks(page) -> int:
    """Of a person in this profile so far."""
    return int(page.evaluate("localStorage.clicks || 0"))


def is_on_screen(locator) -> bool:
    """Whether an element can be seen without scrolling, and nothing lies over its first line."""
    return locator.evaluate("""element => {
        const {left, right, top, bottom} = element.getBoundingClientRect();
        const ends = [left + 4, right - 4].map(x => document.elementFromPoint(x, top + 6));
        const fits = left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight;
        return fits && ends.every(seen => element.contains(seen));
    }""")


def is_whole_in_the_fold(locator) -> bool:
    """Whether MLflow's folded description shows an element: of its 100 pixels the lower 60 fade out, and a third of
    that can still be read well."""
    return locator.evaluate("""element => {
        let fold = element;
        while (getComputedStyle(fold).maxHeight !== "100px") fold = fold.parentElement;
        return element.getBoundingClientRect().bottom <= fold.getBoundingClientRect().top + 60;
    }""")


def wait_until(page, condition) -> None:
    """Until a page, which may still be laying itself out, is as it should be."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        page.wait_for_timeout(200)


def frame_with(page, selector: str):
    """The frame that shows an element; MLflow shows an artifact in one of its own."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for frame in page.frames:
            if frame.locator(selector).count():
                return frame
        page.wait_for_timeout(200)
    raise AssertionError(f"no frame has {selector}")


def n_drawn(frame, figure: str, what: str) -> int:
    """How many shapes of a kind a figure of the page has drawn, each of some size."""
    drawn(frame, figure)
    return frame.evaluate(
        "([figure, what]) => [...document.querySelectorAll(`#plot-${figure} ${what}`)]"
        ".filter(e => e.getBoundingClientRect().width > 0).length",
        [figure, what],
    )


MARKS = {
    "rank_memory": ".points path",
    "memory_breakdown": ".bars path",
    "similarity": ".points path",
    "hypervolume": ".points path",
    "time_memory": ".points path",
    "loss_time": ".points path",
    "parallel_coordinates": "canvas",
    "importance": ".bars path",
}


def assert_all_drawn(frame, result: SweepSnapshot) -> None:
    """Every figure has its marks; of the front's, as many points as trials and as many rings as members."""
    n_completed = sum(trial.state == "completed" for trial in result.trials)
    assert n_drawn(frame, "loss_memory", ".points path") == n_completed
    rings = [
        "stroke-width: 2.5px" in (style or "")  # a hollow point of another trial has a thin line
        for style in frame.locator("#plot-loss_memory .points path").evaluate_all("es => es.map(e => e.style.cssText)")
    ]
    assert sum(rings) == len(result.front.members)
    found = {figure: n_drawn(frame, figure, what) for figure, what in MARKS.items()}
    assert all(found.values()), found


def test_two_clicks_lead_from_the_experiment_over_the_run_to_the_drawn_front(shown, page):
    page.goto(shown.address)
    link = page.get_by_role("link", name="shown", exact=True).first
    link.wait_for()
    shoot(page, "1-experiment")
    link.click()
    figures_link = page.get_by_role("link", name="All figures, interactive")
    figures_link.wait_for()
    shoot(page, "2-run")
    with page.expect_popup() as opened:
        figures_link.click()
    artifact = opened.value
    frame = frame_with(artifact, "#plot-loss_memory")
    assert_all_drawn(frame, shown.result)
    frame.locator("#loss_memory").evaluate("e => e.scrollIntoView()")
    artifact.wait_for_timeout(500)
    shoot(artifact, "3-figures-in-mlflow")


def test_one_click_from_the_printed_address_shows_the_best_rank_for_each_budget_and_the_front(shown, page):
    page.goto(shown.page)
    page.get_by_text("Show more").first.click()
    page.get_by_role("heading", name="Which rank for which memory").wait_for()
    rows = page.locator("table", has_text="budget from").first.locator("tbody tr")
    cells = [row.split("\t") for row in rows.all_inner_texts()]
    least = min(t.cost.peak_memory_mib for t in shown.result.front.members)
    assert [float(row[0]) for row in cells] == sorted(float(row[0]) for row in cells)
    assert float(cells[0][0]) == pytest.approx(least, abs=0.05)
    assert cells[-1][2] == "4"  # the highest rank has the lowest loss
    picture = page.locator("img[src*='get-artifact']")
    picture.evaluate("e => e.scrollIntoView()")
    page.wait_for_function("e => e.complete && e.naturalWidth > 0", arg=picture.element_handle())
    for colour in PRECISION_COLOURS.values():
        assert n_pixels(picture, colour)[0] > 20
    shoot(page, "4-description")


def test_a_first_visitor_sees_the_answer_and_three_clicks_lead_to_the_best_rank_for_a_budget(shown, first_visit):
    page = first_visit
    page.goto(shown.address)
    page.get_by_role("link", name="shown", exact=True).first.click()
    answer = page.locator("strong", has_text="Answer: trial").first
    answer.wait_for()
    wait_until(page, lambda: is_on_screen(answer) and is_whole_in_the_fold(answer))
    shoot_at(page, "8-first-visit-run")
    page.get_by_text("Show more").first.click()
    rows = page.locator("table", has_text="budget from").first.locator("tbody tr")
    rows.first.wait_for()
    wait_until(page, lambda: is_on_screen(rows.first.locator("td").first))
    assert n_clicks(page) <= MAX_CLICKS
    shoot_at(page, "9-first-visit-budgets")


CHOSEN_BY = ("rank", "precision", "peak_memory_mib", "eval_loss_nats", "lost_share")


def test_two_clicks_lead_to_a_table_of_all_trials_by_loss_with_the_columns_one_chooses_by(shown, first_visit):
    page = first_visit
    page.goto(shown.address)
    page.get_by_role("link", name="shown", exact=True).first.click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="All trials in a table").click()
    table, ran = opened.value, shown.result.trials
    table.get_by_text(f"{len(ran)} matching runs").wait_for()
    headings = [table.get_by_test_id(f"sort-header-{name}") for name in CHOSEN_BY]

    def are_in_order() -> bool:
        if not all(heading.count() and is_on_screen(heading) for heading in headings):
            return False
        places = [heading.evaluate("e => e.getBoundingClientRect().x") for heading in headings]
        return places == sorted(places)

    wait_until(table, are_in_order)
    shoot_at(table, "10-all-trials")
    links = table.get_by_test_id("experiment-view-table-run-color").locator("xpath=following-sibling::a")
    losses = {str(trial.number): trial.history[-1].eval_loss_nats for trial in ran}
    found = [losses[name.split()[0]] for name in links.all_inner_texts()]
    assert len(found) > 5
    assert found == sorted(found)
    assert n_clicks(page) <= 2


def test_a_trials_run_says_in_three_lines_what_it_is_and_draws_its_training_loss_every_ten_steps(shown, first_visit):
    page = first_visit
    trial = next(t for t in shown.result.front.members if t.config.precision == "nf4")
    page.goto(shown.run_page(trial.key))
    page.get_by_text(f"qlora-sweep export shown DEST --trial {trial.number}").wait_for()
    shoot_at(page, "11-trial")
    page.get_by_role("tab", name="Model metrics").click()
    page.get_by_placeholder("Search metric charts").fill(trials.CURVE)
    points = page.locator(".js-plotly-plot .points path")
    points.nth(len(trial.history)).wait_for()
    n_points = sum(len(measurement.train_curve) for measurement in trial.history)
    assert points.count() == n_points > len(trial.history)
    shoot_at(page, "12-training-loss")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text(trials.FIGURES).first.click()
    page.get_by_text("centered_cosine").first.wait_for()
    shoot_at(page, "13-final-values")


def test_the_page_of_figures_draws_without_any_server(shown, page):
    page.goto((shown.folder / figures.PAGE).as_uri())
    assert_all_drawn(page, shown.result)
    shoot(page, "5-figures")


def test_the_report_draws_every_figure_without_any_server(shown, page):
    page.goto((shown.folder / "report.html").as_uri())
    assert_all_drawn(page, shown.result)
    page.get_by_role("heading", name="Which rank for which memory").evaluate("e => e.scrollIntoView()")
    shoot(page, "6-report")


def test_the_reports_pictures_show_points_of_both_precisions_where_no_script_runs(shown, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((shown.folder / "report.html").as_uri())
    images = page.locator("img")
    images.first.wait_for()
    sources = [str(image.get_attribute("src")) for image in images.all()]
    context.close()
    reader = browser.new_page()
    reader.set_content("".join(f'<img src="{source}">' for source in sources))
    reader.wait_for_function("[...document.images].every(e => e.complete && e.naturalWidth > 0)")
    for colour in PRECISION_COLOURS.values():
        in_rank, in_loss, *_ = n_pixels(reader.locator("img"), colour)
        assert min(in_rank, in_loss) > 50
    reader.close()


def n_pixels(images, colour: str) -> list[int]:
    """Of each image, how many pixels have a colour, be it a little faded."""
    return images.evaluate_all(N_PIXELS, [int(colour[i : i + 2], 16) for i in (1, 3, 5)])


N_PIXELS = """(images, colour) => images.map(image => {
    const canvas = Object.assign(document.createElement("canvas"),
                                 {width: image.naturalWidth, height: image.naturalHeight});
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
    let n = 0;
    for (let i = 0; i < data.length; i += 4)
        if (colour.every((value, k) => Math.abs(data[i + k] - value) < 60)) n++;
    return n;
})"""
