"""Page of a world that is played: frames go out and keys come in over a web socket.

The first to open the page drives, others watch; when the driver goes, the world stands still until somebody takes over.
Frames go on at the rate of the data. A browser that is slower than that misses frames: of each page the newest alone
waits to be sent.
"""

import asyncio
import html
import importlib.resources
import io
import json
import struct
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from dit_video.play.stage import Shown, Stage
from dit_video.play.stream import Start, of_picture
from dit_video.tasks.roll_out import MAX_STEPS

_FILES = importlib.resources.files("dit_video.play") / "files"
_TYPES = {"play.js": "text/javascript", "play.css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Bytes of a picture that a page sends.
MAX_PICTURE = 16 << 20
MOST_GUIDANCE = 8.0

# Keys of the keyboard that stand for actions of these names; the others have digits.
_KEYS = {
    "ArrowLeft": ("turn_left", "left"), "ArrowRight": ("turn_right", "right"),
    "ArrowUp": ("forward", "move_forward", "up"), "ArrowDown": ("back", "move_back", "backward", "down"),
    " ": ("fire", "attack", "jump", "do"), "a": ("move_left",), "d": ("move_right",),
}  # fmt: skip
_DIGITS = "1234567890"


def keys_of(names: tuple[str, ...], noop: Any) -> dict[str, int]:
    """Which key stands for which action; that of no key is not among them."""
    keys = {key: names.index(name) for key, words in _KEYS.items() if (name := next(_there(words, names), None))}
    rest = [action for action in range(len(names)) if action != noop and action not in keys.values()]
    return keys | dict(zip(_DIGITS, rest))


def _there(words: tuple[str, ...], names: tuple[str, ...]) -> Any:
    return (word for word in words if word in names)


class Page:
    """What one browser is sent: the newest message alone waits."""

    def __init__(self, socket: WebSocket):
        self.socket, self.skipped = socket, 0
        self._newest: bytes | None = None
        self._words: list[str] = []
        self._there = asyncio.Event()

    def show(self, frame: bytes) -> None:
        self.skipped += self._newest is not None
        self._newest = frame
        self._there.set()

    def tell(self, **words: Any) -> None:
        # As few as buttons that are pressed; of a page that does not listen the last ones count.
        self._words = [*self._words[-8:], json.dumps(words)]
        self._there.set()

    async def send(self) -> None:
        """Sends what is there, for as long as the page is open."""
        while True:
            await self._there.wait()
            self._there.clear()
            words, self._words = self._words, []
            for word in words:
                await self.socket.send_text(word)
            if (frame := self._newest) is not None:
                self._newest = None
                await self.socket.send_bytes(frame)


class Play:
    """A world that is played by pages; everything but the world itself happens in one thread."""

    def __init__(self, stage: Stage, start_of: Callable[[int], Start], num_starts: int, out: Path, *, guided: bool):
        self._stage, self._start_of, self._num_starts = stage, start_of, num_starts
        self._out, self._guided = out, guided
        self._pages: list[Page] = []
        self._driver: Page | None = None
        self._action, self._pressed_at = stage.noop, None
        self._paused, self._single = False, 0
        self._clip, self._last = 0, b""
        self._awake = asyncio.Event()
        self._going: asyncio.Task | None = None
        # JAX's programs and the true world are called by one thread.
        self._thread = ThreadPoolExecutor(1)

    @property
    def about(self) -> dict[str, Any]:
        """What the page is made of, as JSON."""
        stage = self._stage
        names = stage.actions.names
        return {
            "actions": list(names),
            "noop": stage.noop if isinstance(stage.noop, int) else None,
            "keys": keys_of(names, stage.noop),
            "clips": self._num_starts,
            "fps": stage.stream.fps,
            "num_steps": stage.stream.num_steps,
            "most_steps": MAX_STEPS,
            "guidance": stage.stream.guidance,
            "most_guidance": MOST_GUIDANCE,
            "guided": self._guided,
        }

    async def serve(self, socket: WebSocket) -> None:
        """A page, from its opening to its end."""
        await socket.accept()
        page = Page(socket)
        self._pages.append(page)
        if self._driver is None:
            self._drive(page)
        page.tell(**self._roles(page), about=self.about)
        if self._last:
            page.show(self._last)
        if self._going is None:
            self._going = asyncio.create_task(self._go())
            self._going.add_done_callback(self._ended)
        sending = asyncio.create_task(page.send())
        try:
            while (message := await socket.receive())["type"] != "websocket.disconnect":
                await self._heard(page, message)
        finally:
            sending.cancel()
            self._pages.remove(page)
            if self._driver is page:
                self._driver = None
                self._release()
                self._tell_roles()

    async def _heard(self, page: Page, message: Mapping[str, Any]) -> None:
        try:
            content, picture = message.get("text"), message.get("bytes")
            request = {} if content is None else json.loads(content)
            if not isinstance(request, dict):
                raise ValueError("must be an object")
            if "drive" in request and self._driver is None:
                self._drive(page)
                self._tell_roles()
            elif page is not self._driver:
                raise ValueError("somebody else drives; watch, or wait until they leave")
            elif picture is not None:
                await self._begin(await self._run(_picture, picture, self._stage.stream.size))
            else:
                await self._do(page, request)
        except (ValueError, TypeError, KeyError) as error:
            page.tell(error=str(error))

    async def _do(self, page: Page, request: Mapping[str, Any]) -> None:
        if "action" in request:
            self._action, self._pressed_at = self._checked(request["action"]), request.get("at")
        if "paused" in request:
            self._paused = bool(request["paused"])
        if "step" in request:
            self._paused, self._single = True, min(self._single + 1, 2)
        if "clip" in request:
            self._clip = int(request["clip"]) % self._num_starts
            await self._begin(await self._run(self._start_of, self._clip))
        if "num_steps" in request:
            steps = int(request["num_steps"])
            if not 1 <= steps <= MAX_STEPS:
                raise ValueError(f"num_steps={steps}: must be from 1 to {MAX_STEPS}")
            self._stage.stream.num_steps = steps
        if "guidance" in request:
            self._stage.stream.guidance = min(max(float(request["guidance"]), 0.0), MOST_GUIDANCE)
        if "save" in request:
            path = await self._run(self._stage.save, self._out)
            page.tell(saved=str(path))
        self._awake.set()

    def _checked(self, action: Any) -> Any:
        if action is None:
            return self._stage.noop
        if not isinstance(action, int) or not 0 <= action < len(self._stage.actions.names):
            raise ValueError(f"action={action}: must be a number under {len(self._stage.actions.names)}")
        return action

    def _drive(self, page: Page) -> None:
        self._driver = page
        self._awake.set()

    def _release(self) -> None:
        """Nobody presses a key any more."""
        self._action, self._pressed_at = self._stage.noop, None

    def _tell_roles(self) -> None:
        for page in self._pages:
            page.tell(**self._roles(page))

    def _roles(self, page: Page) -> dict[str, Any]:
        return {"drives": page is self._driver, "free": self._driver is None, "pages": len(self._pages)}

    async def _begin(self, start: Start) -> None:
        shown = await self._run(self._stage.reset, start)
        self._publish(shown, start.name)
        self._awake.set()

    async def _go(self) -> None:
        """Goes on frame by frame while somebody drives."""
        await self._begin(await self._run(self._start_of, self._clip))
        while True:
            if self._driver is None or (self._paused and not self._single):
                self._awake.clear()
                await self._awake.wait()
                continue
            began = time.perf_counter()
            self._single = max(0, self._single - 1)
            pressed_at, self._pressed_at = self._pressed_at, None
            for shown in await self._run(self._stage.step, self._action):
                self._publish(shown, answers=pressed_at)
                rest = 1 / self._stage.stream.fps - (time.perf_counter() - began)
                await asyncio.sleep(max(0.0, rest))
                began = time.perf_counter()

    def _ended(self, going: asyncio.Task) -> None:
        """Tells every page why the world goes no further."""
        if not going.cancelled() and (error := going.exception()) is not None:
            for page in self._pages:
                page.tell(error=f"the world has stopped: {error}")

    async def _run(self, function: Callable, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _publish(self, shown: Shown, name: str | None = None, answers: Any = None) -> None:
        pictures = [shown.dream] if shown.true is None else [shown.dream, shown.true]
        header = json.dumps(
            {
                "number": shown.number,
                "seconds": shown.seconds,
                "answers": answers,
                "name": name,
                "paused": self._paused,
                "shapes": [picture.shape[:2] for picture in pictures],
            }
        ).encode()
        pixels = b"".join(np.ascontiguousarray(picture).tobytes() for picture in pictures)
        self._last = struct.pack("<I", len(header)) + header + pixels
        for page in self._pages:
            page.show(self._last)


def _picture(content: bytes, size: tuple[int, int]) -> Start:
    if len(content) > MAX_PICTURE:
        raise ValueError(f"the picture has {len(content)} bytes, more than {MAX_PICTURE}")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PICTURE:
                raise ValueError(f"the picture has {image.width} x {image.height} pixels, more than {MAX_PICTURE}")
            return of_picture(np.asarray(image.convert("RGB")), size)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"no picture that can be read ({error}); give a PNG or JPEG") from error


def application(play: Play, *, title: str) -> Starlette:
    """The page at /, what it is made of, and the web socket at /socket."""
    page = (_FILES / "play.html").read_text(encoding="utf-8").replace("TITLE", html.escape(title))

    def index(request: Request) -> Response:
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})

    def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _TYPES:
            return Response("no such file\n", status_code=404)
        return Response((_FILES / name).read_text(encoding="utf-8"), media_type=_TYPES[name])

    return Starlette(routes=[Route("/", index), Route("/files/{name}", file), WebSocketRoute("/socket", play.serve)])
