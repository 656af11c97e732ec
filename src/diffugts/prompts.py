"""Text prompts: what a phrase asks for, as anatomy, finding, negation and a pair of phrase ensembles.

Sentence encoders read negation wrongly and let the organ drown the finding, so a prompt never goes to one as
it was typed. A small lexicon (`lexicon.json`) gives words their meaning, rules read negation with its scope,
and the encoder only ever sees short noun phrases: about five abnormal and five normal ones per prompt.
Two prompts that mean the same thing therefore have the same phrases and the same vectors.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diffugts.errors import PromptError

MAX_CHARACTERS = 200
MAX_SLUG = 48
ANY_TUMOR = "tumor"  # the prompt that means a tumour of whatever organ
UNSPECIFIC = "abnormality"  # the finding of a prompt that names only an organ, or only health

Laterality = Literal["left", "right"]

_EXAMPLE = "write a short phrase such as 'liver tumor'"
_PLURALS = (("s", ""), ("es", ""), ("es", "is"), ("ies", "y"), ("ta", ""), ("ae", "a"))
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)\d)")  # names that Windows keeps for devices


@dataclass(frozen=True)
class Prompt:
    """A prompt as understood.

    Attributes:
        text: as the user wrote it, stripped.
        slug: a folder name, at most 48 characters of a-z, 0-9, "-" and "_"; other texts have other slugs.
        anatomy: canonical name, None when the prompt is about any anatomy or one that the lexicon lacks.
        finding: canonical name ("tumor", "metastasis", "sarcoma", "cyst", "abnormality"), or free text.
        negated: the prompt states that the finding is absent ("healthy liver", "no evidence of liver tumor").
            The two ensembles are not swapped: `abnormal` is still what would have to be absent.
        laterality: "left" or "right" when exactly one is named. Kept for the record: it changes no phrase.
        abnormal: phrases of the abnormal ensemble.
        normal: phrases of the normal ensemble.
        known: every phrase comes from the lexicon, so its vector ships with the package.
    """

    text: str
    slug: str
    anatomy: str | None
    finding: str
    negated: bool
    laterality: Laterality | None
    abnormal: tuple[str, ...]
    normal: tuple[str, ...]
    known: bool

    @property
    def anywhere(self) -> bool:
        """It names no organ, so that it asks whether something is there at all."""
        return self.anatomy is None and self.known

    def to_dict(self) -> dict[str, Any]:
        """The same fields, ready for JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


def parse(text: str) -> Prompt:
    """Understand one prompt: a phrase, an abbreviation or a whole sentence in English.

    One prompt is one target. Where it names several findings, those that are not negated come first, then the
    more specific (a metastasis before a tumor), then the earlier; two organs joined by "and" are refused.
    A text that the lexicon does not know becomes a free-text finding (`known` False): its phrases need a text
    encoder.

    Raises:
        PromptError: empty, without a letter, over 200 characters, with control characters, naming neither
            anatomy nor finding, or naming several organs.
    """
    text = _checked(text)
    items = _read(text)
    _refuse_two_targets(text, items)
    items = _without_asides(items)
    items = [i._replace(negated=flag) for i, flag in zip(items, _negation(items), strict=True)]

    found = [i for i in items if i.finding]
    healthy = [i for i in items if i.kind == "healthy"]
    unknown = [i.word for i in items if i.kind == "unknown"]
    main = max(found, key=lambda i: (not i.negated, _specificity(i.finding)), default=None)
    anatomy = _anatomy(items, main)

    if main is None and not healthy:
        loose = [i for i in items if i.kind in ("unknown", "attribute")]
        if loose:
            rest = " ".join(i.word for i in loose)
            return _prompt(text, items, anatomy, rest, loose[0].negated, free_text=True)
        if anatomy is None:
            raise PromptError(f"The prompt {_quote(text)} names no anatomy and no finding: {_EXAMPLE}.")

    finding = UNSPECIFIC if main is None else main.finding
    negated = all(i.negated for i in found) if found else any(not i.negated for i in healthy)
    organ = " ".join(unknown[:4]) if anatomy is None else None  # "appendix tumor": not in the lexicon
    return _prompt(text, items, anatomy, finding, negated, organ=organ)


