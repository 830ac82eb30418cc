"""The flow map: loss against an independent implementation, fixed point on Gaussian data, second time input.

On data N(0, sd^2) under the exact flow, x_t grows as sigma(t) (test_gaussian.py), so the map is
    x_s = x_t sigma(s) / sigma(t)        u(x_t, t, s) = x_t (1 - sigma(s) / sigma(t)) / (t - s),   v at s = t
"""

import math
from dataclasses import asdict, replace

import plugs
import pytest
import tiny
import torch
from test_gaussian import NOTHING, TIMES, Average, Flow, Linear, points, sigma
from test_objectives import NORMALISED, B, Net, assert_equal, column, draw, made, null_of
from torch import nn

from swiftvideo_fast import cli, path, plan, sampler
from swiftvideo_fast.config import Sample, Times, to_dict
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.wan.network import add_second_time, cast
from swiftvideo_fast.objectives.da import Da
from swiftvideo_fast.objectives.flowmap import (
    STEP,
    FlowMap,
    FlowMapDistillation,
    central_difference,
    total_derivative,
)
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import recipe, rounds
from swiftvideo_fast.train.log import read_log

D = torch.float64


class MapNet(Net):
    """test_objectives.Net with a second time; without it s = t."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.second = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(-seed), dtype=D))

    def forward(self, x, t, text, frames, image, s=None):
        told = text.mean(1) @ self.text + frames.flatten(1) + image.mean(1)
        times = t[:, None] * self.time + (t if s is None else s)[:, None].square() * self.second
        return torch.tanh(x.flatten(1) @ self.mix + told + times).reshape(x.shape)


@pytest.fixture
def nets():
    average, teacher = MapNet(2).requires_grad_(False), Net(3).requires_grad_(False)
    return {"student": MapNet(1), "average": average, "teacher": teacher}


SECOND = torch.tensor([0.0, 0.1, 0.5, 1.0, 1.0], dtype=D)           # s / t: to the data, between, none


def literal(nets, point, s, condition, r, norm, c, velocity, derivative):
    """(u-, g, loss) of the module's (1), for guidance 3."""
    student, average, teacher = nets.values()
    x_t, t, told = point.x_t, point.t, (condition.text, condition.frames, condition.image)
    uncond = teacher(x_t, t, null_of(condition), *told[1:])
    v = uncond + 3.0 * (teacher(x_t, t, *told) - uncond)
    if velocity == "data":
        v = point.x1 - point.x0
    if derivative == "exact":
        u, du_dt = torch.autograd.functional.jvp(
            lambda x, t: average(x, t, *told, s), (x_t, t), (v, torch.ones(B, dtype=D)))
    else:
        u = average(x_t, t, *told, s)
        du_dt = (average(x_t + 0.005 * v, t + 0.005, *told, s)
                 - average(x_t - 0.005 * v, t - 0.005, *told, s)) / 0.01
    g = NORMALISED[norm](v - u - r * column(t - s) * du_dt, c)
    return u, g, (student(x_t, t, *told, s) - u - g).square().flatten(1).sum(1).mean()


@pytest.mark.parametrize("norm", NORMALISED)
@pytest.mark.parametrize("velocity, derivative", [
    ("teacher", "exact"), ("teacher", "finite"), ("data", "exact")])
def test_target_loss_and_gradient_are_those_of_the_condition(nets, norm, velocity, derivative):
    point, condition = draw()
    s = SECOND * point.t
    flowmap = made(FlowMapDistillation, FlowMap(warmup=60, norm=norm, c=0.3, r_max=0.8, velocity=velocity,
                                                derivative=derivative))
    for step, r in ((0, 0.0), (30, 0.5), (60, 0.8)):
        u, g, loss = literal(nets, point, s, condition, r, norm, 0.3, velocity, derivative)
        got_u, got_g, log = flowmap.target(point, s, nets, condition, step)
        assert_equal(got_u, u)
        room = 100 if derivative == "finite" else 1     # a difference over 2 STEP has as much more rounding
        assert (got_g - g).abs().max() <= room * 1e-13 and log["r"] == r
        got = flowmap.jump_from(point, s, nets, condition, step).loss
        assert abs(got - loss) <= room * 1e-13 * loss
        parameters = list(nets["student"].parameters())
        for a, b in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(loss, parameters),
                        strict=True):
            assert (a - b).abs().max() <= room * 1e-13 * max(1, b.abs().max())


