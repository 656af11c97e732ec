"""The job server: what it lets in, what it does with it, and that nothing stays behind."""

from __future__ import annotations

import io
import logging
import re
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, seed, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from browser import CHROMIUM, chromium
from diffugts.cli import main
from diffugts.errors import InputError
from diffugts.io import write_nifti
from diffugts.serve.address import is_loopback
from diffugts.serve.app import create_app
from diffugts.serve.jobs import Jobs
from diffugts.serve.limits import Limits
from diffugts.serve.process import WorkerProcess
from diffugts.serve.uploads import store, unpack
from fake_model import scan
from live_server import live

TOKEN = "0123456789abcdef-token"
CHANGE = {"X-DiffuGTS": "1"}
WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
SOON_S = 300.0


class Instant:
    """A runner without a process: fails where a prompt says so, waits for `go` where it is told to."""

    def __init__(self, hold: bool = False) -> None:
        self.hold, self.tasks, self.closed = hold, [], False

    def run(self, task: Mapping[str, Any], report: Callable[[str, float], None], stopped: Callable[[], bool]) -> Any:
        self.tasks.append(task)
        report("encode", 0.5)
        while self.hold and not stopped():
            time.sleep(0.01)
        if stopped():
            return None
        prompts = [word.removeprefix("--prompt=") for word in task["words"] if word.startswith("--prompt=")]
        if any("fail" in text for text in prompts):
            return {"status": "failed", "error": f"{task['folder']}/scan.nii.gz is bad"}
        (Path(task["folder"]) / "results.zip").write_bytes(b"PK\5\6" + bytes(18))
        found = {"folder": "x", "volume_ml": 1.5, "lesions": 1, "score": 0.5}
        return {"status": "done", "prompts": dict.fromkeys(prompts, found), "warnings": ["a warning"]}

    def close(self) -> None:
        self.closed = True


@contextmanager
def served(
    runner: Any = None, token: str | None = None, host: str = "127.0.0.1", **limits: Any
) -> Iterator[TestClient]:
    """A running application, to be called as a browser of this machine would."""
    jobs = Jobs(replace(Limits(), **limits), runner or Instant())
    app = create_app(jobs, token=token, hosts=None if token else ("127.0.0.1",))
    with TestClient(app, base_url=f"http://{host}:8000", headers=CHANGE, raise_server_exceptions=False) as client:
        client.jobs = jobs  # type: ignore[attr-defined]
        yield client


@pytest.fixture
def nifti(tmp_path: Path) -> bytes:
    volume = scan()
    return write_nifti(volume.array, volume, tmp_path / "s.nii.gz").read_bytes()


def post(
    client: TestClient, content: bytes, name: str = "Doe^John.nii.gz", prompt: Any = "liver tumor", **more: Any
) -> Any:
    return client.post("/v1/jobs", files={"scan": (name, content)}, data={"prompt": prompt, **more})


def ended(client: TestClient, job: str, wanted: str | None = None) -> dict[str, Any]:
    """The state of a job once it has ended, or has the wanted status."""
    limit = time.monotonic() + SOON_S
    while time.monotonic() < limit:
        state = client.get(f"/v1/jobs/{job}").json()
        if state["status"] == wanted or (wanted is None and state["status"] not in ("queued", "running")):
            return dict(state)
        time.sleep(0.02)
    raise AssertionError(f"still {state}")


# --- with the worker process ------------------------------------------------------------------------------


