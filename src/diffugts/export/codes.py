"""Coded concepts for what a prompt asks for: SNOMED CT, as DICOM's context groups have them.

The codes themselves come from pydicom's copy of the standard; here are only their names there.
"""

from __future__ import annotations

from typing import Any

from diffugts.prompts import Prompt

FINDINGS = {
    "tumor": "Neoplasm",
    "metastasis": "NeoplasmSecondary",
    "sarcoma": "Sarcoma",
    "cyst": "Cyst",
    "abnormality": "Lesion",
}
"""Segmented property types (CID 7159, and SNOMED CT beyond it) for the findings of the lexicon."""

OTHER_FINDING = "Lesion"
"""For free text; the prompt itself is in the label."""

ANATOMIES = {
    "brain": "Brain",
    "spinal cord": "SpinalCord",
    "head and neck": "HeadAndNeck",
    "thyroid": "Thyroid",
    "lung": "Lung",
    "pleura": "Pleura",
    "mediastinum": "Mediastinum",
    "heart": "Heart",
    "breast": "Breast",
    "esophagus": "Esophagus",
    "stomach": "Stomach",
    "small bowel": "SmallIntestine",
    "colon": "Colon",
    "liver": "Liver",
    "hepatic vessel": "Liver",  # the standard has veins and arteries of the liver, not both in one
    "bile duct": "BileDuct",
    "gallbladder": "Gallbladder",
    "pancreas": "Pancreas",
    "spleen": "Spleen",
    "kidney": "Kidney",
    "adrenal gland": "AdrenalGland",
    "bladder": "Bladder",
    "prostate": "Prostate",
    "testis": "Testis",
    "ovary": "Ovary",
    "uterus": "Uterus",
    "lymph node": "LymphNode",
    "bone": "Bone",
    "soft tissue": "SoftTissue",
    "skin": "Skin",
    "peritoneum": "PeritoneumSerousMembraneStructure",
    "retroperitoneum": "Retroperitoneum",
    "chest": "Chest",
    "abdomen": "Abdomen",
    "pelvis": "Pelvis",
}
"""Anatomic regions (CID 4 and others) for the anatomies of the lexicon."""


def category() -> Any:
    """The segmented property category of every finding: morphologically abnormal structure (CID 7150)."""
    from pydicom.sr.codedict import codes

    return codes.cid7150.MorphologicallyAbnormalStructure


def finding_code(prompt: Prompt) -> Any:
    """The code (`pydicom.sr.coding.Code`) of what the prompt asks for."""
    from pydicom.sr.codedict import codes

    return getattr(codes.SCT, FINDINGS.get(prompt.finding, OTHER_FINDING))


def anatomy_code(prompt: Prompt) -> Any | None:
    """The code of where; None for a prompt about any anatomy. The side is left out: masks do not follow it."""
    from pydicom.sr.codedict import codes

    return getattr(codes.SCT, ANATOMIES[prompt.anatomy]) if prompt.anatomy in ANATOMIES else None
