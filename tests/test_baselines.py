"""The baselines: losses against independent implementations, and fixed points on Gaussian data.

On N(0, sd^2) data under the exact flow a(t) x, N Euler steps on a grid multiply x_t by known factors, which a
student with one number per grid time can represent exactly.
"""

from dataclasses import replace

import pytest
import tiny
import torch
from test_gaussian import NOTHING, AtRest, Flow, Legendre, Table
from test_objectives import B, Net, assert_equal, column, draw, made, null_of

from swiftvideo_fast import plan
from swiftvideo_fast.config import Sample, to_dict
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.objectives.da import CRITIC
from swiftvideo_fast.objectives.dmd2 import FAKE, DistributionMatching, Dmd2
from swiftvideo_fast.objectives.lcm import LatentConsistency, Lcm
from swiftvideo_fast.objectives.osv import OneStep, Osv
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import recipe
from swiftvideo_fast.train.log import read_log

D = torch.float64


@pytest.fixture
def nets():
    average, teacher = Net(2).requires_grad_(False), Net(3).requires_grad_(False)
    return {"student": Net(1), "average": average, "teacher": teacher}


def told(condition):
    return condition.text, condition.frames, condition.image


def guided(net, x_t, t, condition, w):
    """u + w (c - u)."""
    u = net(x_t, t, null_of(condition), condition.frames, condition.image)
    return u + w * (net(x_t, t, *told(condition)) - u)


def assert_same_loss(got, want, net):
    """Value and gradient."""
    assert_equal(got, want)
    parameters = list(net.parameters())
    for a, b in zip(torch.autograd.grad(got, parameters, retain_graph=True),
                    torch.autograd.grad(want, parameters), strict=True):
        assert_equal(a, b)


def euler_factors(grid: int, sd: float, edges=(0,)) -> torch.Tensor:
    """Returns (grid + 1,): factors of x after Euler steps from k / grid down to the nearest edge below."""
    a, factors = Flow(sd).w(torch.arange(grid + 1, dtype=D) / grid), [torch.ones((), dtype=D)]
    for k in range(1, grid + 1):
        factors.append((1 if k - 1 in edges else factors[-1]) * (1 - a[k] / grid))
    return torch.stack(factors)


# --- LCM -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["huber", "l2"])
def test_lcm_is_its_equation_with_an_euler_step_and_a_guidance_of_each_clip(nets, distance):
    student, average, teacher = nets.values()
    point, condition = draw()
    t = torch.tensor([1, 2, 5, 9, 10], dtype=D) / 10
    w = torch.tensor([2.0, 2.5, 3.0, 3.5, 4.0], dtype=D)
    s, x_t = t - 0.1, (1 - column(t)) * point.x0 + column(t) * point.x1
    x_s = x_t - 0.1 * guided(teacher, x_t, t, condition, column(w))
    d = (x_t - column(t) * student(x_t, t, *told(condition))
         - (x_s - column(s) * average(x_s, s, *told(condition))))
    want = d.square().mean() if distance == "l2" else ((d * d + 1e-6).sqrt() - 1e-3).mean()
    lcm = made(LatentConsistency, Lcm(grid=10, distance=distance))
    assert_same_loss(lcm.jump_from(x_t, t, w, nets, condition).loss, want, student)


def test_lcm_draws_every_time_of_its_grid_and_guidance_from_its_range(nets):
    t, w = made(LatentConsistency, Lcm(guidance=3.0, spread=0.5, grid=4)).draw(4000, generator(0, "path"))
    assert sorted(set(t.tolist())) == [0.25, 0.5, 0.75, 1.0]
    assert all(abs((t == k / 4).double().mean() - 1 / 4) < 4 * 0.433 / 4000**0.5 for k in range(1, 5))
    assert 2.5 < w.min() < 2.51 and 3.49 < w.max() < 3.5


