"""The viewer: what its server hands out and to whom, and its pages in a real browser."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from browser import CHROMIUM, Page, chromium
from diffugts.cli import main
from diffugts.commands.view import viewer
from diffugts.errors import InputError
from diffugts.io import write_nifti
from diffugts.report.index import write_index
from diffugts.report.save import MANIFEST, SCAN
from diffugts.result import Result
from diffugts.view.server import ViewServer
from diffugts.view.site import STATIC, Site
from diffugts.volume import Volume
from fake_model import answer, scan

HOSTILE = "<img src=x onerror=\"document.title='broken in'\"> & 'more'"


def save(folder: Path, name: str = "patient", report: bool = True, seeds: int = 1, tumour: bool = True) -> Path:
    volume = scan((32, 28, 24), affine=np.diag([4.0, 4.0, 5.0, 1.0]), source="scan", tumour=tumour)
    told = replace(answer(volume, seeds=seeds), warnings=(HOSTILE,))
    result = Result(volume, {"liver tumor": told}, {"modality": "ct"})
    with mock.patch("diffugts.report.preview.save_preview", lambda *words: Path(words[-1]).touch()):  # takes seconds
        return result.save(folder, name, report=report)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("view"), seeds=2)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ViewServer]:
    with viewer(folder) as site, ViewServer(site) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def ask(server: ViewServer, path: str, host: str | None = None, method: str = "GET") -> tuple[int, bytes, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body, dict(response.headers)


# --- what can be fetched ----------------------------------------------------------------------------------


def test_the_page_and_every_file_it_is_told_of_can_be_fetched(server: ViewServer, folder: Path):
    status, page, headers = ask(server, f"/{server.token}/")
    assert status == 200
    assert b"DiffuGTS viewer" in page
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    data = json.loads(ask(server, f"/{server.token}/data.json")[1])
    (case,) = data["cases"]
    (prompt,) = case["prompts"]
    assert ask(server, f"/{server.token}/{case['scan']}")[1] == (folder / SCAN).read_bytes()
    for layer in prompt["layers"]:
        file = folder / "liver-tumor" / f"{layer['name']}.nii.gz"
        assert ask(server, f"/{server.token}/{layer['url']}")[1] == file.read_bytes()
    assert [layer["name"] for layer in prompt["layers"]][-1] == "mask"
    assert {"uncertainty", "pseudo_healthy"} <= {layer["name"] for layer in prompt["layers"]}
    assert b"liver tumor" in ask(server, f"/{server.token}/{case['report']}")[1]
    assert str(folder.parent) not in json.dumps(data)


@pytest.mark.parametrize(
    "path",
    [
        "manifest.json", "case/0/manifest.json", "case/0/0/../manifest.json", "case/1/scan.nii.gz",
        "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "case/0/0/lesions.csv", "viewer.html/..", "static/viewer.js",
    ],
)  # fmt: skip
def test_nothing_else_can(server: ViewServer, path: str):
    assert ask(server, f"/{server.token}/{path}")[:2] == (404, b"")


def test_nobody_without_the_address_gets_anything(server: ViewServer):
    port = server.server_port
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 20
    for path in ("/", "/data.json", f"/{server.token[:-1]}/", "/%C3%A9/"):
        assert ask(server, path)[0] == 404, path
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", "[::1]"):
        assert ask(server, f"/{server.token}/data.json", host)[0] == 404, host
    assert ask(server, f"/{server.token}/", f"localhost:{port}")[0] == 200
    with ViewServer(server.site) as other:
        assert other.token != server.token


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_reading_is_all_that_it_does(server: ViewServer, method: str):
    assert ask(server, f"/{server.token}/", method=method)[0] == 501


def test_a_port_that_is_taken_is_a_sentence(server: ViewServer):
    with pytest.raises(InputError, match=f"Port {server.server_port} cannot be used"):
        ViewServer(server.site, server.server_port)


def test_niivue_is_the_file_of_its_release():
    import hashlib

    origin = json.loads((STATIC / "niivue" / "origin.json").read_text())
    file = STATIC / "niivue" / "niivue.umd.js"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == origin["sha256"]
    assert "Copyright (c) 2021, Niivue" in (STATIC / "niivue" / "LICENSE").read_text()


# --- which results ----------------------------------------------------------------------------------------


def test_a_result_without_its_scan_asks_for_it(tmp_path: Path, capsys):
    folder = save(tmp_path, report=False)
    assert main(["view", str(tmp_path), "--no-browser"]) == 1
    assert "--scan" in capsys.readouterr().err
    volume = scan((32, 28, 24), affine=np.diag([4.0, 4.0, 5.0, 1.0]))
    given = write_nifti(volume.array, volume, tmp_path / "given.nii.gz")
    with viewer(folder, given) as site:
        reply = site.get(f"case/0/{SCAN}")
        assert reply is not None
        assert isinstance(reply.body, Path)
        copy = reply.body
        assert copy.is_file()
    assert not copy.exists()


def test_another_scan_is_refused(tmp_path: Path):
    folder = save(tmp_path, report=False)
    other = scan((32, 28, 23), affine=np.diag([4.0, 4.0, 5.0, 1.0]))
    with (
        pytest.raises(InputError, match="another grid"),
        viewer(folder, write_nifti(other.array, other, tmp_path / "o.nii")),
    ):
        pass


def test_a_folder_of_cases_is_shown_whole_without_those_that_lack_their_scan(tmp_path: Path, capsys):
    save(tmp_path, "a")
    save(tmp_path, "b", report=False)
    save(tmp_path, "c", tumour=False)
    with viewer(tmp_path) as site:
        data = json.loads(site.replies["data.json"].body)  # type: ignore[arg-type]
    assert [case["name"] for case in data["cases"]] == ["a", "c"]
    assert "b is left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["..", "../other", "/etc", "a\\b", ""])
def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path, name: str):
    folder = save(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["prompts"]["liver tumor"]["folder"] = name
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="segment again"):
        Site.of([folder])


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):
    folder = save(tmp_path / "out")
    secret = tmp_path / "secret.gz"
    secret.write_bytes(b"secret")
    (folder / SCAN).unlink()
    (folder / SCAN).symlink_to(secret)
    with pytest.raises(InputError, match="link out of its folder"):
        Site.of([folder])


@pytest.mark.parametrize("words", [["nowhere"], [".", "--port", "70000"]])
def test_view_of_nothing_is_a_sentence(tmp_path: Path, monkeypatch, words, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["view", *words, "--no-browser"]) == 1
    assert capsys.readouterr().err.startswith("diffugts: ")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_verb_serves_until_ctrl_c(folder: Path):
    command = [sys.executable, "-m", "diffugts", "view", str(folder), "--no-browser"]
    # A test run in the background of a script inherits an ignored Ctrl-C; a user's shell does not do that.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=_hear_ctrl_c) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("viewer -> ").strip()
            with urllib.request.urlopen(url, timeout=60) as page:
                assert b"DiffuGTS viewer" in page.read()
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert complaints == ""


# --- in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def fresh(page: Page) -> Page:
    page.problems.clear()
    page.requests.clear()
    return page


def cyan(picture: np.ndarray) -> np.ndarray:
    """Where the mask's colour lies over the scan: more blue than red by far."""
    return picture[..., 2].astype(int) - picture[..., 0] > 40


