"""The heads against their formulas; frozen backbones; one window, crop and augmentation per clip."""

import math

import pytest
import torch
import torch.nn.functional as F

from swiftvideo_fast.adversary import discriminator, views
from swiftvideo_fast.adversary.backbones import Dino, Filters, features, load_backbone
from swiftvideo_fast.adversary.discriminator import CODE, Discriminator, Projection, SpectralConv
from swiftvideo_fast.adversary.views import View, draw_view
from swiftvideo_fast.models.toy.family import ToyFamily

B, T, N, C, TOLD = 4, 5, 6, 7, 3
D = torch.float64


@pytest.fixture
def net(rng):
    torch.manual_seed(0)
    made = Discriminator([C, C + 1], TOLD).to(D)
    discriminator.initialise(made, rng)
    for p in made.parameters():             # off the ones and zeros of the norms and biases
        p.data += 0.1 * torch.randn(p.shape, generator=rng, dtype=D)
    return made.eval()


@pytest.fixture
def seen(rng):
    return [torch.randn(B, T, N, width, generator=rng, dtype=D) for width in (C, C + 1)]


@pytest.fixture
def c(rng):
    """Returns conditioning that is equal within a pair."""
    return torch.randn(B // 2, TOLD, generator=rng, dtype=D).repeat(2, 1)


def circular(x_SCL, conv):
    """Returns the circular convolution, position by position, with weight W / u'Wv."""
    w = conv.weight / sum(conv.u[o] * conv.weight[o].flatten() @ conv.v for o in range(len(conv.u)))
    S, _, L = x_SCL.shape
    K = w.shape[2]
    y = torch.zeros(S, w.shape[0], L, dtype=D)
    for l in range(L):
        for k in range(K):
            y[:, :, l] += x_SCL[:, :, (l + k - K // 2) % L] @ w[:, :, k].T
    return y + conv.bias[:, None]


def block(x_SCL, of):
    """Sequences of one pair of clips: channels have mean 0 and variance 1 over all of them."""
    y = circular(x_SCL, of.conv)
    for channel in range(y.shape[1]):
        plane = y[:, channel]
        centred = plane - plane.mean()
        y[:, channel] = centred / (centred.square().mean() + 1e-5).sqrt() * of.norm.weight[channel] \
            + of.norm.bias[channel]
    return torch.where(y > 0, y, 0.2 * y)


def literal(x_SCL, head, c):
    """(1) to (3) of adversary/discriminator.py, for the sequences of a pair of clips."""
    h = block(x_SCL, head.near)
    h = (block(h, head.far) + h) * (1 / math.sqrt(2))
    y = circular(h, head.out)
    if head.code is None:
        D = y[:, 0]
    else:
        code = head.code.weight @ c + head.code.bias
        D = sum(y[:, i] * code[i] for i in range(CODE)) / math.sqrt(CODE)
    return D - D.mean()


@pytest.mark.parametrize("told", [TOLD, 0])
def test_heads_are_their_formula(told, seen, c, rng):
    net = Discriminator([C], told).to(D)
    discriminator.initialise(net, rng)
    net.eval()
    [x_BTNC] = seen[:1]
    logits = net([x_BTNC], c if told else None)
    for b in range(B // 2):
        pair, half = x_BTNC[[b, b + B // 2]], c[[b, b + B // 2]]
        for kind, x_BSCL in (("spatial", pair.mT), ("temporal", pair.permute(0, 2, 3, 1))):
            want = literal(x_BSCL.flatten(0, 1), net.heads[kind][0], half[0])
            got = logits[kind][0][[b, b + B // 2]]
            got = got if kind == "spatial" else got.mT
            assert torch.allclose(got.flatten(0, 1), want, atol=1e-12)


def test_a_pair_is_judged_the_same_alone_and_in_a_batch(net, seen, c):
    whole, alone = net(seen, c), net([x[[1, 3]] for x in seen], c[[1, 3]])
    for kind in discriminator.KINDS:
        assert all(torch.allclose(x[[1, 3]], y, atol=1e-12) for x, y in zip(whole[kind], alone[kind]))


@pytest.mark.parametrize("kind, axis, blind", [
    ("temporal", 2, True), ("temporal", 1, False), ("spatial", 1, True), ("spatial", 2, False)])
def test_spatial_heads_are_blind_to_time_and_temporal_heads_to_place(kind, axis, blind, net, seen, c):
    order = torch.tensor([2, 0, 3, 1, 4, 5])[:seen[0].shape[axis]]      # no rotation: heads are circular
    shuffled = net([x.index_select(axis, order) for x in seen], c)[kind]
    for x, y in zip(net(seen, c)[kind], shuffled):
        assert torch.allclose(x.index_select(axis, order), y, atol=1e-12) == blind
        assert torch.isclose(x.relu().mean(), y.relu().mean(), atol=1e-9) == blind


def test_the_norm_of_a_trained_weight_becomes_one(rng):
    conv = SpectralConv(4, 6, 3)
    discriminator.initialise(conv, rng)
    conv.weight.data *= 5
    for _ in range(50):
        conv.train()(torch.zeros(1, 1, 4, 4))
    with torch.no_grad():
        impulse = torch.zeros(4, 1, 4, 3)
        impulse[range(4), :, range(4), 1] = 1           # one channel, one place, at a time
        response = conv.eval()(impulse) - conv.bias[:, None]
    used = response[:, 0].flip(2).permute(1, 0, 2).flatten(1)
    assert torch.linalg.matrix_norm(used, 2).item() == pytest.approx(1, rel=1e-4)


def test_judging_does_not_move_the_spectral_norms(net, seen, c):
    before = {name: x.clone() for name, x in net.named_buffers()}
    net(seen, c)
    assert before and all(torch.equal(x, before[name]) for name, x in net.named_buffers())
    net.train()(seen, c)
    assert not any(torch.equal(x, before[name]) for name, x in net.named_buffers())


def test_the_same_seed_draws_the_same_heads():
    drawn = []
    for noise in (1, 2):                    # independent of the global state, which differs between ranks
        torch.manual_seed(noise)
        net = Discriminator([C], TOLD)
        discriminator.initialise(net, torch.Generator().manual_seed(0))
        drawn.append(net.state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def test_projected_latents_are_as_large_as_their_pixels(rng):
    net = Projection(ToyFamily.latent)
    discriminator.initialise(net, rng)
    z = torch.randn(1, 16, 3, 2, 4)
    assert net(z).shape == (1, 3, 3, 16, 32)
    assert torch.allclose(net(torch.ones(1, 16, 1, 2, 2)), net.weight.sum((1, 2, 3, 4))[:, None, None, None])


# --- backbones -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dinov2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.Dinov2Model(transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=6, num_attention_heads=2, image_size=42, patch_size=14))


def test_dino_is_read_at_the_patches_and_four_depths(dinov2):
    frames = torch.rand(3, 3, 42, 28) * 2 - 1
    eye, found = Dino(dinov2), {}
    handles = [layer.register_forward_hook(lambda module, args, out, i=i: found.update({i: (args[0], out)}))
               for i, layer in enumerate(dinov2.encoder.layer)]
    levels = eye(frames)
    [handle.remove() for handle in handles]
    outputs = [found[0][0]] + [found[i][1] for i in (0, 2, 3, 5)]       # after blocks 1, 3, 4, 6 of 6
    outputs = [x[0] if isinstance(x, tuple) else x for x in outputs]
    assert len(levels) == len(eye.widths) == 5
    for level, x in zip(levels, outputs):
        assert level.shape == (3, 6, 24)
        assert torch.allclose(level, x[:, 1:] + x[:, :1])
    grey = dinov2.embeddings(torch.full((1, 3, 14, 14), 0.0))           # ImageNet's mean colour is 0 to it
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand(3, 14, 14)
    assert torch.allclose(eye(mean[None] * 2 - 1)[0], grey[:, 1:] + grey[:, :1], atol=1e-5)


def test_a_side_that_is_no_multiple_of_the_patch_is_brought_to_one(dinov2):
    assert Dino(dinov2)(torch.zeros(1, 3, 45, 30))[0].shape == (1, 3 * 2, 24)
    assert Dino(dinov2)(torch.zeros(1, 3, 8, 8))[0].shape == (1, 1, 24)


@pytest.mark.parametrize("make", [Dino, lambda _: Filters(seed=2)])
def test_a_frozen_net_passes_gradients_on_and_keeps_none(make, dinov2):
    eye = make(dinov2).train()              # as a module that holds it would
    frames = torch.rand(2, 3, 28, 28, requires_grad=True)
    sum(level.sum() for level in eye(frames)).backward()
    assert frames.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in eye.parameters())


def test_dino_does_not_drop_anything_out(dinov2):
    assert not any(module.training for module in Dino(dinov2).train().modules())


def test_features_keep_clips_and_frames_apart():
    eye, clips = Filters(seed=2), torch.rand(2, 3, 4, 16, 16)
    levels = features(eye, clips)
    assert [x.shape for x in levels] == [(2, 4, 16, 32), (2, 4, 4, 64)]
    alone = eye(clips[1, :, 2][None])
    assert all(torch.allclose(x[1, 2], y[0], atol=1e-6) for x, y in zip(levels, alone))


def test_a_backbone_is_loaded_by_folder_and_its_absence_named(dinov2, tmp_path):
    dinov2.save_pretrained(tmp_path / "dino")
    loaded = load_backbone(str(tmp_path / "dino"))
    frames = torch.rand(1, 3, 28, 28)
    assert all(torch.equal(x, y) for x, y in zip(loaded(frames), Dino(dinov2)(frames)))
    assert isinstance(load_backbone("filters"), Filters)
    with pytest.raises(ValueError, match="no/such/place', where no DINOv2 was found.*or filters"):
        load_backbone("no/such/place")


# --- one view of a clip ----------------------------------------------------------------------------------


def test_a_view_is_drawn_from_its_generator_alone():
    draws = [draw_view(3, 16, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0].start == draws[1].start and draws[0].corner == draws[1].corner
    assert torch.equal(draws[0].u, draws[1].u) and not torch.equal(draws[0].u, draws[2].u)
    starts = {draw_view(1, 5, 3, torch.Generator().manual_seed(seed)).start for seed in range(40)}
    assert starts == {0, 1, 2}


def test_every_frame_of_a_clip_is_disguised_alike_and_each_clip_differently(rng):
    still = torch.rand(1, 3, 1, 32, 32, generator=rng).expand(2, 3, 4, 32, 32)
    seen = draw_view(2, 5, 1, rng).of(still, crop=24)
    assert seen.shape == (2, 3, 4, 24, 24)
    assert torch.equal(seen[:, :, :1].expand_as(seen), seen)
    assert not torch.allclose(seen[0], seen[1])


def test_the_crop_lies_within_the_frame_wherever_it_is_drawn():
    ramp = torch.arange(32.0).expand(1, 3, 1, 24, 32)
    for share, first in ((0.0, 0), (0.5, 8), (0.999, 16)):
        seen = View(0, (share, share), torch.full((1, 7), 0.5)).of(ramp, crop=16)
        assert seen.shape[3:] == (16, 16)
        first_column = views.shift(views.colour(ramp[..., first:first + 16], torch.full((1, 3), 0.5)),
                                     torch.full((1, 2), 0.5))
        assert torch.equal(seen[..., :4], first_column[..., :16, :4])       # the hole is in the middle
    assert View(0, (0.9, 0.9), torch.full((1, 7), 0.5)).of(ramp, crop=64).shape[3:] == (24, 32)


def test_the_middle_of_each_draw_leaves_a_clip_as_it_was(rng):
    x, half = torch.rand(2, 3, 4, 16, 16, generator=rng), torch.full((2, 3), 0.5)
    assert torch.allclose(views.colour(x, half), x, atol=1e-6)
    assert torch.equal(views.shift(x, half[:, :2]), x)
    corner = views.shift(x, torch.zeros(2, 2))                        # moved right and down by two
    assert torch.equal(corner[..., 2:, 2:], x[..., :-2, :-2]) and not corner[..., :2, :].any()
    holed = views.cut_out(x, half[:, :2])
    assert not holed[..., 4:12, 4:12].any() and torch.equal(holed[..., :4, :], x[..., :4, :])


def test_gradients_go_through_the_disguise(rng):
    x = torch.rand(1, 3, 2, 16, 16, generator=rng, dtype=D, requires_grad=True)
    view = draw_view(1, 5, 1, rng)
    assert torch.autograd.gradcheck(lambda x: view.of(F.pad(x, (0, 0)), 8), x, fast_mode=True)
