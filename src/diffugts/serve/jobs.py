"""Jobs: made, queued, run one after the other, cancelled, and forgotten with their files."""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffugts.serve.limits import Limits
from diffugts.serve.process import Runner
from diffugts.serve.worker import CASE, RESULTS

if TYPE_CHECKING:
    from diffugts.view.site import Site

log = logging.getLogger(__name__)

Status = Literal["queued", "running", "done", "failed", "cancelled", "deleted"]
ACTIVE = ("queued", "running")


@dataclass(eq=False)
class Job:
    """One scan with its prompts.

    Attributes:
        id: 128 random bits, hexadecimal.
        folder: for all of its files.
        words: of the command line that it stands for.
        created, started, ended: seconds since 1970.
        stage, progress: what is being done, and how much of that, 0 to 1.
        results: by prompt: folder, volume_ml, lesions, score.
        site: the viewer of the result, once somebody asked for it.
    """

    id: str
    folder: Path
    prompts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    status: Status = "queued"
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    stage: str | None = None
    progress: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    results: Mapping[str, Any] | None = None
    site: Site | None = None

    @property
    def case(self) -> Path:
        """The folder with the result."""
        return self.folder / CASE

    @property
    def archive(self) -> Path:
        """The result as a zip."""
        return self.folder / RESULTS


class Jobs:
    """All jobs of a server; every method may be called from any thread."""

    def __init__(self, limits: Limits, runner: Runner) -> None:
        self.limits = limits
        self.runner = runner
        self._root: Path | None = None
        self._jobs: dict[str, Job] = {}
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._uploads = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="diffugts-jobs", daemon=True)

    def start(self) -> None:
        """Make the folder for all files, and begin to run jobs."""
        self._root = Path(tempfile.mkdtemp(prefix="diffugts-serve-"))  # readable by this user alone
        self._thread.start()

    def close(self) -> None:
        """Stop what runs, and remove every file."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self.runner.close()
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)

    @property
    def root(self) -> Path:
        """The folder for all files, between `start` and `close`."""
        assert self._root is not None
        return self._root

    def admit(self) -> bool:
        """Take a place in the queue for an upload, to be given back with `release`; False where there is none."""
        with self._lock:
            if self.waiting + self._uploads >= self.limits.waiting:
                return False
            self._uploads += 1
            return True

    def release(self) -> None:
        """Give back the place that `admit` took."""
        with self._lock:
            self._uploads -= 1

    @property
    def waiting(self) -> int:
        """How many jobs are queued."""
        with self._lock:
            return sum(job.status == "queued" for job in self._jobs.values())

    def make(self) -> Job:
        """A job with a folder of its own, not yet queued."""
        job = Job(secrets.token_hex(16), self.root / secrets.token_hex(16))
        job.folder.mkdir()
        return job

    def discard(self, job: Job) -> None:
        """Remove the files of a job that has failed or will not be queued."""
        shutil.rmtree(job.folder, ignore_errors=True)

    def queue(self, job: Job) -> None:
        """Let a job run when it is its turn."""
        with self._wake:
            self._jobs[job.id] = job
            self._wake.notify_all()
        log.info("job %s: queued", job.id[:8])

    def get(self, job_id: str) -> Job | None:
        """A job by its id."""
        with self._lock:
            return self._jobs.get(job_id)

    def all(self) -> list[Job]:
        """Every job, the oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def position(self, job: Job) -> int | None:
        """How many jobs run before a queued one; None for others."""
        with self._lock:
            active = [other for other in self._jobs.values() if other.status in ACTIVE]
            return active.index(job) if job in active and job.status == "queued" else None

    def cancel(self, job: Job) -> None:
        """Stop a job if it has not ended, and remove its files."""
        with self._wake:
            if job.status in ACTIVE:
                running = job.status == "running"
                self._end(job, "cancelled")
                if running:  # its process still writes; the thread that waits for it removes the files
                    self._wake.notify_all()
                    return
            elif job.status != "cancelled":
                job.status, job.results = "deleted", None
        self.discard(job)

    # --- the thread that runs jobs ------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                job = next((job for job in self._jobs.values() if job.status == "queued"), None)
                if job is None and not self._closed:
                    self._wake.wait(timeout=min(1.0, self.limits.keep_s / 4))
                elif job is not None:
                    job.status, job.started = "running", time.time()
                if self._closed:
                    return
            self._sweep()
            if job is not None:
                self._run(job)

    def _run(self, job: Job) -> None:
        deadline = time.monotonic() + self.limits.time_s
        swept = time.monotonic()

        def stopped() -> bool:
            nonlocal swept
            if time.monotonic() - swept > 1.0:
                self._sweep()
                swept = time.monotonic()
            return self._closed or job.status != "running" or time.monotonic() > deadline

        def report(stage: str, fraction: float) -> None:
            job.stage, job.progress = stage, fraction

        task = {"words": job.words, "folder": str(job.folder), "max_voxels": self.limits.max_voxels}
        try:
            outcome = self.runner.run(task, report, stopped)
        except Exception:
            log.exception("job %s: the server failed", job.id[:8])
            outcome = {"status": "failed", "error": "The server failed; its log says more."}
        with self._lock:
            if job.status != "running" or outcome is None or outcome["status"] != "done":
                self.discard(job)  # first: whoever hears that it failed finds no file of it
            if job.status != "running":  # cancelled meanwhile
                pass
            elif outcome is None:
                limit = f"{self.limits.time_s:g} s"
                self._end(job, "failed", error=f"The job took longer than the limit of {limit}; crop the scan.")
            elif outcome["status"] == "done":
                job.results, job.warnings = outcome["prompts"], tuple(outcome["warnings"])
                self._end(job, "done")
            else:
                error = str(outcome.get("error", "no reason given"))
                self._end(job, "failed", error=error.replace(str(job.folder) + "/", ""))

    def _end(self, job: Job, status: Status, error: str | None = None) -> None:
        job.status, job.error, job.ended, job.stage, job.progress = status, error, time.time(), None, None
        seconds = job.ended - (job.started or job.ended)
        log.info("job %s: %s after %.1f s", job.id[:8], status, seconds)

    def _sweep(self) -> None:
        """Forget the jobs that ended too long ago, or are too many, and their files."""
        with self._lock:
            ended = sorted(
                (job for job in self._jobs.values() if job.ended is not None), key=lambda job: job.ended or 0
            )
            surplus = ended[: max(0, len(ended) - self.limits.kept)]
            for job in ended:
                if job in surplus or time.time() - (job.ended or 0) > self.limits.keep_s:
                    del self._jobs[job.id]
                    self.discard(job)