def ready(page: Page) -> None:
    page.wait("['ready', 'failed'].includes(document.body.dataset.state)")
    assert page.run("document.body.dataset.state") == "ready"


def settled(page: Page, selector: str = "canvas") -> np.ndarray:
    """The picture once two in a row agree."""
    before = page.picture(selector)
    for _ in range(20):
        after = page.picture(selector)
        if np.array_equal(before, after):
            break
        before = after
    return before[6:-6, 6:-6]  # without the mark of the focus


def test_the_viewer_shows_the_scan_and_its_layers(fresh: Page, server: ViewServer):
    fresh.open(server.url, 860, 360)
    ready(fresh)
    fresh.run(
        "pictures.nv.setCrosshairWidth(0), byId('planes').value = 0, byId('planes').dispatchEvent(new Event('change'))"
    )
    first = settled(fresh)
    assert first.std() > 20  # air, body and tumour
    # The ball lies to the patient's right, so in a radiological view on the left.
    columns = np.argwhere(cyan(first))[:, 1]
    assert columns.size > 20
    assert columns.mean() < first.shape[1] / 2
    fresh.run("byId('canvas').focus()")
    fresh.press("6")
    fresh.wait("!byId('layer-mask').checked")
    bare = settled(fresh)
    assert cyan(bare).sum() < columns.size / 10
    fresh.press("1")
    fresh.wait("byId('layer-pseudo_healthy').checked && pictures.layers.has('pseudo_healthy')")
    healed = settled(fresh)
    changed = np.abs(healed.astype(int) - bare).max(axis=-1) > 30
    assert changed.any()
    assert np.abs(np.argwhere(changed).mean(axis=0) - np.argwhere(cyan(first)).mean(axis=0)).max() < 10
    fresh.run("(f => (f.value = 0, f.dispatchEvent(new Event('input'))))(byId('fade-pseudo_healthy'))")
    assert np.abs(settled(fresh).astype(int) - bare).max() < 30  # faded out
    assert fresh.problems == []
    outside = [url for url in fresh.requests if not url.startswith((server.url, "data:", "blob:"))]
    assert outside == []


