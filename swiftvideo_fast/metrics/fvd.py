"""FVD on real videos, by the package cd-fvd: I3D for the paper's tables, VideoMAE for judging motion.

A figure means something only with its backbone, number of clips, frames, rate and resolution beside it.
"""

import numpy as np
import torch

from swiftvideo_fast.metrics.frechet import Gaussian, distance


def fvd(real_BTHWC: np.ndarray, generated_BTHWC: np.ndarray, *, net: str = "i3d",
        device: str = "cuda") -> float:
    """Frechet video distance of uint8 clips (B, T, H, W, 3), all of each set; net "i3d" or "videomae".

    The package fetches its weights on first use.  ImportError names the extra when it is missing.
    """
    for name, clips in (("real", real_BTHWC), ("generated", generated_BTHWC)):
        if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or len(clips) < 2:
            raise ValueError(f"fvd: {name} is {clips.dtype} {clips.shape}; want uint8 (B, T, H, W, 3), "
                             "B at least 2")
    try:
        from cdfvd import fvd as cdfvd
    except ImportError as why:
        raise ImportError("fvd needs the package cd-fvd: pip install 'swiftvideo_fast[eval]'") from why

    judge = cdfvd.cdfvd(net, n_real="full", n_fake="full", device=device)     # its default repeats fake clips
    judge.add_real_stats(real_BTHWC)
    judge.add_fake_stats(generated_BTHWC)
    return distance(_gaussian(judge.real_stats), _gaussian(judge.fake_stats))


def _gaussian(stats) -> Gaussian:
    mean, covariance = stats.get_mean_cov()
    return Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance), stats.num_items)
