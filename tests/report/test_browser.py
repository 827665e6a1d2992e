"""A report in headless Chromium: clips play, sliders change pictures, axe finds nothing, and it is quick.

Needs the extra `browser` and Debian's chromium; run with -m browser.
"""

import re

import pytest
from browsers import violations
from made_runs import write_run, write_sample

from dit_video.report.page import render
from dit_video.report.recorded_run import read_runs

pytestmark = pytest.mark.browser

# Of a picture of one grey: how bright it is.
GREY = """video => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data[0];
}"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / name, seed=seed) for seed, name in enumerate("ab")]
    (folder / "report.html").write_text(render(read_runs(runs)))
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(chromium):
    """Opens a page without a network; closes it, and fails where it wrote an error or asked for anything."""
    contexts, errors = [], []

    def open_page(address: str, **options):
        context = chromium.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "blob:", "data:")) else errors.append(r.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


def clips(page):
    block = page.locator(".media").first
    block.scroll_into_view_if_needed()
    wait_until(page, "document.querySelector('.media video').currentTime > 0")
    return block


def wait_until(page, condition: str) -> None:
    """Asks the browser until a condition holds. A page that evaluates no strings cannot be asked to watch for one."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not after 15 s: {condition}")


def test_clips_play_when_they_are_seen(opened, report):
    page = opened(report, viewport={"width": 800, "height": 300})
    assert page.evaluate("document.querySelector('.media video').currentSrc") == ""
    block = clips(page)
    before = block.locator("video").first.evaluate("video => video.currentTime")
    wait_until(page, f"document.querySelector('.media video').currentTime != {before}")
    block.get_by_role("button", name="pause").click()
    assert block.locator("video").first.evaluate("video => video.paused")


def test_the_slider_changes_the_picture_of_every_run(opened, report):
    page = opened(report)
    block = clips(page)
    ready = "[...document.querySelectorAll('.media video')].every(video => video.readyState > 1)"
    wait_until(page, ready)
    last = [video.evaluate(GREY) for video in block.locator("video").all()]
    block.get_by_label("step").press("Home")
    assert block.locator("output").inner_text() == "20"
    wait_until(page, f"{ready} && [...document.querySelectorAll('.media video')].every(v => v.currentTime > 0)")
    first = [video.evaluate(GREY) for video in block.locator("video").all()]
    assert all(abs(a - b) > 20 for a, b in zip(first, last))
    assert first[0] != first[1]


def test_curves_are_zoomed_by_keyboard_and_hidden_by_run(opened, report):
    page = opened(report)
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    pictures = [plot.screenshot()]
    plot.press("+")
    pictures.append(plot.screenshot())
    page.locator(".toggle").first.uncheck()
    page.wait_for_timeout(200)
    pictures.append(plot.screenshot())
    page.locator("#over").select_option("hours")
    page.wait_for_timeout(200)
    pictures.append(plot.screenshot())
    assert len(set(pictures)) == 4
    plot.hover()
    assert re.match(r"[\d.e-]+ h", plot.locator("xpath=following-sibling::*[1]").inner_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(opened, report, scheme, width):
    page = opened(report, color_scheme=scheme, viewport={"width": width, "height": 800})
    for details in page.locator("summary").all():
        details.evaluate("summary => summary.parentElement.open = true")
    page.locator("#experiments").scroll_into_view_if_needed()
    assert not violations(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_javascript_there_are_tables_and_stills(opened, report):
    page = opened(report, java_script_enabled=False)
    chart = page.locator("figure.chart").first
    chart.locator("summary").click()
    assert chart.locator("td").first.is_visible()
    assert page.locator("video").first.get_attribute("poster").startswith("data:image/jpeg")
    assert not page.locator("#smooth").is_visible()


def test_it_is_painted_within_a_second(opened, report):
    page = opened(report)
    wait_until(page, "performance.getEntriesByName('first-contentful-paint').length")
    assert page.evaluate(PAINT) < 1000


def test_fifty_runs_of_twenty_evaluations_are_there_within_three_seconds(opened, tmp_path):
    runs = [write_run(tmp_path / f"run_{i}", seed=i, num_steps=1000, evaluations=20) for i in range(50)]
    (tmp_path / "report.html").write_text(render(read_runs(runs)))
    page = opened((tmp_path / "report.html").as_uri())
    assert page.evaluate(LOADED) < 3000
    assert page.locator("#runs tbody tr").count() == 50
    assert page.evaluate("[...document.querySelectorAll('video')].filter(video => video.src).length") < 50


def test_watch_shows_what_a_run_writes_and_keeps_what_was_chosen(chromium, tmp_path):
    from dit_video.report.live import application
    from dit_video.web.server import Server

    folder = write_run(tmp_path / "run")
    with Server(application([folder], title="live")).running() as server:
        page = chromium.new_page()
        errors = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(server.address)
        assert "token" not in page.url
        block = clips(page)
        page.locator("figure.chart summary").first.click()
        block.get_by_label("step").press("Home")
        write_sample(folder, 80, 0)
        wait_until(page, "document.querySelector('.media .step').dataset.steps.endsWith('80')")
        assert page.locator(".media output").first.inner_text() == "20"
        assert page.locator("figure.chart details").first.get_attribute("open") is not None
        assert not errors
        page.close()
