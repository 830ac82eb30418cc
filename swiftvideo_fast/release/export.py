"""swiftvideo export: writes a student in a format that diffusers, ComfyUI or the original code loads.

    weights         OUT, our format: a checkpoint's weights, or a file in another dtype
    diffusers       a pipeline: WanImageToVideoPipeline.from_pretrained(OUT), with encoders and scheduler
    original        OUT/config.json and OUT/diffusion_pytorch_model.safetensors, with the encoders in OUT
    comfyui-lora    OUT.safetensors: LoRA of the teacher under the released names with ComfyUI's prefix
    peft            OUT.safetensors: the same under diffusers' names, for load_lora_weights

LoRA is the run's adapters if it trained them from the teacher; for any other student, the best low-rank
approximation of its change (release/low_rank.py), whose error is printed.

The output is read back and compared with its source before it is renamed to OUT.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from swiftvideo_fast import sealed
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config.arguments import positive, sampling_steps
from swiftvideo_fast.config.strict import want
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.wan import encoders, folder, lora_files
from swiftvideo_fast.models.wan.codec import WanCodec
from swiftvideo_fast.models.wan.family import WanFamily
from swiftvideo_fast.models.wan.image import MEAN, STD
from swiftvideo_fast.models.wan.names import DIT
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.models.wan.sizes import WanConfig
from swiftvideo_fast.models.wan.text import LENGTH
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.release.card import card
from swiftvideo_fast.release.find import Model, Sampling, open_model, write_sampling
from swiftvideo_fast.release.low_rank import LowRank, low_rank
from swiftvideo_fast.sampler import generate
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train.ranks import local_device
from swiftvideo_fast.train.recipe import FILES

FRAMES = 5                      # frames of the comparison clip
TOLERANCE = 2e-3                # pixels in [-1, 1], fp32: a quarter of a grey level
TEXT_TOLERANCE = 2e-2           # relative, umT5 in bf16
RANK = 64                       # default LoRA rank, that of TA's adapters
PROMPT = "a ball rolls over a table"
Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def export(model: Model, kind: str, out: Path, dtype: torch.dtype = torch.bfloat16, steps: int = 4,
           rank: int | None = None) -> str:
    """Writes and verifies; returns a summary of the comparison.  On an error `out` is not written.

    steps: sampling steps, saved with the ladder and the model card and used for the comparison.  rank: LoRA
    rank; None: the run's adapters, or RANK.  ValueError for a model that the format cannot hold.
    """
    want(rank is None or kind in LORAS, "--rank", rank, f"none for --to {kind}: it is for LoRA only")
    if kind not in FOLDERS and out.suffix != ".safetensors":
        raise ValueError(f"{out}: want a name that ends in .safetensors for --to {kind}")
    if model.sampling:
        model = replace(model, sampling=replace(model.sampling, steps=steps))
    with atomic_write(out) as tmp:
        if kind in LORAS:
            return LORAS[kind](model, tmp, dtype, rank)
        return WRITERS[kind](model, tmp, dtype)


def to_weights(model: Model, out: Path, dtype: torch.dtype) -> str:
    if not model.weights.is_file():
        raise ValueError(f"{model.weights}: want a run, a checkpoint or its weight file")
    tensors, header = weights.read(model.weights, dtype=None)
    if "config" not in header:
        raise ValueError(f"{model.weights}: its header has no network sizes; want the weights of a run")
    sealed.save({name: tensor.to(dtype) for name, tensor in tensors.items()}, out, header)
    back, _ = weights.read(out, dtype=None)
    if wrong := [name for name in tensors if not torch.equal(back[name], tensors[name].to(dtype))]:
        raise ValueError(f"{wrong[0]} differs when read back")
    return f"{len(tensors)} tensors read back equal"


def to_diffusers(model: Model, out: Path, dtype: torch.dtype) -> str:
    sampling = _student(model)
    if sampling.sampler != "euler":
        raise ValueError(f"{model.weights}: is sampled by {sampling.sampler}; want euler, the only one "
                         "of the bundled scheduler")
    diffusers, transformers = encoders.wanted("diffusers"), encoders.wanted("transformers")
    if not hasattr(diffusers, "FlowMapEulerDiscreteScheduler"):
        raise ValueError(f"diffusers {diffusers.__version__} has no FlowMapEulerDiscreteScheduler; want 0.39 "
                         "or later")
    out.mkdir()
    _network(folder.load(model.weights, dtype=dtype), diffusers).save_pretrained(out / "transformer")
    diffusers.FlowMapEulerDiscreteScheduler(shift=sampling.shift).save_pretrained(out / "scheduler")
    encoders.vae(model.encoders, None).save_pretrained(out / "vae")
    image = encoders.image_encoder(model.encoders, None)
    image.save_pretrained(out / "image_encoder")
    side = {"height": image.config.image_size, "width": image.config.image_size}
    transformers.CLIPImageProcessor(do_center_crop=False, size=side, crop_size=side, image_mean=MEAN,
                                    image_std=STD).save_pretrained(out / "image_processor")
    encoders.text_encoder(model.encoders, None).save_pretrained(out / "text_encoder")
    shutil.copytree(encoders.tokenizer_folder(model.encoders), out / "tokenizer")
    (out / "model_index.json").write_text(json.dumps({
        "_class_name": "WanImageToVideoPipeline", "_diffusers_version": diffusers.__version__,
        "boundary_ratio": None, "expand_timesteps": False,
        "image_encoder": ["transformers", type(image).__name__],
        "image_processor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "FlowMapEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", _tokenizer_class(model.encoders)],
        "transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"]}, indent=2) + "\n")
    write_sampling(sampling, out)
    (out / "README.md").write_text(card(sampling, "diffusers"))
    return _same_frames(model, out, dtype, sampling)


def to_original(model: Model, out: Path, dtype: torch.dtype) -> str:
    sampling = _student(model)
    out.mkdir()
    net = folder.load(model.weights, dtype=torch.float32)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in net.state_dict().items()}
    sealed.save(tensors, out / folder.FILE, {"format": "pt"})
    (out / "config.json").write_text(json.dumps(_released_config(_exact(net)), indent=2) + "\n")
    for name in (encoders.TEXT.file, encoders.IMAGE.file, encoders.AUTOENCODER.file, encoders.TEXT.subfolder,
                 encoders.IMAGE.subfolder, encoders.AUTOENCODER.subfolder, *encoders.TOKENIZERS):
        if (source := model.encoders / name).is_dir():
            shutil.copytree(source, out / name)
        elif source.is_file():
            shutil.copy(source, out / name)
    write_sampling(sampling, out)
    (out / "README.md").write_text(card(sampling, "original"))
    back = folder.load(out).state_dict()
    if wrong := [name for name in tensors if not torch.equal(back[name].to(dtype), tensors[name])]:
        raise ValueError(f"{wrong[0]} differs when read back")
    return f"{len(tensors)} tensors read back equal"


def to_lora(rename: Rename, model: Model, out: Path, dtype: torch.dtype, rank: int | None) -> str:
    """Writes LoRA; verifies it with diffusers' reader, which accepts both naming schemes."""
    sampling = _student(model)
    if rank is None and model.adapters:
        adapters, source = lora_files.read(model.adapters), "the run's own adapters"
    else:
        found = _low_rank(model, dtype, rank or RANK)
        adapters, source = found.adapters, found.summary()
    sealed.save({name: tensor.to(dtype) for name, tensor in rename(adapters).items()}, out,
                {"format": "pt", "sampling": json.dumps(vars(sampling))})
    pipeline = encoders.wanted("diffusers").WanImageToVideoPipeline
    read = pipeline.lora_state_dict(out.parent, weight_name=out.name)
    want = {name: tensor.to(dtype) for name, tensor in lora_files.diffusers(adapters).items()}
    if read.keys() != want.keys() or any(not torch.equal(read[name], want[name]) for name in want):
        raise ValueError("diffusers reads back other adapters than were written")
    return f"{source}; {len(want)} factors, as diffusers reads them, equal"


