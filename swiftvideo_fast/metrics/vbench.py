"""VBench-I2V in a separate environment: writes the folder that it expects, reads its scores.

    python -m swiftvideo_fast.metrics.vbench prepare FOLDER --table clips.csv
    python FOLDER/run.py                                            with the python that has vbench
    python -m swiftvideo_fast.metrics.vbench read FOLDER            the paper's four columns

FOLDER has videos/NAME-{0..4}.mp4, their first-frame images (vbench2_beta_i2v/data/crop/RATIO, where VBench
expects its own), full_info.json (VBench's list of prompts, dimensions and images), run.py, and results/, one
file per dimension: run.py computes missing ones.
"""

import argparse
import csv
import hashlib
import json
import math
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.data.shots import probe
from swiftvideo_fast.metrics.vbench_scores import DIMENSIONS, read

PER_PROMPT = 5                  # videos that VBench expects
RATIOS = "16-9", "7-4", "8-5", "1-1"
IMAGES = "vbench2_beta_i2v/data/crop"
LONGEST = 240                   # bytes of a name: file systems allow 255, and -0.mp4 is appended

RUN = '''"""Runs VBench-I2V on this folder; needs vbench's environment: run.py [device [dimension ...]]"""

import os
import sys
from pathlib import Path

from vbench2_beta_i2v import VBenchI2V

os.chdir(Path(__file__).resolve().parent)
device, *dimensions = sys.argv[1:] or ["cuda"]
for dimension in dimensions or {dimensions}:
    if not Path(f"results/{{dimension}}_eval_results.json").exists():
        bench = VBenchI2V(device, "full_info.json", "results")
        bench.evaluate("videos", dimension, dimension_list=[dimension], resolution="{ratio}")
'''


@dataclass(frozen=True)
class Clip:
    """A generated video, its prompt and its first-frame image."""

    prompt: str
    image: Path
    video: Path


