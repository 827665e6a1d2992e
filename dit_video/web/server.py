"""Server of an application on 127.0.0.1, guarded by a token that is new at every start."""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from dit_video.web.guard import App, Guard

HOST = "127.0.0.1"


class Server:
    """Serves an ASGI application on a port of 127.0.0.1, and on no other address unless it is told to.

    Attributes:
        port: where it listens.
        address: what to open; who knows it may ask.
    """

    def __init__(self, app: App, *, port: int = 0, host: str = HOST):
        """Takes the port; 0 is any that is free.

        Args:
            host: another address of this machine, which pages must ask for by this name.

        Raises:
            OSError: the port is taken; names it.
        """
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            remedy = "leave it out for any that is free" if host == HOST else f"or {host} is no address of this machine"
            raise OSError(f"--port={port}: {error.strerror}; {remedy}") from error
        self.port: int = self._socket.getsockname()[1]
        token = secrets.token_urlsafe(24)
        self.address = f"http://{host}:{self.port}/?token={token}"
        # Open pages hold connections, which end with the server.
        config = uvicorn.Config(
            Guard(app, token=token, port=self.port, host=host),
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Serves until the process is interrupted."""
        self._server.run(sockets=[self._socket])

    @contextlib.contextmanager
    def running(self) -> Iterator["Server"]:
        """Serves in a thread while the block runs."""
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            while not self._server.started and thread.is_alive():
                time.sleep(0.01)
            yield self
        finally:
            self._server.should_exit = True
            thread.join()
            self.close()

    def close(self) -> None:
        """Gives the port back."""
        self._socket.close()
