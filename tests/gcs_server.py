"""A server of Google Cloud Storage on this machine, as far as TensorStore and gcsfs ask it, that can be made to fail.

The JSON API: objects with generations and preconditions, listing by prefix and delimiter, media, multipart and
resumable uploads, and batches of deletions.
"""

import contextlib
import email
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Stored(NamedTuple):
    content: bytes
    generation: int
    updated: str


class GCS:
    """Objects of any number of buckets, by (bucket, name)."""

    def __init__(self):
        self.objects: dict[tuple[str, str], Stored] = {}
        self.requests: list[tuple[str, str]] = []
        self._uploads: dict[str, tuple[str, str, bytearray]] = {}
        self.lock, self._generation = threading.RLock(), 1_700_000_000_000_000
        self.refuse: Callable[[str, str], int | None] | None = None
        """Says of method and path of a request with which status it is refused, if it is."""
        self.lose: Callable[[str, str], int | None] | None = None
        """The same of the answer to a request that is served."""

    def clear(self) -> None:
        """As if just started."""
        self.refuse = self.lose = None
        self.objects.clear()
        self.requests.clear()

    @contextlib.contextmanager
    def failing(self, refuse: Callable[[str, str], int | None]) -> Iterator[None]:
        self.refuse = refuse
        try:
            yield
        finally:
            self.refuse = None

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for _, name in self.objects if name.startswith(prefix))

    def put(self, bucket: str, name: str, content: bytes) -> Stored:
        with self.lock:
            self._generation += 1
            updated = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            stored = self.objects[bucket, name] = Stored(content, self._generation, updated)
        return stored


class _Answer(Exception):
    """What ends a request."""

    def __init__(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None):
        super().__init__(status)
        self.status, self.content, self.headers = status, content, headers or {}


def _json(data: Any, status: int = 200) -> _Answer:
    return _Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json"})


def _error(status: int, message: str) -> _Answer:
    return _json({"error": {"code": status, "message": message, "errors": [{"reason": message}]}}, status)


