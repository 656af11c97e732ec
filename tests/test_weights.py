"""Weights that do not ship: read safely, checked key by key, fetched so that nothing half or foreign stays behind."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from diffugts.backbone import weights
from diffugts.backbone.checkpoints import import_files, read_checkpoint
from diffugts.backbone.download import download, is_offline
from diffugts.backbone.home import Source, home_folder, missing_parts
from diffugts.backbone.weights import header, load_backbone, model_folder, verify
from diffugts.cli import main
from diffugts.errors import WeightsError
from tiny_maisi import models_folder, nvidia_files


@pytest.fixture
def tiny_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package knows the MAISI models in miniature; home is empty."""
    folder = models_folder(tmp_path / "package")
    monkeypatch.setattr(weights, "MODELS", folder)
    monkeypatch.setenv("DIFFUGTS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DIFFUGTS_OFFLINE", raising=False)
    return folder


# --- import -----------------------------------------------------------------------------------------------


def test_import_keeps_every_number_and_what_may_be_done_with_it(tiny_models: Path, tmp_path: Path) -> None:
    model, files = nvidia_files(tmp_path / "nvidia", scale_factor=0.875)
    folder = import_files(files)  # the model is known from the files' names
    assert folder == tmp_path / "home" / "models" / "maisi-ct-rflow"
    loaded = load_backbone(folder, controlnet=True)
    assert loaded.config.scale_factor == 0.875
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    notes = header(folder / "unet.safetensors")
    assert notes["scale_factor"] == "0.875"
    assert notes["licence"] == "NVIDIA Open Model License"
    assert "NVIDIA" in notes["origin"]
    assert verify(folder) == []
    assert model_folder("maisi-ct-rflow") == folder


@pytest.mark.parametrize("nest", ["plain", "unet_state_dict", "autoencoder_state_dict", "state_dict", "distributed"])
def test_autoencoder_is_found_in_every_nesting(tiny_models: Path, tmp_path: Path, nest: str) -> None:
    model, _ = nvidia_files(tmp_path / "nvidia")
    state = model.autoencoder.net.state_dict()
    if nest == "distributed":
        state = {f"module.{key}": value for key, value in state.items()}
    torch.save(state if nest in ("plain", "distributed") else {nest: state}, tmp_path / "mine.pt")
    folder = import_files([tmp_path / "mine.pt"], "maisi-ct-rflow")
    assert missing_parts(folder) == ["unet"]
    with pytest.raises(WeightsError, match="not on this machine"):
        model_folder("maisi-ct-rflow")


def test_parts_may_come_one_after_the_other(tiny_models: Path, tmp_path: Path) -> None:
    _, files = nvidia_files(tmp_path / "nvidia")
    for path in files[:2]:
        folder = import_files([path], "maisi-ct-rflow")
    assert missing_parts(folder) == []
    assert load_backbone(folder).config.scale_factor == pytest.approx(0.9)


