"""VBench-I2V in an environment of its own: write the folder that it takes, read its scores back.

    python -m swiftvideo_fast.metrics.vbench prepare FOLDER --table clips.csv
    python FOLDER/run.py                                            by the python that has vbench
    python -m swiftvideo_fast.metrics.vbench read FOLDER            the paper's four columns

FOLDER holds videos/NAME-{0..4}.mp4, the images that they began with (vbench2_beta_i2v/data/crop/RATIO, where
VBench looks for its own), full_info.json (VBench's list of prompts, dimensions and images), run.py, and
results/, one file a dimension: run.py computes those that are not there yet.
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

PER_PROMPT = 5                  # videos that VBench looks for
RATIOS = "16-9", "7-4", "8-5", "1-1"
IMAGES = "vbench2_beta_i2v/data/crop"
LONGEST = 240                   # bytes of a name: file systems take 255, and -0.mp4 is added

RUN = '''"""Run VBench-I2V on this folder, by the python that has vbench: run.py [device [dimension ...]]"""

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
    """A generated video, its prompt and the image that it began with."""

    prompt: str
    image: Path
    video: Path


def prepare(folder: Path, clips: Iterable[Clip], info: Path | None = None) -> str:
    """Write the folder; returns the ratio of its images, the nearest to the videos'.

    info: VBench's own vbench2_i2v_full_info.json, for its own prompts and images: then all of them, except
    camera_motion's, must be there with five videos each.  ValueError, and nothing is written, for a folder
    that exists, a video that does not decode, sizes that differ, a prompt of two images or of more than five
    videos.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already; choose another folder, or remove it")
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
    """The prompt, where a file can be called so; else its beginning and a digest.

    (VBench reads a prompt for camera_motion alone.)
    """
    if len(prompt.encode()) <= LONGEST and not re.search(r"^\.|[/\x00-\x1f]", prompt):
        return prompt
    begin = re.sub(r"[^\w ,-]+", " ", prompt).encode()[:80].decode(errors="ignore").strip()
    return f"{begin} {hashlib.sha256(prompt.encode()).hexdigest()[:12]}".strip()


def read_table(file: Path) -> list[Clip]:
    """Of a csv with columns prompt, image, video; paths are relative to it."""
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
    """VBench's entry for a prompt that is not of its suite: measured in every dimension."""
    name = name_of(prompt)
    return {"prompt_en": name, "dimension": [*DIMENSIONS], "image_name": f"{name}.png"}


def _of_suite(prompts: dict[str, list[Clip]], info: Path) -> dict[str, dict]:
    """Prompt -> VBench's entry, of those that have a dimension of ours."""
    try:
        listed = {e["prompt_en"]: e for e in json.loads(info.read_text())}
        wrong = [prompt for prompt, e in listed.items() if not isinstance(e["dimension"], list)
                 or name_of(prompt) != prompt or name_of(e["image_name"]) != e["image_name"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as why:
        raise ValueError(f"{info}: not vbench2_i2v_full_info.json ({why!r})") from why
    if wrong:
        raise ValueError(f"{info}: {wrong[0]!r} lacks dimensions, or no file can be called after it or after "
                         "its image")
    unknown = [prompt for prompt in prompts if prompt not in listed]
    if unknown:
        raise ValueError(f"{len(unknown)} prompts are not in {info}, the first {unknown[0]!r}")
    entries = {p: e for p, e in listed.items() if DIMENSIONS.keys() & set(e["dimension"])}
    short = [prompt for prompt in entries if len(prompts.get(prompt, ())) < PER_PROMPT]
    if short:
        raise ValueError(f"{len(short)} of the suite's {len(entries)} prompts have fewer than {PER_PROMPT} "
                         f"videos, the first {short[0]!r}; the suite's scores are of all of them")
    return entries


def _check(prompt: str, clips: list[Clip]) -> None:
    if len(clips) > PER_PROMPT:
        raise ValueError(f"{prompt!r} has {len(clips)} videos; VBench takes {PER_PROMPT} of a prompt")
    if len({clip.image for clip in clips}) > 1:
        raise ValueError(f"{prompt!r} has videos of {clips[0].image} and of another image; VBench takes one "
                         "a prompt: let the prompts differ")


def _ratio(videos: list[Path]) -> tuple[str, float]:
    """(the nearest of VBench's, width over height) of videos that must share one size."""
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
    """RGB, turned as its EXIF says; cropped about the centre to the videos' aspect, as the model saw it."""
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as why:
        raise ValueError(f"{source}: not an image that can be read ({why})") from why
    if aspect:
        w, h = min(image.width, round(image.height * aspect)), min(image.height, round(image.width / aspect))
        left, top = (image.width - w) // 2, (image.height - h) // 2
        image = image.crop((left, top, left + w, top + h))
    image.save(target, "PNG")               # whatever the suite calls it; PIL looks at the bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    todo = parser.add_subparsers(dest="todo", required=True, metavar="prepare | read")
    p = todo.add_parser("prepare", help="write the folder that VBench takes")
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
    print(f"{args.folder}: images of ratio {ratio}. By the python that has vbench:\n"
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
