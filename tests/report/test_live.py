"""The page of `watch`: current, and no way to any file but the pictures of its runs."""

import http.client
import json
import re

import pytest
from made_runs import write_run, write_sample

from dit_video.cli.main import main
from dit_video.report.live import LivePage, application
from dit_video.web.server import Server


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("live") / "run")


@pytest.fixture(scope="module")
def ask(run):
    """Asks a server of this run with its cookie: (status, type, content)."""
    with Server(application([run], title="live")).running() as server:

        def get(path: str, **headers: str) -> tuple[int, str, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            found = answer.status, answer.getheader("content-type", ""), answer.read()
            connection.close()
            return found

        token = server.address.rpartition("=")[2]
        cookie = f"dit_video_{server.port}={token}"
        yield lambda path, **headers: get(path, cookie=cookie, **headers)


def shown(page: bytes) -> dict:
    return json.loads(re.search(rb'id="data">(.*?)</script>', page)[1])


def test_pictures_are_served_in_ranges(ask, run):
    status, kind, page = ask("/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    name = shown(page)["shown"][0]["0"]["60"]
    whole = (run / "samples" / "step_0000060_samples.mp4").read_bytes()
    assert ask(f"/media/{name}") == (200, "video/mp4", whole)
    assert ask(f"/media/{name}", range="bytes=10-19")[::2] == (206, whole[10:20])


@pytest.mark.parametrize(
    "path",
    [
        "/media/../experiment.json", "/media/..%2fexperiment.json", "/media/%2e%2e/%2e%2e/etc/passwd", "/..",
        "/experiment.json", "/media//etc/passwd", "/media/m0", "/samples/step_0000060_samples.mp4",
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file(ask, path):
    ask("/")
    assert ask(path)[0] == 404


def test_what_a_run_writes_changes_the_version_and_is_shown(tmp_path):
    folder = write_run(tmp_path / "run")
    live = LivePage([folder], "live")
    before, page = live.version(), live.page()
    assert live.page() is page
    write_sample(folder, 80, 0)
    assert live.version() != before
    assert shown(live.page().encode())["shown"][0]["0"].keys() == {"20", "40", "60", "80"}
    assert shown(live.page().encode())["live"] == live.version()


@pytest.mark.parametrize(("folder", "named"), [("gs://bucket/run", "is in a bucket"), ("nowhere", "not a run folder")])
def test_what_cannot_be_watched_is_named(folder, named, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", folder]) == 1
    assert named in capsys.readouterr().err