@pytest.mark.parametrize("distance", ["huber", "l2"])
@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_lcm_rests_at_the_teachers_euler_steps_which_near_the_consistency_function(sd, distance):
    errors = []
    for grid in (16, 32, 64):
        rest, t = Table(grid), torch.arange(1, grid + 1, dtype=D) / grid
        with torch.no_grad():
            rest.theta.copy_(1 - euler_factors(grid, sd))
        lcm = made(LatentConsistency, Lcm(grid=grid, distance=distance))
        nets = {"student": rest, "average": rest, "teacher": Flow(sd)}
        loss = lcm.jump_from(torch.ones(grid, 1, dtype=D), t, torch.full((grid,), 3.0, dtype=D), nets,
                             NOTHING).loss
        assert loss < 1e-15 and torch.autograd.grad(loss, rest.theta)[0].abs().max() < 1e-12
        errors.append((rest.w(t) - AtRest(sd).w(t)).abs().max().item())
    assert all(1.8 < coarse / fine < 2.2 for coarse, fine in zip(errors, errors[1:], strict=False)), errors


# --- DMD2 ------------------------------------------------------------------------------------------------


def dmd2(shift: float = 1.0, seed: int = 0, **options) -> DistributionMatching:
    made_ = made(DistributionMatching, Dmd2(**options))
    made_.cfg = replace(made_.cfg, sample=Sample("consistency", shift), run=replace(made_.cfg.run, seed=seed))
    return made_


def rungs(steps: int) -> dict[int, int]:
    """Returns, for each ladder time, the first of 50 steps that draws it."""
    drawn = [int(torch.randint(steps, (), generator=generator(0, "rung", step))) for step in range(50)]
    return {rung: drawn.index(rung) for rung in range(steps)}


@pytest.mark.parametrize("simulate", [True, False])
@pytest.mark.parametrize("rung", [0, 1, 2])
def test_dmd2_is_its_equations_on_its_own_samples_or_on_noised_clips(nets, rung, simulate):
    student, _, teacher = nets.values()
    nets[FAKE] = fake = Net(5)
    point, condition = draw()
    batch, step = Batch(point.x0, condition, [""] * B), rungs(3)[rung]
    objective = dmd2(2.0, steps=3, simulate=simulate, times=(0.1, 0.9))
    out = objective.loss("student", nets, batch, generator(0, "path"), step)

    rng, ladder = generator(0, "path"), [1.0, 0.8, 0.5]               # t -> 2 t / (1 + t) of 1, 2/3, 1/3
    x = noise = torch.randn(point.x0.shape, generator=rng).double()

    def jump(net, x, t):
        t = torch.full((B,), t, dtype=D)
        return x - column(t) * net(x, t, *told(condition))

    for s in ladder[1:rung + 1] if simulate else ():
        x0 = jump(student, x, ladder[ladder.index(s) - 1])
        x = ((1 - s) * x0 + s * torch.randn(x.shape, generator=rng).double()).detach()
    if not simulate:
        x = (1 - ladder[rung]) * point.x0 + ladder[rung] * noise
    x0 = jump(student, x, ladder[rung])
    x1 = torch.randn(x.shape, generator=rng).double()
    tau = 0.1 + 0.8 * torch.rand(B, generator=rng)
    x_tau = ((1 - column(tau)) * x0 + column(tau) * x1).detach()
    p_real = x0 - (x_tau - column(tau) * guided(teacher, x_tau, tau, condition, 3.0))
    p_fake = x0 - (x_tau - column(tau) * fake(x_tau, tau, *told(condition)))
    g = ((p_real - p_fake) / p_real.abs().mean((1, 2, 3, 4), keepdim=True)).detach()
    want = 0.5 * (x0 - (x0 - g).detach()).square().mean()
    assert_equal(out.carry, x0.detach())
    assert_same_loss(out.value, want, student)
    assert all(p.grad is None for p in fake.parameters())

    got = objective.loss(FAKE, nets, batch, generator(1, "path"), step, out.carry).value
    rng = generator(1, "path")
    x1 = torch.randn(x.shape, generator=rng).double()
    tau = 0.1 + 0.8 * torch.rand(B, generator=rng)
    x_tau = (1 - column(tau)) * out.carry + column(tau) * x1
    assert_same_loss(got, (x1 - out.carry - fake(x_tau, tau, *told(condition))).square().mean(), fake)


