"""Runs VBench's package on a folder of ours: its file checks and temporal_flickering.  By hand:

    python tests/compare_vbench.py make FOLDER           a folder of three prompts, in our environment
    python FOLDER/run.py cpu temporal_flickering        in VBench's (vbench 0.1.5, numpy < 2)
    python tests/compare_vbench.py frames FOLDER         in VBench's: frames by its decoder, and its pairs
                                                        of image and video, opened as by VBench
    python tests/compare_vbench.py check FOLDER          in ours: every score, and the difference
"""

import json
import os
import sys
from pathlib import Path

import numpy as np


def make(folder: Path) -> None:
    import torch
    from PIL import Image

    from swiftvideo_fast.data.clips import demo_clips, write_video
    from swiftvideo_fast.metrics.vbench import Clip, prepare

    made = folder.with_name(folder.name + "-clips")
    made.mkdir()
    rows, rng = [], torch.Generator().manual_seed(0)
    for clip in demo_clips(240):
        prompts = clip.caption, f"{clip.caption} / {'and on it goes ' * 20}"
        x = torch.from_numpy(clip.frames[:33, :156, :270]).float().permute(3, 0, 1, 2) / 127.5 - 1
        Image.fromarray(clip.frames[0]).save(made / f"{clip.name}.png")
        for k, (prompt, count) in enumerate(zip(prompts, (5, 2), strict=True)):
            for i in range(count):
                video = made / f"{clip.name}-{k}{i}.mp4"
                write_video(video, x + 0.02 * i * torch.randn(3, 33, 1, 1, generator=rng), fps=16)
                rows.append(Clip(prompt, made / f"{clip.name}.png", video))
    print(f"{folder}: {len(rows)} videos, images of ratio {prepare(folder, rows)}")


def frames(folder: Path) -> None:
    """Decodes with VBench's functions; frames as RGB."""
    from PIL import Image
    from vbench.temporal_flickering import get_frames
    from vbench2_beta_i2v import VBenchI2V
    from vbench2_beta_i2v.utils import load_i2v_dimension_info

    os.chdir(folder)
    for dimension in ("i2v_subject", "i2v_background"):
        bench = VBenchI2V("cpu", "full_info.json", "checks")
        info = bench.build_full_info_json("videos", dimension, [dimension])
        pairs, _ = load_i2v_dimension_info(info, dimension, "en", *os.listdir("vbench2_beta_i2v/data/crop"))
        sizes = {(Image.open(image).mode, *Image.open(image).size) for image, _ in pairs}
        print(f"{dimension}: {len(pairs)} pairs, images {sizes}")
    for path in Path("videos").iterdir():
        np.save(f"{path.stem}.npy", np.stack(get_frames(str(path)))[..., ::-1])


def check(folder: Path) -> None:
    import torch

    from swiftvideo_fast.data.clips import decode
    from swiftvideo_fast.metrics.fidelity import temporal_flickering
    from swiftvideo_fast.metrics.vbench import read

    def ours(frames_THWC: np.ndarray) -> float:
        x = torch.from_numpy(frames_THWC.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        return temporal_flickering(x).item()

    score, of_videos = json.loads((folder / "results/temporal_flickering_eval_results.json").read_text())[
        "temporal_flickering"]
    same, other = [], []
    for video in of_videos:
        path = folder / video["video_path"]
        shown = np.load(folder / f"{path.stem}.npy")
        same.append(abs(ours(shown) - video["video_results"]))
        other.append(abs(ours(decode(path, height=shown.shape[1])[0]) - video["video_results"]))
    print(f"{len(of_videos)} videos, VBench's temporal_flickering {score:.6f}; ours differs by at most "
          f"{max(same):.1e} on VBench's frames, {max(other):.1e} by our decoder")
    print(read(folder))
    assert max(same) < 1e-6 and len(of_videos) == len([*(folder / "videos").glob("*.mp4")])


if __name__ == "__main__":
    {"make": make, "frames": frames, "check": check}[sys.argv[1]](Path(sys.argv[2]))
