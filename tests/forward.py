"""jvp against torch.func.jvp, on fresh inputs for each, since both may write to them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from swiftvideo_fast import jvp

D = torch.float64


def draw(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=D)


def assert_as_torch(function: Callable, *shapes: tuple[int, ...], make: Callable | None = None) -> None:
    """Value and tangent of function, and what it leaves in its inputs, are torch's; with one draw if it
    draws."""
    results = []
    for transform in (torch.func.jvp, jvp):
        rng = torch.Generator().manual_seed(0)
        primals = (make(rng),) if make else tuple(draw(rng, *shape) for shape in shapes)
        tangents = tuple(draw(rng, *p.shape) for p in primals)
        torch.manual_seed(1)
        with sdpa_kernel(SDPBackend.MATH if transform is torch.func.jvp else SDPBackend.FLASH_ATTENTION):
            results.append((transform(function, primals, tangents), primals))
    (want, left), (got, left_by_ours) = results
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(left_by_ours, left, rtol=0, atol=0)
