"""Training of the feature net: `python -m swiftvideo_fast.metrics.pretext` writes features.safetensors.

Starts from the random net.  Crops of training frames, half of them through a PCA codec, some with noise in
its latents, get several corruptions at once (corrupt.py).  The net predicts the strength of each kind (mean
squared error) and the source clip (cross-entropy).  Then its features are partially whitened on real clips:
directions in which real clips vary count less than those in which only corrupted ones do.  Two to three
minutes on one core.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from swiftvideo_fast.data.clips import demo_clips
from swiftvideo_fast.data.crops import CropSource
from swiftvideo_fast.metrics.corrupt import KINDS, corrupt
from swiftvideo_fast.metrics.features import FEATURES, WEIGHTS, FeatureNet, random_net, save
from swiftvideo_fast.models.toy.codec import PcaCodec

FRAMES, SIZE, BATCH = 17, 64, 16
DAMAGED = 0.15          # probability of each corruption
SPREAD = 100.0          # total variance of real clips' features after whitening


def train(seed: int, steps: int) -> FeatureNet:
    """Trains the net on corrupted crops, whitens its features, and returns it."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    clips = demo_clips()
    crops = CropSource(clips, "train", frames=FRAMES, size=SIZE)
    sources = [clip.caption for clip in clips]
    first = crops.draw(192, seed).pixels
    codec = PcaCodec.fit(first)

    net, outputs = random_net(seed).train().requires_grad_(True), len(KINDS) + 1
    net.mix.bias.data -= net.extract(first[:64]).mean(0)
    head = nn.Sequential(nn.SiLU(), nn.Linear(FEATURES, 64), nn.SiLU(), nn.Linear(64, outputs + len(sources)))
    parameters = [*net.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)

    for step in (bar := tqdm(range(steps), desc="feature net")):
        drawn = crops.draw(BATCH, seed + 1 + step)
        source = torch.tensor([sources.index(caption) for caption in drawn.captions])
        x, strength = _damage(drawn.pixels, codec, rng)
        strength_pred, source_pred = head(net(x)).split([outputs, len(sources)], 1)
        damage_loss, source_loss = F.mse_loss(strength_pred, strength), F.cross_entropy(source_pred, source)
        optimiser.zero_grad()
        (30 * damage_loss + 0.3 * source_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        explained = 1 - damage_loss.item() / strength.var(0).mean().item()
        bar.set_postfix(explained=f"{explained:.2f}", source=f"{source_loss.item():.3f}", refresh=False)

    _whiten(net, codec.decode(codec.encode(crops.draw(256, seed + steps + 1).pixels)))
    return net.eval().requires_grad_(False)


def _damage(x: Tensor, codec: PcaCodec, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns (corrupted x, strengths (B, kinds + 1), the last for noise in the codec's latents).

    A quarter of the clips stay uncorrupted; half go through the codec, which does not count as corruption.
    """
    strength = torch.rand(len(x), len(KINDS) + 1, generator=rng)
    strength *= torch.rand(strength.shape, generator=rng) < DAMAGED
    strength *= torch.rand(len(x), 1, generator=rng) < 0.75
    coded = (torch.rand(len(x), generator=rng) < 0.5) | (strength[:, -1] > 0)
    z = codec.encode(x[coded])
    z += strength[coded, -1, None, None, None, None] * torch.randn(z.shape, generator=rng)
    x[coded] = codec.decode(z)
    for kind, s in zip(KINDS, strength.T, strict=False):
        hit = s > 0
        if hit.any():
            x[hit] = corrupt(x[hit], kind, s[hit], rng)
    return x, strength


@torch.no_grad()
def _whiten(net: FeatureNet, real: Tensor) -> None:
    """Folds V / sqrt(l + mean l) into the last layer; l, V: eigensystem of the real clips' covariance."""
    features = net.extract(real).double()
    values, vectors = torch.linalg.eigh(features.T.cov(correction=0))
    weight = 1 / (values.clamp(min=0) + values.mean())
    weight *= SPREAD / (weight * values).sum()
    turn = (vectors * weight.sqrt()).T.float()
    net.mix.weight.copy_(turn @ net.mix.weight)
    net.mix.bias.copy_(turn @ (net.mix.bias - features.mean(0).float()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    save(train(args.seed, args.steps), args.out)


if __name__ == "__main__":
    main()