def test_the_pair_is_drawn_from_the_turns_generator_in_its_shares(nets):
    point, condition = draw()
    flowmap = made(FlowMapDistillation, FlowMap(shares=(0.5, 0.2)), Times(mean=0.3, std=0.5))
    rng = generator(0, "path")
    found = path.draw(point.x0, rng, Times(mean=0.3, std=0.5))
    want = flowmap.jump_from(found, flowmap.draw_s(found.t, rng), nets, condition, 5).loss
    out = flowmap.loss("student", nets, Batch(point.x0, condition, [""] * B), generator(0, "path"), 5)
    assert out.value == want

    t = torch.rand(20_000, generator=rng)
    s = flowmap.draw_s(t, rng)
    still, whole = (s == t).double().mean(), (s == 0).double().mean()
    assert abs(still - 0.5) < 4 * 0.5 / math.sqrt(len(t)) and abs(whole - 0.2) < 4 * 0.4 / math.sqrt(len(t))
    between = (s / t)[(s != t) & (s != 0)]
    assert between.min() > 0 and between.max() < 1
    assert abs(between.mean() - 0.5) < 4 * 12**-0.5 / math.sqrt(len(between))


def test_no_gradient_reaches_average_or_teacher(nets):
    point, condition = draw()
    for net in nets.values():
        net.requires_grad_()
    flowmap = made(FlowMapDistillation, FlowMap(warmup=0))
    flowmap.jump_from(point, SECOND * point.t, nets, condition, 0).loss.backward()
    assert all((p.grad is not None) == (role == "student") for role, net in nets.items()
               for p in net.parameters())


def test_shares_beyond_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"objective.shares is \(0.8, 0.4\); want two shares, at most 1"):
        made(FlowMapDistillation, FlowMap(shares=(0.8, 0.4)))


def test_under_an_adversary_every_clip_has_a_second_pair_to_the_data(nets):
    point, condition = draw()
    s = SECOND * point.t
    flowmap = made(FlowMapDistillation, FlowMap(warmup=0))
    one, whole = (flowmap.jump_from(point, to, nets, condition, 0) for to in (s, torch.zeros_like(s)))
    flowmap.cfg = replace(flowmap.cfg, da=Da())
    both = flowmap.jump_from(point, s, nets, condition, 0)
    assert_equal(both.loss, (one.loss + whole.loss) / 2)
    assert_equal(both.x0, whole.x0)
    assert_equal(both.x0, flowmap.x0(nets["student"], point.x_t, point.t, condition))
    [at_v] = torch.autograd.grad(both.loss, both.v, retain_graph=True)      # used to weight the adversary
    [alone] = torch.autograd.grad(whole.loss, whole.v)
    assert_equal(at_v, alone / 2)


# --- on Gaussian data ------------------------------------------------------------------------------------


class Map(Linear):
    """u(x, t, s) = w(t, s) x."""

    def forward(self, x, t, text=None, frames=None, image=None, s=None):
        return path.over(self.w(t.double(), (t if s is None else s).double()), x) * x


class ExactMap(Map):
    def __init__(self, sd: float):
        super().__init__()
        self.sd = sd

    def w(self, t, s):
        """(sigma(t) - sigma(s)) / (t - s) / sigma(t), without cancellation."""
        rise = (t + s) * (1 + self.sd**2) - 2 * self.sd**2
        return rise / (sigma(t, self.sd) + sigma(s, self.sd)) / sigma(t, self.sd)


class LegendreMap(Map):
    """w(t, s), a polynomial in t and s / t."""

    def __init__(self, degree: int):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(degree + 1, degree + 1, dtype=D))

    def w(self, t, s):
        def basis(z):
            below, p, found = torch.zeros_like(z), torch.ones_like(z), []
            for k in range(len(self.theta)):
                found.append(math.sqrt(2 * k + 1) * p)                      # orthonormal on [0, 1]
                below, p = p, ((2 * k + 1) * (2 * z - 1) * p - k * below) / (k + 1)
            return torch.stack(found, 1)

        return (basis(t) @ self.theta * basis(s / t)).sum(1)