def test_the_fake_score_moves_always_and_the_student_every_k_th_step_or_takes_turns():
    both, apart = dmd2(every=3), dmd2(every=3, exclusive=True)
    assert [both.turns(step) for step in range(4)] == [("student", FAKE), (FAKE,), (FAKE,), ("student", FAKE)]
    assert [apart.turns(step) for step in range(4)] == [("student",), (FAKE,), (FAKE,), ("student",)]


def test_a_fake_score_alone_follows_what_the_student_would_have_shown(nets):
    nets[FAKE] = Net(5)
    point, condition = draw()
    batch = Batch(point.x0, condition, [""] * B)
    shown = dmd2().loss("student", nets, batch, generator(0, "path"), 1).carry
    assert torch.equal(dmd2().sampled(nets, batch, generator(0, "path"), 1), shown)
    for step in range(5):                       # all ranks and micro-batches of a step make equal calls
        drawn = {float(dmd2(steps=4).student_input(nets, batch, generator(seed, "path"), step)[1][0])
                 for seed in range(4)}
        assert len(drawn) == 1
    assert rungs(4).keys() == {0, 1, 2, 3}


@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_dmd2_rests_where_student_and_data_have_one_distribution(sd):
    """With a ladder of one step.  A fake score linear in x depends on the outputs of a longer ladder only
    through their mean variance."""
    student, fake = Table(1), Legendre(4)
    objective, lr = dmd2(steps=1, every=3), {"student": 0.4, FAKE: 0.3}
    nets = {"student": student, FAKE: fake, "teacher": Flow(sd)}
    movers = {turn: torch.optim.SGD(nets[turn].parameters()) for turn in lr}
    data = torch.Generator().manual_seed(0)
    for step in range(steps := 450):
        batch, carry = Batch(sd * torch.randn(256, 4, generator=data, dtype=D), NOTHING, [""]), None
        for turn in objective.turns(step):
            out = objective.loss(turn, nets, batch, generator(0, turn, step), step, carry)
            movers[turn].param_groups[0]["lr"] = lr[turn] * min(1, 2 * (1 - step / steps))
            movers[turn].zero_grad()
            out.value.backward()
            movers[turn].step()
            carry = out.carry
    assert 1 - student.w(torch.ones(1, dtype=D)).item() == pytest.approx(sd, rel=0.02)
    tau = torch.linspace(0.1, 0.95, 20, dtype=D)
    assert (fake.w(tau) - Flow(sd).w(tau)).abs().max() < 0.1


@pytest.mark.parametrize("rung", [0, 1, 2])
def test_the_gradient_vanishes_at_the_consistency_function_at_every_time_of_the_ladder(rung):
    batch = Batch(torch.randn(8, 4, dtype=D), NOTHING, [""])
    for fake, least, most in ((Flow(0.5), 0, 1e-15), (Flow(0.6), 0.01, 1)):
        nets = {"student": AtRest(0.5), FAKE: fake, "teacher": Flow(0.5)}
        found = dmd2(steps=3).jump(nets, batch, generator(0, "path"), rungs(3)[rung]).log["gradient"]
        assert least <= found <= most


def test_under_an_adversary_both_its_critic_and_the_fake_score_see_the_students_sample(inputs):
    tree = to_dict(tiny.config(inputs, "da", run="dmd2-da", da={"start": 2, "lead": 0}))
    tree["objective"] = {"name": "dmd2", "steps": 2, "every": 2, "fake_lr": 1e-3}
    cfg = tiny.TABLES.from_dict(tree)
    run, batch = recipe.build(cfg, tiny.TABLES), recipe.Parts(cfg, tiny.TABLES).clips.draw(2, 0, 0)
    sample, seen = run.objective.loss("student", run.nets, batch, generator(0, "path"), 2).carry
    assert torch.equal(seen.fake, run.objective.window(sample, seen.view))
    log = read_log(recipe.train(cfg, tiny.TABLES))
    assert [("lr" in line, "fake/lr" in line, "critic/lr" in line) for line in log] == [
        (True, True, False), (False, True, False)] + 2 * [(True, True, True), (False, True, False)]


