"""Sampling and exporting students: against the stock pipeline, and LoRA as diffusers reads it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import released
import tiny
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from swiftvideo_fast import cli
from swiftvideo_fast.models import lora, weights
from swiftvideo_fast.models.wan import folder
from swiftvideo_fast.models.wan.codec import WanCodec
from swiftvideo_fast.models.wan.names import Names
from swiftvideo_fast.release import export, find, sample
from swiftvideo_fast.release.find import Sampling
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import recipe, rounds
from swiftvideo_fast.train.recipe import TABLES

HOW = Sampling(steps=4, shift=3.0)
CLOSE = 1e-4                # diffusers takes the angle of time 1000 in fp32, 6e-5 off; found: 1.4e-5
SHAPE = sample.Shape(frames=9, height=released.SIDE, width=released.SIDE)
PROMPT = "a red ball rolls over the &amp; table"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Returns a released model folder, as downloaded."""
    place = released.write(tmp_path_factory.mktemp("base") / "model", "original")
    released.write_encoders(place, "original")
    return place


@pytest.fixture(scope="module")
def student(base, tmp_path_factory) -> Path:
    """Returns a run's average, with its LoRA file; the run started from the base."""
    run = tmp_path_factory.mktemp("run")
    about = {"sample": {"sampler": "euler", "shift": 3.0, "guidance": 1.0},
             "trained": {"model": {"weights": str(base)}}}
    net = adapted()
    weights.save(lora.merged(net), run / "average.safetensors", **about)
    lora.save(net, run / "lora-average.safetensors", **about)
    return run / "average.safetensors"


def adapted() -> nn.Module:
    net, rng = released.network(), torch.Generator().manual_seed(7)
    lora.attach(net, 4, rng)
    for _, layer in lora.adapted(net):
        nn.init.normal_(layer.lora_B[lora.NAME].weight, std=0.2, generator=rng)
    return net


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    export.export(find.find(student), "diffusers", out, torch.float32)
    return out


@pytest.fixture(scope="module")
def row(tmp_path_factory) -> sample.Row:
    image = tmp_path_factory.mktemp("image") / "a.png"
    released.picture().save(image)
    return sample.Row(image, PROMPT, image.with_suffix(".mp4"))


def noise() -> Tensor:
    """Returns the first row's noise."""
    return torch.randn(1, *SHAPE.latent, generator=generator(0, "sample", 0))


def our_clip(row: sample.Row, net: nn.Module, encoders: Path, how: Sampling = HOW) -> Tensor:
    codec, costs = WanCodec(encoders, text_dtype=torch.float32), sample.Costs(torch.device("cpu"))
    given = sample.conditions([row], SHAPE, codec, costs)
    clip, = sample.decoded(sample.latents(given, SHAPE, how, net.eval, costs), codec, costs)
    return clip


def stock_clip(pipe: WanImageToVideoPipeline, row: sample.Row, guidance: float = 1.0) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(released.picture(), row.prompt, height=SHAPE.height, width=SHAPE.width,
                  num_frames=SHAPE.frames, num_inference_steps=HOW.steps, guidance_scale=guidance,
                  latents=noise(), output_type="pt").frames
    return frames[0].transpose(0, 1) * 2 - 1


def stock(place: Path) -> WanImageToVideoPipeline:
    return WanImageToVideoPipeline.from_pretrained(place, torch_dtype=torch.float32, local_files_only=True)