WRITERS = {"weights": to_weights, "diffusers": to_diffusers, "original": to_original}
LORAS = {"comfyui-lora": partial(to_lora, lora_files.comfyui), "peft": partial(to_lora, lora_files.diffusers)}
FOLDERS = "diffusers", "original"


def _low_rank(model: Model, dtype: torch.dtype, rank: int) -> LowRank:
    if model.teacher is None or not model.teacher.exists():
        raise ValueError(f"{model.weights}: its teacher ({model.teacher or 'not named in the file'}) is "
                         "missing, and LoRA is the change from it; name the base model with --base FOLDER")
    student, teacher = (folder.load(place, dtype=torch.float32) for place in (model.weights, model.teacher))
    _exact(student)
    layers = [name for name, module in student.named_modules() if isinstance(module, nn.Linear)]
    student, teacher = student.state_dict(), teacher.state_dict()
    weights.check(weights.shapes(student), weights.shapes(teacher),
                  f"{model.weights}, against {model.teacher}")
    return low_rank(student, teacher, layers, rank, dtype, local_device())


def _student(model: Model) -> Sampling:
    if model.sampling is None:
        raise ValueError(f"{model.weights}: a base model, not a student; want a run or its weight file")
    return model.sampling


def _exact(net: Wan) -> WanConfig:
    """Returns net.config; ValueError unless it is a Wan that other programs can load."""
    c = net.config
    if c.second_time:
        raise ValueError("a flow map, of two times; want --to weights: other formats lack the second time")
    if (c.time_scale, c.condition, c.latent) != (1000.0, 20, 16):
        raise ValueError(f"a network of {c.latent} + {c.condition} channels and time scale {c.time_scale:g}; "
                         "want a Wan, 16 + 20 and 1000: other formats have these fixed")
    return c


