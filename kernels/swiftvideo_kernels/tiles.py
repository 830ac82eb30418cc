"""The tile each attention kernel runs with: a table, by card, dtype and head width.  Never by length.

The first entry of a row is launched.  The others are candidates: `python -m bench compile_report` compiles
all of them, and `python -m bench tune` times them on the card at hand and puts the fastest first.

Timed: sm90 at width 128 (H100, 2026-11-27, triton 3.6.0), (1, 12, 24960, 128), in TFLOP/s of 12 B H N M D:
680 to 733 by hand and 668 to 725 with h first (two runs, kernels/README.md), then 571, 398, 444, 420, in the
order of the row; the 571 is 505 with triton 3.8.0 and 515 with 3.9.0, which put a barrier of the whole block
behind every wait.  At width 64 three slots by hand have 539 to 591, two 532 to 592, four 536.  The other rows
are ordered by registers and size of the tile.

Families, by compute capability:
    sm100   10.x, tensor memory        sm90   9.0, wgmma and TMA, 227 KB of shared memory a block
    sm80    8.x and 12.x; at most 99 KB, so that one row serves the consumer cards too
    fp32    any card, products of three tf32 each (tf32x3, about 1e-6): the path of tests; it spills
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
    hopper: int = 0                 # attention_jvp_hopper's schedule: registers of a consumer's thread
    h_first: bool = False           # there: h v before p tv

    def __str__(self) -> str:
        form = ", TMA" * self.descriptors
        form += f", by hand, {self.hopper} registers" * bool(self.hopper) + ", h first" * self.h_first
        return f"{self.block_m}x{self.block_n}, {self.warps} warps, {self.stages} stages{form}"


# TFLOP/s at 24,960 tokens, p tv before h v and after it (H100, 2026-11-27): 733, 725 by triton 3.6.0; in the
# round before, 697 by 3.6.0, 687, 679 by 3.8.0, 633, 643 by 3.9.0.  By 3.6 and 3.8 neither order spills in a
# loop; by 3.9 the first spills 6 registers a turn, h v first 2.
H_FIRST = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)

# Width 256 has no one-pass row below sm100: two accumulators of 256 columns are more than a thread's
# registers, and attention_jvp goes in two passes there.
TILES: dict[tuple[str, str, int], tuple[Tile, ...]] = {
    ("attention_jvp", "sm90", 64): (
        Tile(128, 64, 12, 3, True, hopper=240),
        Tile(128, 128, 8, 2, True), Tile(64, 64, 4, 2, True), Tile(128, 64, 8, 2)),
    ("attention_jvp", "sm90", 128): (
        Tile(128, 64, 12, 2, True, hopper=240, h_first=H_FIRST),
        Tile(128, 64, 12, 2, True, hopper=240, h_first=not H_FIRST),
        Tile(128, 64, 8, 2, True), Tile(64, 64, 4, 2, True),
        Tile(64, 32, 4, 2, True), Tile(128, 32, 8, 2)),
    ("attention_tangent", "sm90", 64): (
        Tile(128, 128, 8, 2, True), Tile(128, 64, 8, 3, True), Tile(128, 64, 8, 2)),
    ("attention_tangent", "sm90", 128): (
        Tile(128, 64, 8, 2, True), Tile(128, 32, 8, 3, True),
        Tile(64, 64, 4, 2, True), Tile(128, 32, 8, 2)),
    ("attention_tangent", "sm90", 256): (Tile(128, 16, 8, 2, True), Tile(64, 16, 4, 3, True)),
    ("attention_jvp", "sm80", 64): (Tile(64, 32, 4, 2), Tile(128, 32, 8, 2)),
    ("attention_jvp", "sm80", 128): (Tile(64, 32, 8, 2),),
    ("attention_tangent", "sm80", 64): (Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 3)),
    ("attention_tangent", "sm80", 128): (Tile(64, 32, 8, 2), Tile(64, 16, 4, 2)),
    ("attention_tangent", "sm80", 256): (Tile(32, 16, 4, 2), Tile(64, 16, 8, 1)),
    ("attention_jvp", "sm100", 64): (Tile(128, 64, 8, 2),),
    ("attention_jvp", "sm100", 128): (Tile(128, 64, 8, 2, True), Tile(64, 32, 4, 2)),
    ("attention_jvp", "sm100", 256): (Tile(64, 32, 8, 2, True),),
    ("attention_tangent", "sm100", 64): (Tile(128, 64, 8, 2, True),),
    ("attention_tangent", "sm100", 128): (Tile(128, 64, 8, 2, True), Tile(64, 32, 4, 2)),
    ("attention_tangent", "sm100", 256): (Tile(64, 32, 8, 2, True),),
    ("attention_jvp", "fp32", 64): (Tile(32, 16, 4, 1),),
    ("attention_jvp", "fp32", 128): (Tile(32, 16, 4, 1),),
    ("attention_jvp", "fp32", 256): (Tile(16, 16, 4, 1),),
    ("attention_tangent", "fp32", 64): (Tile(32, 16, 4, 1),),
    ("attention_tangent", "fp32", 128): (Tile(32, 16, 4, 1),),
    ("attention_tangent", "fp32", 256): (Tile(16, 16, 4, 1),),
    ("attention_jvp", "cpu", 0): (Tile(32, 16, 1, 1), Tile(32, 16, 1, 1, True)),
    ("attention_tangent", "cpu", 0): (Tile(32, 16, 1, 1), Tile(32, 16, 1, 1, True)),
}


def traps(kernel: str, row: tuple[str, int], t: Tile) -> bool:
    """Whether this triton makes a trap of the tile (the compile report: 3.7.1 and 3.8.0 do, not 3.9.0)."""
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
    return old and kernel == "attention_jvp" and row[0] == "sm100" and row[1] > 64 and t.descriptors


def tile_for(kernel: str, dtype: torch.dtype, device: torch.device, width: int,
             by_hand: bool = True) -> Tile | None:
    """The first tile for head width `width`; None where there is no row.  by_hand: a hopper tile counts."""
    if width > 256:
        raise ValueError(f"{kernel}: head width {width}; want at most 256")
    row = ("cpu", 0) if device.type == "cpu" else (family(dtype), max(64, triton.next_power_of_2(width)))
    return next((t for t in TILES.get((kernel, *row), ())
                 if not traps(kernel, row, t) and (by_hand or not t.hopper)), None)


def family(dtype: torch.dtype) -> str:
    """The card at hand, as the table names it."""
    if dtype == torch.float32:
        return "fp32"
    capability = triton.runtime.driver.active.get_current_target().arch
    return "sm90" if capability == 90 else "sm100" if 100 <= capability < 120 else "sm80"
