"""A student as LoRA of its teacher: the best low-rank approximation of each linear layer's change.

    D = W_student - W_teacher = U S V'        B = U_r, A = U_r' D        |D - B A|^2 = sum of s_i^2, i > r

(Eckart, Young 1936.)  U are the eigenvectors of D D', or V those of D'D where that is smaller, in float64.
Singular values below sqrt(1e-16) of the largest are inaccurate, as in a float32 SVD.  LoRA does not cover
norms, biases, modulation and patch embedding; their change is lost and counted in the error.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm


@dataclass(frozen=True)
class LowRank:
    """adapters: {"blocks.0.ffn.0.lora_A.weight": ...}, in storage dtype.  error: relative error of the whole
    change, Frobenius norm.  elsewhere: its part outside linear layers.  worst: (layer with the largest
    relative error, that error)."""

    adapters: dict[str, Tensor]
    rank: int
    error: float
    elsewhere: float
    worst: tuple[str, float]

    def summary(self) -> str:
        layer, error = self.worst
        return (f"rank {self.rank}: {self.error:.1%} of the change from the teacher is lost, "
                f"{self.elsewhere:.1%} outside of linear layers; worst layer {layer}, {error:.1%}")


def low_rank(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], layers: list[str], rank: int,
             dtype: torch.dtype, device: torch.device) -> LowRank:
    """Returns the LoRA of student - teacher, weights with equal names.  layers: names of the linear layers.
    ValueError when they are equal."""
    linear = {f"{layer}.weight" for layer in layers}
    whole = lost = elsewhere = 0.0
    adapters, errors = {}, {}
    for name in tqdm(student, "low rank", unit="tensor", disable=None, leave=False):
        D = student[name].to(device, torch.float64) - teacher[name].to(device, torch.float64)
        size = D.square().sum().item()
        whole += size
        if name in linear:
            layer = name.removesuffix(".weight")
            A, B = (factor.to(dtype) for factor in factors(D, rank))
            missed = (D - B.double() @ A.double()).square().sum().item()
            adapters |= {f"{layer}.lora_A.weight": A.cpu(), f"{layer}.lora_B.weight": B.cpu()}
            errors[layer] = math.sqrt(missed / size) if size else 0.0
        else:
            missed = size
            elsewhere += size
        lost += missed
    if not whole:
        raise ValueError("the student's weights equal its teacher's: there is no change for LoRA")
    worst = max(errors, key=errors.get)
    return LowRank(adapters, rank, error=math.sqrt(lost / whole), elsewhere=math.sqrt(elsewhere / whole),
                   worst=(worst, errors[worst]))


def factors(D: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns (A (rank, in), B (out, rank)) with B A the best rank-`rank` approximation of D in Frobenius
    norm; zero-padded where D is smaller, so that all layers have one rank."""
    rows, columns = D.shape
    r = min(rank, rows, columns)
    if rows <= columns:
        B = torch.linalg.eigh(D @ D.T)[1].flip(1)[:, :r]
        A = B.T @ D
    else:
        A = torch.linalg.eigh(D.T @ D)[1].flip(1)[:, :r].T
        B = D @ A.T
    pad = rank - r
    return (torch.nn.functional.pad(A, (0, 0, 0, pad)).contiguous(),
            torch.nn.functional.pad(B, (0, pad)).contiguous())
