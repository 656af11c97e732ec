"""The viewer's server: loopback only, reading only, behind a path that nobody can guess."""

from __future__ import annotations

import secrets
import shutil
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from diffugts.errors import InputError
from diffugts.view.site import HEADERS, Reply, Site

ADDRESS = "127.0.0.1"


class ViewServer(ThreadingHTTPServer):
    """Hands out a site at `url`.

    A page on another site can make a browser send requests here, or make its own name point here (DNS
    rebinding). Neither helps it: the path holds 128 random bits, and a request must name this very host and port.
    """

    daemon_threads = True
    allow_reuse_address = False  # on Windows it would let another program take the same port

    def __init__(self, site: Site, port: int = 0) -> None:
        """Bind to the port on 127.0.0.1, 0 for any free one. Raises InputError where it is taken."""
        self.site = site
        self.token = secrets.token_urlsafe(16)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"Port {port} cannot be used ({reason}); choose another with --port.") from error
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    timeout = 60  # seconds for a client to send its request

    def do_GET(self) -> None:
        reply = self._reply()
        if reply is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._send(reply)

    def _reply(self) -> Reply | None:
        if self.headers.get("Host") not in self.server.hosts:
            return None
        token, _, path = urlsplit(self.path).path.removeprefix("/").partition("/")
        # Bytes: compare_digest refuses text beyond ASCII.
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            return None
        return self.server.site.get(path)

    def _send(self, reply: Reply) -> None:
        try:
            size = len(reply.body) if isinstance(reply.body, bytes) else reply.body.stat().st_size
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(size))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if isinstance(reply.body, bytes):
                self.wfile.write(reply.body)
            else:
                with reply.body.open("rb") as file:
                    shutil.copyfileobj(file, self.wfile, 1 << 20)
        except FileNotFoundError:  # the folder went away
            self.send_error(HTTPStatus.NOT_FOUND)
        except ConnectionError:  # the reader went away
            self.close_connection = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A bare answer: no page that repeats what was asked."""
        self.send_response(code)
        for name, value in {**HEADERS, "Content-Length": "0", "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True

    def version_string(self) -> str:
        """The Server header."""
        return "diffugts"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: paths would name patients."""
