"""The tile each attention kernel runs with: a table, by card, dtype and head width.  Never by length.

The first entry of a row is the one launched.  The others are candidates: `python -m bench sm90` compiles them all,
and `python -m bench tune`, a developer's command, times them on the card at hand and puts the fastest first.

Families, by compute capability:
    sm100   10.x, tensor memory        sm90   9.0, wgmma and TMA, 227 KB of shared memory a block
    sm80    8.x and 12.x; at most 99 KB, so that one row serves the consumer cards too
    fp32    any card, exact products (no tf32): the path of tests, not of speed
    cpu     Triton's interpreter; small, so that a short sequence still has full, ragged and several blocks
"""

from typing import NamedTuple

import torch
import triton


class Tile(NamedTuple):
    block_m: int                    # queries a program
    block_n: int                    # keys an iteration
    warps: int
    stages: int                     # depth of the pipeline over keys
    descriptors: bool = False       # load by TMA, through tensor descriptors
    specialised: bool = False       # a producer warp and consumer groups; wants 4 warps and descriptors


TILES: dict[tuple[str, str, int], tuple[Tile, ...]] = {
    ("attention_jvp", "sm90", 128): (Tile(128, 64, 8, 2, True),),
    ("attention_jvp", "cpu", 0): (Tile(32, 16, 1, 1), Tile(32, 16, 1, 1, True)),
    ("attention_tangent", "sm90", 128): (Tile(128, 64, 8, 2, True),),
    ("attention_tangent", "cpu", 0): (Tile(32, 16, 1, 1), Tile(32, 16, 1, 1, True)),
}


def tile(kernel: str, dtype: torch.dtype, device: torch.device, width: int, descriptors: bool) -> Tile:
    """The first tile of the row for head width `width` (a power of two), without TMA unless `descriptors`."""
    row = ("cpu", 0) if device.type == "cpu" else (family(dtype), width)
    return next(t for t in TILES[kernel, *row] if descriptors or not t.descriptors)


def family(dtype: torch.dtype) -> str:
    """The card at hand, as the table names it."""
    if dtype == torch.float32:
        return "fp32"
    capability = triton.runtime.driver.active.get_current_target().arch
    return "sm90" if capability == 90 else "sm100" if 100 <= capability < 120 else "sm80"
