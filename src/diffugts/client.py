"""A client of `diffugts serve` in one file, for programs that cannot have PyTorch: 3D Slicer, napari, a notebook.

It needs Python 3.9 or newer and nothing else; copy it beside your plugin, or import it from the package.

    client = Client("http://127.0.0.1:8000")
    job = client.submit("scan.nii.gz", ["liver tumor"])
    client.wait(job, lambda state: print(state["status"], state["stage"], state["progress"]))
    folder = client.download(job, "out")

Every method blocks; call them from a thread of your own where a window must stay alive.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Union

__all__ = ["Client", "JobError", "ServerError"]

BLOCK = 1 << 18
ACTIVE = ("queued", "running")

PathLike = Union[str, "os.PathLike[str]"]
State = dict[str, Any]
OnState = Callable[[State], None]
OnUpload = Callable[[float], None]


class ServerError(RuntimeError):
    """The server refused a request or cannot be reached.

    Attributes:
        status: the HTTP status; None where no answer came.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class JobError(RuntimeError):
    """A job that ended without a result.

    Attributes:
        state: of the job, as the server told it.
    """

    def __init__(self, message: str, state: State) -> None:
        super().__init__(message)
        self.state = state


class Client:
    """Talks to one server.

    Args:
        url: of the server.
        token: that it was started with; sent to this server alone, redirections are not followed.
        timeout_s: seconds without any data from the server after which a request fails.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", token: str | None = None, timeout_s: float = 60.0) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address of a server; give one such as http://127.0.0.1:8000")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.timeout_s = timeout_s
        self._headers = {"X-DiffuGTS": "1", "Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if parts.hostname in ("127.0.0.1", "localhost", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy would look for the server on its own machine
        self._opener = urllib.request.build_opener(*handlers)

    def health(self) -> dict[str, Any]:
        """Version, queue, and whether a token is needed."""
        found: dict[str, Any] = self._json("GET", "/v1/health")
        return found

    def understand(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """How the server understands prompts: text, anatomy, finding, negated, or an error."""
        query = urllib.parse.urlencode([("text", text) for text in prompts])
        found: list[dict[str, Any]] = self._json("GET", f"/v1/prompts?{query}")["prompts"]
        return found

    def submit(
        self,
        scan: PathLike,
        prompts: str | Sequence[str],
        *,
        region: PathLike | None = None,
        modality: str = "auto",
        seed: int = 0,
        seeds: int = 1,
        steps: int | None = None,
        series: str | None = None,
        dicom_seg: bool = False,
        rtstruct: bool = False,
        on_upload: OnUpload | None = None,
    ) -> str:
        """Upload a scan and queue it; returns the job's id.

        Args:
            scan: a .nii, .nii.gz, .nrrd or .mha file, a zip of DICOM files, or a folder of them.
            prompts: one or several phrases.
            region: rough mask on the scan's grid, to look there instead of where attention points.
            modality, seed, seeds, steps, series, dicom_seg, rtstruct: as for `diffugts segment`.
            on_upload: told the fraction that has been sent, 0 to 1.

        Raises:
            ServerError: refused (status 422 says what is wrong with the input, 503 that the queue is full), or no
                answer. OSError: a file that cannot be read.
        """
        fields: list[tuple[str, str]] = [("prompt", p) for p in ([prompts] if isinstance(prompts, str) else prompts)]
        fields += [("modality", modality), ("seed", str(seed)), ("seeds", str(seeds))]
        fields += [] if steps is None else [("steps", str(steps))]
        fields += [] if series is None else [("series", series)]
        fields += [("dicom_seg", str(dicom_seg).lower()), ("rtstruct", str(rtstruct).lower())]
        with tempfile.TemporaryDirectory(prefix="diffugts-") as place:
            path = Path(scan)
            files = [("scan", _zipped(path, Path(place) / "scan.zip") if path.is_dir() else path)]
            files += [] if region is None else [("region", Path(region))]
            body = _Form(fields, files, on_upload)
            headers = {"Content-Type": body.content_type, "Content-Length": str(body.length)}
            return str(self._json("POST", "/v1/jobs", iter(body), headers)["id"])

    def state(self, job: str) -> State:
        """A job as it stands: status, stage, progress, error, warnings, results. Raises ServerError."""
        found: State = self._json("GET", f"/v1/jobs/{urllib.parse.quote(job, safe='')}")
        return found

    def jobs(self) -> list[State]:
        """All jobs that the server knows, the oldest first."""
        found: list[State] = self._json("GET", "/v1/jobs")
        return found

    def wait(
        self,
        job: str,
        on_state: OnState | None = None,
        timeout_s: float | None = None,
        poll_s: float = 0.5,
    ) -> State:
        """Wait until a job is done; returns its last state.

        Args:
            job: its id.
            on_state: told each state that differs from the one before. What it raises ends the waiting, not the job.
            timeout_s: give up after so many seconds (TimeoutError); the job goes on.

        Raises:
            JobError: the job failed, or was cancelled or deleted. ServerError: no answer.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last: State = {}
        while True:
            state = self.state(job)
            if state != last and on_state is not None:
                on_state(state)
            last = state
            if state["status"] == "done":
                return state
            if state["status"] not in ACTIVE:
                raise JobError(state.get("error") or f"The job was {state['status']}.", state)
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"The job is still {state['status']} after {timeout_s:g} s.")
            time.sleep(poll_s)

    def download(self, job: str, folder: PathLike) -> Path:
        """Fetch the results of a job that is done into `folder/<job id>/`; returns that folder.

        Raises:
            ServerError: not done, or no answer. FileExistsError: the folder is there already.
        """
        target = Path(folder) / _plain(job)
        if target.exists():
            raise FileExistsError(f"{target} is there already; remove it or choose another folder.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".diffugts-", dir=target.parent) as place:
            archive = Path(place) / "results.zip"
            with self._open("GET", f"/v1/jobs/{job}/results.zip") as answer, archive.open("wb") as file:
                shutil.copyfileobj(answer, file, BLOCK)
            _unzip(archive, Path(place) / "files")
            (Path(place) / "files" / "case").rename(target)
        return target

    def cancel(self, job: str) -> State:
        """Stop a job if it has not ended, and remove its files from the server; returns its state."""
        found: State = self._json("DELETE", f"/v1/jobs/{urllib.parse.quote(job, safe='')}")
        return found

    def _json(
        self,
        method: str,
        path: str,
        body: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        with self._open(method, path, body, headers) as answer:
            return json.load(answer)

    def _open(
        self,
        method: str,
        path: str,
        body: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        request = urllib.request.Request(
            self.url + path, data=body, headers={**self._headers, **(headers or {})}, method=method
        )
        try:
            return self._opener.open(request, timeout=self.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise ServerError(_detail(error), error.code) from None
        except (urllib.error.URLError, OSError) as error:
            if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
                raise  # a file of ours
            reason = getattr(error, "reason", None) or error
            raise ServerError(f"The server at {self.url} cannot be reached: {reason}.") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another host must not see the token."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Form:
    """A multipart form, read from disk while it is sent."""

    def __init__(
        self, fields: Sequence[tuple[str, str]], files: Sequence[tuple[str, Path]], on_upload: OnUpload | None
    ) -> None:
        self.boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={self.boundary}"
        self.on_upload = on_upload
        self.parts: list[tuple[bytes, Path | None]] = []
        for name, value in fields:
            self.parts.append((self._head(name) + value.encode(), None))
        for name, path in files:
            suffix = "".join(path.suffixes[-2:]) if path.name.lower().endswith(".gz") else path.suffix
            plain = suffix.encode("ascii", "ignore").decode().replace('"', "")  # the file's own name stays here
            self.parts.append((self._head(name, f'; filename="{name}{plain}"'), path))
        self.end = f"\r\n--{self.boundary}--\r\n".encode()
        sizes = [len(head) + (path.stat().st_size if path else 0) for head, path in self.parts]
        self.length = sum(sizes) + len(self.end)

    def _head(self, name: str, more: str = "") -> bytes:
        return f'\r\n--{self.boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()

    def __iter__(self) -> Iterator[bytes]:
        sent = 0
        for block in self._blocks():
            yield block
            sent += len(block)
            if self.on_upload is not None:
                self.on_upload(sent / self.length)

    def _blocks(self) -> Iterator[bytes]:
        for head, path in self.parts:
            yield head
            if path is not None:
                with path.open("rb") as file:
                    yield from _read(file)
        yield self.end


def _read(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _zipped(folder: Path, archive: Path) -> Path:
    """A folder's files in a zip, numbered: their names may say who the patient is."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for number, path in enumerate(files):
            target.write(path, f"{number:06d}")
    return archive


def _unzip(archive: Path, folder: Path) -> None:
    """Unpack; zipfile takes leading slashes and '..' out of names."""
    with zipfile.ZipFile(archive) as source:
        source.extractall(folder)


def _plain(job: str) -> str:
    """A job's id, which is hexadecimal, as the name of a folder."""
    if not job or not job.isalnum():
        raise ValueError(f"{job!r} is no id of a job")
    return job


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered {error.code} {error.reason}."
