"""Clips playing synchronously side by side; each is a base64 sprite sheet drawn on a canvas.

    Samples("Samples", captions, [Column("condition", stills), Column("teacher, 25 steps", clips)],
            choices={"CCD": [Column("4 steps", a), Column("2 steps", b)], "CCD + DA": [...]})
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SMALL = 128     # pixels: clips up to this size are stored as they are, larger ones as JPEG of twice this size
HOLD = 0.5      # seconds that the last frame is shown


@dataclass(frozen=True)
class Column:
    """The clips of one sampler.  clips: one per row, (3, T, H, W) in [-1, 1]; T = 1 for a still.
    about: a remark under the label."""

    label: str
    clips: Sequence[Tensor]
    about: str = ""


@dataclass(frozen=True)
class Samples:
    """A report section of clips: one row per clip, one column per sampler, all with one clock.

    names: one per row.  columns: always shown.  choices: name -> further columns; the reader selects one set
    at a time, initially the first.
    """

    title: str
    names: Sequence[str]
    columns: Sequence[Column]
    choices: Mapping[str, Sequence[Column]] = field(default_factory=dict)
    fps: float = 10.0
    note: str = ""

    def html(self) -> str:
        """Returns the section's HTML; ValueError when a column has not one clip per name."""
        columns = [*self.columns, *(c for chosen in self.choices.values() for c in chosen)]
        short = [f"{c.label!r} has {len(c.clips)}" for c in columns if len(c.clips) != len(self.names)]
        if short or not columns:
            raise ValueError(f"Samples {self.title!r}: {len(self.names)} names, but "
                             f"{'; '.join(short) or 'no columns'}; want one clip per name in every column")
        frames = max(clip.shape[1] for column in columns for clip in column.clips)
        rows = "".join(self._row(i) for i in range(len(self.names)))
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (f'<div class="player" data-frames="{frames}" data-fps="{self.fps:g}" data-hold="{HOLD:g}">'
                f'{self._choice()}<div class="clock"><button type="button">Play</button>'
                f'<input type="range" min="0" max="{frames - 1}" value="0" step="1" aria-label="Frame">'
                f'<output aria-live="off">1 / {frames}</output></div>{rows}</div>{note}')

    def _choice(self) -> str:
        if len(self.choices) < 2:
            return ""
        marks = "".join(f'<label><input type="radio" name="choice" value="{i}"{" checked" * (i == 0)}>'
                        f"<span>{escape(name)}</span></label>" for i, name in enumerate(self.choices))
        return f'<form class="choice"><fieldset><legend>Show</legend>{marks}</fieldset></form>'

    def _row(self, i: int) -> str:
        name = self.names[i]
        cells = [_cell(c, i, name) for c in self.columns]
        cells += [_cell(c, i, name, f' data-choice="{k}"' + " hidden" * (k > 0))
                  for k, columns in enumerate(self.choices.values()) for c in columns]
        return (f'<section class="clip" aria-label="{escape(name)}"><h3>{escape(name)}</h3>'
                f'<div class="cells">{"".join(cells)}</div></section>')


def _cell(column: Column, i: int, name: str, more: str = "") -> str:
    clip = column.clips[i]
    about = f"<small>{escape(column.about)}</small>" if column.about else ""
    H, W = sheet_size(clip)
    return (f"<figure{more}><figcaption>{escape(column.label)}{about}</figcaption>"
            f'<canvas role="img" aria-label="{escape(f"{name}: {column.label}")}" width="{W}" '
            f'height="{H}" data-frames="{clip.shape[1]}" data-sheet="{data_url(clip)}"></canvas></figure>')


def data_url(clip_3THW: Tensor) -> str:
    """Returns the clip's sprite sheet as a data URL: PNG, or JPEG if downscaled."""
    sheet = sprite_sheet(clip_3THW)
    return encoded(sheet.tobytes(), sheet.shape[:2], "png" if max(clip_3THW.shape[-2:]) <= SMALL else "jpeg")


def sheet_size(clip_3THW: Tensor) -> tuple[int, int]:
    """Returns height and width of a frame in the sheet."""
    H, W = clip_3THW.shape[-2:]
    scale = min(1.0, 2 * SMALL / max(H, W)) if max(H, W) > SMALL else 1.0
    return max(1, round(scale * H)), max(1, round(scale * W))


def sprite_sheet(clip_3THW: Tensor) -> np.ndarray:
    """Converts (3, T, H, W) in [-1, 1] to uint8 (T H, W, 3): frames from top to bottom, large ones
    downscaled.

    ValueError for other shapes or non-finite values.
    """
    if clip_3THW.ndim != 4 or clip_3THW.shape[0] != 3 or not clip_3THW.isfinite().all():
        raise ValueError(f"sprite_sheet: clip is {tuple(clip_3THW.shape)}; want (3, T, H, W), all finite")
    clip, size = clip_3THW.detach().float().cpu().clamp(-1, 1), sheet_size(clip_3THW)
    if size != tuple(clip.shape[-2:]):
        clip = F.interpolate(clip, size, mode="bilinear", antialias=True)
    pixels = ((clip + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).flatten(0, 1).numpy()


@lru_cache(512)
def encoded(pixels: bytes, size: tuple[int, int], kind: str) -> str:
    """Returns RGB bytes of size (height, width) as a data URL, png or jpeg.  Cached for rewritten pages."""
    file, options = io.BytesIO(), {"quality": 88, "subsampling": 0} if kind == "jpeg" else {}
    Image.frombytes("RGB", size[::-1], pixels).save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
