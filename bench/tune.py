"""Time the table's tiles on this GPU and put each row's fastest first: a developer's command, not a launch's.

    python -m bench tune [--write]

Rewrites kernels/swiftvideo_kernels/tiles.py with --write; without, only says what it would do.
"""

import argparse
import re
from pathlib import Path

import torch
import triton
from swiftvideo_kernels import attention, tiles
from swiftvideo_kernels.attention_jvp import attention_jvp
from swiftvideo_kernels.attention_tangent import attention_tangent
from swiftvideo_kernels.tiles import TILES, Tile


def milliseconds(kernel: str, width: int, at: Tile, N: int = 16384) -> float:
    """Median time of one launch; infinite if it does not run."""
    q, tq, k, tk, v, tv = (torch.randn(1, N, 12, width, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
                           for _ in range(6))
    given, launch = (), attention_jvp
    if kernel == "attention_tangent":
        given, launch = attention.attention(q, k, v, width**-0.5, False), attention_tangent
    try:
        return triton.testing.do_bench(lambda: launch(q, tq, k, tk, v, tv, *given, width**-0.5, False, at=at),
                                       return_mode="median")
    except Exception as error:                                # a tile that this card cannot run loses
        print(f"  {at}: {type(error).__name__}")
        return float("inf")


def entry(tile: Tile) -> str:
    """The tile as the table writes it: fields at their default left out."""
    unlike = {name: x for name, x in tile._asdict().items() if x != Tile._field_defaults.get(name)}
    return f"Tile({', '.join(f'{name}={x}' for name, x in unlike.items())})"


def rewritten(text: str, key: tuple, row: list[Tile]) -> str:
    """tiles.py's text with the row of `key` replaced."""
    head = f'    ("{key[0]}", "{key[1]}", {key[2]}): ('
    line = "\n".join([head, *(f"        {entry(tile)}," for tile in row), "    ),\n"])
    new, count = re.subn(re.escape(head) + r'(?s:.*?)\),\n(?=    \("|})', lambda _: line, text)
    if count != 1:
        raise ValueError(f"tune: tiles.py has {count} rows for {key}; want one")
    return new


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench tune")
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
        times = {at: milliseconds(key[0], key[2], at) for at in row}
        ranked = sorted(row, key=times.get)
        print(key, *(f"\n  {times[at]:9.3f} ms  {at}" for at in ranked))
        text = rewritten(text, key, ranked)
    if args.write:
        path.write_text(text)
    return 0
