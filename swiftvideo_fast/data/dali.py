"""DALI's video decoder: NVDEC on a GPU; on the CPU for VP8, VP9 and MJPEG.

DALI receives a file's bytes and frame indices from the index, so its own frame-rate logic is not used.  It
converts YUV by BT.601 whatever the file declares; BT.709 files are corrected afterwards.  PyAV decodes
formats that DALI cannot decode or would convert to wrong colours.
"""

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swiftvideo_fast.data import files
from swiftvideo_fast.data.decode import Framing, LogOnce, PyAv, fit
from swiftvideo_fast.data.files import Place
from swiftvideo_fast.data.probe import Video

CODECS = {"cpu": {"vp8", "vp9", "mjpeg"}, "cuda": {"vp8", "vp9", "av1", "mpeg4", "h264", "hevc"}}
LUMA = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}         # Kr, Kb
BT709, UNKNOWN, BT601 = 1, 2, {5, 6}                            # FFmpeg's matrix numbers
RESIZED = 8         # frames resized at once: as float32, a frame of 3840x2160 takes 100 MB


def installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


class Dali:
    """The DALI decoder, with one pipeline per thread.  ImportError without DALI."""

    def __init__(self, device: torch.device):
        if not installed():
            raise ImportError("decoder=dali needs DALI: pip install 'swiftvideo_fast[dali]'")
        self.device, self.other = device, PyAv(smooth=True)
        self._local, self._log_once = threading.local(), LogOnce()
        self.name = f"dali on {device.type}, else {self.other.name}"

    def takes(self, video: Video) -> bool:
        """Returns whether DALI decodes this video: known codec and matrix, 8 bits, 4:2:0, limited range."""
        return (video.codec in CODECS[self.device.type] and video.pixels == "yuv420p" and not video.full
                and video.matrix in {BT709, UNKNOWN, *BT601})

    def window(self, folder: Path, place: Place, video: Video, indices: np.ndarray,
               framing: Framing) -> Tensor:
        if not self.takes(video):
            return self.other.window(folder, place, video, indices, framing).to(self.device)
        self._log_once(f"DALI ({'NVDEC' if self.device.type == 'cuda' else 'CPU'})", video.codec)
        try:
            frames = self.frames(files.read(folder, place), indices)
        except RuntimeError as why:
            self._local.pipeline = None
            reason = str(why).splitlines()[-1]
            raise ValueError(f"{place}: DALI does not decode it ({reason}); use decoder=pyav or index the "
                             "folder again") from why
        parts = (recolour(part) if video.matrix == BT709 else part for part in frames.split(RESIZED))
        return torch.cat([fit(part, video, framing) for part in parts]).permute(3, 0, 1, 2)

    def frames(self, raw: bytes, indices: np.ndarray) -> Tensor:
        """Returns the frames at `indices`, uint8 (T, H, W, 3) in stored size, on the device."""
        if getattr(self._local, "pipeline", None) is None:
            self._local.pipeline = pipeline(self.device)
        pipe = self._local.pipeline
        pipe.feed_input("bytes", [np.frombuffer(raw, np.uint8)])
        pipe.feed_input("frames", [indices.astype(np.int32)])
        decoded, = pipe.run()
        if self.device.type == "cpu":
            return torch.from_numpy(np.array(decoded.at(0)))
        return torch.from_dlpack(decoded[0]).clone()            # the next run overwrites it


def pipeline(device: torch.device) -> Any:
    """Returns a DALI pipeline (bytes, frames) -> decoded frames, one sample per run, without prefetching."""
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = device.type == "cuda"

    @pipeline_def(batch_size=1, num_threads=1, device_id=(device.index or 0) if on_gpu else None,
                  prefetch_queue_depth=1, exec_dynamic=False, exec_async=False, exec_pipelined=False)
    def graph():
        encoded = fn.external_source(name="bytes", dtype=types.UINT8, ndim=1)
        frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
        return fn.decoders.video(encoded, device="mixed" if on_gpu else "cpu", frames=frames)

    pipe = graph()
    pipe.build()
    return pipe


def recolour(frames_THWC: Tensor) -> Tensor:
    """Corrects RGB that was converted by BT.601 to BT.709.  Clipped colours stay clipped."""
    matrix = torch.from_numpy(_to_rgb("709") @ np.linalg.inv(_to_rgb("601"))).float().to(frames_THWC.device)
    return (frames_THWC.float() @ matrix.T).round_().clamp_(0, 255).byte()


def _to_rgb(name: str) -> np.ndarray:
    """Returns the matrix (Y, Cb, Cr) -> (R, G, B), with Cb and Cr centred at zero."""
    r, b = LUMA[name]
    g = 1 - r - b
    return np.array([[1, 0, 2 * (1 - r)],
                     [1, -2 * b * (1 - b) / g, -2 * r * (1 - r) / g],
                     [1, 2 * (1 - b), 0]])