def test_a_job_from_upload_to_download(nifti, caplog):
    caplog.set_level(logging.DEBUG, logger="diffugts")  # the command line, in other tests, makes it quieter
    with caplog.at_level(logging.DEBUG), served(WorkerProcess(WORKER)) as client:
        answer = post(client, nifti, prompt=["liver tumor", "HCC"], seeds="2")
        assert answer.status_code == 202
        job = answer.json()["id"]
        assert re.fullmatch(r"[0-9a-f]{32}", job)
        state = ended(client, job)
        assert (state["status"], state["error"]) == ("done", None)
        assert state["results"]["liver tumor"]["lesions"] == 1
        assert state["warnings"][0] == "a warning about the scan"
        opened = zipfile.ZipFile(io.BytesIO(client.get(state["links"]["results"]).content))
        names = opened.namelist()
        assert opened.testzip() is None
        assert {"case/manifest.json", "case/report.html", "case/scan.nii.gz"} <= set(names)
        assert sum(name.endswith("mask.nii.gz") for name in names) == 2
        assert sum(name.endswith("uncertainty.nii.gz") for name in names) == 2
        viewer = client.get(state["links"]["viewer"])
        assert (viewer.status_code, viewer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        data = client.get(state["links"]["viewer"] + "data.json").json()
        assert client.get(state["links"]["viewer"] + data["cases"][0]["scan"]).content[:2] == b"\x1f\x8b"
        report = client.get(state["links"]["report"])
        assert report.headers["content-security-policy"].startswith("sandbox")
        assert client.get(state["links"]["viewer"] + "..%2f..%2fmanifest.json").status_code == 404
        # a second job runs in the same process, and its files go when it is deleted
        again = post(client, nifti).json()["id"]
        assert ended(client, again)["status"] == "done"
        folder = client.jobs.get(again).folder
        assert folder.is_dir()
        assert client.delete(f"/v1/jobs/{again}").json()["status"] == "deleted"
        assert not folder.exists()
        assert client.get(f"/v1/jobs/{again}/results.zip").status_code == 409
    assert "Doe" not in caplog.text
    assert "liver" not in caplog.text
    assert f"job {job[:8]}: done" in caplog.text
    assert not client.jobs.root.exists()


def test_cancel_kills_the_computation_and_the_next_job_runs(nifti):
    runner = WorkerProcess(WORKER)
    with served(runner) as client:
        job = post(client, nifti, prompt="kidney cyst").json()["id"]
        waiting = post(client, nifti).json()
        assert (waiting["status"], waiting["position"]) == ("queued", 1)
        state = ended(client, job, "running")
        while client.get(f"/v1/jobs/{job}").json()["stage"] != "encode":
            time.sleep(0.02)
        child = runner._child
        assert client.get(f"/v1/jobs/{job}").json()["progress"] == 0.25
        state = client.delete(f"/v1/jobs/{job}").json()
        assert state["status"] == "cancelled"
        assert ended(client, waiting["id"])["status"] == "done"
        assert child.poll() is not None
        assert runner._child is not child
        assert client.delete(f"/v1/jobs/{job}").json()["status"] == "cancelled"
        assert [path.name for path in client.jobs.root.iterdir()] == [client.jobs.get(waiting["id"]).folder.name]


def test_a_computation_that_dies_and_one_that_takes_too_long(nifti):
    with served(WorkerProcess(WORKER)) as client:
        dies = post(client, nifti, prompt="liver metastasis").json()["id"]
        state = ended(client, dies)
        assert (state["status"], "ended by itself" in state["error"]) == ("failed", True)
        client.jobs.limits = replace(client.jobs.limits, time_s=0.5)
        slow = post(client, nifti, prompt="kidney cyst").json()["id"]
        state = ended(client, slow)
        assert (state["status"], state["error"]) == (
            "failed", "The job took longer than the limit of 0.5 s; crop the scan.",
        )  # fmt: skip
        assert list(client.jobs.root.iterdir()) == []


def test_a_scan_beyond_the_limit_of_voxels_and_one_that_is_none(nifti):
    with served(WorkerProcess(WORKER), max_voxels=1000) as client:
        state = ended(client, post(client, nifti).json()["id"])
        assert (state["status"], "more than the limit of 1,000" in state["error"]) == ("failed", True)
        state = ended(client, post(client, b"no scan").json()["id"])
        assert (state["status"], "scan.nii.gz is no readable NIfTI" in state["error"]) == ("failed", True)
        assert str(client.jobs.root) not in state["error"]


# --- who may come in --------------------------------------------------------------------------------------


def test_other_host_names_and_pages_of_other_sites_are_refused(nifti):
    with served() as client:
        for host in ("evil.example", "127.0.0.1.evil.example:8000", "evil.example@127.0.0.1.x", "", "["):
            assert client.get("/v1/jobs", headers={"Host": host}).status_code == 400
        assert client.get("/v1/jobs", headers={"Host": "127.0.0.1:1234"}).status_code == 200
        form = {"files": {"scan": ("a.nii.gz", nifti)}, "data": {"prompt": "liver tumor"}}
        for headers in ({}, {**CHANGE, "Origin": "http://evil.example"}, {**CHANGE, "Origin": "null"}):
            client.headers.pop("X-DiffuGTS", None)
            assert client.post("/v1/jobs", headers=headers, **form).status_code == 403
        assert client.delete("/v1/jobs/x").status_code == 403
        assert client.post("/v1/jobs", headers={**CHANGE, "Origin": "http://127.0.0.1:8000"}, **form).status_code == 202
        preflight = client.options("/v1/jobs", headers={"Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in preflight.headers


def test_a_token_opens_everything_but_the_page_and_health(nifti):
    with served(token=TOKEN, host="scanner.example") as client:
        assert client.get("/v1/health").json()["token"] is True
        assert client.get("/").status_code == client.get("/page.js").status_code == 200
        for path in ("/v1/jobs", "/v1/openapi.json", "/v1/prompts", "/v1/jobs/x/view/", "/v1//jobs"):
            assert client.get(path).status_code == 401
        assert post(client, nifti).status_code == 401
        for wrong in ("Bearer ", "Bearer wrong", f"Basic {TOKEN}", "Bearer é".encode("latin-1")):
            assert client.get("/v1/jobs", headers={"Authorization": wrong}).status_code == 401
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/v1/jobs", headers=bearer).json() == []
        answer = client.post("/v1/session", headers=bearer)
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert client.get("/v1/jobs").status_code == 200  # the cookie is in the client now
        del client.headers["X-DiffuGTS"]
        assert post(client, nifti).status_code == 403  # and does not do for a page of another site


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/v1/health", "/v1/nothing"])
def test_every_answer_forbids_scripts_from_elsewhere_and_caching(path):
    with served() as client:
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_needs_nothing_from_elsewhere():
    with served() as client:
        text = "".join(client.get(path).text for path in ("/", "/page.js", "/page.css"))
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text) == []
    assert "innerHTML" not in text


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.4", False), ("scanner.example", False), ("", False),
    ],
)  # fmt: skip
def test_loopback(host, local):
    assert is_loopback(host) is local


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--host", "0.0.0.0"], "so a token is needed"),
        (["--host", "0.0.0.0", "--token", "short"], "at least 16"),
        (["--token", "ä" * 20], "printable ASCII"),
        (["--port", "70000"], "the highest is 65535"),
        (["--host", "no.such.host.invalid", "--token", TOKEN], "cannot be listened on"),
    ],
)
def test_serve_refuses_what_would_not_be_safe(words, sentence, capsys, monkeypatch):
    monkeypatch.delenv("DIFFUGTS_TOKEN", raising=False)
    assert main(["serve", *words]) == 1
    assert sentence in capsys.readouterr().err


