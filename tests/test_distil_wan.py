"""Runs the commands of docs/distil-wan.md on a tiny model in the released layout and six mp4.

Options that make it small are appended to each command: sizes, steps, one process.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import released
import synthetic
import torch

pytest.importorskip("pyarrow")

from swiftvideo_fast import cli, config  # noqa: E402
from swiftvideo_fast.config import shipped  # noqa: E402
from swiftvideo_fast.data.probe import probe  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/distil-wan.md").read_text()
TRAIN = ["run.steps=2", "run.save_every=2", "run.watch_every=0", "data.batch=2", "data.held_out=0",
         "engine.name=plain", "engine.dtype=float32"]
SMALL = {
    "index": ["--workers", "1"],
    "encode": ["--frames", "9", "--rate", "8", "--size", "32x32"],
    "train configs/wan/ccd.yaml": TRAIN,
    "train configs/wan/da.yaml": [*TRAIN, "da.backbone=filters", "da.crop=16"],
    "align": [*TRAIN, "objective.count=2", "objective.rank=4"],
    "export": ["--dtype", "float32"],
}


def blocks() -> list[str]:
    """Returns the page's indented blocks, dedented."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE, re.M)
    return [re.sub(r"^    ", "", block, flags=re.M).strip() for block in found]


@pytest.mark.filterwarnings("ignore")
def test_the_page_from_mp4_to_a_clip_of_the_stock_pipeline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    released.write(tmp_path / "Wan2.1-Fun-1.3B-InP", "original")
    released.write_encoders(tmp_path / "Wan2.1-Fun-1.3B-InP", "original")
    rows = ["video,caption"]
    for number in range(6):
        synthetic.write_video(tmp_path / f"clips/{number}.mp4", "libx264", synthetic.constant(24, 60))
        rows.append(f'{number}.mp4,"a red ball, the {number}th"')
    Path("captions.csv").write_text("\n".join(rows) + "\n")
    released.picture(64, 64).save("first.png")

    ran = [line for block in blocks() for line in block.splitlines() if line.startswith("swiftvideo ")]
    ran.remove("swiftvideo train configs/wan/14b/ccd.yaml --dry-run")       # with the others below
    assert len(ran) == 7
    for line in ran:
        _, *words = shlex.split(line)
        small = next(extra for start, extra in SMALL.items() if " ".join(words).startswith(start))
        place = 2 if "yaml" in line else len(words)             # overrides follow the config
        assert cli.main([*words[:place], *small, *words[place:]]) == 0, (line, capsys.readouterr().err)

    code = next(block for block in blocks() if block.startswith("import torch"))
    for full, tiny in (("torch.bfloat16", "torch.float32"), ("height=480, width=832", "height=32, width=32"),
                       ("num_frames=61", "num_frames=9")):
        assert full in code
        code = code.replace(full, tiny)
    found = {}
    exec(compile(code, "docs/distil-wan.md", "exec"), found)
    clip, shown = found["clip"], probe(Path("clip.mp4"))
    assert clip.shape == (9, 3, 32, 32) and torch.isfinite(clip).all() and clip.std() > 0.01
    assert (len(shown.times), shown.fps, shown.width, shown.height) == (9, 16.0, 32, 32)
    assert Path("student-original/diffusion_pytorch_model.safetensors").exists()

    Path("Wan2.1-Fun-14B-InP").symlink_to("Wan2.1-Fun-1.3B-InP")
    for run in ("wan/osv-1", "wan-14b/ccd", "wan-14b/da", "wan-14b/osv-1"):     # students to start from
        shutil.copytree("runs/wan/ccd", f"runs/{run}", ignore=shutil.ignore_patterns("step-*"))
        Path(f"runs/{run}/config.yaml").unlink()
    for name in [name for name in shipped.configs() if name.startswith("wan/")]:
        tree = config.read(name)
        one = [*TRAIN, "engine.sequence=1", "engine.offload=false", "run.dir=runs/new"]
        small = one + (["da.backbone=filters", "da.crop=16"] if tree.get("da") else [])
        command = "align" if tree["objective"]["name"] == "ta" else "train"
        assert cli.main([command, name, *small, "--dry-run"]) == 0, (name, capsys.readouterr().err)
