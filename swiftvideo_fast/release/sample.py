"""swiftvideo sample: generates clips from images and prompts.

Text encoder, image encoder, VAE, network, VAE are loaded one after the other, used on all rows and freed, so
peak memory is that of the largest.  The noise of a row depends on (seed, row) alone, not on the number of
GPUs.
"""

import argparse
import csv
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from tqdm import tqdm

from swiftvideo_fast.config.arguments import positive, positive_number, size
from swiftvideo_fast.config.strict import want
from swiftvideo_fast.data.clips import write_video
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.wan import encoders, folder
from swiftvideo_fast.models.wan.codec import WanCodec, empty_cache
from swiftvideo_fast.models.wan.family import WanFamily
from swiftvideo_fast.models.wan.vae import LATENT
from swiftvideo_fast.release.find import Sampling, open_model, teacher
from swiftvideo_fast.sampler import generate
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train.preflight import check_writable

FPS = 16                                # of Wan 2.1
TEACHER = Sampling(steps=25, shift=3.0, guidance=3.0)               # shift 3 for 480p, 5 for 720p
COLUMNS = "image", "prompt"
CONTAINERS = ".mp4", ".mkv", ".mov"
FAMILY = WanFamily()


@dataclass(frozen=True)
class Row:
    """One clip to sample."""

    image: Path
    prompt: str
    out: Path


@dataclass(frozen=True)
class Shape:
    """Frames and pixels of a clip; ValueError for sizes that the VAE does not accept."""

    frames: int
    height: int
    width: int

    def __post_init__(self):
        LATENT.shape(self.frames, self.height, self.width, "sample")

    @property
    def latent(self) -> tuple[int, int, int, int]:
        return LATENT.channels, *LATENT.shape(self.frames, self.height, self.width)


@dataclass
class Costs:
    """Measures seconds and, on a GPU, peak memory (GB) per part."""

    device: torch.device
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        yield
        peak = 0.0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device) / 1e9
        self.parts[name] = time.perf_counter() - start, peak

    def table(self) -> str:
        return "\n".join(f"{name:16}{seconds:8.1f} s" + (f"{peak:8.2f} GB" if peak else "")
                         for name, (seconds, peak) in self.parts.items())


def conditions(rows: list[Row], shape: Shape, codec: WanCodec, costs: Costs,
               quiet: bool = True) -> list[Condition]:
    """Returns one condition per row, on the CPU.  One encoder at a time is in memory."""
    with costs.part("text encoder"):
        texts = [codec.text_encoder([row.prompt]).cpu() for row in _progress(rows, "text", quiet)]
        null_text = codec.null_text.cpu()
        codec.free("text_encoder")
    frames = [frame_of(row.image, shape.height, shape.width) for row in rows]
    with costs.part("image encoder"):
        images = [codec.image_encoder(frame).cpu() for frame in _progress(frames, "image", quiet)]
        codec.free("image_encoder")
    with costs.part("VAE, encoding"):
        known = [codec.frames(frame, shape.frames).cpu() for frame in _progress(frames, "first frame", quiet)]
        codec.free("vae")
    return [Condition(*of, null_text, image) for *of, image in zip(known, texts, images, strict=True)]


def latents(given: list[Condition], shape: Shape, sampling: Sampling, network: Callable[[], nn.Module],
            costs: Costs, seed: int = 0, first: int = 0, stride: int = 1, quiet: bool = True) -> list[Tensor]:
    """Returns one latent (1, 16, T, h, w) per condition, on the CPU.  network: loads the network.

    The i-th row uses the noise of position first + i * stride.
    """
    with costs.part("network"), _bar(sampling.steps * len(given), "network", "step", quiet) as bar:
        call, made = _counted(network(), bar), []
        for i, condition in enumerate(given):
            rng = generator(seed, "sample", first + i * stride)
            x1 = torch.randn(1, *shape.latent, generator=rng).to(costs.device)
            made.append(generate(call, x1, condition.to(costs.device), sampling.steps, sampling, rng).cpu())
        del call
        empty_cache()
    return made


