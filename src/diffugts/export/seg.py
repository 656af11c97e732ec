"""The mask as a DICOM Segmentation (PS3.3 A.51), through highdicom."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffugts.errors import InputError
from diffugts.export.codes import anatomy_code, category, finding_code
from diffugts.export.source import (
    CHARACTER_SET,
    MANUFACTURER,
    label,
    model_name,
    serial_number,
    series_number,
    source_images,
    version,
)
from diffugts.io.atomic import atomic_path
from diffugts.result import PromptResult
from diffugts.volume import Volume

COLOUR = (54.0, 78.0, 62.0)
"""CIELab of the recommended display colour, a clear red."""


def write_seg(answer: PromptResult, volume: Volume, path: str | os.PathLike[str], about: Mapping[str, Any]) -> Path:
    """Write the mask as a binary DICOM SEG with one segment; returns the path.

    It lies in the scan's frame of reference and names the image behind each of its frames; slices without
    lesion have no frame.

    Args:
        answer: its mask is (I, J, K) on the volume's grid.
        volume: as `read_volume` gave it for a DICOM folder, whose files are still there.
        about: the result's manifest (model, weights, seed …), for the algorithm's identification.

    Raises:
        InputError: an empty mask, a scan that was no DICOM series or lacks identifiers, or highdicom missing.
    """
    try:
        import highdicom as hd
        from pydicom.sr.codedict import codes
    except ImportError as error:
        raise InputError("DICOM SEG needs highdicom; install it with: pip install 'diffugts[dicom]'") from error
    if not answer.mask.any():
        raise InputError(f"Nothing was found for {answer.understood.text!r}, so there is no DICOM SEG of it.")
    logging.getLogger("highdicom").setLevel(logging.WARNING)
    images = source_images(volume)
    prompt = answer.understood
    region = anatomy_code(prompt)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=model_name(about),
        family=codes.DCM.ArtificialIntelligence,
        version=version(),
        source=MANUFACTURER,
        parameters={key: str(about[key]) for key in ("seed", "seeds", "steps") if about.get(key) is not None},
    )
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=label(prompt.text),
        segmented_property_category=category(),
        segmented_property_type=finding_code(prompt),
        algorithm_type="SEMIAUTOMATIC" if about.get("region_given") else "AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=hd.UID(),
        tracking_id=prompt.slug,
        anatomic_regions=None if region is None else [region],
        display_color=hd.color.CIELabColor(*COLOUR),
    )
    seg = hd.seg.Segmentation(
        source_images=images,
        pixel_array=np.ascontiguousarray(answer.mask.transpose(2, 1, 0), dtype=np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        series_instance_uid=hd.UID(),
        series_number=series_number(images[0]),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=model_name(about),
        software_versions=version(),
        device_serial_number=serial_number(about),
        series_description=label(f"{MANUFACTURER}: {prompt.text}"),
        content_label="DIFFUGTS",
        content_description=label(prompt.text),
        content_creator_name=f"{MANUFACTURER}^",  # a person name of one part
        specific_character_set=CHARACTER_SET,
    )
    with atomic_path(path) as temporary:
        seg.save_as(temporary)
    return Path(path)
