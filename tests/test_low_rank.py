"""LoRA of any student, against numpy's SVD in float64, and the reported error."""

import math
from dataclasses import replace

import numpy as np
import pytest
import released
import torch
from torch import Tensor

from swiftvideo_fast import cli
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.release import find
from swiftvideo_fast.release.low_rank import factors, low_rank

CPU = torch.device("cpu")


def best(D: Tensor, rank: int) -> np.ndarray:
    """Returns the best approximation of a rank, by numpy's SVD."""
    U, s, V = np.linalg.svd(D.double().numpy(), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ V[:rank]


@pytest.mark.parametrize("shape, rank", [((6, 9), 2), ((9, 6), 2), ((7, 7), 1), ((4, 40), 4), ((40, 4), 9)])
def test_factors_are_the_best_of_their_rank(shape, rank, rng):
    D = torch.randn(shape, generator=rng, dtype=torch.float64)
    A, B = factors(D, rank)
    assert A.shape == (rank, shape[1]) and B.shape == (shape[0], rank)
    # Eigenvectors of D D' err by eps |D|^2 / gap; gaps of these matrices are above 0.01 |D|^2.
    assert np.abs((B @ A).numpy() - best(D, rank)).max() < 1e-12 * D.norm()


def made(rng) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns (student, teacher): two linear layers, the second with a change of rank 1, and a bias."""
    teacher = {"a.weight": torch.randn(8, 12, generator=rng), "a.bias": torch.randn(8, generator=rng),
               "b.weight": torch.randn(12, 8, generator=rng)}
    change = {"a.weight": torch.randn(8, 12, generator=rng), "a.bias": torch.randn(8, generator=rng),
              "b.weight": torch.outer(torch.randn(12, generator=rng), torch.randn(8, generator=rng))}
    return {name: x + change[name] for name, x in teacher.items()}, teacher


def test_the_error_is_that_of_the_stored_factors_and_of_what_lora_has_no_place_for(rng):
    student, teacher = made(rng)
    found = low_rank(student, teacher, ["a", "b"], 2, torch.float32, CPU)
    D = {name: (x.double() - teacher[name].double()).numpy() for name, x in student.items()}
    whole = math.sqrt(sum((x**2).sum() for x in D.values()))
    missed = np.linalg.norm(D["a.weight"] - best(torch.from_numpy(D["a.weight"]), 2))
    bias = np.linalg.norm(D["a.bias"])
    assert found.elsewhere == pytest.approx(bias / whole, rel=1e-6)
    assert found.error == pytest.approx(math.hypot(missed, bias) / whole, rel=1e-6)
    assert found.worst == ("a", pytest.approx(missed / np.linalg.norm(D["a.weight"]), rel=1e-6))
    assert set(found.adapters) == {f"{layer}.lora_{factor}.weight" for layer in "ab" for factor in "AB"}
    rounded = low_rank(student, teacher, ["a", "b"], 8, torch.bfloat16, CPU)
    assert 2**-10 < rounded.worst[1] < 2**-6, "bfloat16's rounding counts"


def test_a_student_like_its_teacher_has_no_adapters(rng):
    _, teacher = made(rng)
    with pytest.raises(ValueError, match="there is no change for LoRA"):
        low_rank(teacher, teacher, ["a", "b"], 2, torch.float32, CPU)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return released.write(tmp_path_factory.mktemp("base") / "model", "original")


def student_of(base, folder, rng, rank: int = 2, **model):
    """Returns a run's weight file whose linear layers have a change of this rank."""
    net = released.network()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Linear):
                out, into = module.weight.shape
                module.weight += 0.1 * torch.randn(out, rank, generator=rng) @ torch.randn(rank, into,
                                                                                           generator=rng)
    weights.save(net, folder / "student.safetensors", sample={"sampler": "euler", "shift": 3.0},
                 trained={"model": {"weights": str(base)} | model})
    return folder / "student.safetensors"


@pytest.mark.parametrize("kind", ["comfyui-lora", "peft"])
def test_any_student_is_exported_as_lora_with_its_error(kind, base, tmp_path, rng, capsys):
    pytest.importorskip("diffusers")
    file, out = student_of(base, tmp_path, rng), tmp_path / "out.safetensors"
    words = ["export", str(file), str(out), "--to", kind, "--dtype", "float32", "--rank", "2"]
    assert cli.main(words) == 0
    assert "rank 2: 0.0% of the change from the teacher is lost, 0.0% outside" in capsys.readouterr().out
    read = {name.partition(".")[2]: x for name, x in weights.read(out)[0].items()}
    teacher, student = released.network().state_dict(), weights.load(file).state_dict()
    if kind == "comfyui-lora":
        B, A = (read[f"blocks.1.ffn.0.lora_{factor}.weight"] for factor in "BA")
        change = student["blocks.1.ffn.0.weight"] - teacher["blocks.1.ffn.0.weight"]
        assert (B @ A - change).abs().max() < 1e-5 * change.abs().max()
    assert len({x.shape[0] for name, x in read.items() if ".lora_A." in name}) == 1, "all layers of one rank"
    assert cli.main([*words[:-1], "1", "--force"]) == 0
    assert " 0.0% of the change" not in capsys.readouterr().out


def test_adapters_of_a_run_that_began_at_another_student_are_not_those_of_the_teacher(base, tmp_path, rng):
    """A round of alignment trains adapters on stage one's student: alone they are not a LoRA of the base."""
    file = student_of(base, tmp_path, rng, student="ccd/average.safetensors")
    weights.save(released.network(), tmp_path / "lora-student.safetensors")
    assert find.find(file).adapters is None and find.find(file).teacher == base
    file = student_of(base, tmp_path, rng)
    assert find.find(file).adapters == tmp_path / "lora-student.safetensors"


def test_a_teacher_that_is_not_there_is_named(base, tmp_path, rng, capsys):
    file = student_of("gone", tmp_path, rng)
    words = ["export", str(file), str(tmp_path / "a.safetensors"), "--to", "peft"]
    assert cli.main(words) == 2
    assert "its teacher (gone) is missing, and LoRA is the change from it" in capsys.readouterr().err
    weights.save(Wan(replace(released.SIZES, layers=1)), tmp_path / "other.safetensors")
    assert cli.main([*words, "--base", str(tmp_path / "other.safetensors")]) == 2
    assert "does not fit: blocks.1" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()
