"""Methods that know no tumour: thresholds, and reconstruction by the flow alone. None has a parameter to tune."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffugts.bench.metrics import Map, Mask
from diffugts.intensity import histogram_of, three_classes

if TYPE_CHECKING:
    import torch

    from diffugts.backbone.conditions import Conditions
    from diffugts.backbone.latent_diffusion import LatentDiffusion

HALF = 0.5  # the flow time that a scan is noised to: half signal, half noise
STEPS = 3  # from there, whatever a model takes to repaint
TILE = 32  # latent voxels that the flow sees at once


def otsu(image: Map, body: Mask) -> Mask:
    """Above Otsu's threshold (1979) of the body's values.

    Args:
        image: (I, J, K), any scale. body: what counts as the patient.
    """
    from skimage.filters import threshold_otsu

    histogram = histogram_of(image[body])
    return body & (image > threshold_otsu(hist=histogram)) if histogram else np.zeros_like(body)


def brightest(image: Map, body: Mask) -> Mask:
    """The brightest of three classes (multi-Otsu) of the body's values: its largest part after opening."""
    cuts = three_classes(image[body])
    return largest_part(body & (image > cuts[1])) if cuts else np.zeros_like(body)


def middle(image: Map, body: Mask) -> Mask:
    """The middle of three classes of the whole scan, which are air, soft tissue and what is brighter: its largest
    part after opening. ``body`` plays no part."""
    cuts = three_classes(image.ravel())
    return largest_part((image > cuts[0]) & (image <= cuts[1])) if cuts else np.zeros_like(body)


def largest_part(mask: Mask) -> Mask:
    """The largest face-connected part of a mask, opened once with the 6-neighbourhood to cut thin bridges."""
    from scipy import ndimage

    labels, count = ndimage.label(ndimage.binary_opening(mask))
    if not count:
        return np.zeros_like(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def anomaly_map(model: LatentDiffusion, latent: torch.Tensor, conditions: Conditions, seed: int) -> Map:
    """|X − H|, smoothed as the pixel residual is, where H is the whole scan noised to t = 0.5 and denoised again.

    Args:
        latent: (1, C, d, h, w) of the scan.

    Returns:
        (D, H, W) float32 on the model grid.

    Raises:
        InputError: the model is no flow.
    """
    from itertools import pairwise

    import torch
    from monai.inferers import sliding_window_inference

    from diffugts.errors import InputError
    from diffugts.inpaint import flow_times
    from diffugts.residual import Fusion, pixel_residual

    if model.config.prediction != "flow":
        raise InputError(
            f"the anomaly baseline needs a flow; {model.config.name!r} predicts {model.config.prediction}."
        )
    times = flow_times(STEPS, latent.device) * HALF

    def denoise(zt: torch.Tensor) -> torch.Tensor:
        for t, tn in pairwise(times):
            zt = zt + model.predict(zt, t.expand(len(zt)), [conditions] * len(zt)) * (t - tn)
        return zt

    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)).to(latent.device)
    roi = tuple(min(side, TILE) for side in latent.shape[2:])
    with torch.inference_mode():
        noisy = (1 - HALF) * latent + HALF * noise
        healthy = sliding_window_inference(noisy, roi, 1, denoise, overlap=0.25, mode="gaussian")
        residual = pixel_residual(
            model.decode_windows(latent)[0, 0], model.decode_windows(healthy)[0, 0], Fusion().smooth_vox
        )
    return np.asarray(residual.cpu().numpy(), dtype=np.float32)