def _network(net: Wan, diffusers: Any) -> Any:
    c = _exact(net)
    with torch.device("meta"):
        theirs = diffusers.WanTransformer3DModel(
            num_attention_heads=c.heads, attention_head_dim=c.dim // c.heads, num_layers=c.layers,
            ffn_dim=c.ffn_dim, in_channels=c.latent + c.condition, out_channels=c.latent, text_dim=c.text_dim,
            freq_dim=c.freq_dim, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=c.eps,
            image_dim=c.image_dim, added_kv_proj_dim=c.dim if c.image_dim else None)
    theirs.load_state_dict({DIT.of(name): tensor for name, tensor in net.state_dict().items()}, assign=True)
    return theirs


def _tokenizer_class(folder: Path) -> str:
    """Returns its class name, the fast variant of transformers 4 if any: that needs no sentencepiece."""
    name = type(encoders.tokenizer(folder)).__name__
    return f"{name}Fast" if hasattr(encoders.wanted("transformers"), f"{name}Fast") else name


def _released_config(c: WanConfig) -> dict:
    """Returns the twelve keys of the released config.json."""
    return {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": c.dim, "eps": c.eps,
            "ffn_dim": c.ffn_dim, "freq_dim": c.freq_dim, "in_dim": c.latent + c.condition,
            "model_type": "i2v", "num_heads": c.heads, "num_layers": c.layers, "out_dim": c.latent,
            "text_len": LENGTH}


