"""Text encoders: stored vectors, the text model, and what happens when it is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from diffugts import text
from diffugts.errors import PromptError, WeightsError
from diffugts.prompts import anatomies, lexicon_phrases, parse
from diffugts.text import CachedEncoder, MiniLMEncoder, default_encoder, load_encoder, prompt_vectors

needs_text_model = pytest.mark.skipif(
    find_spec(text.MINILM_PACKAGE) is None or find_spec("transformers") is None,
    reason="the extra diffugts[text] is not installed",
)


class HashEncoder:
    """A stand-in for a text model: any phrase to a reproducible vector of 8 numbers."""

    name = "hash"
    dim = 8

    def encode(self, phrases: Sequence[str]) -> npt.NDArray[np.float32]:
        raw = [np.random.default_rng(list(p.encode())).normal(size=self.dim) for p in phrases]
        rows = np.array(raw, np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def cached() -> CachedEncoder:
    return CachedEncoder()


@pytest.fixture
def no_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "find_spec", lambda name: None)


def test_the_cache_belongs_to_the_lexicon(cached: CachedEncoder) -> None:
    assert cached.phrases_sha256 == text.phrases_sha256(lexicon_phrases()), "run `python -m diffugts.text`"


def test_the_cache_is_small() -> None:
    assert sum(path.stat().st_size for path in text.CACHE.parent.iterdir()) < 1.5e6


def test_cached_vectors(cached: CachedEncoder) -> None:
    vectors = cached.encode(["liver tumor", "healthy liver", "liver tumor"])
    assert vectors.shape == (3, cached.dim) == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert cached.encode([]).shape == (0, 384)


def test_synonyms_have_equal_vectors(cached: CachedEncoder) -> None:
    pairs = [prompt_vectors(parse(t), cached) for t in ("liver tumor", "HCC", "hepatic neoplasms", "Liver Tumour")]
    for abnormal, normal in pairs:
        assert abnormal.shape == normal.shape == (384,)
        np.testing.assert_array_equal(abnormal, pairs[0][0])
        np.testing.assert_array_equal(normal, pairs[0][1])
        assert np.linalg.norm(abnormal) == pytest.approx(1, abs=1e-6)


def test_normal_and_abnormal_separate_on_held_out_organs(cached: CachedEncoder) -> None:
    """The direction learned on all other organs tells all normal phrases of one from its abnormal ones."""
    pairs = np.array([prompt_vectors(parse(f"{a} tumor"), cached) for a in anatomies()])
    for at, anatomy in enumerate(anatomies()):
        direction = np.delete(pairs[:, 0] - pairs[:, 1], at, axis=0).mean(axis=0)
        prompt = parse(f"{anatomy} tumor")
        assert min(cached.encode(prompt.abnormal) @ direction) > max(cached.encode(prompt.normal) @ direction)


def test_the_nearest_organ_is_the_right_one(cached: CachedEncoder) -> None:
    centres = np.stack([np.mean(prompt_vectors(parse(f"{a} tumor"), cached), axis=0) for a in anatomies()])
    for phrase, organ in [
        ("HCC", "liver"),
        ("RCC", "kidney"),
        ("PDAC", "pancreas"),
        ("NSCLC", "lung"),
        ("GBM", "brain"),
    ]:
        abnormal, _ = prompt_vectors(parse(phrase), cached)
        assert anatomies()[int((centres @ abnormal).argmax())] == organ


def test_unknown_text_without_the_text_model_gives_its_sentence(no_text_model: None) -> None:
    with pytest.raises(PromptError, match=r"pip install \"diffugts\[text\]\"") as caught:
        prompt_vectors(parse("liver abscess"), default_encoder())
    assert "'liver abscess'" in str(caught.value)
    with pytest.raises(WeightsError, match="not installed"):
        load_encoder("minilm")


def test_known_prompts_need_no_text_model(no_text_model: None, cached: CachedEncoder) -> None:
    prompt = parse("liver tumor")
    np.testing.assert_array_equal(prompt_vectors(prompt, default_encoder()), prompt_vectors(prompt, cached))


def test_the_cached_encoder_refuses_other_phrases(cached: CachedEncoder) -> None:
    assert "liver tumor" in cached
    with pytest.raises(PromptError, match="'liver abscess' has no stored vector"):
        cached.encode(["liver tumor", "liver abscess"])


def test_cache_round_trip(tmp_path: Path) -> None:
    path, encoder = tmp_path / "hash.safetensors", HashEncoder()
    text.build_cache(path, encoder)
    first = path.read_bytes(), path.with_suffix(".json").read_bytes()
    text.build_cache(path, encoder)
    assert first == (path.read_bytes(), path.with_suffix(".json").read_bytes())
    read = CachedEncoder(path)
    assert (read.name, read.dim) == ("hash", 8)
    np.testing.assert_allclose(read.encode(lexicon_phrases()), encoder.encode(lexicon_phrases()), atol=1e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hash.json", "hash.safetensors"]


def test_damaged_cache(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(WeightsError, match="cannot be read"):
        CachedEncoder(path)
    text.build_cache(path, HashEncoder())
    card = json.loads(path.with_suffix(".json").read_text())
    card["phrases"][0] = "something else"
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(WeightsError, match="do not match"):
        CachedEncoder(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="cannot be read"):
        CachedEncoder(path)


def test_load_encoder_by_name() -> None:
    assert isinstance(load_encoder("cached"), CachedEncoder)
    assert load_encoder().name == load_encoder("cached").name == "minilm"
    with pytest.raises(WeightsError, match="'nonsense': give one of default, cached, minilm"):
        load_encoder("nonsense")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load_encoder(tmp_path).encode(["liver tumor"])


@needs_text_model
def test_a_folder_with_a_damaged_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_encoder(tmp_path).encode(["liver tumor"])


@needs_text_model
def test_cached_vectors_equal_the_model(cached: CachedEncoder) -> None:
    phrases = lexicon_phrases()[::40]
    model = load_encoder("minilm")
    assert (model.name, model.dim) == (cached.name, cached.dim)
    np.testing.assert_allclose(cached.encode(phrases), model.encode(phrases), atol=5e-4)


@needs_text_model
def test_free_text_and_a_local_folder() -> None:
    default = default_encoder()
    mixed = default.encode(["liver tumor", "liver abscess"])
    folder = load_encoder(MiniLMEncoder().folder)
    np.testing.assert_allclose(mixed, folder.encode(["liver tumor", "liver abscess"]), atol=5e-4)
    assert mixed[0] @ mixed[1] > mixed[1] @ default.encode(["knee replacement"])[0]
    assert folder.encode([]).shape == (0, 384)
    alone, padded = (
        folder.encode(["liver abscess"])[0],
        folder.encode(["liver abscess", "a much longer phrase " * 5])[0],
    )
    np.testing.assert_allclose(alone, padded, atol=1e-5)


@needs_text_model
def test_the_text_model_is_frozen() -> None:
    _, model = MiniLMEncoder()._model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_known_prompts_load_no_torch() -> None:
    code = (
        "import sys; from diffugts.prompts import parse; from diffugts.text import *;"
        "prompt_vectors(parse('HCC'), default_encoder());"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
