"""Procedural 3D patients: varied anatomy and planted tumours with exact truth, CT and MR, from a seed."""

from __future__ import annotations

from diffugts.synth.labelmap import render_labelmap
from diffugts.synth.labels import LABELS, ORGANS
from diffugts.synth.lesion import PLANTABLE, Lesion
from diffugts.synth.palette import PHASES, SEQUENCES
from diffugts.synth.patient import KINDS, Patient, Sample, sample_patient

__all__ = [
    "KINDS", "LABELS", "ORGANS", "PHASES", "PLANTABLE", "SEQUENCES", "Lesion", "Patient", "Sample",
    "render_labelmap", "sample_patient",
]  # fmt: skip