def parse_all(texts: Iterable[str]) -> list[Prompt]:
    """Parse several prompts; exact duplicates (after stripping) are dropped, the order is kept."""
    return list({prompt.text: prompt for prompt in map(parse, texts)}.values())


def lexicon_phrases() -> tuple[str, ...]:
    """Every phrase that a known prompt can have, sorted: what the vector cache must hold."""
    lexicon = _lexicon()
    anatomies = [None, *lexicon["anatomies"]]
    phrases = {phrase for a in anatomies for phrase in _normal(a)}
    phrases.update(phrase for a in anatomies for f in lexicon["findings"] for phrase in _abnormal(f, a))
    return tuple(sorted(phrases))


def anatomies() -> tuple[str, ...]:
    """The canonical anatomies of the lexicon."""
    return tuple(_lexicon()["anatomies"])


def findings() -> tuple[str, ...]:
    """The canonical findings of the lexicon."""
    return tuple(_lexicon()["findings"])


# --- the phrases ------------------------------------------------------------------------------------------


def _prompt(
    text: str,
    items: Sequence[_Item],
    anatomy: str | None,
    finding: str,
    negated: bool,
    *,
    organ: str | None = None,
    free_text: bool = False,
) -> Prompt:
    sides = {i.word for i in items if i.kind == "side"}
    if free_text:
        phrase = f"{anatomy} {finding}" if anatomy else finding
        abnormal = tuple(t.format(t=phrase) for t in _lexicon()["free_text"])
    else:
        abnormal = _abnormal(finding, anatomy or organ)
    return Prompt(
        text=text,
        slug=_slug(text),
        anatomy=anatomy,
        finding=finding,
        negated=negated,
        laterality=("left" if "left" in sides else "right") if len(sides) == 1 else None,
        abnormal=abnormal,
        normal=_normal(anatomy or organ),
        known=not free_text and not organ,
    )


def _abnormal(finding: str, organ: str | None) -> tuple[str, ...]:
    lexicon = _lexicon()
    if not organ and finding in lexicon["any_anatomy"]:
        return tuple(lexicon["any_anatomy"][finding])
    return tuple(" ".join(t.format(a=organ or "").split()) for t in lexicon["findings"][finding]["phrases"])


def _normal(organ: str | None) -> tuple[str, ...]:
    lexicon = _lexicon()
    if not organ:
        return tuple(lexicon["any_anatomy"]["normal"])
    tissue = lexicon["anatomies"].get(organ, {}).get("tissue", "tissue")
    return tuple(t.format(a=organ, tissue=tissue) for t in lexicon["normal"])


def _slug(text: str) -> str:
    """Folder name. Lower-case words with single spaces pass as they are; all others also carry a hash."""
    words = re.findall("[a-z0-9]+", _fold(text))
    slug = "-".join(words)
    if slug.replace("-", " ") == text and len(slug) <= MAX_SLUG and not _RESERVED.fullmatch(slug):
        return slug
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{slug[: MAX_SLUG - 9].strip('-') or 'prompt'}_{digest}"  # "_" occurs in no plain slug


# --- reading ----------------------------------------------------------------------------------------------


class _Item(NamedTuple):
    """One recognised phrase, or one word that is not in the lexicon."""

    # anatomy, finding, disease (both at once), before, after, end (of a negation's scope), healthy, side,
    # aside, attribute, list, filler, unknown
    kind: str
    word: str
    anatomy: str | None = None
    finding: str = ""
    negated: bool = False


def _read(text: str) -> list[_Item]:
    """Split a text into items, the longest lexicon entry first."""
    index, longest = _index()
    words = [_singular(word) for word in _words(text)]
    items: list[_Item] = []
    at = 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            item = index.get(tuple(words[at : at + length]))
            if item:
                break
        else:
            length, item = 1, _by_suffix(words[at])
        items.append(item)
        at += length
    return items


