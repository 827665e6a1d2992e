"""A page on 127.0.0.1: everybody is refused but who has the token and asks under the server's own name."""

import asyncio
import http.client
import re
import socket
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from dit_video.web.guard import Guard
from dit_video.web.server import Server


@pytest.fixture(scope="module")
def server():
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("the page"))])
    with Server(app).running() as running:
        yield running


def ask(server, path: str = "/", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("GET", path, skip_host="host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    answer.text = answer.read().decode()
    connection.close()
    return answer


@pytest.fixture(scope="module")
def cookie(server) -> str:
    return ask(server, server.address.partition(str(server.port))[2]).getheader("set-cookie").partition(";")[0]


def test_the_address_opens_the_page_and_leaves_no_token_in_it(server, cookie):
    answer = ask(server, server.address.partition(str(server.port))[2])
    assert (answer.status, answer.getheader("location")) == (303, "/")
    assert "HttpOnly; SameSite=Strict" in answer.getheader("set-cookie")
    page = ask(server, cookie=cookie)
    assert (page.status, page.text) == (200, "the page")
    assert page.getheader("cache-control") == "no-store"
    assert page.getheader("x-content-type-options") == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/", "/?token=", "/?token=wrong", "/?token=%C3%A9", "/nowhere", "/../../etc/passwd"],
)
def test_nobody_without_the_token_is_answered(server, path):
    assert ask(server, path).status == 403


@pytest.mark.parametrize("cookie", ["", "dit_video_0=x", "dit_video_PORT=wrong", "dit_video_PORT", ";;=;"])
def test_a_wrong_cookie_is_no_token(server, cookie):
    assert ask(server, cookie=cookie.replace("PORT", str(server.port))).status == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil:PORT"]
)
def test_another_name_for_this_machine_is_refused_with_the_token_too(server, cookie, host):
    assert ask(server, cookie=cookie, host=host.replace("PORT", str(server.port))).status == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:PORT"])
def test_a_page_of_elsewhere_is_refused_with_the_token_too(server, cookie, origin):
    assert ask(server, cookie=cookie, origin=origin.replace("PORT", str(server.port))).status == 403


def test_its_own_page_may_ask(server, cookie):
    assert ask(server, cookie=cookie, origin=f"http://127.0.0.1:{server.port}").status == 200


def test_it_listens_on_this_machine_alone(server):
    """What /proc says of the port: the loopback address, in hexadecimal, and no line of another."""
    table = "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    lines = [line.split()[1] for line in table.splitlines() if " 0A " in line]
    assert [line for line in lines if line.endswith(f":{server.port:04X}")] == [f"0100007F:{server.port:04X}"]


def test_every_start_has_another_token():
    servers = [Server(Starlette()) for _ in range(3)]
    assert len({re.search(r"token=([\w-]{32})$", server.address)[1] for server in servers}) == 3
    for server in servers:
        server.close()


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=f"--port={taken.getsockname()[1]}: "):
            Server(Starlette(), port=taken.getsockname()[1])


@pytest.mark.parametrize(("origin", "code"), [("http://evil.example", 1008), ("http://127.0.0.1:80", None)])
def test_a_web_socket_is_guarded_alike(origin, code):
    """With the token both: an application that is reached says so."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})

    async def send(message):
        sent.append(message)

    headers = {"host": "127.0.0.1:80", "origin": origin, "cookie": "dit_video_80=secret"}
    scope = {
        "type": "websocket",
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }
    asyncio.run(Guard(app, token="secret", port=80)(scope, None, send))
    assert sent[0].get("code") == code


def test_another_address_is_asked_for_under_its_own_name_alone():
    guard = Guard(Starlette(), token="t", port=80, host="192.0.2.7")  # an address of documentation, RFC 5737
    assert guard._is_ours({"host": "192.0.2.7:80", "origin": "http://192.0.2.7:80"})
    assert not any(guard._is_ours({"host": host}) for host in ("127.0.0.1:80", "evil.example:80", "192.0.2.7"))