# --- what may come in -------------------------------------------------------------------------------------


def test_uploads_are_bounded_with_and_without_a_length(nifti):
    with served(max_bytes=300) as client:
        assert post(client, nifti).status_code == 413

        def body() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="scan"; filename="a.nii"\r\n\r\n'
            for _ in range(100):
                yield bytes(1000)

        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        assert client.post("/v1/jobs", content=body(), headers=kind).status_code == 413
        assert list(client.jobs.root.iterdir()) == []


def test_the_queue_is_bounded_and_places_are_given_back(nifti):
    runner = Instant(hold=True)
    with served(runner, waiting=2) as client:
        first = post(client, nifti).json()["id"]
        ended(client, first, "running")
        assert post(client, nifti, prompt="!").status_code == 422  # its place is free again
        assert [post(client, nifti).status_code for _ in range(3)] == [202, 202, 503]
        assert client.get("/v1/health").json()["waiting"] == 2
        runner.hold = False
        for job in client.get("/v1/jobs").json():
            assert ended(client, job["id"])["status"] == "done"
        assert post(client, nifti).status_code == 202


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": "!!!"}, "holds no letter"),
        ({"prompt": ""}, "empty"),
        ({"prompt": "x" * 201}, "201 characters"),
        ({"prompt": ["liver tumor"] * 17}, "prompt: "),
        ({"seeds": "0"}, "seeds: "),
        ({"seed": "-1"}, "seed: "),
        ({"steps": "many"}, "steps: "),
        ({"modality": "pet"}, "modality: "),
        ({"series": "../../x"}, "series: "),
        ({"dicom_seg": "true"}, "send a zip of one"),
        ({"name": "scan.exe"}, "no known type"),
        ({"name": "scan.mhd"}, "no known type"),
        ({"name": ""}, "scan: "),
        ({"content": b""}, "empty"),
        ({"name": "a.zip", "content": b"PK no zip"}, "no zip"),
        ({"name": "a.nrrd", "content": b"NRRD0004\ndata file: /etc/passwd\n\n"}, "its own voxels"),
    ],
)
def test_what_cannot_be_used_gets_a_sentence_and_leaves_nothing(nifti, changes, sentence):
    with served() as client:
        answer = post(client, **{"content": nifti, **changes})
        assert answer.status_code == 422
        assert sentence in answer.json()["detail"]
        assert "\n" not in answer.json()["detail"]
        assert list(client.jobs.root.iterdir()) == []