# --- OSV -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage, null", [(1, "image"), (2, "image"), (2, "text")])
def test_osv_is_its_two_stages(nets, stage, null):
    student, average, teacher = nets.values()
    point, condition = draw()
    k = torch.tensor([1, 2, 3, 7, 10], dtype=D)
    x_t = (1 - column(k / 10)) * point.x0 + column(k / 10) * point.x1
    target = point.x0
    if stage == 2:
        rows = []
        for i, x in enumerate(x_t):                                         # per clip
            x, one = x[None], condition[i:i + 1]
            n = int(k[i])
            for j in range(n, max(n - 3, 0), -1):
                t = torch.tensor([j / 10], dtype=D)
                u = (teacher(x, t, one.text, 0 * one.frames, 0 * one.image) if null == "image"
                     else teacher(x, t, one.null_text[None], one.frames, one.image))
                x = x - 0.1 * (u + 3.0 * (teacher(x, t, *told(one)) - u))
            s = torch.tensor([max(n - 3, 0) / 10], dtype=D)
            rows.append(x - s * average(x, s, *told(one)))
        target = torch.cat(rows)
    d = x_t - column(k / 10) * student(x_t, k / 10, *told(condition)) - target
    want = (1 if stage == 1 else 0.1) * ((d.flatten(1).norm(dim=1)**2 + 1e-6).sqrt() - 1e-3).mean()
    osv = made(OneStep, Osv(stage=stage, without=null, m=3, grid=10))
    jump = osv.jump_from(x_t, k, point.x0, nets, condition)
    assert_same_loss(jump.loss, want, student)
    assert jump.real is None if stage == 1 else (jump.real - target).abs().max() < 1e-13


@pytest.mark.parametrize("m", [1, 5])
def test_osv_rests_at_the_teachers_euler_steps_however_many_it_takes_at_once(m):
    """Without its adversary, which has no closed form and is tested in test_da.py."""
    grid = 16
    rest, k = Table(grid), torch.arange(1, grid + 1, dtype=D)
    with torch.no_grad():
        rest.theta.copy_(1 - euler_factors(grid, 0.5))
    nets = {"student": rest, "average": rest, "teacher": Flow(0.5)}
    ones = torch.ones(grid, 1, dtype=D)
    loss = made(OneStep, Osv(m=m, grid=grid)).jump_from(ones, k, ones, nets, NOTHING).loss
    assert loss < 1e-15 and torch.autograd.grad(loss, rest.theta)[0].abs().max() < 1e-12


def test_the_first_stage_of_osv_has_no_teacher():
    assert {*made(OneStep, Osv(stage=1)).networks()} == {"student", "average"}
    assert {*made(OneStep, Osv(stage=2)).networks()} == {"student", "average", "teacher"}


def test_the_critic_of_osv_holds_the_averages_side_for_real(inputs):
    cfg = tiny.config(inputs, "osv", da={"start": 0})
    run = recipe.build(cfg, tiny.TABLES)
    batch = recipe.Parts(cfg, tiny.TABLES).clips.draw(2, 0, 0)
    out = run.objective.loss("student", run.nets, batch, generator(0, "path"), 0)
    jump = run.objective.distillation.jump(run.nets, batch, generator(0, "path"), 0)
    seen = out.carry[1]
    assert torch.equal(seen.real, run.objective.window(jump.real, seen.view))
    assert not torch.equal(seen.real, run.objective.window(batch.x0, seen.view))


# --- all baselines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective, passes, roles", [
    ("lcm", [(2, False), (1, False), (1, True)], set()),
    ("pcm", [(1, False), (1, True), (1, True), (2, False)], {CRITIC}),
    ("osv", [(1, False)] * 3 + [(1, True)], set()),
    ("dmd2", [(1, True), (2, False), (1, False), (1, True)], {FAKE}),
])
def test_a_plan_counts_the_networks_and_passes_of_each(objective, passes, roles):
    """The last ones.  DMD2 first has the drawn number of backward-simulation steps, OSV the teacher's first
    steps."""
    assert [(call.rows, call.grad) for call in plan.calls(objective)][-len(passes):] == passes
    found = plan.parameters(plan.PRESETS["1.3b"], objective)
    assert {role for role, held in found.items() if any(moves for _, moves in held)} >= {"student", *roles}
    held, alone = (plan.Plan("1.3b", 8, 80, objective=name).held()["masters"] for name in (objective, "ccd"))
    assert held == alone + sum(4 * -(-n // 8) for role in roles for n, _ in found[role])