@pytest.mark.parametrize("sd", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("norm", NORMALISED)
def test_the_tangent_vanishes_at_the_exact_map_for_every_pair_of_times(norm, sd):
    nets = {"average": ExactMap(sd), "teacher": Flow(sd)}
    flowmap = made(FlowMapDistillation, FlowMap(warmup=0, norm=norm))
    for share in torch.linspace(0, 1, 9, dtype=D):
        log = flowmap.target(points(TIMES), share * TIMES, nets, NOTHING, 0)[2]
        assert log["tangent"] < 1e-12
    halved = made(FlowMapDistillation, FlowMap(warmup=0, r_max=0.5))
    assert halved.target(points(TIMES), 0 * TIMES, nets, NOTHING, 0)[2]["tangent"] > 0.02


def test_the_finite_difference_rests_nearby_in_second_order():
    nets = {"average": ExactMap(1.0), "teacher": Flow(1.0)}
    flowmap = made(FlowMapDistillation, FlowMap(warmup=0, derivative="finite"))
    assert 1e-8 < flowmap.target(points(TIMES), 0 * TIMES, nets, NOTHING, 0)[2]["tangent"] < 10 * STEP**2


def ratio(net: Map, steps: int, sd: float, shift: float = 1.0) -> float:
    """Returns the standard deviation of samples over that of the data, with a config's sampler."""
    how = Sample("flowmap", shift)
    return sampler.generate(lambda x, t, condition, s: net(x, t, s=s), torch.ones(1, 1, dtype=D), NOTHING,
                            steps, how, None).item() / sd


@pytest.mark.parametrize("sd", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_exact_map_keeps_the_standard_deviation_at_any_number_of_steps(steps, sd):
    assert ratio(ExactMap(sd), steps, sd, shift=3.0) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("norm, velocity, elements, lr, decay", [
    ("l2", "teacher", 4, 0.03, 0.5), ("rms", "data", 16, 0.005, 0.9)])
def test_trained_on_draws_it_comes_to_rest_at_the_exact_map(norm, velocity, elements, lr, decay):
    """For s uniform below t the mean step is a contraction, as it is at s = t and at s = 0.  CCD's ratios
    under Euler are 1.41, 1.66, 1.82 at 2, 4, 8 steps (test_gaussian.py)."""
    student = LegendreMap(5)
    ema = Average(student, decay)
    flowmap = made(FlowMapDistillation, FlowMap(guidance=1.0, warmup=20, norm=norm, c=1.0, shares=(0.1, 0.2),
                                                velocity=velocity), Times(uniform=True))
    nets = {"student": student, "average": ema.net, "teacher": Flow(1.0)}
    optimizer, rng = torch.optim.SGD(student.parameters(), lr), torch.Generator().manual_seed(0)
    for step in range(steps := 400):
        optimizer.param_groups[0]["lr"] = lr * min(1, 2 * (1 - step / steps))
        x0 = torch.randn(192 + 16 * elements, elements, generator=rng, dtype=D)
        loss = flowmap.loss("student", nets, Batch(x0, NOTHING, [""]), rng, step).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()
    for share in torch.linspace(0, 1, 9, dtype=D):
        off = ema.net.w(TIMES, share * TIMES) - ExactMap(1.0).w(TIMES, share * TIMES)
        assert off.abs().max() < 0.05
    assert [ratio(ema.net, steps, 1.0) for steps in (1, 2, 4, 8)] == pytest.approx([1] * 4, abs=0.02)


# --- the network, the run, the plan ----------------------------------------------------------------------


def call(net, s=None, share=0.5):
    rng = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 16, 2, 4, 4, generator=rng), torch.rand(2, generator=rng)
    text, frames = torch.randn(2, 3, 8, generator=rng), torch.randn(2, 20, 2, 4, 4, generator=rng)
    return net(x, t, text, frames, None, *([] if s is None else [s * t]))


@torch.no_grad()
def test_a_teacher_is_its_own_first_map_to_the_bit():
    teacher, net = tiny.network(), add_second_time(tiny.network())
    assert torch.equal(call(net, s=0.5), call(teacher)) and torch.equal(call(net), call(teacher))
    assert net.config == replace(teacher.config, second_time=True) and add_second_time(net) is net
    added = {name for name, _ in net.named_parameters()} - {name for name, _ in teacher.named_parameters()}
    assert {name.partition(".")[0] for name in added} == {"second_time_embedding"} and len(added) == 4
    with pytest.raises(ValueError, match="Wan: s is given and the network has no second time; train it as a"):
        call(teacher, s=0.5)
    with pytest.raises(ValueError, match=r"Wan: s is \(3,\); want \(2,\)"):
        net(*(torch.zeros(*shape) for shape in ((2, 16, 2, 4, 4), (2,), (2, 3, 8), (2, 20, 2, 4, 4))), None,
            torch.zeros(3))


def moved() -> nn.Module:
    net = add_second_time(tiny.network())
    nn.init.normal_(net.second_time_embedding[2].weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return net


@torch.no_grad()
def test_a_map_depends_on_s_and_without_it_is_the_velocity_at_s_t(tmp_path):
    net = moved()
    assert (call(net, s=0.5) - call(net, s=0.0)).abs().max() > 1e-3
    assert torch.equal(call(net), call(net, s=1.0))
    weights.save(net, tmp_path / "map.safetensors")
    back = weights.load(tmp_path / "map.safetensors")
    assert back.config.second_time and torch.equal(call(back, s=0.5), call(net, s=0.5))
    stored = {p.dtype for p in cast(back, torch.bfloat16).second_time_embedding.parameters()}
    assert stored == {torch.float32}


def test_the_second_time_gets_a_gradient_from_the_first_step():
    net = add_second_time(tiny.network())
    call(net, s=0.5).square().mean().backward()
    assert net.second_time_embedding[2].weight.grad.abs().max() > 0


def test_a_run_ends_with_maps_that_are_sampled_by_themselves(inputs):
    cfg = tiny.config(inputs, "flowmap", run="map", sample={"sampler": "flowmap"}, optim={"lr": 1e-2})
    folder = recipe.train(cfg, tiny.TABLES)
    parts = recipe.Parts(cfg, tiny.TABLES)
    net = parts.family.load(f"{folder}/average.safetensors")
    assert asdict(net.config) == asdict(tiny.SIZES) | {"second_time": True}
    x1 = torch.randn(2, 16, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    condition = parts.clips.clips("valid", 2, 0).condition

    def sampled(name: str) -> torch.Tensor:
        how = Sample(name)
        return sampler.generate(lambda *inputs: parts.family.call(net, *inputs), x1, condition, 2, how, None)

    assert (sampled("flowmap") - sampled("euler")).abs().max() > 1e-4


def test_an_adversary_and_an_alignment_stand_on_a_map(inputs):
    """TA uses the map's samples, by its own sampler."""
    how = {"sample": {"sampler": "flowmap"}}
    tree = to_dict(tiny.config(inputs, "da", run="map-da", **how))
    tree["objective"] = tiny.RUNS["flowmap"]
    folder = recipe.train(tiny.TABLES.from_dict(tree), tiny.TABLES)
    assert "held out/spatial" in read_log(folder)[-1] and "gradient/ratio" in read_log(folder)[-1]
    ta = tiny.config(inputs, "ta", run="map-ta", model={"student": f"{folder}/average.safetensors"}, **how)
    rounds.make_pairs(ta, tables=tiny.TABLES)
    assert weights.sizes(recipe.train(ta, tiny.TABLES) / "average.safetensors").second_time


def test_rounded_to_bf16_the_exact_derivative_errs_by_the_rounding_the_finite_one_by_that_over_its_step():
    net = cast(moved(), torch.bfloat16)
    whole = moved()
    whole.load_state_dict(net.state_dict())
    whole.double()
    rng = torch.Generator().manual_seed(0)
    x, v = (torch.randn(4, 16, 2, 8, 8, generator=rng) for _ in range(2))
    t = 0.1 + 0.8 * torch.rand(4, generator=rng)
    text, frames = torch.randn(4, 3, 8, generator=rng), torch.randn(4, 20, 2, 8, 8, generator=rng)

    @torch.no_grad()
    def of(net, derivative, dtype):
        told = text.to(dtype), frames.to(dtype), None, (t / 2).to(dtype)
        return derivative(lambda x, t: net(x, t, *told), x.to(dtype), t.to(dtype), v.to(dtype))[1].double()

    want = of(whole, total_derivative, D)
    exact, finite = (((of(net, derivative, torch.float32) - want).norm() / want.norm()).item()
                     for derivative in (total_derivative, central_difference))
    assert exact < 2**-7 and finite > 30 * exact                    # 0.0044 and 0.69


@pytest.mark.parametrize("kind", ["weights", "diffusers", "original"])
def test_an_export_carries_the_second_time_or_is_refused(kind, tmp_path, capsys):
    weights.save(moved(), tmp_path / "map.safetensors")
    out = tmp_path / "out.safetensors"
    refused = cli.main(["export", str(tmp_path / "map.safetensors"), str(out), "--to", kind])
    if kind == "weights":
        assert not refused and weights.load(out).config.second_time
    else:
        assert refused == 2 and not out.exists()
        assert "a flow map, of two times; want --to weights" in capsys.readouterr().err


def test_a_family_without_flow_maps_is_refused(inputs):
    tree = to_dict(tiny.config(inputs, "flowmap"))
    tree["model"]["family"] = "bar"
    with pytest.raises(ValueError, match="model.family is bar; want one whose networks can take a"):
        plugs.TABLES.from_dict(tree)


def test_a_plan_counts_one_tangent_pass_and_the_second_time():
    assert [(c.rows, c.tangent, c.grad) for c in plan.calls("flowmap")] == [
        (2, False, False), (1, True, False), (1, False, True)]
    sizes = plan.PRESETS["1.3b"]
    elements = {name: {role: sum(n for n, _ in found) for role, found in plan.parameters(sizes, name).items()}
                for name in ("ccd", "flowmap")}
    second = (sizes.freq_dim + 1 + sizes.dim + 1) * sizes.dim
    assert elements["flowmap"]["student"] - elements["ccd"]["student"] == second
    assert elements["flowmap"]["teacher"] == elements["ccd"]["teacher"]