def test_words_of_a_client_reach_the_command_line_as_values(nifti):
    runner = Instant()
    with served(runner) as client:
        region = {"scan": ("x/../../a.nii.gz", nifti), "region": ("--output=/b.nii", nifti)}
        data = {"prompt": ["--model=/etc tumor"], "seed": "7", "steps": "3", "modality": "ct", "series": "1.2"}
        job = client.post("/v1/jobs", files=region, data=data).json()["id"]
        ended(client, job)
        folder = client.jobs.get(job).folder
        (task,) = runner.tasks
        assert list(task["words"]) == [
            "segment", f"{folder}/scan.nii.gz", f"--output={folder}", "--report", "--modality=ct",
            "--prompt=--model=/etc tumor", "--seed=7", "--seeds=1", "--steps=3", "--series=1.2",
            f"--region={folder}/region.nii", "--model=compact", "--device=auto",
        ]  # fmt: skip
        assert sorted(path.name for path in folder.iterdir()) == ["region.nii", "results.zip", "scan.nii.gz"]
        assert folder.stat().st_mode & 0o077 == 0 or client.jobs.root.stat().st_mode & 0o077 == 0


def test_ended_jobs_expire_and_the_oldest_go_first(nifti):
    with served(keep_s=0.3) as client:
        job = post(client, nifti).json()["id"]
        ended(client, job)
        limit = time.monotonic() + SOON_S
        while client.get(f"/v1/jobs/{job}").status_code != 404 and time.monotonic() < limit:
            time.sleep(0.05)
        assert client.get(f"/v1/jobs/{job}").status_code == 404
        assert list(client.jobs.root.iterdir()) == []
    with served(kept=2) as client:
        made = [post(client, nifti).json()["id"] for _ in range(4)]
        ended(client, made[-1])
        client.jobs._sweep()
        assert [job["id"] for job in client.get("/v1/jobs").json()] == made[2:]
        assert len(list(client.jobs.root.iterdir())) == 2


def test_the_servers_end_stops_the_job_and_removes_every_file(nifti):
    runner = Instant(hold=True)
    with served(runner) as client:
        ended(client, post(client, nifti).json()["id"], "running")
        post(client, nifti)
    assert runner.closed
    assert not client.jobs.root.exists()


def test_failures_tell_no_path_of_the_server(nifti):
    with served() as client:
        state = ended(client, post(client, nifti, prompt="failing tumor").json()["id"])
        assert (state["status"], state["error"], state["links"]) == ("failed", "scan.nii.gz is bad", {})
        assert list(client.jobs.root.iterdir()) == []


