"""A student as LoRA of its teacher, however it was trained: of each linear layer the best change of low rank.

    D = W_student - W_teacher = U S V'        B = U_r, A = U_r' D        |D - B A|^2 = sum of s_i^2, i > r

(Eckart, Young 1936.)  U comes from the eigenvectors of D D', or V from those of D'D where that is smaller, in
float64: their error, the square root of its 1e-16 below the largest, is that of a float32 SVD.  LoRA has no
place for norms, biases, modulation and the patch embedding; their change is lost, and counted in the error.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm


@dataclass(frozen=True)
class LowRank:
    """adapters: {"blocks.0.ffn.0.lora_A.weight": ...}, as they are stored.  error: of the whole change, in
    Frobenius norm; elsewhere: the part of it that is lost outside of linear layers; worst: the layer that is
    worst approximated, and its own error."""

    adapters: dict[str, Tensor]
    rank: int
    error: float
    elsewhere: float
    worst: tuple[str, float]

    def words(self) -> str:
        layer, error = self.worst
        return (f"rank {self.rank}: {self.error:.1%} of the change from the teacher is lost, "
                f"{self.elsewhere:.1%} outside of linear layers; worst layer {layer}, {error:.1%}")


def low_rank(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], layers: list[str], rank: int,
             dtype: torch.dtype, device: torch.device) -> LowRank:
    """student, teacher: weights of one set of names.  layers: the linear ones.  ValueError for no change."""
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
        raise ValueError("the student's weights are its teacher's: there is no change for LoRA to hold")
    worst = max(errors, key=errors.get)
    return LowRank(adapters, rank, error=math.sqrt(lost / whole), elsewhere=math.sqrt(elsewhere / whole),
                   worst=(worst, errors[worst]))


def factors(D: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(A (rank, in), B (out, rank)), B A the best of its rank in Frobenius norm; zeros beyond D's own sides,
    so that all layers have one rank."""
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
