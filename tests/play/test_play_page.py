"""The page of play in headless Chromium: keys turn the picture the right way, and how long that takes is measured.

Needs the extras `browser` and `web`, and Debian's chromium; run with -m browser.
"""

import itertools
import json

import numpy as np
import pytest
from browsers import violations
from dreams import Perfect

from dit_video.play.application import Play, application
from dit_video.play.stage import Stage
from dit_video.play.stream import Start
from dit_video.worlds.corridor import ACTIONS

pytestmark = pytest.mark.browser

SIZE = 64
PIXELS = """canvas => Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)"""


@pytest.fixture
def served(tmp_path):
    """A page's address, and what is played."""
    from dit_video.web.server import Server

    start = Start(name="clip 0", frames=np.zeros((1, SIZE, SIZE, 3), np.uint8))
    stage = Stage(Perfect(size=SIZE, fps=20.0), ACTIONS)
    play = Play(stage, lambda number: start, 2, tmp_path, guided=True)
    with Server(application(play, title="play")).running() as server:
        yield server, play


@pytest.fixture
def open_page(chromium):
    """Opens pages; fails where one wrote an error."""
    contexts, errors = [], []

    def opens(address: str):
        context = chromium.new_context()
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield opens
    for context in contexts:
        context.close()
    assert not errors


def number(page) -> int:
    return int(page.evaluate("document.getElementById('number').value"))


def wait_until(page, condition: str) -> None:
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"never came to hold: {condition}")


def picture(page) -> np.ndarray:
    values = page.locator("#dream").evaluate(PIXELS)
    return np.array(values, float).reshape(SIZE, SIZE, 4)[..., :3]


def stepped(page, key: str) -> np.ndarray:
    """The picture after one step with a key held, of a world that stands still."""
    before = number(page)
    page.keyboard.down(key)
    page.keyboard.press(".")
    wait_until(page, f"document.getElementById('number').value == {before + 1}")
    page.keyboard.up(key)
    return picture(page)


def moved_left(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the picture has moved to the left by what a turn moves it, and not to the right."""
    left = np.abs(before[:, 21:53] - after[:, 10:42]).mean()
    right = np.abs(before[:, 10:42] - after[:, 21:53]).mean()
    return bool(left < right)


def test_keys_turn_the_picture_the_right_way_and_delays_are_measured(served, open_page, capsys):
    server, _ = served
    page = open_page(server.address)
    assert "token" not in page.url
    wait_until(page, "document.getElementById('number').value > 3")
    assert page.locator("#role").inner_text() == "you drive"
    assert violations(page) == []
    for _ in range(12):
        page.keyboard.down("ArrowRight")
        page.wait_for_timeout(60)
        page.keyboard.up("ArrowRight")
        page.wait_for_timeout(60)
    p50, p95 = (float(page.evaluate(f"document.getElementById('{name}').value")) for name in ("p50", "p95"))
    with capsys.disabled():
        print(f"\nkey to frame at 20 frames a second: p50 {p50:.0f} ms, p95 {p95:.0f} ms")
    assert 0 < p50 < 150
    page.keyboard.press("p")
    page.wait_for_timeout(200)
    before = picture(page)
    right = [picture(page)] + [stepped(page, "ArrowRight") for _ in range(6)]
    left = [right[-1]] + [stepped(page, "ArrowLeft") for _ in range(6)]
    assert sum(moved_left(a, b) for a, b in itertools.pairwise(right)) >= 5
    assert sum(not moved_left(a, b) for a, b in itertools.pairwise(left)) >= 5
    np.testing.assert_array_equal(left[-1], before)


def test_touch_sliders_pause_and_save(served, open_page, tmp_path):
    server, play = served
    page = open_page(server.address)
    wait_until(page, "document.getElementById('number').value > 3")
    forward = page.locator("[data-action='4']")
    forward.dispatch_event("pointerdown", {"pointerId": 1, "isPrimary": True})
    page.wait_for_timeout(200)
    assert play._action == 4
    forward.dispatch_event("pointerup", {"pointerId": 1})
    page.wait_for_timeout(200)
    assert play._action == 0
    for name, value in (("num_steps", 9), ("guidance", 2.5)):
        page.locator(f"#{name}").fill(str(value))
        page.wait_for_timeout(200)
        assert getattr(play._stage.stream, name) == value
    page.locator("#pause").click()
    page.wait_for_timeout(200)
    stands = number(page)
    page.wait_for_timeout(200)
    assert number(page) == stands
    page.locator("#save").click()
    wait_until(page, "document.getElementById('status').textContent.startsWith('saved')")
    assert (tmp_path / "play_0001.npz").is_file()
    page.locator("#reset").click()
    wait_until(page, "document.getElementById('status').textContent == 'begins with clip 0'")


def test_others_watch_and_take_over(served, open_page):
    server, _ = served
    driver = open_page(server.address)
    wait_until(driver, "document.getElementById('number').value > 3")
    watcher = open_page(server.address)
    wait_until(watcher, "document.getElementById('role').textContent.includes('you watch')")
    wait_until(watcher, "document.getElementById('number').value > 3")
    driver.context.close()
    wait_until(watcher, "document.getElementById('role').textContent.includes('nobody drives')")
    stands = number(watcher)
    watcher.wait_for_timeout(300)
    assert number(watcher) == stands
    watcher.locator("#drive").click()
    wait_until(watcher, f"document.getElementById('number').value > {stands + 3}")


def test_a_page_of_elsewhere_opens_no_socket(served, chromium):
    server, play = served
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.address)
    other = context.new_page()  # it has the cookie
    other.goto("about:blank")
    script = f"""() => new Promise(done => {{
        const socket = new WebSocket("ws://127.0.0.1:{server.port}/socket");
        socket.onopen = () => done("open"); socket.onerror = () => done("refused"); }})"""
    assert other.evaluate(script) == "refused"
    assert json.dumps(play.about)
    context.close()