def test_prompts_are_explained():
    with served() as client:
        found = client.get("/v1/prompts", params={"text": ["no HCC", "!"]}).json()
        first, second = found["prompts"]
        assert (first["anatomy"], first["finding"], first["negated"]) == ("liver", "tumor", True)
        assert "no letter" in second["error"]
        assert "kidney" in found["anatomies"]


# --- the page, in a browser -------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_uploads_a_scan_and_opens_viewer_and_report(nifti, tmp_path: Path):
    scan_file = tmp_path / "Doe^John.nii.gz"
    scan_file.write_bytes(nifti)
    app = create_app(Jobs(Limits(), WorkerProcess(WORKER)), token=TOKEN)
    with live(app) as url, chromium(tmp_path / "profile") as page:
        page.open(url + "/")
        page.wait("!document.getElementById('token-form').hidden && document.getElementById('job-form').hidden")
        page.run(
            f"document.getElementById('token').value = '{TOKEN}'; document.querySelector('#token-form button').click()"
        )
        page.wait("!document.getElementById('job-form').hidden")
        assert [text for text in page.problems if "401" not in text] == []
        page.problems.clear()
        page.call("DOM.enable")
        root = page.call("DOM.getDocument")["root"]["nodeId"]
        field = page.call("DOM.querySelector", nodeId=root, selector="#scan")["nodeId"]
        page.call("DOM.setFileInputFiles", nodeId=field, files=[str(scan_file)])
        prompts = "const p = document.getElementById('prompts'); p.value = 'liver tumor\\n<b>HCC</b>'"
        page.run(f"{prompts}; p.dispatchEvent(new Event('change')); 0")
        page.wait("document.getElementById('understood').textContent.includes('tumor in liver')")
        page.run("document.getElementById('submit').click()")
        page.wait("!!document.querySelector('#jobs li[data-status=done]')")
        cells = page.run(
            "[...document.querySelectorAll('#jobs tbody > *')].map((row) => row.innerText.split('\\t')[0])"
        )
        assert cells == ["liver tumor", "<b>HCC</b>"]
        assert page.picture("#jobs").std() > 5
        viewer, report = page.run("[...document.querySelectorAll('.actions a')].slice(0, 2).map((a) => a.href)")
        page.open(report)
        page.wait("document.body.innerText.includes('liver tumor')")
        page.open(viewer)
        page.wait("document.body.innerText.includes('liver tumor')")
        assert page.problems == []
        assert [address for address in page.requests if not address.startswith((url, "data:", "blob:"))] == []


# --- zips and headers -------------------------------------------------------------------------------------


def zipped(entries: Mapping[str, bytes], path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as target:
        for name, content in entries.items():
            target.writestr(name, content)
    return path


def test_a_zip_is_unpacked_flat_under_names_of_our_own(tmp_path: Path):
    content = {"../../evil": b"1", "/etc/x": b"2", "a/b/c.dcm": b"3", "a/": b""}
    unpack(zipped(content, tmp_path / "a.zip"), tmp_path / "out", Limits())
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir()) == [
        ("000000", b"1"), ("000001", b"2"), ("000002", b"3"),
    ]  # fmt: skip
    assert not (tmp_path.parent / "evil").exists()


def _bomb(path: Path) -> Path:
    return zipped({"a": bytes(2_000_000), "b": bytes(2_000_000)}, path)


def _liar(path: Path) -> Path:
    """A zip whose headers claim fewer bytes than unpacking gives."""
    data = _bomb(path).read_bytes().replace(struct.pack("<I", 2_000_000), struct.pack("<I", 1000))
    path.write_bytes(data)
    return path


def _encrypted(path: Path) -> Path:
    data = bytearray(zipped({"a": b"secret"}, path).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(data))
    return path


def _many(path: Path) -> Path:
    return zipped({str(n): b"" for n in range(30)}, path, zipfile.ZIP_STORED)


def _endless_directory(path: Path) -> Path:
    data = bytearray(zipped({"a": b"b"}, path).read_bytes())
    at = data.index(b"PK\5\6")
    data[at + 12 : at + 16] = struct.pack("<I", 2**31)
    path.write_bytes(bytes(data))
    return path


