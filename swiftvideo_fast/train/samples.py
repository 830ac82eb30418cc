"""Sample sheets of a run: one row per clip with its caption, one column per network with its name."""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

NARROW, WIDE = 128, 256         # frame width in pixels: narrower frames are enlarged, wider ones reduced
LINE, FONT = 18, 13             # height of a text line, and font size, in pixels


@dataclass(frozen=True)
class Samples:
    """Clips to show.  columns: title, such as "student, 4 steps" -> clips (B, 3, T, H, W) in [-1, 1]."""

    columns: dict[str, Tensor]
    captions: list[str]
    fps: int = 16

    def sheet(self, title: str) -> np.ndarray:
        """Returns a picture, uint8 (H, W, 3), with the first, middle and last frame of each clip."""
        ends = [clips[:, :, [0, clips.shape[2] // 2, -1]] for clips in self.columns.values()]
        cells = [[np.concatenate(list(_frames(clips[row])), 1) for clips in ends]
                 for row in range(len(self.captions))]
        return paste(self._labels(cells[0][0], title), cells)

    def video(self, title: str) -> np.ndarray:
        """Returns a video, uint8 (T, H, W, 3), of all clips side by side."""
        rows = list(zip(*([_frames(clip) for clip in clips] for clips in self.columns.values()), strict=True))
        labels = self._labels(rows[0][0][0], title)
        return np.stack([paste(labels, [[clip[frame] for clip in row] for row in rows])
                         for frame in range(len(rows[0][0]))])

    def _labels(self, cell: np.ndarray, title: str) -> np.ndarray:
        """Returns an empty sheet for cells of this size, with title, column titles and captions.  Height and
        width are even, as video codecs require."""
        H, W, _ = cell.shape
        height, width = 2 * LINE + len(self.captions) * (H + LINE), len(self.columns) * W
        page = Image.new("RGB", (width + width % 2, height + height % 2), "white")
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT)
        places = [(title, 0, 0, width), *((head, i * W, LINE, W) for i, head in enumerate(self.columns)),
                  *((text, 0, 2 * LINE + i * (H + LINE), width) for i, text in enumerate(self.captions))]
        for text, x, y, limit in places:
            draw.text((x + 2, y + 1), _truncate(text, draw, font, limit - 4), "black", font)
        return np.asarray(page)


def paste(labels: np.ndarray, cells: list[list[np.ndarray]]) -> np.ndarray:
    """Returns a copy of the sheet with the cells pasted in."""
    page = labels.copy()
    H, W, _ = cells[0][0].shape
    for row, line in enumerate(cells):
        top = 3 * LINE + row * (H + LINE)
        page[top:top + H, :len(line) * W] = np.concatenate(line, 1)
    return page


def _truncate(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, limit: int) -> str:
    """Returns the text on one line, truncated with an ellipsis to `limit` pixels."""
    text = " ".join(text.split())
    while text and (width := draw.textlength(text, font)) > limit:
        text = text[:max(0, min(len(text) - 2, int(len(text) * limit / width) - 1))].rstrip("…") + "…"
        if text == "…":
            return ""
    return text


def _frames(clip_3THW: Tensor) -> np.ndarray:
    """Returns uint8 frames (T, h, w, 3), NARROW to WIDE pixels wide.  Non-finite values become black."""
    x = (clip_3THW.float().nan_to_num(-1, -1, -1).clamp(-1, 1) + 1) * 127.5
    x, W = x.transpose(0, 1), x.shape[-1]
    if W < NARROW:
        x = torch.nn.functional.interpolate(x, scale_factor=ceil(NARROW / W), mode="nearest")
    elif W > WIDE:
        x = torch.nn.functional.interpolate(x, (round(x.shape[2] * WIDE / W), WIDE), mode="area")
    return x.round().byte().permute(0, 2, 3, 1).numpy()