def apart(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


# --- diffusers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(row, student, base):
    return our_clip(row, weights.load(student), base)


def test_the_stock_pipeline_makes_our_clip_frame_by_frame(row, exported, ours):
    theirs = stock_clip(stock(exported), row)
    assert theirs.shape == ours.shape == (3, 9, 32, 32) and ours.std() > 0.05
    assert all(apart(theirs[:, f], ours[:, f]) < CLOSE for f in range(9))


def test_with_guidance_too(row, exported, student, base):
    net = weights.load(student)
    theirs = stock_clip(stock(exported), row, 3.0)
    assert apart(theirs, our_clip(row, net, base, replace(HOW, guidance=3.0))) < CLOSE


@pytest.mark.parametrize("scheduler", [
    FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(shift=3.0),
    UniPCMultistepScheduler(prediction_type="flow_prediction", flow_shift=3.0, use_flow_sigmas=True)])
def test_another_scheduler_makes_another_clip(scheduler, row, exported, ours):
    pipe = stock(exported)
    pipe.scheduler = scheduler
    theirs = stock_clip(pipe, row)
    assert all(apart(theirs[:, f], ours[:, f]) > 1000 * CLOSE for f in range(9))


def test_an_exported_folder_is_a_model_of_ours_again(row, exported, ours):
    model = find.find(exported)
    assert model == find.Model(exported, exported, HOW)
    assert apart(our_clip(row, folder.load(model.weights), model.encoders), ours) < 1e-6


def test_the_card_and_the_sampling_say_steps_shift_guidance_and_ladder(exported):
    card = (exported / "README.md").read_text()
    ladder = "1.0000, 0.9000, 0.7500, 0.5000, 0.0000"
    assert all(line in card for line in ("| steps | 4 |", "| shift | 3 |", "| guidance | 1 |", ladder))
    said = json.loads((exported / "sampling.json").read_text())
    assert said["steps"] == 4 and np.allclose(said["sigmas"], [1, 0.9, 0.75, 0.5, 0])


def test_an_export_that_makes_other_frames_is_an_error_and_leaves_nothing(student, tmp_path, monkeypatch):
    """Names and shapes match, but queries and keys of self-attention are swapped."""
    table = export.DIT.table
    q, k = "blocks.N.self_attn.q", "blocks.N.self_attn.k"
    monkeypatch.setattr(export, "DIT", Names("Wan", table | {q: table[k], k: table[q]}))
    with pytest.raises(ValueError, match="frames of the exported pipeline differ by up to .* from ours"):
        export.export(find.find(student), "diffusers", tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- the released layout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_released_layout_holds_twelve_keys_the_weights_and_the_encoders(dtype, student, tmp_path):
    said = export.export(find.find(student), "original", tmp_path / "out", dtype)
    assert f"{len(released.network().state_dict())} tensors read back equal" in said
    assert json.loads((tmp_path / "out/config.json").read_text()) == released.TWELVE
    stored = weights.Stored(tmp_path / "out" / folder.FILE)
    want = weights.load(student).state_dict()
    assert {name: stored[name].dtype for name in stored} == dict.fromkeys(want, dtype)
    assert all(torch.equal(stored[name], want[name].to(dtype)) for name in stored)
    model = find.find(tmp_path / "out")
    assert model.sampling == HOW and WanCodec(model.encoders).vae


# --- adapters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["comfyui-lora", "peft"])
def test_load_lora_weights_changes_the_clip_as_ours(kind, row, base, student, exported, ours, tmp_path):
    out = tmp_path / "lora.safetensors"
    export.export(find.find(student), kind, out, torch.float32)
    pipe = stock(exported)
    pipe.transformer = WanTransformer3DModel.from_pretrained(released.write(tmp_path / "base", "diffusers"))
    without = stock_clip(pipe, row)
    assert apart(without, our_clip(row, released.network(), base)) < CLOSE
    pipe.load_lora_weights(tmp_path, weight_name=out.name)
    assert apart(stock_clip(pipe, row), ours) < CLOSE < 1000 * CLOSE < apart(without, ours)


def test_adapters_have_the_names_of_comfyui_and_of_peft(student, tmp_path):
    import re

    export.export(find.find(student), "comfyui-lora", tmp_path / "a.safetensors")
    export.export(find.find(student), "peft", tmp_path / "b.safetensors")
    comfy, peft = (list(weights.Stored(tmp_path / f"{x}.safetensors")) for x in "ab")
    blocks = r"blocks\.\d+\.(self_attn|cross_attn)\.(q|k|v|o|k_img|v_img)|blocks\.\d+\.ffn\.[02]"
    rest = r"(text|time)_embedding\.[02]|time_projection\.1|img_emb\.proj\.[13]|head\.head"
    pattern = rf"diffusion_model\.({blocks}|{rest})\.lora_[AB]\.weight"
    assert all(re.fullmatch(pattern, name) for name in comfy) and len(comfy) == len(peft) == 2 * len(
        list(lora.adapted(adapted())))
    assert "transformer.blocks.1.attn2.add_k_proj.lora_B.weight" in peft
    assert all(name.startswith("transformer.") for name in peft)


# --- sample ----------------------------------------------------------------------------------------------


def arguments(*words: object):
    args = cli.parser().parse_args(["sample", *map(str, words)])
    args.tables = TABLES
    return args


SMALL = "--frames", "5", "--size", "32x32", "--dtype", "float32"


def frames_of(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def test_sample_writes_a_clip_that_begins_with_the_image(row, student, tmp_path, capsys):
    out = tmp_path / "c.mp4"
    sample.run(arguments(student, "--image", row.image, "--prompt", PROMPT, "--out", out, *SMALL))
    assert frames_of(out).shape == (5, 32, 32, 3)
    said = capsys.readouterr().out
    assert "4 steps, shift 3, guidance 1" in said
    assert [line.split("  ")[0] for line in said.splitlines()[2:]] == [
        "text encoder", "image encoder", "VAE, encoding", "network", "VAE, decoding"]


def test_processes_share_out_the_rows_and_make_the_clips_of_one(row, student, tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(sample, "write_video", lambda path, clip, fps: written.update({path: clip}))
    table = tmp_path / "prompts.csv"
    released.picture().save(tmp_path / "b.png")
    table.write_text(f'image,prompt\n{row.image},a cat\nb.png,"a red, red ball"\n{row.image},a table\n')
    words = ["--prompts", table, "--steps", 1, *SMALL]
    sample.run(arguments(student, *words, "--out", tmp_path / "one"))
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        sample.run(arguments(student, *words, "--out", tmp_path / "two"))
    one, two = ([written.pop(tmp_path / out / f"{i:04d}.mp4") for i in range(3)] for out in ("one", "two"))
    assert not written
    assert all(apart(a, b) < CLOSE for a, b in zip(one, two, strict=True))
    assert apart(one[0], one[1]) > 0.1 < apart(one[0], one[2])


def test_the_teacher_is_the_base_guided(row, student, base, tmp_path, monkeypatch):
    seen, load = [], folder.load
    monkeypatch.setattr(folder, "load", lambda path, **how: seen.append(path) or load(path, **how))
    monkeypatch.setattr(sample, "generate", lambda call, x1, _, steps, how, rng: seen.append(how) or x1)
    for model, out in ((student, tmp_path / "a.mp4"), (base, tmp_path / "b.mp4")):
        sample.run(arguments(model, "--teacher", "--image", row.image, "--out", out, *SMALL))
    assert seen == [base, Sampling(steps=25, shift=3.0, guidance=3.0)] * 2


def test_each_encoder_is_gone_before_the_next_is_loaded(row, base):
    held = []

    class Watched(WanCodec):
        def free(self, part):
            held.append((part, sorted({"vae", "text_encoder", "image_encoder"} & self.__dict__.keys())))
            super().free(part)

    codec = Watched(base, text_dtype=torch.float32)
    sample.conditions([row], SHAPE, codec, sample.Costs(torch.device("cpu")))
    assert held == [(part, [part]) for part in ("text_encoder", "image_encoder", "vae")]
    assert not {"vae", "text_encoder", "image_encoder"} & codec.__dict__.keys()


def test_a_picture_of_another_shape_covers_the_frame_and_loses_its_edges(tmp_path):
    wide = released.picture(64, 32)
    wide.save(tmp_path / "wide.png")
    got = ((sample.frame_of(tmp_path / "wide.png", 32, 32)[0] + 1) * 127.5).round().byte()
    assert torch.equal(got, torch.from_numpy(np.array(wide)[:, 16:48]).permute(2, 0, 1))


# --- from the released folder to the stock pipeline ------------------------------------------------------


@pytest.mark.parametrize("objective", ["flow", "ta"])
def test_a_released_folder_is_trained_sampled_and_exported(objective, base, row, tmp_path):
    """ta: adapters, on pairs sampled from the base."""
    cfg = tiny.config(tmp_path, objective, model={"family": "wan", "weights": str(base), "codec": None},
                      sample={"shift": 3.0}, data={"pool": 2, "batch": 1})
    cfg = replace(cfg, run=replace(cfg.run, steps=2))
    if objective == "ta":
        cfg = replace(cfg, objective=replace(cfg.objective, count=2, rank=4))
        rounds.make_pairs(cfg, tables=tiny.TABLES)
    run, out = recipe.train(cfg, tiny.TABLES), tmp_path / "clip.mp4"
    trained = weights.load(run / "student.safetensors")
    assert not torch.equal(released.network().head.head.weight, trained.head.head.weight)
    assert cli.main([str(w) for w in ("sample", run, "--image", row.image, "--out", out, *SMALL)]) == 0
    assert frames_of(out).shape == (5, 32, 32, 3)
    for kind in ("diffusers", "original", "comfyui-lora", "peft"):       # flow's: a change of low rank
        out = tmp_path / (kind if kind in export.FOLDERS else f"{kind}.safetensors")
        words = "export", run, out, "--to", kind, "--part", "student", "--dtype", "float32"
        assert cli.main([str(w) for w in words], tiny.TABLES) == 0, kind


# --- errors ----------------------------------------------------------------------------------------------


def test_an_image_that_is_text_and_one_that_is_missing_are_named(student, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match="a.png: not an image .*; want a PNG, JPEG or WebP file"):
        sample.run(arguments(student, "--image", tmp_path / "a.png", *SMALL))
    with pytest.raises(ValueError, match="b.png: no such image"):
        sample.run(arguments(student, "--image", tmp_path / "b.png", *SMALL))


@pytest.mark.parametrize("words, message", [
    (("--size", "831x480"), "sample.size is 831x480; want positive multiples of 16"),
    (("--size", "832x470"), "sample.size is 832x470; want positive multiples of 16"),
    (("--frames", "60"), r"sample.frames is 60; want 4n \+ 1"),
])
def test_an_odd_size_is_named(words, message, row, student):
    with pytest.raises(ValueError, match=message):
        sample.run(arguments(student, "--image", row.image, *words))


def test_a_base_model_wants_teacher(row, base):
    with pytest.raises(ValueError, match="a base model, which needs many steps and guidance; want --teacher"):
        sample.run(arguments(base, "--image", row.image, *SMALL))


@pytest.mark.parametrize("text, message", [
    ("picture,prompt\na,b\n", r"columns are \['picture', 'prompt'\], 1 rows; want image, prompt"),
    ("image,prompt\n", "0 rows"), ("image,prompt\na.png\n", "line 2 has no image or no prompt")])
def test_a_csv_without_the_columns_is_named(text, message, student, tmp_path):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        sample.run(arguments(student, "--prompts", tmp_path / "p.csv"))


def test_a_run_whose_base_is_not_there_is_told_how_to_name_it(student, tmp_path):
    weights.save(released.network(), tmp_path / "a.safetensors", trained={"model": {"weights": "gone"}})
    with pytest.raises(ValueError, match="started from gone, which is not a model folder; name the base"):
        find.find(tmp_path / "a.safetensors").encoders                          # noqa: B018
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match="a run with neither average.safetensors nor a checkpoint"), \
            find.open_model(tmp_path):
        pass


def test_what_cannot_be_exported_is_named(student, base, tmp_path):
    with pytest.raises(ValueError, match="a: want a name that ends in .safetensors for --to peft"):
        export.export(find.find(student), "peft", tmp_path / "a")
    with pytest.raises(ValueError, match="a base model, not a student"):
        export.export(find.find(base), "diffusers", tmp_path / "a")
    model = find.find(student)
    with pytest.raises(ValueError, match="is sampled by consistency; want euler"):
        other = replace(model, sampling=replace(HOW, sampler="consistency"))
        export.export(other, "diffusers", tmp_path / "a")
    weights.save(released.network(), tmp_path / "full.safetensors")
    with pytest.raises(ValueError, match="full.safetensors: its teacher .not named in the file. is"):
        export.export(find.find(tmp_path / "full.safetensors"), "peft", tmp_path / "a.safetensors")
    toy = type(released.network())(replace(released.SIZES, time_scale=10.0))
    weights.save(toy, tmp_path / "toy.safetensors")
    with pytest.raises(ValueError, match="time scale 10; want a Wan"):
        export.export(replace(model, weights=tmp_path / "toy.safetensors"), "diffusers", tmp_path / "a")
    assert not (tmp_path / "a").exists()
