"""The web socket of play, asked as a server asks it: one page drives, others watch, and nobody makes memory grow."""

import asyncio
import io
import itertools
import json
import struct

import numpy as np
import pytest
from dreams import SIZE, Perfect
from PIL import Image

from dit_video.play.application import Play, application, keys_of
from dit_video.play.stage import Stage
from dit_video.play.stream import Start
from dit_video.web.guard import Guard
from dit_video.worlds.corridor import ACTIONS, TURN_RIGHT

BLACK = Start(name="black", frames=np.zeros((1, SIZE, SIZE, 3), np.uint8))


class Socket:
    """One end of a web socket, between an application and a test."""

    def __init__(self, app, scope: dict):
        self.to_app: asyncio.Queue = asyncio.Queue()
        self.to_page: asyncio.Queue = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self.task = asyncio.create_task(app(scope, self.to_app.get, self._sent))
        self.to_app.put_nowait({"type": "websocket.connect"})
        self.frames: list[tuple[dict, np.ndarray]] = []
        self.words: list[dict] = []

    async def _sent(self, message: dict) -> None:
        await self.reads.wait()
        await self.to_page.put(message)

    def send(self, **words) -> None:
        self.to_app.put_nowait({"type": "websocket.receive", "text": json.dumps(words)})

    def send_picture(self, content: bytes) -> None:
        self.to_app.put_nowait({"type": "websocket.receive", "bytes": content})

    async def until(self, holds, seconds: float = 10.0):
        """Reads until something holds of a message: its head and pixels, or its words."""
        async with asyncio.timeout(seconds):
            while True:
                message = await self.to_page.get()
                if message.get("bytes"):
                    data = message["bytes"]
                    (length,) = struct.unpack_from("<I", data)
                    head = json.loads(data[4 : 4 + length])
                    pixels = np.frombuffer(data[4 + length :], np.uint8)[: SIZE * SIZE * 3].reshape(SIZE, SIZE, 3)
                    self.frames.append((head, pixels))
                    said = head
                elif message.get("text"):
                    said = json.loads(message["text"])
                    self.words.append(said)
                else:
                    said = message
                if holds(said):
                    return said

    async def close(self) -> None:
        self.to_app.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await self.task


SCOPE = {"type": "websocket", "path": "/socket", "query_string": b"", "headers": [], "subprotocols": []}


def playing(body, tmp_path, **options):
    """Runs a test with an application, and ends what it began."""

    async def main():
        stage = Stage(Perfect(**options), ACTIONS)
        play = Play(stage, lambda number: BLACK, 3, tmp_path / "out", guided=False)
        app = application(play, title="<test>")
        try:
            await body(play, lambda: Socket(app, SCOPE))
        finally:
            if play._going is not None:
                play._going.cancel()
            play._thread.shutdown()

    asyncio.run(main())


def test_what_is_held_turns_the_picture_until_it_is_let_go(tmp_path):
    async def body(play, open_page):
        page = open_page()
        about = (await page.until(lambda said: "about" in said))["about"]
        assert about["keys"]["ArrowRight"] == TURN_RIGHT
        page.send(action=TURN_RIGHT, at=12.5)
        answer = await page.until(lambda said: said.get("answers") == 12.5)
        await page.until(lambda said: said.get("number", 0) >= answer["number"] + 5)
        frames = [pixels for _, pixels in page.frames[-5:]]
        assert all((a != b).any() for a, b in itertools.pairwise(frames))
        page.send(action=None, at=13.5)
        answer = await page.until(lambda said: said.get("answers") == 13.5)
        still = page.frames[-1][1]
        await page.until(lambda said: said.get("number", 0) >= answer["number"] + 3)
        np.testing.assert_array_equal(page.frames[-1][1], still)
        await page.close()

    playing(body, tmp_path)