def _damaged(path: Path) -> Path:
    data = bytearray(zipped({"a": np.random.default_rng(0).bytes(5000)}, path).read_bytes())
    data[2000:2100] = bytes(100)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_bomb, "unpacks to more than"),
        (_liar, "damaged|unpacks to more than"),
        (_encrypted, "encrypted"),
        (_many, "holds 30 files, more than 20"),
        (_endless_directory, "endless directory"),
        (_damaged, "damaged"),
        (lambda path: zipped({}, path), "holds no files"),
        (lambda path: zipped({"a/": b""}, path), "holds no files"),
        (lambda path: path.write_bytes(b"PK\5\6") and path, "no zip"),
    ],
)
def test_bad_zips_get_a_sentence(tmp_path: Path, make, sentence):
    archive = make(tmp_path / "a.zip")
    with pytest.raises(InputError, match=sentence):
        unpack(archive, tmp_path / "out", Limits(max_unpacked=3_000_000, max_files=20))
    written = sum(path.stat().st_size for path in tmp_path.glob("out/*"))
    assert written <= 3_000_000


MHA = b"ObjectType = Image\nNDims = 3\nElementDataFile = LOCAL\n" + bytes(40)


@pytest.mark.parametrize(
    ("name", "content", "good"),
    [
        ("a.mha", MHA, True),
        ("a.mha", MHA.replace(b"LOCAL", b"/etc/passwd"), False),
        ("a.mha", b"Comment = ElementDataFile = LOCAL\n" + MHA.replace(b"LOCAL", b"/etc/passwd"), False),
        ("a.mha", MHA.replace(b"ElementDataFile = LOCAL", b"elementdatafile : /etc/passwd"), False),
        ("a.mha", MHA.replace(b"LOCAL", b"LOCAL.raw"), False),
        ("a.mha", b"Comment = " + b"x" * 70_000 + b"\n" + MHA, False),
        ("a.nrrd", b"NRRD0004\ntype: short\nencoding: raw\n\n" + bytes(40), True),
        ("a.nrrd", b"NRRD0004\r\ntype: short\r\n\r\ndata file: x", True),
        ("a.nrrd", b"NRRD0004\ndatafile: /etc/passwd\n\n", False),
        ("a.nrrd", b"NRRD0004\nData File: LIST\n/etc/passwd\n\n", False),
        ("a.nrrd", b"NRRD0004\ntype: short", False),
        ("a.nrrd", MHA, False),
    ],
)
def test_headers_that_point_at_files_of_the_server_are_refused(tmp_path: Path, name, content, good):
    if good:
        assert store(io.BytesIO(content), name, tmp_path, "scan", Limits()).read_bytes() == content
        return
    with pytest.raises(InputError, match="does not hold its own voxels"):
        store(io.BytesIO(content), name, tmp_path, "scan", Limits())


# --- fuzzing ----------------------------------------------------------------------------------------------


def _application() -> Any:
    return create_app(Jobs(Limits(waiting=10_000, kept=4), Instant()))


SCHEMA = schemathesis.openapi.from_dict(_application().openapi())


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with live(_application()) as where:
        yield where


@SCHEMA.parametrize()
@seed(0)
@settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_the_server_or_its_schema(address: str, case: Any):
    """Random bytes are no scan, so that a well-formed request may be refused counts as right."""
    case.call_and_validate(base_url=address, headers=CHANGE, excluded_checks=[positive_data_acceptance])


def test_the_schema_says_what_routes_there_are():
    paths = _application().openapi()["paths"]
    assert all(path.startswith("/v1/") for path in paths)
    assert {(m, p) for p, ms in paths.items() for m in ms} >= {
        ("post", "/v1/jobs"), ("get", "/v1/jobs"), ("get", "/v1/jobs/{job_id}"), ("delete", "/v1/jobs/{job_id}"),
        ("get", "/v1/jobs/{job_id}/results.zip"), ("get", "/v1/health"), ("get", "/v1/prompts"),
    }  # fmt: skip
