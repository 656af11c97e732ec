"""Segment from a browser or another program: a job server and its page, on this machine alone unless told otherwise.

  diffugts serve                                        # http://127.0.0.1:8000/, for this machine
  diffugts serve --host 0.0.0.0 --token "$(openssl rand -hex 24)"

Scans are uploaded, wait in a queue, run one at a time, and their files go when they are deleted, after --keep, or
with the server. It speaks plain HTTP: on a network put it behind a reverse proxy with TLS, or use an SSH tunnel.
"""

from __future__ import annotations

import argparse
import logging
import os

from diffugts.commands import options
from diffugts.errors import InputError
from diffugts.serve.limits import MIN_TOKEN, TOKEN_VARIABLE, Limits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts serve`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=options.at_least(0), default=8000, help="(default: 8000; 0: any free one)")
    parser.add_argument(
        "--token",
        help=f"what requests must bring, at least {MIN_TOKEN} characters; needed for any address that others reach "
        f"(or in the variable {TOKEN_VARIABLE}, which other users of this machine do not see)",
    )
    parser.add_argument("--model", default="compact", help="a shipped model or a folder with one (default: compact)")
    parser.add_argument("--device", type=options.device, default="auto", help="where to compute (default: auto)")
    parser.add_argument(
        "--max-mb", type=options.at_least(1), default=1024, metavar="MB", help="largest upload (default: 1024)"
    )
    parser.add_argument(
        "--max-mvoxels", type=options.at_least(1), default=300, metavar="N",
        help="largest scan, million voxels (default: 300, a little more than 512 x 512 x 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--time-limit", type=options.at_least(1), default=1800, metavar="S", help="seconds per job (default: 1800)"
    )
    parser.add_argument(
        "--keep", type=options.at_least(1), default=3600, metavar="S",
        help="seconds that an ended job and its files stay (default: 3600)",
    )  # fmt: skip
    parser.add_argument(
        "--queue", type=options.at_least(1), default=8, metavar="N", help="jobs that may wait (default: 8)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from diffugts.serve.address import listen, url

    token = args.token or os.environ.get(TOKEN_VARIABLE) or None
    listener, hosts = listen(args.host, args.port, token)
    try:
        import uvicorn

        from diffugts.serve.app import create_app
    except ImportError as error:
        listener.close()
        raise InputError("serve needs more packages; install them with: pip install 'diffugts[serve]'") from error
    from diffugts.serve.jobs import Jobs
    from diffugts.serve.process import WorkerProcess

    logging.getLogger("diffugts.serve").setLevel(logging.DEBUG if args.debug else logging.INFO)
    jobs = Jobs(_limits(args), WorkerProcess(debug=args.debug))
    app = create_app(jobs, args.model, args.device, token, hosts)
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, limit_concurrency=64, timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    print(f"serving -> {url(listener)}", flush=True)
    print("Ctrl-C ends it.", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises it again once all is closed
        return 0
    finally:
        jobs.close()
        listener.close()
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    return Limits(
        max_bytes=args.max_mb * 2**20,
        max_unpacked=4 * args.max_mb * 2**20,
        max_voxels=args.max_mvoxels * 10**6,
        time_s=float(args.time_limit),
        keep_s=float(args.keep),
        waiting=args.queue,
    )
