"""Times the table's tiles on this GPU and puts each row's fastest first; for developers, not used at launch.

    python -m bench tune [--write]

Rewrites kernels/swiftvideo_kernels/tiles.py with --write; otherwise only prints the result.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from swiftvideo_kernels import attention, tiles
from swiftvideo_kernels.attention_jvp import attention_jvp
from swiftvideo_kernels.attention_tangent import attention_tangent
from swiftvideo_kernels.tiles import TILES, Tile
from torch import Tensor

from bench.options import Parser
from swiftvideo_fast.atomic import atomic_write

WRONG = 1e-2                        # bf16 difference; each errs by at most 3.5e-3 (kernels/README.md)


def launches(kernel: str, width: int, N: int = 16384) -> Callable[[Tile | None], Tensor]:
    """Returns a function of a tile (None: the table's) that computes to, for 12 heads of N tokens."""
    drawn = torch.randn(6, 1, N, 12, width, device="cuda", dtype=torch.bfloat16)
    args, scale = drawn.transpose(2, 3).unbind(), width**-0.5
    if kernel == "attention_jvp":
        return lambda tile: attention_jvp(*args, scale, False, tile=tile)[1]
    given = attention.attention(*args[::2], scale, False)
    return lambda tile: attention_tangent(*args, *given, scale, False, tile=tile)


def milliseconds(launch: Callable[[Tile | None], Tensor], tile: Tile, want: Tensor) -> float:
    """Returns the median milliseconds of a launch; infinity if it fails or differs from `want`."""
    try:
        apart = (launch(tile) - want).float().norm() / want.float().norm()
        if not apart < WRONG:
            print(f"  {tile}: differs by {apart:.1e} from the launched tile's result")
            return float("inf")
        return triton.testing.do_bench(lambda: launch(tile), return_mode="median")
    except Exception as error:                                # a tile that this GPU cannot run ranks last
        print(f"  {tile}: {type(error).__name__}")
        return float("inf")


def entry(tile: Tile) -> str:
    """Returns the tile as source code, without default fields."""
    unlike = {name: x for name, x in tile._asdict().items() if x != Tile._field_defaults.get(name)}
    return f"Tile({', '.join(f'{name}={x}' for name, x in unlike.items())})"


def rewritten(text: str, key: tuple, row: list[Tile]) -> str:
    """Returns tiles.py's text with the row of `key` replaced.  ValueError unless there is exactly one."""
    head = f'    ("{key[0]}", "{key[1]}", {key[2]}): ('
    line = "\n".join([head, *(f"        {entry(tile)}," for tile in row), "    ),\n"])
    new, count = re.subn(re.escape(head) + r'(?s:.*?)\),\n(?=    \("|})', lambda _: line, text)
    if count != 1:
        raise ValueError(f"tune: tiles.py has {count} rows for {key}; want one")
    return new


def main(argv: list[str]) -> int:
    parser = Parser("tune", __doc__)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("python -m bench tune: no CUDA device here")
        return 1

    path, mine = Path(tiles.__file__), tiles.family(torch.bfloat16)
    text = path.read_text()
    for key, row in TILES.items():
        if key[1] != mine or len(row) < 2:
            continue
        launch = launches(key[0], key[2])
        want = launch(None)
        times = {tile: milliseconds(launch, tile, want) for tile in row}
        ranked = sorted(row, key=times.get)
        print(key, *(f"\n  {times[tile]:9.3f} ms  {tile}" for tile in ranked))
        text = rewritten(text, key, ranked)
    if args.write:
        with atomic_write(path) as tmp:
            tmp.write_text(text)
    return 0
