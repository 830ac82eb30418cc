"""Distribution alignment: eq. 10 by hand, the networks trained, gradients through decoder and backbone."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from test_objectives import config_of
from torch import Tensor, nn

from swiftvideo_fast import path
from swiftvideo_fast.adversary import discriminator
from swiftvideo_fast.adversary.backbones import Dino, Filters
from swiftvideo_fast.adversary.discriminator import Critic, CriticInput, Logits
from swiftvideo_fast.config import Optim
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.toy.codec import PcaCodec
from swiftvideo_fast.models.toy.family import ToyFamily
from swiftvideo_fast.models.wan.vae import WanVae
from swiftvideo_fast.objectives.base import Consistency, Jump, Loss, Setup
from swiftvideo_fast.objectives.ccd import Ccd
from swiftvideo_fast.objectives.da import (
    BETAS,
    CRITIC,
    Da,
    DistributionAlignment,
    accuracy,
    conditioning,
    hinge,
)
from swiftvideo_fast.train.single import Trained

D = torch.float64
B, TEXT, SHAPE = 2, 3, (16, 3, 4, 4)
OPTIONS = Da(weight=0.5, start=2, lr=1e-2, window=2, crop=24)


class Affine(nn.Module):
    """The student: v = a z + b."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        rng = torch.Generator().manual_seed(5)
        self.a = nn.Parameter(torch.tensor(0.7, dtype=dtype))
        self.b = nn.Parameter(torch.randn(SHAPE, generator=rng, dtype=dtype))

    def forward(self, x, t, text, frames, image):
        return self.a * x + self.b


class Towards0(Consistency):
    """A distillation with target v = 0, noise 1 and fixed times."""

    def jump(self, nets, batch, rng, step):
        point = point_of(batch)
        v = self.velocity(nets["student"], point.x_t, point.t, batch.condition)
        return Jump(point.x_t, point.t, v, v.square().flatten(1).sum(1).mean(), {"step": step})


def point_of(batch: Batch) -> path.Point:
    t = torch.tensor([0.3, 0.8], dtype=batch.x0.dtype)
    x1 = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(1), dtype=batch.x0.dtype)
    return path.Point(batch.x0, x1, t, path.interpolate(batch.x0, x1, t))


