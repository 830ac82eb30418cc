"""Samples of a run as pictures: a row a clip under its caption, a column a network under its name."""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

NARROW, WIDE = 128, 256         # pixels of a frame's width: smaller ones are enlarged, larger ones reduced
LINE, FONT = 18, 13             # pixels of a line of text, and of its letters


@dataclass(frozen=True)
class Samples:
    """columns: what each shows, such as "student, 4 steps" -> clips (B, 3, T, H, W) in [-1, 1]."""

    columns: dict[str, Tensor]
    captions: list[str]
    fps: int = 16

    def sheet(self, title: str) -> np.ndarray:
        """uint8 (H, W, 3): the first, the middle and the last frame of each."""
        ends = [clips[:, :, [0, clips.shape[2] // 2, -1]] for clips in self.columns.values()]
        cells = [[np.concatenate(list(_frames(clips[row])), 1) for clips in ends]
                 for row in range(len(self.captions))]
        return filled(self._labels(cells[0][0], title), cells)

    def film(self, title: str) -> np.ndarray:
        """uint8 (T, H, W, 3): the clips, playing side by side."""
        rows = list(zip(*([_frames(clip) for clip in clips] for clips in self.columns.values()), strict=True))
        labels = self._labels(rows[0][0][0], title)
        return np.stack([filled(labels, [[clip[frame] for clip in row] for row in rows])
                         for frame in range(len(rows[0][0]))])

    def _labels(self, cell: np.ndarray, title: str) -> np.ndarray:
        """A page of such cells, empty but for the title, the heads of columns and the captions of rows.  Its
        sides are even."""
        H, W, _ = cell.shape
        height, width = 2 * LINE + len(self.captions) * (H + LINE), len(self.columns) * W
        page = Image.new("RGB", (width + width % 2, height + height % 2), "white")
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT)
        places = [(title, 0, 0, width), *((head, i * W, LINE, W) for i, head in enumerate(self.columns)),
                  *((text, 0, 2 * LINE + i * (H + LINE), width) for i, text in enumerate(self.captions))]
        for text, x, y, room in places:
            draw.text((x + 2, y + 1), _cut(text, draw, font, room - 4), "black", font)
        return np.asarray(page)


def filled(labels: np.ndarray, cells: list[list[np.ndarray]]) -> np.ndarray:
    """A copy of the page with its cells."""
    page = labels.copy()
    H, W, _ = cells[0][0].shape
    for row, line in enumerate(cells):
        top = 3 * LINE + row * (H + LINE)
        page[top:top + H, :len(line) * W] = np.concatenate(line, 1)
    return page


def _cut(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, room: int) -> str:
    """A text on one line, cut short where it is wider than so many pixels."""
    text = " ".join(text.split())
    while text and (width := draw.textlength(text, font)) > room:
        text = text[:max(0, min(len(text) - 2, int(len(text) * room / width) - 1))].rstrip("…") + "…"
        if text == "…":
            return ""
    return text


def _frames(clip_3THW: Tensor) -> np.ndarray:
    """uint8 (T, h, w, 3), between NARROW and WIDE pixels wide.  What is not finite is black."""
    x = (clip_3THW.float().nan_to_num(-1, -1, -1).clamp(-1, 1) + 1) * 127.5
    x, W = x.transpose(0, 1), x.shape[-1]
    if W < NARROW:
        x = torch.nn.functional.interpolate(x, scale_factor=ceil(NARROW / W), mode="nearest")
    elif W > WIDE:
        x = torch.nn.functional.interpolate(x, (round(x.shape[2] * WIDE / W), WIDE), mode="area")
    return x.round().byte().permute(0, 2, 3, 1).numpy()
