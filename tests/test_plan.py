"""`plan`: its sizes against actual tensors, its advice against itself."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from bench.memory import faked
from bench.passes import Setting, train_pass
from swiftvideo_fast import cli, plan
from swiftvideo_fast.models.wan.network import RECOMPUTE, Wan
from swiftvideo_fast.models.wan.sizes import PRESETS
from swiftvideo_fast.plan import Plan


def test_one_gpu_holds_every_byte_of_the_network_and_its_states():
    with torch.device("meta"):
        count = sum(p.numel() for p in Wan(PRESETS["1.3b"]).parameters())
    held = Plan("1.3b", gpus=1, memory=80).held()
    assert count == 1_564_428_608
    assert {name: held[name] / count for name in ("parameters", "masters", "optimizer", "average")} == {
        "parameters": 2, "masters": 4, "optimizer": 8, "average": 6}


def test_many_gpus_share_the_states_and_sequence_the_activations():
    one, many = Plan("1.3b", 1, 80).held(), Plan("1.3b", 64, 80, sequence=4).held()
    assert many["optimizer"] == pytest.approx(one["optimizer"] / 64, rel=1e-3)
    assert many["activations"] < 0.3 * one["activations"]


def test_what_does_not_fit_is_given_the_cheapest_change_that_does():
    tight = Plan("14b", 8, 60)
    words, mended = plan.make_fit(tight)
    assert not tight.fits and mended.fits
    assert f"the cheapest change that makes it fit: {words}" in plan.report(tight)
    assert plan.make_fit(Plan("14b", 8, 1)) is None


def test_every_change_takes_less():
    before = Plan("14b", 8, 60, micro=2)
    assert all(change.total < before.total for _, change in plan.changes(before))


@pytest.mark.parametrize("flags, why", [
    (["--gpus", "6", "--sequence", "4"], "--gpus is 6; want a multiple of --sequence 4"),
    (["--gpus", "5", "--sequence", "5"], "--sequence is 5; want a divisor of 12 heads and 24960 tokens"),
    (["--gpus", "1", "--frames", "60"], "--frames is 60; want 4n + 1, n > 0"),
    (["--gpus", "1", "--size", "big"], "--size is big; want as 832x480"),
    (["--gpus", "1", "--size", "0x0"], "--size is 0x0; want positive multiples of 16"),
    (["--gpus", "1", "--frames", "-3"], "--frames is -3; want 4n + 1, n > 0"),
    *(([*("--gpus 1".split() if flag != "--gpus" else []), flag, bad], f"{flag} is {shown}; want a positive")
      for flag, bad, shown in [("--gpus", "0", "0"), ("--sequence", "0", "0"), ("--micro", "-1", "-1"),
                               ("--memory", "nan", "nan"), ("--memory", "-80", "-80.0"),
                               ("--tflops", "0", "0.0"), ("--tflops", "nan", "nan")]),
])
def test_a_plan_that_cannot_be_is_one_line(flags, why, capsys):
    assert cli.main(["plan", "--preset", "1.3b", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"swiftvideo plan: {why}") and said.count("\n") == 1


@pytest.mark.parametrize("policy", RECOMPUTE)
def test_a_students_activations_are_the_accounts(policy):
    """At the published sizes, with six of the 30 equal blocks."""
    whole = PRESETS["1.3b"]
    with patch.dict(PRESETS, {"1.3b": replace(whole, layers=6)}):
        counted = faked(train_pass, Setting("1.3b", recompute=policy)).peak_activations
        planned = Plan("1.3b", 1, 80, recompute=policy).activations()
    assert planned == pytest.approx(counted, rel=0.02)


def test_a_plan_of_ccd_is_that_of_its_networks_and_turns():
    """Closed forms of Algorithm 1: bytes per rank at 1.3B on 8 GPUs, communication, FLOPs."""
    planned = Plan("1.3b", 8, 80)
    n = 1_564_428_608
    assert {name: round(size / n * 8, 2) for name, size in planned.held().items()} | {
        "reduction bucket": 0, "gathered blocks": 0, "activations": 0} == {
        "parameters": 2, "masters": 4, "optimizer": 8, "average": 6, "teacher": 2, "gradients": 4,
        "reduction bucket": 0, "gathered blocks": 0, "activations": 0}
    assert planned.traffic()["gathering weights"] == pytest.approx(4 * 2 * n * 7 / 8)
    assert planned.traffic()["reducing gradients"] == pytest.approx(2 * n * 7 / 8)
    c, blocks = PRESETS["1.3b"], plan.block_parameters(PRESETS["1.3b"])
    linear, attention = 2 * blocks * 30 * 24960, 4 * 24960**2 * c.dim * 30
    assert planned.work() == linear * 8 + attention * 9.5


def test_plans_of_other_objectives_count_their_own_networks_and_passes():
    assert [(c.rows, c.tangent, c.grad) for c in plan.calls("ccd")] == [
        (2, False, False), (1, True, False), (1, False, True)]
    assert [(c.rows, c.tangent, c.grad) for c in plan.calls("ta")] == [(2, False, False), (2, False, True)]
    assert [(c.rows, c.tangent, c.grad) for c in plan.calls("dcd")] == [
        (2, False, False), (1, False, False), (1, False, True)]
    ta, flow = (Plan("1.3b", 1, 80, objective=objective).held() for objective in ("ta", "flow"))
    assert "teacher" not in flow and "reference" not in ta, "its reference is the student without adapters"
    held = sum(ta[name] for name in ("parameters", "masters", "optimizer", "average"))
    assert held == pytest.approx(5.186e9, rel=0.02), "bench memory's account of the ta pass"


def test_a_rate_makes_a_time_of_the_work(capsys):
    assert cli.main(["plan", "--preset", "1.3b", "--gpus", "8", "--tflops", "500"]) == 0
    said = capsys.readouterr().out
    work = Plan("1.3b", 8, 80).work() / 1e12
    assert f"{work:.0f} TFLOP a pass: {work / 500:.1f} s at 500 TFLOP/s" in said and "fits" in said


def test_the_doctor_names_what_is_there_and_how_to_get_what_is_not(capsys, monkeypatch):
    from swiftvideo_fast import doctor

    monkeypatch.setitem(doctor.EXTRAS, "no-such-package", ("gpu", "nothing"))
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"ok  torch {torch.__version__}" in said and "CPU backend: C++ for baseline" in said
    assert "--  no-such-package: nothing; pip install 'swiftvideo_fast[gpu]'" in said
