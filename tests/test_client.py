"""The client against a live server on loopback: submit, follow, fetch, cancel, and what goes wrong."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dicom_series import write_series
from diffugts import client as module
from diffugts.client import Client, JobError, ServerError
from diffugts.io import read_volume, write_nifti
from diffugts.serve.app import create_app
from diffugts.serve.jobs import Jobs
from diffugts.serve.limits import Limits
from diffugts.serve.process import WorkerProcess
from fake_model import scan
from live_server import live
from test_serve import SOON_S, TOKEN, WORKER, Instant


@pytest.fixture(scope="module")
def worker() -> Iterator[Client]:
    """A server whose process segments without a model."""
    with live(create_app(Jobs(Limits(), WorkerProcess(WORKER)), token=TOKEN)) as url:
        yield Client(url + "/", TOKEN)


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    volume = scan()
    return write_nifti(volume.array, volume, tmp_path / 'a "scan".nii.gz')


def test_a_dicom_folder_goes_there_and_back(worker: Client, tmp_path: Path):
    write_series(tmp_path / "ct" / "a", voxels=scan().array, seed=1)
    write_series(tmp_path / "ct" / "b", uid="1.2.3.4", voxels=scan().array, seed=2)
    volume = read_volume(tmp_path / "ct", "1.2.3.4")
    rough = write_nifti(volume.array > 100, volume, tmp_path / "rough.nii.gz")
    sent: list[float] = []
    states: list[str] = []
    job = worker.submit(
        tmp_path / "ct", ["liver tumor", "kidney tumor"], series="1.2.3.4", region=rough, seeds=2, dicom_seg=True,
        rtstruct=True, on_upload=sent.append,
    )  # fmt: skip
    assert sent == sorted(sent)
    assert sent[-1] == 1.0
    last = worker.wait(job, lambda state: states.append(state["status"]), timeout_s=SOON_S, poll_s=0.05)
    assert states[-1] == "done"
    assert last["results"]["liver tumor"]["lesions"] == 1
    folder = worker.download(job, tmp_path / "out")
    assert folder == tmp_path / "out" / job
    found = folder / last["results"]["kidney tumor"]["folder"]
    image = nib.load(found / "mask.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), volume.array > 100)
    assert np.allclose(image.affine, volume.affine, atol=1e-4)
    assert {"mask.dcm", "rtstruct.dcm", "uncertainty.nii.gz"} <= {path.name for path in found.iterdir()}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [job]
    with pytest.raises(FileExistsError):
        worker.download(job, tmp_path / "out")
    assert worker.cancel(job)["status"] == "deleted"
    with pytest.raises(ServerError, match="deleted") as caught:
        worker.download(job, tmp_path / "again")
    assert caught.value.status == 409


def test_several_series_are_listed_in_the_error(worker: Client, tmp_path: Path):
    for uid in ("1.2.3.4", "1.2.3.5"):
        write_series(tmp_path / "ct", uid=uid, voxels=scan().array)
    job = worker.submit(tmp_path / "ct", "liver tumor")
    with pytest.raises(JobError, match=r"2 series: 1\.2\.3\.4 .*1\.2\.3\.5") as caught:
        worker.wait(job, timeout_s=SOON_S)
    assert caught.value.state["status"] == "failed"


def test_cancel_from_another_thread_ends_the_waiting(nifti: Path):
    with live(create_app(Jobs(Limits(), Instant(hold=True)))) as url:
        client = Client(url)
        job = client.submit(nifti, "liver tumor")
        with pytest.raises(TimeoutError, match="still"):
            client.wait(job, timeout_s=0.0)
        running = threading.Event()
        stop = threading.Thread(target=lambda: running.wait(SOON_S) and client.cancel(job))
        stop.start()
        with pytest.raises(JobError, match="was cancelled"):
            client.wait(job, lambda state: running.set(), timeout_s=SOON_S, poll_s=0.02)
        stop.join()
        assert [state["status"] for state in client.jobs()] == ["cancelled"]


def test_small_questions(worker: Client):
    assert worker.health()["status"] == "ok"
    first, second = worker.understand(["HCC & more", "!"])
    assert first["anatomy"] == "liver"
    assert "no letter" in second["error"]


def test_refusals_are_sentences(worker: Client, nifti: Path, tmp_path: Path):
    with pytest.raises(ServerError, match="no letter") as caught:
        worker.submit(nifti, "!")
    assert caught.value.status == 422
    with pytest.raises(ServerError, match="no such job") as caught:
        worker.state("a?c")
    assert caught.value.status == 404
    with pytest.raises(ServerError, match="token") as caught:
        Client(worker.url, "wrong").jobs()
    assert caught.value.status == 401
    with pytest.raises(FileNotFoundError):
        worker.submit(tmp_path / "nowhere.nii.gz", "liver tumor")
    with pytest.raises(ValueError, match="no id"):
        worker.download("../x", tmp_path)
    for url in ("ftp://x", "file:///etc/passwd", "127.0.0.1:8000"):
        with pytest.raises(ValueError, match="no address"):
            Client(url)


def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServerError, match=f"127.0.0.1:{port} cannot be reached") as caught:
        Client(f"http://127.0.0.1:{port}").health()
    assert caught.value.status is None


def test_the_token_does_not_follow_a_redirection():
    async def elsewhere(scope, receive, send):
        await send({"type": "http.response.start", "status": 307, "headers": [(b"location", b"http://127.0.0.1:9/x")]})
        await send({"type": "http.response.body", "body": b""})

    with live(elsewhere) as url, pytest.raises(ServerError) as caught:
        Client(url, TOKEN).health()
    assert caught.value.status == 307


def test_the_file_of_the_client_stands_alone(tmp_path: Path):
    """It can be copied beside a plugin: only the standard library, syntax of Python 3.9."""
    source = Path(module.__file__).read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)
    copy = tmp_path / "copied_client.py"
    copy.write_text(source, "utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({str(copy)!r})"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
