"""Clips side by side, playing in step: each clip a sprite sheet (PNG in base64) drawn on a canvas."""

import base64
import io
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """A section of the report.  rows[i][j]: (3, T, H, W) in [-1, 1], under columns[j]; T = 1 stands still.

    names: what each row shows, for the eye and for screen readers.
    """

    title: str
    columns: list[str]
    names: list[str]
    rows: list[list[Tensor]]
    fps: float = 8.0
    note: str = ""

    def html(self) -> str:
        clips = [clip for row in self.rows for clip in row]
        if len(self.names) != len(self.rows) or any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"Samples: {len(self.names)} names and columns {self.columns} for rows of "
                             f"{[len(row) for row in self.rows]} clips")
        frames = max(clip.shape[1] for clip in clips)
        rows = "".join(self._row(name, row) for name, row in zip(self.names, self.rows, strict=True))
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (f'<div class="player" data-frames="{frames}" data-fps="{self.fps:g}">'
                '<div class="controls"><button type="button">Play</button>'
                f'<input type="range" min="0" max="{frames - 1}" value="0" step="1" aria-label="Frame">'
                f'<output aria-live="off">1 / {frames}</output></div>{rows}</div>{note}')

    def _row(self, name: str, clips: list[Tensor]) -> str:
        cells = "".join(_cell(clip, column, f"{name}: {column}")
                        for clip, column in zip(clips, self.columns, strict=True))
        return (f'<section class="clip" aria-label="{escape(name)}"><h3>{escape(name)}</h3>'
                f'<div class="cells">{cells}</div></section>')


def _cell(clip: Tensor, column: str, label: str) -> str:
    _, T, H, W = clip.shape
    sheet = base64.b64encode(png(sprite_sheet(clip))).decode()
    return (f'<figure><canvas role="img" aria-label="{escape(label)}" width="{W}" height="{H}" '
            f'data-frames="{T}" data-sheet="data:image/png;base64,{sheet}"></canvas>'
            f"<figcaption>{escape(column)}</figcaption></figure>")


def sprite_sheet(clip_3THW: Tensor) -> np.ndarray:
    """(3, T, H, W) in [-1, 1] -> uint8 (T H, W, 3): frames from top to bottom."""
    if clip_3THW.ndim != 4 or clip_3THW.shape[0] != 3 or not clip_3THW.isfinite().all():
        raise ValueError(f"sprite_sheet: clip is {tuple(clip_3THW.shape)}; want (3, T, H, W), all finite")
    pixels = ((clip_3THW.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(1, 2, 3, 0).flatten(0, 1).numpy()


def png(pixels_HWC: np.ndarray) -> bytes:
    """uint8 (H, W, 3) -> a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "png", optimize=True)
    return file.getvalue()
