"""An application on a loopback port of its own, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from diffugts.serve.address import listen, url


@contextmanager
def live(app: Any) -> Iterator[str]:
    """Serve while the block runs; gives the address."""
    listener, _ = listen("127.0.0.1", 0, None)
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield url(listener).rstrip("/")
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