class Payload:
    """Runs when unpickled by a reader that trusts it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return exec, (f"open({str(self.witness)!r}, 'w').close()",)


@pytest.mark.parametrize("how", ["torch", "pickle", "garbage"])
def test_a_payload_is_refused_and_nothing_of_it_runs(tiny_models: Path, tmp_path: Path, how: str) -> None:
    witness, path = tmp_path / "it-ran", tmp_path / "diff_unet_3d_rflow-ct.pt"
    content = {"unet_state_dict": {"conv_in.conv.weight": torch.zeros(1)}, "extra": Payload(witness)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content) if how == "pickle" else b"no checkpoint at all")
    with pytest.raises(WeightsError, match="nothing in it was run"):
        import_files([path], "maisi-ct-rflow")
    assert not witness.exists()
    assert not (tmp_path / "home").exists()


def test_a_wrong_file_says_which_keys_differ(tiny_models: Path, tmp_path: Path) -> None:
    model, files = nvidia_files(tmp_path / "nvidia")
    state = dict(model.unet.state_dict())
    state["strange.weight"] = state.pop("conv_in.conv.weight")
    state["conv_in.conv.bias"] = torch.zeros(3)
    torch.save({"unet_state_dict": state, "scale_factor": 1.0}, files[1])
    with pytest.raises(WeightsError) as caught:
        import_files(files)
    said = str(caught.value)
    for phrase in ("conv_in.conv.weight is missing", "strange.weight is unknown", "shape (3,), not (8,)", "unet"):
        assert phrase in said
    assert not (tmp_path / "home" / "models").exists()


def test_other_mistakes_get_a_sentence(tiny_models: Path, tmp_path: Path) -> None:
    _, files = nvidia_files(tmp_path / "nvidia")
    other, _ = nvidia_files(tmp_path / "other")
    torch.save({"unet_state_dict": other.unet.state_dict()}, tmp_path / "bare.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    for given, model, sentence in (
        ([tmp_path / "bare.pt"], "maisi-ct-rflow", "no scale_factor"),
        ([tmp_path / "empty.pt"], "maisi-ct-rflow", "holds no network's tensors"),
        ([files[0], files[0]], "maisi-ct-rflow", "two of the files are the autoencoder"),
        ([files[0]], None, "name it with --model"),
        ([files[1]], "maisi-ct-ddpm", "does not fit the unet"),
        ([tmp_path / "gone.pt"], "maisi-ct-rflow", "does not exist"),
        ([files[0]], "compact", "no files to get or import"),
    ):
        with pytest.raises(WeightsError, match=sentence):
            import_files(given, model)


def test_safetensors_are_read_too(tiny_models: Path, tmp_path: Path) -> None:
    _, files = nvidia_files(tmp_path / "nvidia")
    folder = import_files(files[:2])
    again = read_checkpoint(folder / "unet.safetensors")
    assert again.scale_factor == pytest.approx(0.9)
    assert again.tensors.keys() == read_checkpoint(files[1]).tensors.keys()


# --- the command ------------------------------------------------------------------------------------------


def test_list_says_what_is_missing_and_import_fills_it(tiny_models: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    _, files = nvidia_files(tmp_path / "nvidia")
    assert main(["weights", "list"]) == 0
    listed = capsys.readouterr().out
    assert "maisi-mr-rflow: not installed (diffugts weights get maisi-mr-rflow)" in listed
    assert "non-commercial" in listed
    assert main(["weights", "import", *map(str, files), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert main(["weights", "list", "--json"]) == 0
    models = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert models["maisi-ct-rflow"]["installed"]
    assert not models["maisi-ct-ddpm"]["installed"]
    assert models["maisi-mr-rflow"]["non_commercial"]
    assert main(["weights", "verify"]) == 0
    with open(tmp_path / "home" / "models" / "maisi-ct-rflow" / "unet.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    assert main(["weights", "verify"]) == 1
    assert "damaged" in capsys.readouterr().out


def test_home_is_chosen_by_option_then_variable_and_never_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIFFUGTS_HOME", str(tmp_path / "variable"))
    assert home_folder(tmp_path / "option") == tmp_path / "option"
    assert home_folder() == tmp_path / "variable"
    monkeypatch.delenv("DIFFUGTS_HOME")
    assert home_folder().name == "diffugts"
    monkeypatch.setenv("DIFFUGTS_HOME", str(tmp_path / "nowhere"))
    assert model_folder("compact").name == "compact"
    assert not (tmp_path / "nowhere").exists()


# --- download ---------------------------------------------------------------------------------------------


class Shelf(BaseHTTPRequestHandler):
    """Serves `files`; `cut` ends the connection early, `ranges` answers range requests."""

    files: dict[str, bytes]
    asked: list[str]
    cut: int
    ranges: bool

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range", ""))
        data = self.files.get(self.path.rsplit("/", 1)[-1])
        if data is None:
            self.send_error(404)
            return
        start = int(self.headers["Range"][6:-1]) if "Range" in self.headers and self.ranges else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + self.cut] if self.cut else data[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[Shelf], str]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = type("Handler", (Shelf,), {"files": {}, "asked": [], "cut": 0, "ranges": True})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_download_that_breaks_off_goes_on(shelf, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    handler, url = shelf
    data = bytes(range(256)) * 40
    handler.files["a.pt"], handler.cut = data, 4000
    source = Source(f"{url}/x/a.pt", 10**6)
    with pytest.raises(WeightsError, match="run it again to go on"):
        download(source, tmp_path)
    assert not (tmp_path / "a.pt").exists()
    handler.cut = 0
    assert download(source, tmp_path).read_bytes() == data
    assert handler.asked == ["", "bytes=4000-"]
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_without_ranges_and_a_finished_part_end_well(shelf, tmp_path: Path, ranges: bool) -> None:  # type: ignore[no-untyped-def]
    handler, url = shelf
    handler.files["a.pt"], handler.ranges = b"whole" * 100, ranges
    (tmp_path / "a.pt.part").write_bytes(b"whole" * (100 if ranges else 7))
    assert download(Source(f"{url}/a.pt", 10**6), tmp_path).read_bytes() == b"whole" * 100


def test_sha256_is_noted_at_first_and_must_agree_later(shelf, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    handler, url = shelf
    handler.files["a.pt"] = b"first"
    source = Source(f"{url}/a.pt", 10**6)
    download(source, tmp_path).unlink()
    assert len(json.loads((tmp_path / "sha256.json").read_text())["a.pt"]) == 64
    handler.files["a.pt"] = b"other"
    with pytest.raises(WeightsError, match="changed or damaged"):
        download(source, tmp_path)
    assert not (tmp_path / "a.pt").exists()
    with pytest.raises(WeightsError, match="changed or damaged"):
        download(Source(f"{url}/a.pt", 10**6, "0" * 64), tmp_path)


@pytest.mark.parametrize(
    ("path", "cap", "sentence"),
    [("big.pt", 10, "larger than"), ("gone.pt", 10**6, "answered 404")],
)
def test_too_large_or_not_there_is_refused(shelf, tmp_path: Path, path: str, cap: int, sentence: str) -> None:  # type: ignore[no-untyped-def]
    handler, url = shelf
    handler.files["big.pt"] = b"0" * 1000
    with pytest.raises(WeightsError, match=sentence):
        download(Source(f"{url}/{path}", cap), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unreachable_and_strange_addresses_get_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(WeightsError, match="cannot be reached"):
        download(Source("http://127.0.0.1:9/a.pt", 10), tmp_path)
    with pytest.raises(WeightsError, match="no web address"):
        download(Source("file:///etc/passwd", 10), tmp_path)


def test_get_downloads_and_imports_and_is_refused_offline(tiny_models, shelf, tmp_path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    handler, url = shelf
    _, files = nvidia_files(tmp_path / "nvidia")
    handler.files |= {path.name: path.read_bytes() for path in files}
    assert main(["weights", "get", "maisi-ct-rflow", "--mirror", url, "--offline"]) == 1
    assert "network is off" in capsys.readouterr().err
    monkeypatch.setenv("DIFFUGTS_OFFLINE", "1")
    assert main(["weights", "get", "maisi-ct-rflow", "--mirror", url]) == 1
    assert handler.asked == []
    monkeypatch.setenv("DIFFUGTS_OFFLINE", "0")
    assert not is_offline()
    assert main(["weights", "get", "maisi-ct-rflow", "--mirror", url, "--controlnet"]) == 0
    assert "NVIDIA Open Model License" in capsys.readouterr().err
    assert verify(model_folder("maisi-ct-rflow")) == []
    assert len(handler.asked) == 3
    assert [path.name for path in (tmp_path / "home" / "downloads").iterdir()] == ["sha256.json"]