def drawn(dtype=torch.float32, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    x0 = torch.randn(B, *SHAPE, generator=rng, dtype=dtype)
    text = torch.randn(B, 4, TEXT, generator=rng, dtype=dtype)
    condition = Condition(torch.zeros(B, 20, *SHAPE[1:], dtype=dtype), text, torch.zeros_like(text[0]))
    pixels = torch.randint(256, (B, 3, 9, 32, 32), generator=rng, dtype=torch.uint8)
    return Batch(x0, condition, ["a", "b"], pixels=pixels)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_inputs(folder)
    return PcaCodec.load(folder / "codec.safetensors")


class Aligned:
    """An objective with its networks, and the loop's step."""

    def __init__(self, codec, options: Da = OPTIONS, backbone=None, dtype=torch.float32, passes: int = 1,
                 held_out: Batch | None = None):
        source = SimpleNamespace(clips=lambda split, count, seed: held_out)
        setup = Setup(ToyFamily(), torch.device("cpu"), lambda: SimpleNamespace(text_dim=TEXT),
                      None, None, None, lambda: codec, lambda: source)
        cfg = config_of(Ccd(), da=options)
        self.da = DistributionAlignment(cfg, setup, Towards0(cfg, setup))
        self.backbone = (backbone or Filters(seed=2)).to(dtype).requires_grad_(False)
        projects = ToyFamily.latent if options.project else None
        self.critic = Critic(self.backbone.widths, TEXT, projects).to(dtype).eval()
        discriminator.initialise(self.critic, torch.Generator().manual_seed(3))
        self.student = Affine(dtype)
        self.trained = Trained(self.critic, Optim(options.lr, betas=BETAS, weight_decay=0.0, clip=math.inf),
                               passes)
        self.nets = {"student": self.student, "backbone": self.backbone, CRITIC: self.critic}

    def student_loss(self, batch: Batch, step: int, seed: int = 7) -> Loss:
        return self.da.loss("student", self.nets, batch, torch.Generator().manual_seed(seed), step)

    def critic_step(self, *carry: tuple) -> list[dict]:
        """The critic's turn on what micro-batches of the student's have handed on; their logs."""
        self.critic.train()
        logs = []
        for one in carry:
            out = self.da.loss(CRITIC, self.nets, None, rng(), 2, one)
            self.trained.backward(out.value)
            logs.append({"loss": out.value.item()} | out.log)
        self.trained.step(self.da.options.lr)
        self.critic.eval()
        return logs

    def seen(self, x0: Tensor, batch: Batch) -> CriticInput:
        return self.da.critic_input(self.nets, x0, batch, point_of(batch).t, rng())

    def logits(self, seen: CriticInput) -> tuple[Logits, Logits]:
        return self.da.logits(self.nets, seen)

    def jump(self, batch: Batch) -> Jump:
        return self.da.distillation.jump(self.nets, batch, rng(), 2)


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
    da, batch = Aligned(codec), drawn()
    out, point = da.student_loss(batch, 2), point_of(batch)
    seen = out.carry[1]
    v = da.student.a * point.x_t + da.student.b
    x0_hat = point.x_t - point.t.view(-1, 1, 1, 1, 1) * v
    assert torch.allclose(seen.fake, da.da.window(x0_hat, seen.view))
    pixels = torch.cat([seen.view.of(x, 24) for x in (seen.real, seen.fake)])
    D_k = da.critic.heads([x.unflatten(0, (2 * B, -1)) for x in da.backbone(
        pixels.transpose(1, 2).flatten(0, 1))], conditioning(point.t, batch.condition).repeat(2, 1))
    adversarial = sum((1 - d[B:]).clamp(min=0).mean() for kind in ("spatial", "temporal") for d in D_k[kind])
    assert out.value.item() == pytest.approx((0.5 * adversarial + v.square().sum() / B).item(), rel=1e-6)
    assert out.log["adversarial"] == pytest.approx(adversarial.item(), rel=1e-6)


def test_the_students_gradient_is_that_of_the_whole_expression(codec):
    """Computed in the forward pass, it equals one backward through everything."""
    da, batch = Aligned(codec), drawn()
    out, ab, t = da.student_loss(batch, 2), [da.student.a, da.student.b], point_of(batch).t
    got, jump = torch.autograd.grad(out.value, ab), da.jump(batch)
    adversarial = hinge(da.logits(da.seen(jump.x0, batch))[1], 1)
    want = torch.autograd.grad(jump.loss + 0.5 * adversarial, ab)
    assert all(torch.allclose(g, w, rtol=1e-4, atol=1e-5) for g, w in zip(got, want))

    x0 = jump.x0.detach().requires_grad_()
    [g_adv] = torch.autograd.grad(hinge(da.logits(da.seen(x0, batch))[1], 1), x0)
    g_distill = 2 * jump.v / B / t.view(-1, 1, 1, 1, 1)
    adversary, distillation = ([x[b].norm().item() for b in range(B)] for x in (g_adv, g_distill))
    assert out.log["gradient/adversarial"] == pytest.approx(sum(adversary) / B, rel=1e-4)
    assert out.log["gradient/distillation"] == pytest.approx(sum(distillation) / B, rel=1e-4)
    ratio = sum(p / h for p, h in zip(adversary, distillation)) / B
    assert out.log["gradient/ratio"] == pytest.approx(0.5 * ratio, rel=1e-4)


def test_a_gradient_arrives_through_decoder_and_dino(monkeypatch):
    """Against finite differences in float64, with transformers' DINOv2 and diffusers' VAE."""
    transformers, diffusers = pytest.importorskip("transformers"), pytest.importorskip("diffusers")
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
    monkeypatch.setattr(WanUpsample, "forward", nn.Upsample.forward)        # theirs computes in float32
    torch.manual_seed(0)
    dino = Dino(transformers.Dinov2Model(transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14)))
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).to(D)
    da = Aligned(WanVae(vae), Da(weight=3.0, start=0, window=3, crop=28), dino, D)
    batch, student = drawn(D), da.student

    def loss() -> Tensor:
        return da.student_loss(batch, 0).value - da.jump(batch).loss

    [got] = torch.autograd.grad(loss(), student.a)
    step, values = 1e-6, []
    for sign in (1, -1):
        student.a.data += sign * step
        values.append(loss().item())
        student.a.data -= sign * step
    assert got.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)
    assert abs(got) > 1e-4


def test_the_frozen_have_no_gradient_and_no_state(codec):
    da = Aligned(codec)
    out = da.student_loss(drawn(), 2)
    out.value.backward()
    assert not any(p.grad is not None for p in da.critic.parameters()), "a student's step spares the heads"
    students = da.student.a.grad.clone()
    seen = out.carry[1]
    assert not any(x.requires_grad for x in (seen.fake, *seen.features)), "the graph is gone"
    da.critic_step(out.carry)
    assert torch.equal(da.student.a.grad, students), "and theirs the student"
    assert all(p.grad is None and not p.requires_grad for p in da.backbone.parameters())
    assert set(da.trained.optimizer.state) == set(da.critic.parameters())


def test_the_heads_take_one_step_down_their_hinge(codec):
    da = Aligned(codec)
    carry = da.student_loss(drawn(), 2).carry
    before = {name: p.clone() for name, p in da.critic.named_parameters()}
    [log] = da.critic_step(carry)

    twin = Aligned(codec)
    twin.critic.train()
    on_real, on_fake = (sum(logits.values(), []) for logits in twin.logits(carry[1]))
    loss = sum((1 - d).relu().mean() for d in on_real) + sum((1 + d).relu().mean() for d in on_fake)
    assert log["loss"] == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    for name, p in twin.critic.named_parameters():      # AdamW's first step is lr along the gradient's sign
        moved = da.critic.get_parameter(name) - before[name]
        want = -1e-2 * p.grad / (p.grad.abs() + 1e-8)
        assert torch.allclose(moved, want, rtol=1e-3, atol=1e-5), name
    assert log["logits/real"].shape == log["logits/fake"].shape