@torch.no_grad()
def _same_frames(model: Model, out: Path, dtype: torch.dtype, sampling: Sampling) -> str:
    """Compares a small clip of our code (from the source) with the stock pipeline's (from the output).

    The image has CLIP's input size, so neither resizes it.  Network and VAE run in fp32 on the exported
    weights.  umT5 is compared separately, so that it is never in memory with the rest.  ValueError above
    TOLERANCE or TEXT_TOLERANCE.
    """
    codec = WanCodec(model.encoders)
    ours_text = codec.text_encoder([PROMPT]).float()
    codec.free("text_encoder")
    pipeline = encoders.wanted("diffusers").WanImageToVideoPipeline
    absent = {"transformer": None, "vae": None, "image_encoder": None, "image_processor": None}
    theirs = pipeline.from_pretrained(out, torch_dtype=torch.bfloat16, local_files_only=True, **absent)
    text, _ = theirs.encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=LENGTH)
    text = text.float()
    del theirs
    apart = ((text - ours_text).norm() / text.norm()).item()
    if not apart < TEXT_TOLERANCE:
        raise ValueError(f"the exported umT5's tokens are {apart:.1%} off; want {TEXT_TOLERANCE:.0%}")

    pipe = pipeline.from_pretrained(out, torch_dtype=torch.float32, text_encoder=None, tokenizer=None,
                                    local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    side = pipe.image_encoder.config.image_size
    noise = torch.randn(1, 16, 2, side // 8, side // 8, generator=generator(0, "export"))
    picture = _picture(side)
    want = pipe(picture, prompt_embeds=text, height=side, width=side, num_frames=FRAMES, guidance_scale=1.0,
                num_inference_steps=sampling.steps, latents=noise, output_type="pt").frames[0]
    want = want.transpose(0, 1) * 2 - 1
    del pipe
    frame = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    got = _clip(model, codec, frame, text, noise, dtype, replace(sampling, guidance=1.0))
    apart = (got - want).abs().max().item()
    if not apart < TOLERANCE:
        raise ValueError(f"frames of the exported pipeline differ by up to {apart:.1e} from ours; want "
                         f"{TOLERANCE:.0e}")
    return f"{FRAMES} frames of the stock pipeline within {apart:.1e} of ours"


def _clip(model: Model, codec: WanCodec, frame: Tensor, text: Tensor, noise: Tensor, dtype: torch.dtype,
          sampling: Sampling) -> Tensor:
    condition = Condition(codec.frames(frame, FRAMES), text, text[0], codec.image_encoder(frame))
    codec.free("image_encoder")
    call = partial(WanFamily().call, folder.load(model.weights, dtype=dtype).float())
    return codec.decode(generate(call, noise, condition, sampling.steps, sampling, torch.Generator()))[0]


def _picture(side: int) -> Image.Image:
    ramp = torch.linspace(0, 255, side)
    red, green = torch.meshgrid(ramp, ramp, indexing="ij")
    pixels = torch.stack([red, green, 255 - red], -1).byte().numpy()
    return Image.fromarray(pixels)


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", type=Path, help="a run, a checkpoint, or a weight file of one")
    p.add_argument("out", type=Path, help="output folder, or .safetensors file")
    p.add_argument("--to", choices=[*WRITERS, *LORAS], default="weights",
                   help="format (default: weights, our own)")
    p.add_argument("--base", type=Path, help="folder with VAE and encoders (default: the run's base model)")
    p.add_argument("--part", choices=FILES, default=AVERAGE, help="network of a run or checkpoint")
    p.add_argument("--steps", type=sampling_steps, default=4, help="recommended sampling steps, saved too")
    p.add_argument("--rank", type=positive, help=f"LoRA rank (default: the run's own adapters, or {RANK})")
    p.add_argument("--force", action="store_true", help="replace an existing file")
    p.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")


def run(args: argparse.Namespace) -> None:
    if args.out.is_dir() or args.out.exists() and not args.force:
        force = "" if args.out.is_dir() else ", or --force to replace it"
        raise ValueError(f"{args.out} exists; choose another{force}")
    with open_model(args.model, args.base, args.part, args.tables) as model:
        summary = export(model, args.to, args.out, getattr(torch, args.dtype), args.steps, args.rank)
    print(f"wrote {args.out}: {summary}")