def prepare(folder: Path, clips: Iterable[Clip], info: Path | None = None) -> str:
    """Writes the folder; returns the ratio of its images, the nearest to the videos'.

    info: VBench's vbench2_i2v_full_info.json, to use its prompts and images: all of them, except
    camera_motion's, are then required, with five videos each.  ValueError, and nothing is written, for an
    existing folder, a video that does not decode, differing sizes, a prompt with two images or more than five
    videos.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another folder, or remove it")
    prompts = defaultdict(list)
    for clip in clips:
        prompts[clip.prompt].append(clip)
    for prompt, of_prompt in prompts.items():
        _check(prompt, of_prompt)
    entries = _of_suite(prompts, info) if info else {prompt: _own(prompt) for prompt in prompts}
    ratio, aspect = _ratio([clip.video for prompt in entries for clip in prompts[prompt]])
    with atomic_write(folder) as tmp:
        images, videos = tmp / IMAGES / ratio, tmp / "videos"
        images.mkdir(parents=True)
        videos.mkdir()
        for prompt, entry in entries.items():
            _write_image(prompts[prompt][0].image, images / entry["image_name"], None if info else aspect)
            for i, clip in enumerate(prompts[prompt]):
                shutil.copyfile(clip.video, videos / f"{entry['prompt_en']}-{i}.mp4")
        (tmp / "full_info.json").write_text(json.dumps([*entries.values()], indent=1))
        (tmp / "run.py").write_text(RUN.format(dimensions=[*DIMENSIONS], ratio=ratio))
    return ratio


def name_of(prompt: str) -> str:
    """Returns the prompt if it is a valid file name, else its start and a digest.

    (VBench uses the prompt's text for camera_motion only.)
    """
    if len(prompt.encode()) <= LONGEST and not re.search(r"^\.|[/\x00-\x1f]", prompt):
        return prompt
    begin = re.sub(r"[^\w ,-]+", " ", prompt).encode()[:80].decode(errors="ignore").strip()
    return f"{begin} {hashlib.sha256(prompt.encode()).hexdigest()[:12]}".strip()


def read_table(file: Path) -> list[Clip]:
    """Returns the clips of a csv with columns prompt, image, video, with paths relative to it.  ValueError
    for a bad csv."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            found = [[row[name] for name in ("prompt", "image", "video")] for row in csv.DictReader(stream)]
    except (OSError, UnicodeDecodeError, csv.Error) as why:
        raise ValueError(f"{file}: cannot be read ({why})") from why
    except KeyError as why:
        raise ValueError(f"{file}: no column {why}; want prompt, image, video") from why
    for number, row in enumerate(found, 1):
        if not all(row):
            raise ValueError(f"{file}: row {number} lacks a prompt, an image or a video")
    return [Clip(prompt, file.parent / image, file.parent / video) for prompt, image, video in found]


def _own(prompt: str) -> dict:
    """Returns VBench's entry for a prompt outside its suite, measured in every dimension."""
    name = name_of(prompt)
    return {"prompt_en": name, "dimension": [*DIMENSIONS], "image_name": f"{name}.png"}


def _of_suite(prompts: dict[str, list[Clip]], info: Path) -> dict[str, dict]:
    """Returns prompt -> VBench's entry, for prompts with one of our dimensions.  ValueError if incomplete."""
    try:
        listed = {e["prompt_en"]: e for e in json.loads(info.read_text())}
        wrong = [prompt for prompt, e in listed.items() if not isinstance(e["dimension"], list)
                 or name_of(prompt) != prompt or name_of(e["image_name"]) != e["image_name"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as why:
        raise ValueError(f"{info}: not vbench2_i2v_full_info.json ({why!r})") from why
    if wrong:
        raise ValueError(f"{info}: {wrong[0]!r} lacks dimensions, or it or its image is no valid file name")
    unknown = [prompt for prompt in prompts if prompt not in listed]
    if unknown:
        raise ValueError(f"{len(unknown)} prompts are not in {info}, the first {unknown[0]!r}")
    entries = {p: e for p, e in listed.items() if DIMENSIONS.keys() & set(e["dimension"])}
    short = [prompt for prompt in entries if len(prompts.get(prompt, ())) < PER_PROMPT]
    if short:
        raise ValueError(f"{len(short)} of the suite's {len(entries)} prompts have fewer than {PER_PROMPT} "
                         f"videos, the first {short[0]!r}; the suite's scores need all of them")
    return entries


def _check(prompt: str, clips: list[Clip]) -> None:
    if len(clips) > PER_PROMPT:
        raise ValueError(f"{prompt!r} has {len(clips)} videos; VBench takes {PER_PROMPT} per prompt")
    if len({clip.image for clip in clips}) > 1:
        raise ValueError(f"{prompt!r} has videos of {clips[0].image} and of another image; VBench takes one "
                         "per prompt: make the prompts differ")


def _ratio(videos: list[Path]) -> tuple[str, float]:
    """Returns (the nearest of VBench's ratios, width / height) of videos, which must have one size."""
    sizes = {}
    for path in videos:
        if path.suffix.lower() != ".mp4":
            raise ValueError(f"{path}: want a .mp4, as VBench decodes them")
        file = probe(path)
        sizes.setdefault((file.width, file.height), path)
    if len(sizes) != 1:
        each = ", ".join(f"{path} is {w}x{h}" for (w, h), path in sizes.items())
        raise ValueError(f"want videos of one size; {each or 'there is none'}")
    (width, height), = sizes

    def apart(name: str) -> float:
        w, h = map(int, name.split("-"))
        return abs(math.log(width * h / (w * height)))

    return min(RATIOS, key=apart), width / height


def _write_image(source: Path, target: Path, aspect: float | None) -> None:
    """Writes an image as RGB, EXIF-rotated, centre-cropped to the videos' aspect, as the model saw it."""
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as why:
        raise ValueError(f"{source}: not a readable image ({why})") from why
    if aspect:
        w, h = min(image.width, round(image.height * aspect)), min(image.height, round(image.width / aspect))
        left, top = (image.width - w) // 2, (image.height - h) // 2
        image = image.crop((left, top, left + w, top + h))
    image.save(target, "PNG")               # whatever its suffix; PIL detects the format from the bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    todo = parser.add_subparsers(dest="todo", required=True, metavar="prepare | read")
    p = todo.add_parser("prepare", help="write the folder that VBench expects")
    p.add_argument("folder", type=Path)
    p.add_argument("--table", type=Path, required=True, metavar="CSV", help="columns prompt, image, video")
    p.add_argument("--info", type=Path, metavar="JSON", help="vbench2_i2v_full_info.json, for its prompts")
    p = todo.add_parser("read", help="print the paper's columns from the results")
    p.add_argument("folder", type=Path)


def run(args: argparse.Namespace) -> None:
    if args.todo == "read":
        print(read(args.folder))
        return
    ratio = prepare(args.folder, read_table(args.table), args.info)
    print(f"{args.folder}: images of ratio {ratio}. With the python that has vbench:\n"
          f"    python {args.folder / 'run.py'}\nthen\n"
          f"    python -m swiftvideo_fast.metrics.vbench read {args.folder}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m swiftvideo_fast.metrics.vbench",
                                     description=__doc__.split("\n\n")[0])
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except (ValueError, OSError) as why:
        print(f"vbench: {why}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
