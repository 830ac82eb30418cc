"""The feature networks of published FVD figures, from local weight files; nothing is downloaded.

    name           weights, by path                                      frames      features
    fvd-i3d        i3d_pretrained_400.pt (TATS), a state dict            9 or more   400 logits
    fvd-i3d        i3d_torchscript.pt (StyleGAN-V), a TorchScript        9 or more   400
    fvd-videomae   vit_g_hybrid_pt_1200e_ssv2_ft.pth (VideoMAE-v2)       even        1408

fvd-i3d is the classic distance; its two files give different numbers.  fvd-videomae is the content-debiased
one (Ge et al. 2024), meant for 16 frames; for more, positions are interpolated.  The networks are cd-fvd's
modules (extra `eval`).  State dicts are read with weights_only; a TorchScript is a program, and is run: use
one from a source that you trust.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftvideo_fast.atomic import digest

SIDE = 224
FRAMES_AT_ONCE = 64             # ViT-g's attention over 64 frames takes 4.3 GB of scores in float32


@dataclass(frozen=True)
class Published:
    """extract: uint8 clips (B, T, H, W, 3) -> (B, features) float32.  about: identifies the weights."""

    name: str
    about: str
    features: int
    run: Callable[[Tensor], Tensor]
    device: torch.device

    def check(self, frames: int) -> None:
        """Raises ValueError for a number of frames that the network does not accept."""
        if self.name == "fvd-i3d" and frames < 9:
            raise ValueError(f"fvd-i3d: {frames} frames; want at least 9, I3D's second pooling in time")
        if self.name == "fvd-videomae" and (frames < 2 or frames % 2):
            raise ValueError(f"fvd-videomae: {frames} frames; want an even number, its patches are of two")

    @torch.no_grad()
    def extract(self, clips_BTHWC: Tensor) -> Tensor:
        if clips_BTHWC.ndim != 5 or clips_BTHWC.shape[-1] != 3 or clips_BTHWC.dtype != torch.uint8:
            raise ValueError(f"{self.name}: clips are {clips_BTHWC.dtype} {tuple(clips_BTHWC.shape)}; want "
                             "uint8 (B, T, H, W, 3)")
        self.check(clips_BTHWC.shape[1])
        at_once = max(1, FRAMES_AT_ONCE // clips_BTHWC.shape[1])
        parts = clips_BTHWC.split(at_once)
        return torch.cat([self.run(part.to(self.device)).float().cpu() for part in parts])


def load(name: str, weights: Path, device: torch.device | str = "cpu") -> Published:
    """Returns a published network.  ValueError for an unknown name or device and a missing or wrong file;
    ImportError, naming the extra, without cd-fvd.
    """
    if name not in LOADERS:
        raise ValueError(f"net is {name!r}; want one of {', '.join(LOADERS)}")
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file; {name} needs {WANTED[name]}: download it yourself")
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as why:
        raise ValueError(f"device is {str(device)!r}: {str(why).splitlines()[0]}") from why
    return LOADERS[name](weights, device)


def _i3d(weights: Path, device: torch.device) -> Published:
    if _is_torchscript(weights):
        options = {"rescale": True, "resize": True, "return_features": True}
        try:
            net = torch.jit.load(str(weights), map_location=device).eval()
            taken = {argument.name for argument in net.forward.schema.arguments}
        except (RuntimeError, AttributeError) as why:
            raise ValueError(f"{weights}: a damaged TorchScript ({str(why).splitlines()[0]})") from why
        if not options.keys() <= taken:
            raise ValueError(f"{weights}: a TorchScript, but not StyleGAN-V's I3D: its forward does not take "
                             f"{', '.join(options)}")

        def scripted(clips_BTHWC: Tensor) -> Tensor:
            return net(clips_BTHWC.permute(0, 4, 1, 2, 3).contiguous(), **options)

        return Published("fvd-i3d", _about("I3D of StyleGAN-V", weights), 400, scripted, device)
    net = _cdfvd("i3d.pytorch_i3d").InceptionI3d(400, in_channels=3)
    _fill(net, weights)
    net = net.eval().to(device)
    return Published("fvd-i3d", _about("I3D of TATS", weights), 400, lambda x: net(i3d_pixels(x)), device)


def _videomae(weights: Path, device: torch.device) -> Published:
    net = _cdfvd("VideoMAEv2.videomaev2_finetune").vit_giant_patch14_224(
        img_size=SIDE, pretrained=False, num_classes=174, all_frames=16, tubelet_size=2, drop_path_rate=0.3,
        use_mean_pooling=True)
    _fill(net, weights)
    net = net.eval().to(device)
    about = _about("VideoMAE-v2 ViT-g of SSv2", weights)
    return Published("fvd-videomae", about, 1408, lambda x: net.forward_features(videomae_pixels(x)), device)


LOADERS = {"fvd-i3d": _i3d, "fvd-videomae": _videomae}
WANTED = {"fvd-i3d": "i3d_pretrained_400.pt of TATS or i3d_torchscript.pt of StyleGAN-V",
          "fvd-videomae": "vit_g_hybrid_pt_1200e_ssv2_ft.pth of VideoMAE-v2"}


def i3d_pixels(clips_BTHWC: Tensor) -> Tensor:
    """Returns (B, 3, T, 224, 224) in [-1, 1]; bilinear, no antialias, aspect not kept, as cd-fvd."""
    B, T, H, W, C = clips_BTHWC.shape
    frames = clips_BTHWC.float().reshape(B * T, H, W, C).permute(0, 3, 1, 2).contiguous()
    resized = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2. * resized.view(B, T, C, SIDE, SIDE).transpose(1, 2).contiguous() / 255. - 1


def videomae_pixels(clips_BTHWC: Tensor) -> Tensor:
    """Returns (B, 3, T, 224, 224) in [0, 1], not standardised; resized as by i3d_pixels."""
    B, T, H, W, C = clips_BTHWC.shape
    frames = clips_BTHWC.permute(0, 4, 1, 2, 3).reshape(B * C, T, H, W).float() / 255
    resized = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return resized.view(B, C, T, SIDE, SIDE)


def _fill(net: nn.Module, weights: Path) -> None:
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as why:
        raise ValueError(f"{weights}: not a file of tensors only ({str(why).splitlines()[0]}); if you trust "
                         "it, load it yourself and save its state dict") from why
    for wrapped in ("model", "module"):
        if isinstance(state, dict) and isinstance(state.get(wrapped), dict):
            state = state[wrapped]
            break
    if not isinstance(state, dict):
        raise ValueError(f"{weights}: holds a {type(state).__name__}; want a state dict")
    wanted = net.state_dict()
    wrong = [name for name in wanted if getattr(state.get(name), "shape", None) != wanted[name].shape]
    others = [name for name in state if name not in wanted]
    if wrong or others:
        raise ValueError(f"{weights}: not weights of {type(net).__name__}: {len(wrong)} of its {len(wanted)} "
                         f"tensors are missing or of another shape, {len(others)} are not its own, the first "
                         f"{(wrong + others)[0]}")
    net.load_state_dict(state)


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _cdfvd(module: str):
    from importlib import import_module

    try:
        return import_module(f"cdfvd.third_party.{module}")
    except ImportError as why:
        raise ImportError("FVD's networks need cd-fvd: pip install 'swiftvideo_fast[eval]'") from why


def _about(what: str, weights: Path) -> str:
    return f"{what}, sha256 {digest(weights)[:12]}"
