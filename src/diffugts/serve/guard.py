"""What every request must pass before the application sees it: host, token, origin, size, and a place in the queue."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffugts.serve.jobs import Jobs

COOKIE = "diffugts"
HEADER = "X-DiffuGTS"
"""Must be on every request that changes something: a page of another site cannot send it."""

PUBLIC = ("/v1/health",)
"""Paths below /v1/ that need no token; neither do the page and its files, which hold nothing."""

SAFE = ("GET", "HEAD", "OPTIONS")
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware in front of the application.

    Args:
        app: the application.
        jobs: for their limits and their queue.
        token: that every request must bring; None lets everybody in who can reach the server.
        hosts: names that the Host header may have; None allows any, which only a token makes safe.
    """

    def __init__(self, app: ASGIApp, jobs: Jobs, token: str | None, hosts: tuple[str, ...] | None) -> None:
        self.app, self.jobs, self.token, self.hosts = app, jobs, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what may not pass; hand on the rest, with its body counted and headers added to the answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        refusal = self._refusal(headers, method, path)
        upload = method == "POST" and path == "/v1/jobs"
        if refusal is None and upload and not self.jobs.admit():
            refusal = 503, "the queue is full; try again later", {"Retry-After": "30"}
        if refusal is not None:
            await _answer(send, *refusal)
            return
        try:
            await self.app(scope, self._counted(receive), _with_headers(send))
        finally:
            if upload:
                self.jobs.release()

    def _refusal(self, headers: Headers, method: str, path: str) -> tuple[int, str, Mapping[str, str]] | None:
        host = headers.get("host", "")
        if self.hosts is not None and hostname(host) not in self.hosts:
            return 400, "this host name is not served; open the address that the server printed", {}
        private = path.startswith("/v1/") and path not in PUBLIC
        if private and self.token is not None and not self._known(headers):
            return 401, "a token is needed: Authorization: Bearer <token>", {"WWW-Authenticate": "Bearer"}
        if method not in SAFE:
            origin = headers.get("origin")
            if headers.get(HEADER) is None:
                return 403, f"requests that change something need the header {HEADER}: 1", {}
            if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                return 403, "requests from pages of other sites are refused", {}
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return 400, "Content-Length must be a whole number", {}
        if int(length[:20]) > self.jobs.limits.max_bytes:
            return 413, self._too_large, {"Connection": "close"}
        return None

    @property
    def _too_large(self) -> str:
        return f"the upload is larger than {self.jobs.limits.max_bytes / 1e6:,.0f} MB; crop or compress the scan"

    def _known(self, headers: Headers) -> bool:
        """Whether the request brings the token, or the cookie that a session with it gave."""
        assert self.token is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self.token.encode()):
            return True
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        return secrets.compare_digest(cookie.encode(), session_of(self.token).encode())

    def _counted(self, receive: Receive) -> Receive:
        """`receive`, which fails once more came than is allowed, whatever the Content-Length said."""
        count = 0

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.jobs.limits.max_bytes:
                raise HTTPException(413, self._too_large)
            return message

        return counted


def session_of(token: str) -> str:
    """The value of the session cookie: it opens the server, but does not show the token."""
    return hashlib.sha256(b"diffugts session\0" + token.encode()).hexdigest()


def hostname(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _with_headers(send: Send) -> Send:
    """`send`, which adds the security headers that an answer does not set itself."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


async def _answer(send: Send, status: int, sentence: str, headers: Mapping[str, Any]) -> None:
    body = json.dumps({"detail": sentence}).encode()
    listed = {**SECURITY, "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in listed.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
