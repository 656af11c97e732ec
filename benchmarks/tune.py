"""Choose the refinement's settings on tuning patients, which report nothing else.

    python benchmarks/tune.py -o runs/tune [--patients 24] [--cases ../shared/cases/cases.json --only sarcoma_ct_014]
    python benchmarks/tune.py -o runs/tune --recipe recipes/compact.json --data ../shared
    python benchmarks/tune.py -o runs/tune --held-out brain --like liver --write

Tuning patients are synthetic (seeds from 900000 on, never trained on), half of them rendered healthy too; scans of a
recipe with tumours planted in them that no model saw; and real cases that the caller names. Attention and inpainting
run once per patient; settings are then compared on what they left.

The settings of a held-out head are chosen without the organs that it never saw: neither planted nor real tumours of
those. On organs that it saw, though, it is surer than it will ever be on the others. With --like another held-out head
stands in for it, on the organs which that one never saw.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from itertools import chain, product
from pathlib import Path

import numpy as np

from diffugts.case import Case
from diffugts.heads import HEADS, Settings, heads_folder
from diffugts.healing import Sampling
from diffugts.prompts import parse_all
from diffugts.refine import convincing, heal_candidate, refine
from diffugts.segmenter import Segmenter
from diffugts.training.bank import TUMOUR
from diffugts.training.fit import PROMPT_OF, admitted
from diffugts.volume import Volume

FIRST_SEED = 900_000
WEIGHTS = ((1, 0, 0), (1, 0.5, 0), (1, 0.5, 1), (1, 0.5, 2), (1, 0, 2), (1, 0.5, 4), (1, 0, 4), (1, 0, 8))
KINDS = (("torso", "ct"), ("limb", "ct"), ("limb", "mr"), ("head", "mr"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--patients", type=int, default=24)
    parser.add_argument("--recipe", type=Path, help="plant tumours in six scans of each of this recipe's sources")
    parser.add_argument("--data", type=Path, default=Path("."), help="folder that the recipe's patterns start from")
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="ids of tuning cases start with one of these")
    parser.add_argument("--held-out", metavar="ORGAN", help="tune the head that never saw this organ's tumours")
    parser.add_argument(
        "--like", metavar="ORGAN", help="judge by the head that never saw this organ, on what it never saw"
    )
    parser.add_argument("--write", action="store_true", help="keep the best settings in the model folder")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    segmenter = Segmenter.from_pretrained(args.model, held_out=args.like or args.held_out)
    folder = heads_folder(segmenter.folder, args.held_out)
    hidden = unseen(segmenter.folder, args.held_out)
    only = unseen(segmenter.folder, args.like) if args.like else set()
    patients = [
        synthetic(args.patients, hidden, only),
        grafted(args.recipe, args.data, hidden, only) if args.recipe else [],
        real(args.cases, args.only, hidden, only) if args.cases else [],
    ]
    kept = [collect(segmenter, *patient) for patient in chain(*patients)]
    best = choose_refinement(kept, choose_candidate(kept, segmenter.settings))
    (args.output / "settings.json").write_text(json.dumps(asdict(best), indent=2))
    if args.write:
        path = folder / HEADS
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "settings": asdict(best)}, indent=2) + "\n")


def unseen(model: Path, organ: str | None) -> set[str]:
    """The organs that a held-out head, named by one of them, never saw; none for the default head."""
    return set() if organ is None else set(heads_folder(model, organ).name.replace("-", " ").split("+"))


def fits(organs: set[str], hidden: set[str], only: set[str]) -> bool:
    """Whether a patient with tumours of these organs may tune: none that is hidden, one of ``only`` where given."""
    return not organs & hidden and (not only or bool(organs & only))


def synthetic(count: int, hidden: set[str], only: set[str]):  # type: ignore[no-untyped-def]
    """(name, volume, modality, prompt, truth) of synthetic patients; every second one healthy as well."""
    from diffugts.synth import sample_patient

    for number in range(count):
        kind, modality = KINDS[number % len(KINDS)]
        patient = sample_patient(FIRST_SEED + number, kind=kind, lesions=1)
        if not fits({lesion.organ for lesion in patient.lesions}, hidden, only):
            continue
        low, high = (np.asarray(corner, float) for corner in patient.extent)
        size = np.minimum((high - low) / 2, 96).astype(int)
        centre = np.asarray(patient.lesions[0].centre_mm) if patient.lesions else (low + high) / 2
        origin = np.clip(centre - size, low, np.maximum(high - 2 * size, low))
        for healthy in [False, True] if number % 2 else [False]:
            sample = patient.render(tuple(size), (2.0,) * 3, tuple(origin), modality, seed=number, lesions=not healthy)
            affine = np.diag([2.0, 2.0, 2.0, 1.0])
            organ = patient.lesions[0].organ if patient.lesions else "tumor"
            prompt = f"{PROMPT_OF.get(organ, organ)} tumor"
            volume = Volume(sample.image, affine, "HU" if modality == "ct" else "arbitrary")
            yield (
                f"{kind}_{modality}_{number}{'_healthy' * healthy}",
                volume,
                modality,
                prompt,
                sample.lesion > 0,
            )


def grafted(recipe: Path, data: Path, hidden: set[str], only: set[str]):  # type: ignore[no-untyped-def]
    """The same of scans with a tumour planted in them, from seeds of their own."""
    from diffugts.training.recipe import jobs

    chosen = []
    for plan in json.loads(recipe.read_text())["scans"]:
        if "tumour" in plan:  # what was planted is not all that is there
            continue
        number = plan.get("grafts", 0)  # one more than was ever trained on
        every = jobs({"scans": [{**plan, "grafts": number + 1}]}, data, 2.0)
        last = [job for job in every if job.name.startswith("graft_") and job.name.endswith(f"_{number:02d}")]
        chosen += last[:: max(1, len(last) // 6)][:6]
    for job in chosen:
        item, image, flags = job.make()
        if not item.lesions or not admitted(item, tuple(hidden)) or not fits(set(item.lesions), hidden, only):
            continue
        modality, affine = item.modality[:2], np.diag([2.0, 2.0, 2.0, 1.0])
        array = image.astype(np.float32) * 2000 - 1000 if modality == "ct" else image.astype(np.float32)
        volume = Volume(array, affine, "HU" if modality == "ct" else "arbitrary")
        organ = PROMPT_OF.get(item.lesions[0], item.lesions[0])
        yield job.name, volume, modality, f"{organ} tumor".strip(), flags >= TUMOUR


def real(cases: Path, chosen: list[str], hidden: set[str], only: set[str]):  # type: ignore[no-untyped-def]
    """The same of real tuning cases."""
    from diffugts.io import read_mask, read_volume

    for case in json.loads(cases.read_text())["cases"]:
        if fits({case["anatomy"]}, hidden, only) and any(case["id"].startswith(start) for start in chosen):
            volume = read_volume(cases.parent / next(iter(case["images"].values())))
            truth = (
                read_mask(cases.parent / case["tumor"], volume) if case.get("tumor") else np.zeros(volume.shape, bool)
            )
            yield case["id"], volume, case["modality"].lower(), case["prompt"] or "tumor", truth


def collect(segmenter: Segmenter, name: str, volume: Volume, modality: str, prompt: str, truth: np.ndarray) -> dict:
    """Attention of one patient on the model grid."""
    case: Case = segmenter.encode(volume, modality=modality)
    parsed = parse_all([prompt])
    attention = case.attention(parsed)
    attended = case.attended(attention, parsed[0])
    score, kept = float(attention.score[0]), case.placement.forward(truth, "mask")
    print(
        f"{name} | {prompt} | score {score:.2f} | peak {attended.max():.2f} | {kept.sum() * 8 / 1000:.0f} ml",
        flush=True,
    )
    return {"name": name, "score": score, "attended": attended, "truth": kept, "case": case, "prompt": parsed[0]}


def suspicious(one: dict, settings: Settings) -> np.ndarray:
    """Where attention points under these settings, (D, H, W) bool."""
    return settings.suspicious(one["attended"], one["score"], one["case"].placement.spacing, one["prompt"].anywhere)


def choose_candidate(kept: list[dict], start: Settings) -> Settings:
    """The thresholds whose suspicious region has the best merit."""
    rows = []
    for score, threshold, relative in product(
        (0.0, 0.5, 0.8, 0.9), (0.05, 0.1, 0.2, 0.3, 0.4, 0.5), (0.0, 0.3, 0.5, 0.6, 0.7)
    ):
        settings = replace(start, score_threshold=score, threshold=threshold, relative=relative)
        dices = [dice(suspicious(one, settings), one["truth"]) for one in kept]
        rows.append((merit(dices, kept), settings))
    return best_of(rows, "suspicious region")[1]


def choose_refinement(kept: list[dict], start: Settings) -> Settings:
    """The form, with its weights, that has the best merit on the chosen candidates."""
    for one in kept:
        case, settings = one["case"], start
        model = case.segmenter.backbone
        one["suspicious"] = suspicious(one, settings)
        candidate = settings.dilated(one["suspicious"], case.placement.spacing)
        painted = heal_candidate(
            model, case.encoding.latent, candidate, case.conditions, [0], Sampling(),
            look=case.second_look(one["prompt"]),
        )  # fmt: skip
        one["evidence"] = replace(painted, telling=case.telling(one["prompt"], one["suspicious"]))
    plain = [
        replace(start, form="plain", fusion=replace(start.fusion, pixel=p, feature=f, attention=a, floor=floor))
        for (p, f, a), floor in product(WEIGHTS, (0.15, 0.3, 0.45))
    ]
    likely = [
        replace(start, form="likelihood", odds=replace(start.odds, intensity=i, residual=r))
        for i, r in product((0.5, 1.0, 1.5), (0.0, 0.25, 0.5, 1.0))
    ]
    found = [best_of([(refined_merit(kept, one), one) for one in forms], forms[0].form) for forms in (plain, likely)]
    if kept[0]["case"].segmenter.residual_head is not None:
        learned = replace(start, form="learned")
        found.append(best_of([(refined_merit(kept, learned), learned)], "learned"))
    _, best = max(found, key=lambda row: row[0])
    best = replace(best, fusion=found[0][1].fusion, odds=found[1][1].odds)
    falls = [
        replace(best, fall=fall, fall_ml=most) for fall, most in product((0.0, 0.25, 0.5, 1.0), (25.0, 50.0, 100.0))
    ]
    return best_of([(refined_merit(kept, one), one) for one in falls], "second look")[1]


def refined_merit(kept: list[dict], settings: Settings) -> float:
    """Merit of the refined masks."""
    found = []
    for one in kept:
        head = one["case"].segmenter.residual_head
        evidence = one["evidence"]
        if settings.fall > 0:
            evidence = convincing(evidence, one["suspicious"], settings, one["case"].placement.spacing)
        mask = refine(evidence, one["attended"], settings, head=head).probability > 0.5
        found.append(dice(mask, one["truth"]))
    return merit(found, kept)


def merit(dices: list[float], kept: list[dict]) -> float:
    """Three parts mean Dice of the patients with a tumour, one part share of the others whose mask is empty."""
    ill = [value for value, one in zip(dices, kept, strict=True) if one["truth"].any()]
    well = [value for value, one in zip(dices, kept, strict=True) if not one["truth"].any()]
    return float(0.75 * np.mean(ill) + 0.25 * np.mean(well or [1.0]))


def best_of(rows: list[tuple[float, Settings]], what: str) -> tuple[float, Settings]:
    rows = sorted(rows, key=lambda row: -row[0])
    for value, settings in rows[:6]:
        print(f"{what} {value:.3f} {settings}", flush=True)
    return rows[0]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


if __name__ == "__main__":
    main()