def _refuse_two_targets(text: str, items: Sequence[_Item]) -> None:
    """One prompt is one target: "liver and kidney tumors" would otherwise silently lose one of the two."""
    regions = _regions()
    joined, previous = False, None
    for item in items:
        if item.kind == "list":
            joined |= item.word in ("and", "or")
        elif item.kind in ("end", "aside", "before", "healthy"):
            previous = None
        elif item.anatomy and item.anatomy not in regions:
            if joined and previous not in (None, item.anatomy):
                both = f"{previous} and {item.anatomy}"
                raise PromptError(f"The prompt {_quote(text)} names both {both}: give one prompt for each.")
            previous, joined = item.anatomy, False


def _without_asides(items: Sequence[_Item]) -> list[_Item]:
    """Drop origins and neighbours: "liver metastases from colon cancer", "liver tumor near the spleen"."""
    kept: list[_Item] = []
    skipping = False
    for item in items:
        if item.kind == "aside":
            located = any(i.anatomy for i in kept) or any(i.finding == "metastasis" for i in kept)
            skipping = located or item.word == "history of"
        elif item.kind == "end" or item.word == ",":
            skipping = False
        if not skipping and item.kind != "aside":
            kept.append(item)
    return kept


def _negation(items: Sequence[_Item]) -> list[bool]:
    """Which items a negation governs.

    A cue before ("no", "without") governs what follows up to "but", a full stop or the next cue. A comma ends
    it too, unless an "or" shows a list. An attribute ends it: "without contrast showing a tumor". A cue
    after ("tumor free", "lesions absent") governs the finding right before it.
    """
    governed = [False] * len(items)
    for start, cue in enumerate(items):
        if cue.kind == "before":
            for at in _scope(items, start + 1):
                governed[at] = True
        elif cue.kind == "after":
            before = [at for at in range(start) if items[at].kind != "filler"]
            if before and (items[before[-1]].finding or items[before[-1]].kind == "unknown"):
                governed[before[-1]] = True
    return governed


def _scope(items: Sequence[_Item], start: int) -> Iterator[int]:
    for at in range(start, len(items)):
        item, rest = items[at], items[at + 1 :]
        if item.kind in ("end", "before") or (item.word == "," and not any(i.word == "or" for i in rest)):
            return
        yield at
        if item.kind == "attribute" and not (rest and rest[0].kind == "list"):
            return


def _anatomy(items: Sequence[_Item], main: _Item | None) -> str | None:
    """The organ of the main finding: named next to it, else implied by it ("hepatoma")."""
    regions = _regions()
    named = [(at, i.anatomy) for at, i in enumerate(items) if i.kind == "anatomy"]
    named = [n for n in named if n[1] not in regions] or named  # "abdominal tumor in the liver": the liver
    if main and main.finding == "metastasis":  # "colon cancer metastasis in the liver": the liver
        named = [n for n in named if not _names_a_primary(items, n[0])] or named
    if not named:
        implied = [i.anatomy for i in ([main] if main else []) + list(items) if i.anatomy]
        return implied[0] if implied else None
    position = next((at for at, i in enumerate(items) if i is main), 0)
    before = [name for at, name in named if at < position]
    return before[-1] if before else named[0][1]


def _names_a_primary(items: Sequence[_Item], at: int) -> bool:
    """Whether an anatomy is followed at once by a tumor of its own ("colon cancer")."""
    return any(i.finding and i.finding != "metastasis" for i in items[at + 1 : at + 2])


def _specificity(finding: str) -> int:
    return int(_lexicon()["findings"][finding]["specificity"])


# --- words ------------------------------------------------------------------------------------------------


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise PromptError(f"A prompt is text, this is {type(text).__name__}: {_EXAMPLE}.")
    text = text.strip(" \t\r\n")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp") for c in text):
        raise PromptError(f"The prompt {_quote(text)} holds control characters or line breaks: {_EXAMPLE}.")
    text = text.strip()
    if not text:
        raise PromptError(f"The prompt is empty: {_EXAMPLE}.")
    if len(text) > MAX_CHARACTERS:
        raise PromptError(f"The prompt has {len(text)} characters, the most is {MAX_CHARACTERS}: {_EXAMPLE}.")
    if not any(c.isalpha() for c in text):
        raise PromptError(f"The prompt {_quote(text)} holds no letter: {_EXAMPLE}.")
    return text


