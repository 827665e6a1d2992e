"""The page of a report kept current: an application that renders it again whenever a run has written something."""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from dit_video.report.media_choice import data_type, media_id
from dit_video.report.page import render
from dit_video.report.recorded_run import read_runs

_FILES = ("*.json", "*.jsonl", "evaluation/*", "cards/*", "samples/*")


class LivePage:
    """The page of some runs and the state of the files that it was made from."""

    def __init__(self, folders: Sequence[Path], title: str):
        self._folders, self._title = folders, title
        self._lock = threading.Lock()
        self._rendered: tuple[str, str] | None = None
        self._media: dict[str, tuple[Path, str]] = {}

    def version(self) -> str:
        """Changes whenever a file that the page is made from does."""
        state = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in self._files()]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]

    def page(self) -> str:
        """The page as the files are now; rendered once for each state of theirs."""
        with self._lock:
            version = self.version()
            if self._rendered is None or self._rendered[0] != version:
                runs = read_runs(self._folders)
                self._media = {media_id(m): (m.path, data_type(m)) for run in runs for m in run.media}
                self._rendered = version, render(runs, title=self._title, live=version)
            return self._rendered[1]

    def medium(self, name: str) -> tuple[Path, str] | None:
        """Path and type of a picture of the page, by its id: nothing else of the disk can be asked for."""
        return self._media.get(name)

    def _files(self) -> Iterator[Path]:
        for folder in self._folders:
            for pattern in _FILES:
                # A file that is being written has a temporary name, which begins with a dot.
                yield from sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def application(folders: Sequence[Path], *, title: str) -> Starlette:
    """An application that serves the page at /, its state at /version and its pictures at /media/ID."""
    live = LivePage(folders, title)

    def page(request: Request) -> Response:
        return HTMLResponse(live.page())

    def version(request: Request) -> Response:
        return JSONResponse(live.version())

    def media(request: Request) -> Response:
        found = live.medium(request.path_params["name"])
        if found is None or not found[0].is_file():
            return PlainTextResponse("no such picture\n", status_code=404)
        return FileResponse(found[0], media_type=found[1])

    return Starlette(routes=[Route("/", page), Route("/version", version), Route("/media/{name}", media)])