def test_the_viewer_goes_to_lesions_and_is_worked_by_keys(fresh: Page, server: ViewServer, folder: Path):
    fresh.open(server.url, 860, 360)
    ready(fresh)
    place = "pictures.nv.frac2mm(pictures.nv.scene.crosshairPos).slice(0, 3)"
    r, a, s = json.loads((folder / MANIFEST).read_text())["prompts"]["liver tumor"]["lesions"][0]["centre_mm"]
    there = list(fresh.run(f"Array.from({place})"))
    np.testing.assert_allclose(there, [r, a, s], atol=2.6)  # half a voxel
    assert "R " in fresh.run("byId('place').textContent")
    fresh.run("byId('canvas').focus()")
    fresh.press("ArrowLeft")
    moved = list(fresh.run(f"Array.from({place})"))
    assert 0 < moved[0] - there[0] < 6.1  # to the left of the screen, the patient's right, from between two voxels
    fresh.press("ArrowLeft")
    again = list(fresh.run(f"Array.from({place})"))
    np.testing.assert_allclose(np.subtract(again, moved), [4.0, 0.0, 0.0], atol=0.1)
    fresh.press("n")
    np.testing.assert_allclose(fresh.run(f"Array.from({place})"), there, atol=0.1)
    assert "Lesion 1 of 1" in fresh.run("byId('said').textContent")
    assert fresh.run("byId('lesions').rows[0].getAttribute('aria-current')") == "true"
    unnamed = fresh.run(
        "[...document.querySelectorAll('input, select, button, canvas')].filter(e => !(e.labels?.length || "
        "e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.id)"
    )
    assert unnamed == []
    assert HOSTILE in fresh.run("byId('warnings').textContent")
    assert fresh.run("document.title") == "patient · DiffuGTS viewer"
    assert fresh.problems == []


def test_the_viewer_windows_mr_by_its_percentiles_and_switches_cases(fresh: Page, tmp_path: Path):
    save(tmp_path, "ct")
    values = np.random.default_rng(0).normal(500, 100, (24, 24, 24)).clip(1).astype(np.float32)
    volume = Volume(values, np.diag([-3.0, 3.0, 3.0, 1.0]), source="mr")
    result = Result(volume, {"brain tumor": answer(volume, "brain tumor")}, {"modality": "mr"})
    with mock.patch("diffugts.report.preview.save_preview", lambda *words: Path(words[-1]).touch()):
        result.save(tmp_path, "mr", report=True)
    with viewer(tmp_path) as site, ViewServer(site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fresh.open(server.url, 860, 360)
        ready(fresh)
        assert fresh.run("[byId('low').valueAsNumber, byId('high').valueAsNumber]") == [-160, 240]
        fresh.run("byId('case').value = 1, byId('case').dispatchEvent(new Event('change'))")
        fresh.wait("document.body.dataset.state === 'ready' && byId('title').textContent === 'mr'")
        low, high = fresh.run("[byId('low').valueAsNumber, byId('high').valueAsNumber]")
        server.shutdown()
    np.testing.assert_allclose([low, high], np.percentile(values, (0.5, 99.5)), rtol=0.05)
    assert fresh.run("byId('presets-row').hidden")
    assert fresh.problems == []


def test_the_report_opens_from_disk_and_compares_by_key(fresh: Page, folder: Path):
    fresh.open((folder / "report.html").as_uri(), 1000, 900)
    assert "broken in" not in fresh.run("document.title")
    assert HOSTILE in fresh.run("document.querySelector('.warnings').textContent")
    light = fresh.run("getComputedStyle(document.body).backgroundColor")
    fresh.run("document.querySelector('.slider').scrollIntoView({block: 'center'})")
    before = fresh.picture(".compare")
    assert before.std() > 20
    fresh.run("document.querySelector('.slider').focus()")
    fresh.press("Home")
    assert fresh.run("document.querySelector('.compare').style.getPropertyValue('--cut')") == "0%"
    assert np.abs(fresh.picture(".compare").astype(int) - before).max() > 30
    blank = fresh.run(
        "[...document.querySelectorAll('svg[role=img]')].filter(e => !e.getAttribute('aria-label')).length"
    )
    assert blank == 0
    fresh.open((folder / "report.html").as_uri(), 1000, 900, dark=True)
    assert fresh.run("getComputedStyle(document.body).backgroundColor") != light
    assert fresh.problems == []
    assert {url.split(":")[0] for url in fresh.requests} <= {"file", "data"}


def test_the_index_is_sorted_by_its_headings(fresh: Page, tmp_path: Path):
    found = [("b", 2, 10.0), ("a", 10, 9.0), (HOSTILE, 1, 100.0)]
    lines = [
        {
            "case": case, "status": "done", "seconds": 1.0, "warnings": ["a warning"],
            "prompts": {"liver tumor": {"lesions": count, "volume_ml": ml, "score": 0.5}},
        }
        for case, count, ml in found
    ]  # fmt: skip
    lines.append({"case": "d", "status": "failed", "seconds": 0.1, "error": f"d is no scan {HOSTILE}"})
    fresh.open(write_index(lines, tmp_path).as_uri(), 1000, 600)
    assert f"d is no scan {HOSTILE}" in fresh.run("document.body.textContent")
    names = "[...document.querySelectorAll('tbody th')].map(e => e.textContent)"

    def order(column: int) -> list[str]:
        fresh.run(f"document.querySelectorAll('thead button')[{column}].click()")
        return list(fresh.run(names))

    assert order(0) == [HOSTILE, "a", "b", "d"]
    assert order(3) == [HOSTILE, "b", "a", "d"]
    assert order(3) == ["a", "b", HOSTILE, "d"]  # what failed has no number and stays last
    assert order(4) == ["a", "b", HOSTILE, "d"]
    assert fresh.run("document.querySelectorAll('thead th')[4].getAttribute('aria-sort')") == "ascending"
    assert fresh.problems == []