def _quote(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _fold(text: str) -> str:
    """Case, width and accents removed."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return unicodedata.normalize("NFC", "".join(c for c in plain if unicodedata.category(c) != "Mn"))


def _words(text: str) -> list[str]:
    text = _fold(text).replace("\u2019", "'")
    text = re.sub(r"\b(?:[a-z]\.){2,}", lambda m: m[0].replace(".", ""), text)  # h.c.c.
    for british, american in _lexicon()["spelling"].items():
        text = text.replace(british, american)
    text = re.sub("'s\\b|'", "", text)
    text = re.sub("[&+]", " and ", text)
    return re.findall(r"\d+(?:[.,]\d+)*|[^\W_]+|[,;:.!?/]", text)


@cache
def _singular(word: str) -> str:
    vocabulary = _vocabulary()
    candidates = [word.removesuffix(end) + new for end, new in _PLURALS if word.endswith(end)]
    return next((w for w in [word, *candidates] if w in vocabulary), word)


def _by_suffix(word: str) -> _Item:
    """Words that the lexicon does not list: every "...oma" is a tumor, with the known exceptions."""
    lexicon = _lexicon()
    if word[0].isdigit() or (len(word) == 1 and word.isascii()):
        return _Item("filler", word)
    stem = word.removesuffix("s").removesuffix("ta")
    if stem not in lexicon["not_by_suffix"]:
        for suffix, finding in lexicon["suffixes"].items():
            if stem.endswith(suffix):
                return _Item("finding", word, finding=finding)
    return _Item("unknown", word)


# --- the lexicon ------------------------------------------------------------------------------------------


@cache
def _lexicon() -> Mapping[str, Any]:
    lexicon: dict[str, Any] = json.loads(Path(__file__).with_name("lexicon.json").read_text(encoding="utf-8"))
    return lexicon


def _entries() -> Iterator[tuple[str, _Item]]:
    """(phrase, item) for every entry of the lexicon; later ones win, so meaning comes last."""
    lexicon = _lexicon()
    for kind in ("filler", "attribute", "aside"):
        for phrase in lexicon["filler" if kind == "filler" else f"{kind}s"]:
            yield phrase, _Item(kind, phrase)
    for word, meaning in {"and": "and", "plus": "and", "or": "or", "/": "or", ",": ","}.items():
        yield word, _Item("list", meaning)
    for kind, key in (("before", "before"), ("after", "after"), ("end", "ends")):
        yield from ((phrase, _Item(kind, phrase)) for phrase in lexicon["negation"][key])
    yield from ((mark, _Item("end", mark)) for mark in ";:.!?")
    yield from ((phrase, _Item("healthy", phrase)) for phrase in lexicon["healthy"])
    for side, phrases in lexicon["laterality"].items():
        yield from ((phrase, _Item("side", side)) for phrase in phrases)
    for name, entry in lexicon["findings"].items():
        yield from ((phrase, _Item("finding", phrase, finding=name)) for phrase in [name, *entry["words"]])
    for name, entry in lexicon["anatomies"].items():
        yield from ((phrase, _Item("anatomy", phrase, name)) for phrase in [name, *entry["words"]])
        for finding, phrases in entry.get("diseases", {}).items():
            yield from ((phrase, _Item("disease", phrase, name, finding)) for phrase in phrases)


@cache
def _regions() -> frozenset[str]:
    """Anatomies that contain organs: they give way to an organ, and may be named beside one."""
    return frozenset(name for name, entry in _lexicon()["anatomies"].items() if entry.get("region"))


@cache
def _vocabulary() -> frozenset[str]:
    return frozenset(word for phrase, _ in _entries() for word in phrase.split())


@cache
def _index() -> tuple[dict[tuple[str, ...], _Item], int]:
    index = {tuple(map(_singular, _words(phrase))): item for phrase, item in _entries()}
    return index, max(map(len, index))
