"""Who may ask a server on 127.0.0.1: requests with its token, under its own name, from its own pages.

Any program of this machine and any web page in its browser can send requests to a port of 127.0.0.1. A page of
elsewhere sends its own `Origin`; one that has its name point here (DNS rebinding) sends its own `Host`; other users
of the machine have no token.
"""

import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]


class Guard:
    """ASGI application that hands on what may ask, web sockets too, and refuses the rest with 403.

    The first request carries `?token=`; it is answered with a cookie, and by the same address without the token, so
    that this stands in no history.
    """

    def __init__(self, app: App, *, token: str, port: int, host: str = "127.0.0.1"):
        self._app, self._token, self._cookie = app, token, f"dit_video_{port}"
        names = {"127.0.0.1", "localhost"} if host == "127.0.0.1" else {host}
        self._hosts = {f"{name}:{port}" for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not self._is_ours(headers):
            return await _refuse(scope, send)
        if scope["type"] == "http" and self._is_token(given):
            return await self._welcome(scope, send)
        if not self._is_token(self._from_cookie(headers)):
            return await _refuse(scope, send)
        return await self._app(scope, receive, _with_headers(send))

    def _is_ours(self, headers: Mapping[str, str]) -> bool:
        """Whether a request names this server, and comes from no page but its own."""
        host, origin = headers.get("host"), headers.get("origin")
        return host in self._hosts and origin in (None, f"http://{host}")

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())

    def _from_cookie(self, headers: Mapping[str, str]) -> str:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return "" if cookie is None else cookie.value

    async def _welcome(self, scope: Scope, send: Send) -> None:
        cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", scope["path"].encode()), (b"set-cookie", cookie.encode()), *_HEADERS]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain"), *_HEADERS]})
    return await send({"type": "http.response.body", "body": b"open the address that the command has printed\n"})


def _with_headers(send: Send) -> Send:
    async def sends(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return sends
