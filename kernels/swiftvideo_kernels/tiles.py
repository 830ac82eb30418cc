"""Tiles of the attention kernels: a table by GPU family, dtype and head width, independent of length.

The first entry of a row is launched.  The others are candidates: `python -m bench compile_report` compiles
all, and `python -m bench tune` times them on the current GPU and puts the fastest first.

Measured: sm90 at width 128 (H100, 2026-11-27, triton 3.6.0), (1, 12, 24960, 128), in TFLOP/s of 12 B H N M D:
hand-scheduled 680 to 733, with h first 668 to 725 (two runs, kernels/README.md), then 571, 398, 444, 420 in
the order of the row.  The 571 is 505 with triton 3.8.0 and 515 with 3.9.0, which add a block-wide barrier
after every wait.  Width 64, hand-scheduled: three slots 539 to 591, two 532 to 592, four 536.  The other rows
are ordered by registers and tile size.

Families, by compute capability:
    sm100   10.x, tensor memory        sm90   9.0, wgmma and TMA, 227 KB of shared memory per block
    sm80    8.x and 12.x; at most 99 KB, so one row covers the consumer GPUs too
    fp32    any GPU, each product from three tf32 (tf32x3, about 1e-6): for tests; it spills
    cpu     Triton's interpreter; small, so short sequences have full, ragged and several blocks
"""

from typing import NamedTuple

import torch
import triton


class Tile(NamedTuple):
    block_m: int                    # queries per program
    block_n: int                    # keys per iteration
    warps: int
    stages: int                     # pipeline depth over keys
    descriptors: bool = False       # loads by TMA, through tensor descriptors
    hopper: int = 0                 # attention_jvp_hopper: registers per consumer thread; 0: not
    h_first: bool = False           # attention_jvp_hopper: h v before p tv

    def __str__(self) -> str:
        form = ", TMA" * self.descriptors
        form += f", by hand, {self.hopper} registers" * bool(self.hopper) + ", h first" * self.h_first
        return f"{self.block_m}x{self.block_n}, {self.warps} warps, {self.stages} stages{form}"


# TFLOP/s at 24,960 tokens, p tv first and h v first (H100, 2026-11-27): 733, 725 with triton 3.6.0; in the
# previous run 697 with 3.6.0 (p tv first), 687, 679 with 3.8.0, 633, 643 with 3.9.0.  With 3.6 and 3.8
# neither order spills in a loop; with 3.9 p tv first spills 6 registers per iteration, h v first 2.
H_FIRST = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)

# Width 256 has no one-pass row below sm100: two accumulators of 256 columns exceed a thread's registers.
# attention_jvp uses two passes there.
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


def compiles_to_trap(kernel: str, row: tuple[str, int], t: Tile) -> bool:
    """True if this triton compiles the tile to a trap (compile report: 3.7.1 and 3.8.0, not 3.9.0)."""
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
    return old and kernel == "attention_jvp" and row[0] == "sm100" and row[1] > 64 and t.descriptors


def tile_for(kernel: str, dtype: torch.dtype, device: torch.device, width: int,
             by_hand: bool = True) -> Tile | None:
    """Returns the first tile for a head width, or None.  by_hand: include hand-scheduled (hopper) tiles."""
    if width > 256:
        raise ValueError(f"{kernel}: head width {width}; want at most 256")
    row = ("cpu", 0) if device.type == "cpu" else (family(dtype), max(64, triton.next_power_of_2(width)))
    return next((t for t in TILES.get((kernel, *row), ())
                 if not compiles_to_trap(kernel, row, t) and (by_hand or not t.hopper)), None)


def family(dtype: torch.dtype) -> str:
    """Returns the current GPU's family in TILES; "fp32" for float32."""
    if dtype == torch.float32:
        return "fp32"
    capability = triton.runtime.driver.active.get_current_target().arch
    return "sm90" if capability == 90 else "sm100" if 100 <= capability < 120 else "sm80"