class _Request:
    def __init__(self, store: GCS, method: str, target: str, headers: Any, body: bytes):
        parts = urlsplit(target)
        self.store, self.method, self.headers, self.body = store, method, headers, body
        self.path = parts.path
        self.query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}

    def answer(self) -> _Answer:
        try:
            # One at a time: what is checked still holds when it is written.
            with self.store.lock:
                self._serve()
        except _Answer as answer:
            return answer
        return _error(404, f"nothing at {self.method} {self.path}")

    def _serve(self) -> None:
        if self.path.startswith("/batch"):
            self._batch()
        words = self.path.strip("/").split("/")
        if words[0] == "upload":
            self._upload(unquote(words[words.index("b") + 1]))
        if words[0] == "download":
            words = words[1:]
        bucket = unquote(words[3])
        if len(words) == 4:
            raise _json({"kind": "storage#bucket", "name": bucket, "location": "HERE", "storageClass": "STANDARD"})
        if len(words) == 5:
            self._list(bucket)
        name = unquote(words[5])
        if len(words) > 6:
            self._copy(bucket, name, unquote(words[words.index("b", 6) + 1]), unquote(words[-1]))
        stored = self._checked(bucket, name)
        if stored is None:
            raise _error(404, f"no such object: {bucket}/{name}")
        if self.method == "DELETE":
            del self.store.objects[bucket, name]
            raise _Answer(204)
        if self.query.get("alt") == "media":
            self._media(stored)
        raise _json(_resource(bucket, name, stored))

    def _checked(self, bucket: str, name: str) -> Stored | None:
        stored = self.store.objects.get((bucket, name))
        generation = 0 if stored is None else stored.generation
        if "ifGenerationMatch" in self.query and int(self.query["ifGenerationMatch"]) != generation:
            raise _error(412, "conditionNotMet")
        if self.query.get("ifGenerationNotMatch") == str(generation):
            raise _Answer(304 if self.method == "GET" else 412)
        return stored

    def _media(self, stored: Stored) -> None:
        headers = {"x-goog-generation": str(stored.generation), "Content-Type": "application/octet-stream"}
        content, expected = stored.content, self.headers.get("Range")
        if expected is None:
            raise _Answer(200, content, headers)
        first, _, last = expected.removeprefix("bytes=").partition("-")
        begin = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1 if first and last else len(content), len(content))
        if begin >= len(content):
            raise _Answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        raise _Answer(206, content[begin:end], headers | {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"})

    def _list(self, bucket: str) -> None:
        if self.method == "POST":
            raise _error(400, "upload elsewhere")
        query, items, prefixes = self.query, [], set()
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        for (holder, name), stored in sorted(self.store.objects.items()):
            if holder != bucket or not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if query.get("endOffset") and name >= query["endOffset"]:
                continue
            head, separator, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if separator:
                prefixes.add(prefix + head + delimiter)
            else:
                items.append(_resource(bucket, name, stored))
        raise _json({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _copy(self, bucket: str, name: str, to_bucket: str, to_name: str) -> None:
        stored = self.store.objects.get((bucket, name))
        if stored is None:
            raise _error(404, f"no such object: {bucket}/{name}")
        made = self.store.put(to_bucket, to_name, stored.content)
        raise _json({"done": True, "resource": _resource(to_bucket, to_name, made)})

    def _upload(self, bucket: str) -> None:
        kind = self.query.get("uploadType")
        if "upload_id" in self.query:
            self._resume()
        if kind == "media":
            self._store(bucket, self.query["name"], self.body)
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            boundary = email.message_from_bytes(head).get_boundary().encode()
            # gcsfs ends lines with \n. A parser of mail would change those of the content.
            about, content = (part.partition(b"\n\n")[2] for part in self.body.split(b"--" + boundary)[1:3])
            self._store(bucket, json.loads(about)["name"], content.removesuffix(b"\n"))
        if kind == "resumable":
            name = self.query.get("name") or json.loads(self.body)["name"]
            number = str(len(self.store._uploads))
            self.store._uploads[number] = bucket, name, bytearray()
            where = f"http://{self.headers['Host']}{self.path}?uploadType=resumable&upload_id={number}"
            raise _Answer(200, b"", {"Location": where})

    def _resume(self) -> None:
        bucket, name, content = self.store._uploads[self.query["upload_id"]]
        if self.method == "DELETE":
            raise _Answer(499)
        content += self.body
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if total in ("", "*"):
            raise _Answer(308, b"", {"Range": f"bytes=0-{len(content) - 1}"} if content else {})
        self._store(bucket, name, bytes(content))

    def _store(self, bucket: str, name: str, content: bytes) -> None:
        self._checked(bucket, name)
        raise _json(_resource(bucket, name, self.store.put(bucket, name, content)))

    def _batch(self) -> None:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        answers = []
        for part in email.message_from_bytes(head + self.body).get_payload():
            method, target, _ = part.get_payload().split("\n")[0].split()
            inner = _Request(self.store, method, target, {}, b"").answer()
            about = f"Content-Type: application/http\r\nContent-ID: <response-{part['Content-ID']}>\r\n\r\n"
            answers.append(f"--part\r\n{about}HTTP/1.1 {inner.status} OK\r\n\r\n".encode() + inner.content + b"\r\n")
        raise _Answer(200, b"".join(answers) + b"--part--", {"Content-Type": "multipart/mixed; boundary=part"})


def _resource(bucket: str, name: str, stored: Stored) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(stored.content)),
        "generation": str(stored.generation),
        "metageneration": "1",
        "updated": stored.updated,
        "timeCreated": stored.updated,
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is one packet: the second of two would wait for the first to be acknowledged.
    wbufsize, disable_nagle_algorithm = -1, True
    store: GCS

    def _handle(self) -> None:
        body = self._body()
        self.store.requests.append((self.command, self.path))
        refuse = self.store.refuse
        status = None if refuse is None else refuse(self.command, unquote(self.path))
        if status is not None:
            answer = _error(status, "made to fail")
        else:
            answer = _Request(self.store, self.command, self.path, self.headers, body).answer()
            lose = self.store.lose
            if lose is not None and (status := lose(self.command, unquote(self.path))) is not None:
                answer = _error(status, "made to be lost")
        with contextlib.suppress(ConnectionError):
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)
            self.wfile.flush()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that were killed hang up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving() -> Iterator[tuple[GCS, str]]:
    """The server and its address."""
    store = GCS()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
