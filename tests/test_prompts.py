"""Prompts: what each phrase is understood as, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffugts import prompts
from diffugts.errors import PromptError
from diffugts.prompts import MAX_SLUG, anatomies, lexicon_phrases, parse, parse_all

# phrase, anatomy, finding
ASKED = [
    ("tumor", None, "tumor"),
    ("Tumours", None, "tumor"),
    ("lesion", None, "tumor"),
    ("cancer", None, "tumor"),
    ("metastases", None, "metastasis"),
    ("sarcoma", None, "sarcoma"),
    ("liver tumor", "liver", "tumor"),
    ("Liver Tumour", "liver", "tumor"),
    ("  LIVER   TUMORS ", "liver", "tumor"),
    ("liver_tumor", "liver", "tumor"),
    ("liver-tumor", "liver", "tumor"),
    ("tumor (liver)", "liver", "tumor"),
    ("hepatic mass", "liver", "tumor"),
    ("hepatic neoplasms", "liver", "tumor"),
    ("HCC", "liver", "tumor"),
    ("h.c.c.", "liver", "tumor"),
    ("hepatoma", "liver", "tumor"),
    ("hepatocellular carcinoma", "liver", "tumor"),
    ("hemangioma of the liver", "liver", "tumor"),
    ("haemangiomata in the liver", "liver", "tumor"),
    ("abdominal tumor in the liver", "liver", "tumor"),
    ("liver mets", "liver", "metastasis"),
    ("CRLM", "liver", "metastasis"),
    ("colorectal liver metastases", "liver", "metastasis"),
    ("liver metastases from colorectal cancer", "liver", "metastasis"),
    ("colon cancer metastasis in the liver", "liver", "metastasis"),
    ("HCC metastasis in the lung", "lung", "metastasis"),
    ("metastasis from colorectal cancer", None, "metastasis"),
    ("liver cyst", "liver", "cyst"),
    ("hepatic vessel tumor", "hepatic vessel", "tumor"),
    ("RCC", "kidney", "tumor"),
    ("ccRCC", "kidney", "tumor"),
    ("clear cell renal cell carcinoma", "kidney", "tumor"),
    ("renal cysts", "kidney", "cyst"),
    ("nephroblastoma", "kidney", "tumor"),
    ("Wilms' tumor", "kidney", "tumor"),
    ("Wilms\u2019 tumour", "kidney", "tumor"),
    ("PDAC", "pancreas", "tumor"),
    ("mass in the head of the pancreas", "pancreas", "tumor"),
    ("pancreatic pseudocyst", "pancreas", "cyst"),
    ("NSCLC", "lung", "tumor"),
    ("non-small-cell lung cancer", "lung", "tumor"),
    ("pulmonary nodules", "lung", "tumor"),
    ("stage IV lung cancer", "lung", "tumor"),
    ("CRC", "colon", "tumor"),
    ("colonic polyp", "colon", "tumor"),
    ("rectal adenocarcinoma", "colon", "tumor"),
    ("splenic lesion", "spleen", "tumor"),
    ("GBM", "brain", "tumor"),
    ("glioma", "brain", "tumor"),
    ("Glioblastoma multiforme", "brain", "tumor"),
    ("meningioma", "brain", "tumor"),
    ("cerebral metastasis", "brain", "metastasis"),
    ("brain metastasis of lung cancer", "brain", "metastasis"),
    ("tumour core", None, "tumor"),
    ("MS lesions", "brain", "abnormality"),
    ("soft tissue sarcoma", "soft tissue", "sarcoma"),
    ("Soft-tissue sarcomas", "soft tissue", "sarcoma"),
    ("STS", "soft tissue", "sarcoma"),
    ("liposarcoma of the thigh", "soft tissue", "sarcoma"),
    ("retroperitoneal liposarcoma", "retroperitoneum", "sarcoma"),
    ("leiomyosarcoma of the uterus", "uterus", "sarcoma"),
    ("osteosarcoma", "bone", "sarcoma"),
    ("vertebral metastases", "bone", "metastasis"),
    ("lymphoma", "lymph node", "tumor"),
    ("non-Hodgkin's lymphoma", "lymph node", "tumor"),
    ("lymphoma in the spleen", "spleen", "tumor"),
    ("cervical lymph node metastases", "lymph node", "metastasis"),
    ("oesophageal carcinoma", "esophagus", "tumor"),
    ("gastric cancer", "stomach", "tumor"),
    ("head and neck cancer", "head and neck", "tumor"),
    ("head & neck squamous cell carcinoma", "head and neck", "tumor"),
    ("phaeochromocytoma", "adrenal gland", "tumor"),
    ("adrenal mass", "adrenal gland", "tumor"),
    ("prostate cancer", "prostate", "tumor"),
    ("breast lump", "breast", "tumor"),
    ("ovarian cyst", "ovary", "cyst"),
    ("urinary bladder tumor", "bladder", "tumor"),
    ("gall-bladder carcinoma", "gallbladder", "tumor"),
    ("thyroid nodule", "thyroid", "tumor"),
    ("mediastinal mass", "mediastinum", "tumor"),
    ("pelvic mass", "pelvis", "tumor"),
    ("schwannoma", None, "tumor"),
    ("find the tumour in the left kidney, please", "kidney", "tumor"),
    ("Is there a mass in the pancreas?", "pancreas", "tumor"),
    ("rule out liver tumor", "liver", "tumor"),
    ("kidney tumor adjacent to the liver", "kidney", "tumor"),
    ("liver tumor without necrosis", "liver", "tumor"),
    ("liver tumor without metastases", "liver", "tumor"),
    ("liver tumor not invading the portal vein", "liver", "tumor"),
    ("liver tumor, ignore cysts", "liver", "tumor"),
    ("without contrast, liver tumor", "liver", "tumor"),
    ("CT without contrast showing a liver tumor", "liver", "tumor"),
    ("non-contrast CT, liver tumor", "liver", "tumor"),
    ("non-enhancing brain tumor", "brain", "tumor"),
    ("non-malignant liver lesion", "liver", "tumor"),
    ("normal brain except for a tumor", "brain", "tumor"),
    ("tumor in an otherwise healthy liver", "liver", "tumor"),
    ("no tumor but a cyst in the left kidney", "kidney", "cyst"),
    ("no doubt a liver tumor", "liver", "tumor"),
    ("abnormal liver", "liver", "abnormality"),
    ("the liver is not normal", "liver", "abnormality"),
    ("suspicious area in the liver", "liver", "abnormality"),
    ("liver", "liver", "abnormality"),
]

DENIED = [
    ("no tumor", None),
    ("not a tumor", None),
    ("negative for malignancy", None),
    ("healthy", None),
    ("healthy liver", "liver"),
    ("normal brain", "brain"),
    ("unremarkable pancreas", "pancreas"),
    ("lungs are clear", "lung"),
    ("both kidneys are normal", "kidney"),
    ("liver without lesions", "liver"),
    ("liver w/o lesions", "liver"),
    ("no evidence of liver tumor", "liver"),
    ("the patient has no liver tumour", "liver"),
    ("liver free of tumor", "liver"),
    ("tumor-free liver", "liver"),
    ("disease-free colon", "colon"),
    ("non-tumorous liver", "liver"),
    ("liver: no tumor", "liver"),
    ("tumors not seen in the liver", "liver"),
    ("liver tumor absent", "liver"),
    ("there isn't any tumor in the liver", "liver"),
    ("neither tumor nor cyst in the liver", "liver"),
    ("no mass, cyst or lesion in the kidney", "kidney"),
    ("no edema, mass or midline shift in the brain", "brain"),
    ("healthy liver with no tumor", "liver"),
    ("spleen with no abnormality", "spleen"),
]


@pytest.mark.parametrize(("text", "anatomy", "finding"), ASKED)
def test_asked(text: str, anatomy: str | None, finding: str) -> None:
    prompt = parse(text)
    assert (prompt.anatomy, prompt.finding, prompt.negated) == (anatomy, finding, False)
    assert prompt.known


@pytest.mark.parametrize(("text", "anatomy"), DENIED)
def test_denied(text: str, anatomy: str | None) -> None:
    prompt = parse(text)
    assert (prompt.anatomy, prompt.negated, prompt.known) == (anatomy, True, True)


@pytest.mark.parametrize(
    "same",
    [
        [
            "liver tumor",
            "HCC",
            "hepatoma",
            "hepatic neoplasms",
            "Liver Tumour",
            "a mass in the liver",
            "liver lesion",
        ],
        [
            "kidney tumor",
            "RCC",
            "renal mass",
            "nephroblastoma",
            "tumour of the left kidney",
            "right kidney cancer",
        ],
        ["brain tumor", "GBM", "glioma", "glioblastoma", "cerebral tumour", "meningioma"],
        ["soft tissue sarcoma", "STS", "liposarcoma", "soft-tissue sarcomas"],
        ["liver metastasis", "liver mets", "hepatic metastases", "metastatic lesions in the liver"],
    ],
)
def test_synonyms_share_their_phrases(same: list[str]) -> None:
    assert len({(p.abnormal, p.normal) for p in map(parse, same)}) == 1


@pytest.mark.parametrize(
    ("text", "anywhere"),
    [("tumor", True), ("lesion", True), ("no tumor", True), ("liver tumor", False), ("glioma", False),
     ("appendix tumor", False), ("calcification", False)],
)  # fmt: skip
def test_anywhere_is_what_names_no_organ(text: str, anywhere: bool) -> None:
    assert parse(text).anywhere is anywhere


def test_phrases_are_short_and_separate() -> None:
    liver, anything = parse("liver tumor"), parse("tumor")
    assert 4 <= len(liver.abnormal) <= 6
    assert 4 <= len(liver.normal) <= 6
    assert all("liver" in phrase for phrase in liver.abnormal + liver.normal)
    assert "tumor" in anything.abnormal
    assert not set(liver.abnormal) & set(liver.normal)
    assert max(len(phrase.split()) for phrase in lexicon_phrases()) <= 6


def test_no_phrase_holds_a_negation() -> None:
    """The encoder reads negation wrongly, so it never gets one."""
    words = {word for phrase in lexicon_phrases() for word in phrase.split()}
    assert not words & {"no", "not", "without", "free", "non"}


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("left kidney tumor", "left"),
        ("Right-sided renal mass", "right"),
        ("left and right kidney tumor", None),
        ("kidney tumor", None),
    ],
)
def test_laterality_is_kept_and_changes_no_phrase(text: str, side: str | None) -> None:
    prompt = parse(text)
    assert prompt.laterality == side
    assert prompt.abnormal == parse("kidney tumor").abnormal


def test_words_outside_the_lexicon() -> None:
    free = parse("pneumothorax")
    assert (free.anatomy, free.finding, free.known) == (None, "pneumothorax", False)
    assert free.abnormal[0] == "pneumothorax"
    assert parse("no pneumothorax").negated
    abscess = parse("liver abscess")
    assert (abscess.anatomy, abscess.finding, abscess.known) == ("liver", "abscess", False)
    assert abscess.abnormal[0] == "liver abscess"
    assert abscess.normal == parse("liver tumor").normal
    unlisted = parse("appendix tumor")
    assert (unlisted.anatomy, unlisted.finding, unlisted.known) == (None, "tumor", False)
    assert "appendix tumor" in unlisted.abnormal
    assert parse("hematoma").finding == "hematoma", "the suffix -oma does not make it a tumor"
    assert parse("\u809d\u816b\u7624").finding == "\u809d\u816b\u7624"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \t\n", "empty"),
        ("\u00a0", "empty"),
        ("?!, --", "no letter"),
        ("123", "no letter"),
        ("tumor " * 60, "359 characters, the most is 200"),
        ("liver\x00tumor", "control characters"),
        ("liver\ntumor", "control characters"),
        ("liver \x1b[31mtumor", "control characters"),
        ("liver\u202etumor", "control characters"),
        ("liver \ud800 tumor", "control characters"),
        ("please find the", "no anatomy and no finding"),
        ("left", "no anatomy and no finding"),
        ("liver and kidney tumors", "both liver and kidney"),
        ("lung cancer and liver metastases", "both lung and liver"),
        (None, "this is NoneType"),
        (7, "this is int"),
    ],
)
def test_bad_prompts_get_one_sentence(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        parse(text)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert sentence.isprintable()
    assert len(sentence) < 200


def test_slugs_are_safe_and_never_collide() -> None:
    texts = [text for text, *_ in ASKED + DENIED] + [
        "liver tumor",
        "liver tumor_",
        "liver  tumor",
        "liver/tumor",
        "../../etc/passwd tumor",
        "con",
        "nul",
        "liver tumor ec6899ed",
        "\u809d\u816b\u7624",
        "\u809d",
        "t" * 200,
        "t" * 199,
        "tum\u00f6r",
        "tumor.",
        "liver tumor " * 12,
        "liver tumor " * 13,
    ]
    prompts_ = parse_all(texts)
    slugs = [prompt.slug for prompt in prompts_]
    assert len(set(slugs)) == len(prompts_) == len({text.strip() for text in texts})
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9_-]*", slug) and len(slug) <= MAX_SLUG for slug in slugs)
    assert not {"con", "nul"} & set(slugs)
    assert parse("liver tumor").slug == "liver-tumor"


PIECES = [
    *("no", "not", "without", "healthy", "free", "but", "and", "or", "from", ",", ".", "-"),
    *("liver", "left", "tumor", "HCC", "metastases", "contrast", "xyz", "the"),
]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        prompt = parse(text)
    except PromptError:
        return
    assert prompt.finding
    assert prompt.abnormal
    assert prompt.normal
    assert all(phrase == " ".join(phrase.split()) for phrase in prompt.abnormal + prompt.normal)
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", prompt.slug)
    assert parse(prompt.text) == prompt


def test_parse_all_drops_exact_duplicates_and_keeps_order() -> None:
    parsed = parse_all(["lung tumor", "liver tumor", " lung tumor ", "Lung tumor"])
    assert [prompt.text for prompt in parsed] == ["lung tumor", "liver tumor", "Lung tumor"]


def test_to_dict_is_json() -> None:
    prompt = parse("left kidney tumor")
    back = json.loads(json.dumps(prompt.to_dict()))
    assert back["laterality"] == "left"
    assert back["abnormal"] == list(prompt.abnormal)
    assert set(back) == set(prompt.__dataclass_fields__)


def test_the_lexicon_gives_no_word_two_meanings() -> None:
    counts = Counter(" ".join(map(prompts._singular, prompts._words(phrase))) for phrase, _ in prompts._entries())
    assert {phrase: n for phrase, n in counts.items() if n > 1} == {}


@pytest.mark.parametrize("anatomy", anatomies())
def test_every_anatomy_is_understood(anatomy: str) -> None:
    for finding in ("tumor", "metastasis", "sarcoma", "cyst", "abnormality"):
        prompt = parse(f"{anatomy} {finding}")
        assert (prompt.anatomy, prompt.finding, prompt.known) == (anatomy, finding, True)


def test_prompts_import_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "monai", "numpy", "safetensors"}
    code = "import sys; from diffugts.prompts import parse; parse('HCC');"
    code += f"print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
