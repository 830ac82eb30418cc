"""Distribution alignment: eq. 10 by hand, what trains and what does not, and a gradient that arrives."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from swiftvideo_fast import path
from swiftvideo_fast.config import Da, Optim
from swiftvideo_fast.data.latents import Latents
from swiftvideo_fast.models import discriminator
from swiftvideo_fast.models.backbones import Dino, Filters
from swiftvideo_fast.models.codec import PcaCodec
from swiftvideo_fast.models.conditioning import Condition
from swiftvideo_fast.models.vae import WanVae
from swiftvideo_fast.objectives import Consistency, Jump
from swiftvideo_fast.objectives.da import BETAS, DistributionAlignment, Judge, accuracy, hinge, told
from swiftvideo_fast.train.plain import Trained

D = torch.float64
B, TEXT, SHAPE = 2, 3, (16, 3, 4, 4)
OPTIONS = Da(weight=0.5, start=2, lr=1e-2, window=2, crop=24)


class Scaled(Consistency):
    """v = a z + b, of which the distillation wants to be 0."""

    def __init__(self, dtype=torch.float32):
        rng = torch.Generator().manual_seed(5)
        self.a = nn.Parameter(torch.tensor(0.7, dtype=dtype))
        self.b = nn.Parameter(torch.randn(SHAPE, generator=rng, dtype=dtype))
        self.student = lambda x, t, text, frames, image: self.a * x + self.b

    def jump(self, point, batch, step):
        v = self.student(point.x_t, point.t, None, None, None)
        return Jump(point.x_t, point.t, v, v.square().flatten(1).sum(1).mean(), {"step": step})


def drawn(dtype=torch.float32, seed: int = 0) -> tuple[path.Point, Latents]:
    rng = torch.Generator().manual_seed(seed)
    x0, x1 = (torch.randn(B, *SHAPE, generator=rng, dtype=dtype) for _ in range(2))
    text = torch.randn(B, 4, TEXT, generator=rng, dtype=dtype)
    t = torch.tensor([0.3, 0.8], dtype=dtype)
    condition = Condition(torch.zeros(B, 20, *SHAPE[1:], dtype=dtype), text, torch.zeros_like(text))
    pixels = torch.randint(256, (B, 3, 9, 32, 32), generator=rng, dtype=torch.uint8)
    point = path.Point(x0, x1, t, path.interpolate(x0, x1, t))
    return point, Latents(x0, condition, ["a", "b"], pixels=pixels)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_inputs(folder)
    return PcaCodec.load(folder / "codec.safetensors")


def aligned(codec, options=OPTIONS, backbone=None, dtype=torch.float32, passes=1, **more):
    backbone = (backbone or Filters(seed=2)).to(dtype)
    judge = Judge(backbone.widths, TEXT, options.project).to(dtype)
    discriminator.initialise(judge, torch.Generator().manual_seed(3))
    trained = Trained(judge, Optim(options.lr, betas=BETAS, weight_decay=0.0, clip=math.inf), passes)
    return DistributionAlignment(options, Scaled(dtype), trained, backbone.requires_grad_(False),
                                 None if options.project else codec, **more)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_the_hinge_by_hand():
    logits = {"spatial": [torch.tensor([[2.0, 0.5]]), torch.tensor([[-1.0]])],
              "temporal": [torch.tensor([[0.0]])]}
    assert hinge(logits, 1).item() == (0 + 0.5) / 2 + 2 + 1         # max(0, 1 - D)
    assert hinge(logits, -1).item() == (3 + 1.5) / 2 + 0 + 1        # max(0, 1 + D)


def test_a_pair_is_told_apart_by_its_mean_logits():
    real = {"spatial": [torch.tensor([[5.0, -1.0], [1.0, -5.0]]), torch.tensor([[-1.0], [1.0]])]}
    fake = {"spatial": [torch.tensor([[-9.0], [-1.0]])]}
    assert accuracy("seen", real, fake) == {"seen/spatial": 0.5}


def test_the_loss_is_equation_10(codec):
    da, (point, batch) = aligned(codec), drawn()
    loss, log = da(point, batch, 2, rng())
    [exhibit] = da.exhibits
    v = da.distillation.a * point.x_t + da.distillation.b
    x0_hat = point.x_t - point.t.view(-1, 1, 1, 1, 1) * v
    assert torch.allclose(exhibit.fake, da.window(x0_hat, exhibit.view))
    pixels = torch.cat([exhibit.view.of(x, 24) for x in (exhibit.real, exhibit.fake)])
    D_k = da.judge.eval().heads([x.unflatten(0, (2 * B, -1)) for x in da.backbone(
        pixels.transpose(1, 2).flatten(0, 1))], told(point.t, batch.condition).repeat(2, 1))
    adversarial = sum((1 - d[B:]).clamp(min=0).mean() for kind in ("spatial", "temporal") for d in D_k[kind])
    assert loss.item() == pytest.approx((0.5 * adversarial + v.square().sum() / B).item(), rel=1e-6)
    assert log["adversarial"] == pytest.approx(adversarial.item(), rel=1e-6)


def test_the_students_gradient_is_that_of_the_whole_expression(codec):
    """Taken at once in the forward, it is what one backward through everything gives."""
    da, (point, batch) = aligned(codec), drawn()
    loss, log = da(point, batch, 2, rng())
    got = torch.autograd.grad(loss, [da.distillation.a, da.distillation.b])
    jump = da.distillation.jump(point, batch, 2)
    exhibit = da.exhibit(jump.x0, batch, point.t, rng())
    adversarial = hinge(da.logits(exhibit)[1], 1)
    want = torch.autograd.grad(jump.loss + 0.5 * adversarial, [da.distillation.a, da.distillation.b])
    assert all(torch.allclose(g, w, rtol=1e-4, atol=1e-5) for g, w in zip(got, want))

    x0 = jump.x0.detach().requires_grad_()
    [pull] = torch.autograd.grad(hinge(da.logits(da.exhibit(x0, batch, point.t, rng()))[1], 1), x0)
    hold = 2 * jump.v / B / point.t.view(-1, 1, 1, 1, 1)
    pulls, holds = ([x[b].norm().item() for b in range(B)] for x in (pull, hold))
    assert log["gradient/adversarial"] == pytest.approx(sum(pulls) / B, rel=1e-4)
    assert log["gradient/distillation"] == pytest.approx(sum(holds) / B, rel=1e-4)
    ratio = sum(p / h for p, h in zip(pulls, holds)) / B
    assert log["gradient/ratio"] == pytest.approx(0.5 * ratio, rel=1e-4)


def test_a_gradient_arrives_through_decoder_and_dino(monkeypatch):
    """Against finite differences in float64, by the real classes: transformers' DINOv2 and diffusers' VAE."""
    transformers, diffusers = pytest.importorskip("transformers"), pytest.importorskip("diffusers")
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
    monkeypatch.setattr(WanUpsample, "forward", nn.Upsample.forward)        # theirs goes by float32
    torch.manual_seed(0)
    dino = Dino(transformers.Dinov2Model(transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14)))
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).to(D)
    da = aligned(WanVae(vae), Da(weight=3.0, start=0, window=3, crop=28), dino, D)
    (point, batch), student = drawn(D), da.distillation

    def loss() -> torch.Tensor:
        return da(point, batch, 0, rng())[0] - student.jump(point, batch, 0).loss

    [got] = torch.autograd.grad(loss(), student.a)
    step, values = 1e-6, []
    for sign in (1, -1):
        student.a.data += sign * step
        values.append(loss().item())
        student.a.data -= sign * step
    assert got.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)
    assert abs(got) > 1e-4


def test_the_frozen_have_no_gradient_and_no_state(codec):
    da, (point, batch) = aligned(codec), drawn()
    loss, _ = da(point, batch, 2, rng())
    loss.backward()
    assert not any(p.grad is not None for p in da.judge.parameters()), "a student's step spares the heads"
    students = da.distillation.a.grad.clone()
    [exhibit] = da.exhibits
    assert not any(x.requires_grad for x in (exhibit.fake, *exhibit.features)), "the graph is gone"
    da.after_step()
    assert torch.equal(da.distillation.a.grad, students), "and theirs the student"
    assert all(p.grad is None and not p.requires_grad for p in da.backbone.parameters())
    assert set(da.trained["judge"].optimizer.state) == set(da.judge.parameters())


def test_the_heads_take_one_step_down_their_hinge(codec):
    da, (point, batch) = aligned(codec), drawn()
    da(point, batch, 2, rng())
    [e] = da.exhibits
    before = {name: p.clone() for name, p in da.judge.named_parameters()}
    [log] = da.after_step()
    assert not da.exhibits and da.after_step() == []

    twin = aligned(codec)
    twin.judge.train()
    on_real, on_fake = (sum(logits.values(), []) for logits in twin.logits(e))
    loss = sum((1 - d).relu().mean() for d in on_real) + sum((1 + d).relu().mean() for d in on_fake)
    assert log["discriminator"] == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    for name, p in twin.judge.named_parameters():       # AdamW's first step is lr along the gradient's sign
        moved = da.judge.get_parameter(name) - before[name]
        want = -1e-2 * p.grad / (p.grad.abs() + 1e-8)
        assert torch.allclose(moved, want, rtol=1e-3, atol=1e-5), name
    assert log["logits/real"].shape == log["logits/fake"].shape


def test_batches_judged_before_one_step_count_as_one(codec):
    da, doubled = aligned(codec), aligned(codec, passes=2)
    (point, batch) = drawn()
    da(point, batch, 2, rng())
    for _ in range(2):
        doubled(point, batch, 2, rng())
    [once] = da.after_step()
    first, second = doubled.after_step()
    assert first["discriminator"] == once["discriminator"] and second.keys() == once.keys()
    moments = [of.trained["judge"].optimizer.state.values() for of in (da, doubled)]
    for p, q in zip(*moments):          # the spectral norms have turned twice as often
        assert torch.allclose(p["exp_avg"], q["exp_avg"], rtol=2e-2, atol=1e-5)


def test_before_it_starts_there_is_the_distillation_alone(codec):
    da, (point, batch) = aligned(codec), drawn()
    before = {name: x.clone() for name, x in da.judge.state_dict().items()}
    loss, log = da(point, batch, 1, rng())
    assert loss == da.distillation.jump(point, batch, 1).loss and log == {"step": 1}
    assert da.after_step() == []
    assert all(torch.equal(x, before[name]) for name, x in da.judge.state_dict().items())


def test_heads_may_learn_before_they_pull(codec):
    da, (point, batch) = aligned(codec, replace(OPTIONS, lead=1)), drawn()
    assert da(point, batch, 0, rng())[1] == {"step": 0} and da.after_step() == []
    before = {name: x.clone() for name, x in da.judge.named_parameters()}
    loss, log = da(point, batch, 1, rng())
    assert loss == da.distillation.jump(point, batch, 1).loss and log == {"step": 1}
    assert "discriminator" in da.after_step()[0]
    assert all(not torch.equal(x, before[name]) for name, x in da.judge.named_parameters())
    assert "lambda" in da(point, batch, 2, rng())[1]


def test_an_adaptive_weight_is_the_ratio_of_the_gradients(codec):
    (point, batch), logs = drawn(), []
    for adaptive in (False, True):
        _, log = aligned(codec, replace(OPTIONS, adaptive=adaptive))(point, batch, 2, rng())
        logs.append(log)
    assert logs[1]["gradient/ratio"] == pytest.approx(0.5)
    assert logs[1]["lambda"] == pytest.approx(0.5 * 0.5 / logs[0]["gradient/ratio"])


def test_real_clips_go_where_the_students_go(codec):
    da, (point, batch) = aligned(codec), drawn()
    da.judge.eval()
    e = da.exhibit(batch.x0, batch, point.t, rng())
    assert torch.equal(e.real, e.fake)
    real, fake = da.logits(e)
    assert all(torch.allclose(x, y) for kind in discriminator.KINDS for x, y in zip(real[kind], fake[kind]))


@pytest.mark.parametrize("start, frames", [(0, slice(0, 5)), (1, slice(1, 9))])
def test_real_clips_may_be_shown_as_they_were_filmed(start, frames, codec, monkeypatch):
    da = aligned(codec, replace(OPTIONS, raw=True))
    point, batch = drawn()
    monkeypatch.setattr("torch.randint", lambda *args, **kwargs: torch.tensor(start))
    e = da.exhibit(batch.x0, batch, point.t, rng())
    assert torch.equal(e.real, batch.pixels[:, :, frames].float() / 127.5 - 1)
    assert e.real.shape == e.fake.shape


def test_projected_latents_train_their_projection_and_reach_the_student():
    da = aligned(None, replace(OPTIONS, project=True))
    point, batch = drawn()
    loss, log = da(point, batch, 2, rng())
    loss.backward()
    assert log["gradient/adversarial"] > 0
    before = da.judge.picture.weight.clone()
    da.after_step()
    assert not torch.equal(da.judge.picture.weight, before)


def test_the_heads_learn_to_tell_held_out_clips(codec):
    """Real latents are smooth here, generated ones are not."""
    def smooth(seed):
        point, batch = drawn(seed=seed)
        x0 = batch.x0.mean((3, 4), keepdim=True).expand_as(batch.x0).contiguous()
        return (path.Point(x0, point.x1, point.t, path.interpolate(x0, point.x1, point.t)),
                Latents(x0, batch.condition, batch.captions))

    da = aligned(codec, Da(start=0, lr=3e-3, window=2, crop=24, watch=1), held_out=smooth(100))
    logs = []
    for step in range(25):
        _, log = da(*smooth(step), step, torch.Generator().manual_seed(step))
        logs.append(log)
        da.after_step()
    watched = [name for name in logs[0] if name.startswith("held out/")]
    assert watched == ["held out/spatial", "held out/temporal"]
    assert all(logs[-1][name] > 0.8 for name in watched)
    assert sum(logs[0][name] for name in watched) <= 1.5


def test_watching_changes_nothing(codec):
    ends = []
    for watch in (0, 1):
        da = aligned(codec, replace(OPTIONS, watch=watch), held_out=drawn(seed=9) if watch else None)
        for step in (2, 3):
            da(*drawn(), step, torch.Generator().manual_seed(step))
            da.after_step()
        ends.append(da.judge.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