def test_one_drives_and_when_it_goes_the_world_stands_still(tmp_path):
    async def body(play, open_page):
        driver = open_page()
        await driver.until(lambda said: said.get("drives") is True)
        watcher = open_page()
        await watcher.until(lambda said: said.get("drives") is False)
        await watcher.until(lambda said: said.get("number", 0) > 2)
        watcher.send(action=1)
        assert "somebody else drives" in (await watcher.until(lambda said: "error" in said))["error"]
        await driver.close()
        await watcher.until(lambda said: said.get("free") is True)
        await asyncio.sleep(0.1)
        stands = play._stage._number
        await asyncio.sleep(0.1)
        assert play._stage._number == stands
        watcher.send(drive=True)
        await watcher.until(lambda said: said.get("drives") is True)
        await watcher.until(lambda said: said.get("number", 0) > stands + 2)
        await watcher.close()

    playing(body, tmp_path)


def test_a_slow_page_misses_frames_and_keeps_none_waiting(tmp_path):
    async def body(play, open_page):
        page = open_page()
        await page.until(lambda said: said.get("number", 0) > 2)
        page.reads.clear()
        before = play._stage._number
        while play._stage._number < before + 30:
            await asyncio.sleep(0.02)
        assert play._pages[0].skipped >= 25
        page.reads.set()
        await page.until(lambda said: said.get("number", 0) >= before + 29)
        numbers = [head["number"] for head, _ in page.frames]
        assert len([number for number in numbers if before < number < before + 29]) <= 3
        await page.close()

    playing(body, tmp_path, fps=400.0)


def test_pause_step_begin_settings_and_save(tmp_path):
    async def body(play, open_page):
        page = open_page()
        await page.until(lambda said: said.get("number", 0) > 1)
        page.send(paused=True)
        await asyncio.sleep(0.1)
        stands = play._stage._number
        page.send(step=1)
        await page.until(lambda said: said.get("number") == stands + 1)
        await asyncio.sleep(0.05)
        assert play._stage._number == stands + 1
        page.send(num_steps=7)
        page.send(num_steps=0)
        assert "num_steps=0" in (await page.until(lambda said: "error" in said))["error"]
        assert play._stage.stream.num_steps == 7
        page.send(save=True)
        saved = (await page.until(lambda said: "saved" in said))["saved"]
        assert saved.endswith("play_0001.mp4")
        page.send(clip=4)
        begun = await page.until(lambda said: said.get("number") == 0)
        assert begun["name"] == "black"
        picture = io.BytesIO()
        Image.new("RGB", (9, 7), (10, 200, 30)).save(picture, "png")
        page.send_picture(picture.getvalue())
        assert (await page.until(lambda said: said.get("number") == 0))["name"] == "picture"
        assert page.frames[-1][1][3, 3].tolist() == [10, 200, 30]
        page.send_picture(b"no picture")
        assert "no picture that can be read" in (await page.until(lambda said: "error" in said))["error"]
        for wrong in ({"action": 9}, {"action": "x"}, {"clip": "y"}):
            page.send(**wrong)
            await page.until(lambda said: "error" in said)
        await page.close()

    playing(body, tmp_path)


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"cookie": "dit_video_80=wrong"}, {"cookie": "dit_video_80=t", "host": "evil.example:80"},
        {"cookie": "dit_video_80=t", "origin": "http://evil.example"},
    ],
)  # fmt: skip
def test_pages_of_elsewhere_are_refused(headers):
    """A page of another origin has the cookie sent along, and is told by its origin; the app is not asked at all."""

    async def app(scope, receive, send):
        raise AssertionError("the application was asked")

    sent = []

    async def send(message):
        sent.append(message)

    named = {"host": "127.0.0.1:80", **headers}
    scope = {**SCOPE, "headers": [(name.encode(), value.encode()) for name, value in named.items()]}
    asyncio.run(Guard(app, token="t", port=80)(scope, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_keys_are_of_the_names_of_actions():
    keys = keys_of(("noop", "turn_left", "jump", "craft", "move_forward"), 0)
    assert keys == {"ArrowLeft": 1, "ArrowUp": 4, " ": 2, "1": 3}
    assert keys_of(("0", "1", "2"), None) == {"1": 0, "2": 1, "3": 2}


def test_a_world_that_stops_says_why(tmp_path):
    async def body(play, open_page):
        play._stage.stream.step = lambda action: (_ for _ in ()).throw(ValueError("out of memory"))
        page = open_page()
        assert "stopped: out of memory" in (await page.until(lambda said: "error" in said))["error"]
        await page.close()

    playing(body, tmp_path)