def _counted(net: nn.Module, bar: tqdm) -> Callable[[Tensor, Tensor, Condition], Tensor]:
    """Returns Family.call of a network, advancing the progress bar by one per call."""
    def call(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        bar.update()
        return FAMILY.call(net, x_t, t, condition)

    return call


def decoded(made: list[Tensor], codec: WanCodec, costs: Costs, quiet: bool = True) -> Iterator[Tensor]:
    """Yields one clip (3, F, H, W) in [-1, 1] per latent."""
    with costs.part("VAE, decoding"):
        for z in _progress(made, "frames", quiet):
            yield codec.decode(z.to(costs.device))[0].cpu()


def _progress(items: list, name: str, quiet: bool) -> Iterator:
    with _bar(len(items), name, "row", quiet) as bar:
        for item in items:
            yield item
            bar.update()


def _bar(total: int, name: str, unit: str, quiet: bool) -> tqdm:
    return tqdm(total=total, desc=name, unit=unit, disable=quiet, leave=False)


def frame_of(path: Path, height: int, width: int) -> Tensor:
    """Returns an image as (1, 3, height, width) in [-1, 1]: EXIF-rotated, scaled to cover, centre-cropped.

    ValueError when it is missing or not an image.
    """
    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError as why:
        raise ValueError(f"{path}: no such image") from why
    except (UnidentifiedImageError, OSError, SyntaxError) as why:
        raise ValueError(f"{path}: not an image ({why}); want a PNG, JPEG or WebP file") from why
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return pixels.float() / 127.5 - 1


def read_rows(prompts: Path, out: Path) -> list[Row]:
    """Returns rows of a csv with columns image (path relative to the csv) and prompt; out/0000.mp4, ... are
    their outputs.  ValueError for a bad csv."""
    try:
        with open(prompts, newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            found = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as why:
        raise ValueError(f"{prompts}: not a csv ({why})") from why
    if not found or not set(COLUMNS) <= set(table.fieldnames or ()):
        raise ValueError(f"{prompts}: columns are {table.fieldnames}, {len(found)} rows; want "
                         f"{', '.join(COLUMNS)} and one row per clip")
    if incomplete := [n for n, row in enumerate(found, 2) if not row["image"] or row["prompt"] is None]:
        raise ValueError(f"{prompts}: line {incomplete[0]} has no image or no prompt")
    return [Row(prompts.parent / row["image"], row["prompt"], out / f"{i:04d}.mp4")
            for i, row in enumerate(found)]


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--image", type=Path, help="the first frame")
    p.add_argument("--prompt", default="", help="text prompt")
    p.add_argument("--prompts", type=Path, help="instead of these two: a csv with columns image, prompt")
    p.add_argument("--out", type=Path, help="clip.mp4; a folder for --prompts")
    p.add_argument("--base", type=Path, help="folder with VAE and encoders (default: the run's base model)")
    p.add_argument("--teacher", action="store_true", help="sample the base model: 25 steps, guidance 3")
    p.add_argument("--shift", type=positive_number, help="time shift: 3 for 480p, 5 for 720p")
    p.add_argument("--frames", type=positive, default=61, help="4n + 1 (default: 61, at 16 fps)")
    p.add_argument("--size", type=size, default=(832, 480), metavar="WxH", help="832x480")
    p.add_argument("--negative", default="", help="text of the unconditional branch (default: none)")
    p.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of network and umT5")


def run(args: argparse.Namespace) -> None:
    """Runs `swiftvideo sample MODEL`.  Under torchrun rank r samples rows r, r + WORLD_SIZE, ..."""
    rank, world, local = (int(os.environ.get(key, default)) for key, default in
                          (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    shape, rows = Shape(args.frames, args.size[1], args.size[0]), _rows(args)
    for row in rows:
        frame_of(row.image, shape.height, shape.width)          # fails before 11 GB are loaded
    check_writable("--out", rows[0].out.parent)
    check_new([row.out for row in rows[rank::world]], args.force)
    device = torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    dtype, costs, mine, quiet = getattr(torch, args.dtype), Costs(device), rows[rank::world], rank > 0
    with open_model(Path(args.model), args.base, tables=args.tables) as model:
        weights, sampling = (teacher(model), TEACHER) if args.teacher else (model.weights, model.sampling)
        if sampling is None:
            raise ValueError(f"{args.model}: a base model, which needs many steps and guidance; want "
                             "--teacher, or a student")
        flags = {key: getattr(args, key) for key in ("steps", "guidance", "shift")}
        sampling = replace(sampling, **{key: value for key, value in flags.items() if value is not None})
        folder.find(weights)
        encoders.check_folder(model.encoders)
        if args.dry_run:
            print(f"would write {len(rows)} clips of {sampling.steps} steps, shift {sampling.shift:g}, "
                  f"guidance {sampling.guidance:g}, the first to {rows[0].out}")
            return
        codec = WanCodec(model.encoders, device, args.negative, text_dtype=dtype)

        def network() -> nn.Module:
            return folder.load(weights, dtype=dtype, device=device).eval().requires_grad_(False)

        given = conditions(mine, shape, codec, costs, quiet)
        made = latents(given, shape, sampling, network, costs, args.seed, rank, world, quiet)
    for clip, row in zip(decoded(made, codec, costs, quiet), mine):
        write_video(row.out, clip, FPS)
        print(row.out)
    if not quiet:
        print(f"{sampling.steps} steps, shift {sampling.shift:g}, guidance {sampling.guidance:g}; by part:")
        print(costs.table())


def check_new(files: list[Path], force: bool) -> None:
    """Raises ValueError when a file exists, unless `force`."""
    existing = [file for file in files if file.exists()]
    if existing and not force:
        more = f", and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ValueError(f"{existing[0]} exists{more}; name another --out, or --force to replace it")


def _rows(args: argparse.Namespace) -> list[Row]:
    if bool(args.image) == bool(args.prompts):
        raise ValueError("want --image and --prompt, or --prompts with a csv of them")
    if args.prompts:
        return read_rows(args.prompts, args.out or Path("clips"))
    out = args.out or Path("clip.mp4")
    want(out.suffix in CONTAINERS, "--out", f"{out}", f"a name that ends in {', '.join(CONTAINERS)}")
    return [Row(args.image, args.prompt, out)]
