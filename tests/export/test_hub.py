"""What is pushed is the folder, by the real library, to a server that speaks the few words that it needs."""

import base64
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dit_video.export import hub

REPO = "somebody/videos"


class Hub(BaseHTTPRequestHandler):
    """Keeps what is committed; knows no large files, so that they come with the commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        if self.headers["Authorization"] != "Bearer right":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            server.created.append(json.loads(body))
            return self.answer(200, {"url": f"{server.address}/{REPO}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path == f"/api/models/{REPO}/preupload/main":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path == f"/api/models/{REPO}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = {"commitOid": "0" * 40, "commitUrl": f"{server.address}/{REPO}/commit/{'0' * 40}"}
            return self.answer(200, commit | {"success": True})
        return self.answer(404, {"error": self.path})

    def do_GET(self):
        if self.path.startswith(f"/api/models/{REPO}"):
            return self.answer(200, {"id": REPO, "private": self.server.private, "sha": "0" * 40, "siblings": []})
        return self.answer(404, {"error": self.path})

    def answer(self, status, data):
        self.send_response(status)
        text = json.dumps(data).encode()
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.address = f"http://127.0.0.1:{server.server_address[1]}"
        server.created, server.files, server.private = [], {}, True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlibrary_name: pytorch\n---\n# a run\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def push(folder, address, *, private=False, token="right"):
    """In a process of its own: the library reads its settings when it is imported."""
    code = f"""
import pathlib
from dit_video.export import hub
hub.check({REPO!r})
try:
    print(hub.push(pathlib.Path({str(folder)!r}), {REPO!r}, private={private}))
except ValueError as error:
    print("could not:", error)
"""
    settings = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HOME": str(folder.parent)}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=settings | {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_what_is_pushed_is_the_folder(folder, server):
    assert push(folder, server.address).strip() == f"{server.address}/{REPO}/commit/{'0' * 40}"
    assert server.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [(repo["organization"], repo["name"]) for repo in server.created] == [("somebody", "videos")]


def test_a_private_repository_is_asked_for(folder, server):
    push(folder, server.address, private=True)
    assert server.created[0]["visibility"] == "private"
    assert server.files


def test_nothing_goes_to_a_public_repository_that_should_be_private(folder, server):
    server.private = False
    printed = push(folder, server.address, private=True)
    assert f"could not: --push_to {REPO}: is there and public, and stays so" in printed
    assert not server.files


def test_a_refused_login_names_the_remedy_and_keeps_the_folder(folder, server):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    printed = push(folder, server.address, token="wrong")
    assert f"could not: {folder} is complete, but could not be pushed to {REPO}" in printed
    assert "hf auth login" in printed
    assert f"hf upload {REPO} {folder} ." in printed
    assert not server.files
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_host_that_does_not_answer_is_named(folder, server):
    address = server.address.replace("127.0.0.1", "127.0.0.2")
    printed = push(folder, address)
    assert f"could not: {folder} is complete, but could not be pushed to {REPO} at {address}" in printed


@pytest.mark.parametrize("repo", ["videos", "a/b/c", "somebody/", "somebody/vi deos", "--/videos"])
def test_a_name_of_no_repository_is_an_error(repo):
    with pytest.raises(ValueError, match=f"--push_to {repo}: "):
        hub.check(repo)


def test_a_missing_login_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="nobody is logged in to the Hub; log in with `hf auth login`"):
        hub.check(REPO)


def test_without_the_library_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[hub\]'"):
        hub.check(REPO)