def test_micro_batches_of_one_turn_count_as_one(codec):
    da, doubled = Aligned(codec), Aligned(codec, passes=2)
    [once] = da.critic_step(da.student_loss(drawn(), 2).carry)
    first, second = doubled.critic_step(*(doubled.student_loss(drawn(), 2).carry for _ in range(2)))
    assert first["loss"] == once["loss"] == second["loss"], "one power iteration a turn"
    for p, q in zip(*(of.trained.optimizer.state.values() for of in (da, doubled))):
        assert torch.allclose(p["exp_avg"], q["exp_avg"], rtol=1e-5, atol=1e-8)


def test_before_it_starts_there_is_the_distillation_alone(codec):
    da, batch = Aligned(codec), drawn()
    out = da.student_loss(batch, 1)
    assert out.value == da.jump(batch).loss and out.log == {"step": 1} and out.carry == (None, None)
    assert da.da.turns(1) == ("student",) and da.da.turns(2) == ("student", CRITIC)


def test_heads_may_learn_before_they_pull(codec):
    da, batch = Aligned(codec, replace(OPTIONS, lead=1)), drawn()
    assert da.student_loss(batch, 0).log == {"step": 0} and da.da.turns(0) == ("student",)
    before = {name: x.clone() for name, x in da.critic.named_parameters()}
    out = da.student_loss(batch, 1)
    assert out.value == da.jump(batch).loss and out.log == {"step": 1}
    assert da.da.turns(1) == ("student", CRITIC)
    da.critic_step(out.carry)
    assert all(not torch.equal(x, before[name]) for name, x in da.critic.named_parameters())
    assert "lambda" in da.student_loss(batch, 2).log


def test_an_adaptive_weight_is_the_ratio_of_the_gradients(codec):
    logs = [Aligned(codec, replace(OPTIONS, adaptive=adaptive)).student_loss(drawn(), 2).log
            for adaptive in (False, True)]
    assert logs[1]["gradient/ratio"] == pytest.approx(0.5)
    assert logs[1]["lambda"] == pytest.approx(0.5 * 0.5 / logs[0]["gradient/ratio"])


def test_real_clips_go_where_the_students_go(codec):
    da, batch = Aligned(codec), drawn()
    seen = da.seen(batch.x0, batch)
    assert torch.equal(seen.real, seen.fake)
    real, fake = da.logits(seen)
    assert all(torch.allclose(x, y) for kind in discriminator.KINDS for x, y in zip(real[kind], fake[kind]))


@pytest.mark.parametrize("start, frames", [(0, slice(0, 5)), (1, slice(1, 9))])
def test_real_clips_may_be_shown_as_they_were_filmed(start, frames, codec, monkeypatch):
    da, batch = Aligned(codec, replace(OPTIONS, raw=True)), drawn()
    monkeypatch.setattr("torch.randint", lambda *args, **kwargs: torch.tensor(start))
    seen = da.seen(batch.x0, batch)
    assert torch.equal(seen.real, batch.pixels[:, :, frames].float() / 127.5 - 1)
    assert seen.real.shape == seen.fake.shape


def test_projected_latents_train_their_projection_and_reach_the_student():
    da = Aligned(None, replace(OPTIONS, project=True))
    out = da.student_loss(drawn(), 2)
    out.value.backward()
    assert out.log["gradient/adversarial"] > 0
    before = da.critic.picture.weight.clone()
    da.critic_step(out.carry)
    assert not torch.equal(da.critic.picture.weight, before)


def test_the_heads_learn_to_tell_held_out_clips(codec):
    """Real latents are smooth, generated ones are not."""
    def smooth(seed: int) -> Batch:
        batch = drawn(seed=seed)
        return replace(batch, x0=batch.x0.mean((3, 4), keepdim=True).expand_as(batch.x0).contiguous())

    da = Aligned(codec, Da(start=0, lr=3e-3, window=2, crop=24, watch=1), held_out=smooth(100))
    logs = []
    for step in range(25):
        out = da.student_loss(smooth(step), step, seed=step)
        logs.append(out.log)
        da.critic_step(out.carry)
    watched = [name for name in logs[0] if name.startswith("held out/")]
    assert watched == ["held out/spatial", "held out/temporal"]
    assert all(logs[-1][name] > 0.8 for name in watched)
    assert sum(logs[0][name] for name in watched) <= 1.5


def test_watching_changes_nothing(codec):
    ends = []
    for watch in (0, 1):
        da = Aligned(codec, replace(OPTIONS, watch=watch), held_out=drawn(seed=9) if watch else None)
        for step in (2, 3):
            da.critic_step(da.student_loss(drawn(), step, seed=step).carry)
        ends.append(da.critic.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
