"""Where a server listens, and what that asks of it."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from diffugts.errors import InputError
from diffugts.serve.limits import MIN_TOKEN, TOKEN_VARIABLE

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def listen(host: str, port: int, token: str | None) -> tuple[socket.socket, tuple[str, ...] | None]:
    """A listening socket, and the names that requests may call this host by: None where the token must do.

    Raises:
        InputError: an address that others reach without a token, a weak token, an address that is taken or wrong.
    """
    local = is_loopback(host)
    if not local and token is None:
        raise InputError(
            f"{host} can be reached from other machines, so a token is needed: --token or {TOKEN_VARIABLE}; "
            "or leave --host out."
        )
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
        raise InputError(f"The token must have at least {MIN_TOKEN} printable ASCII characters; take a random one.")
    if port > 65535:
        raise InputError(f"--port {port} does not exist; the highest is 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{host} port {port} cannot be listened on ({reason}); choose another.") from error
    return listener, (*LOOPBACK, host.lower()) if local else None


def url(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
