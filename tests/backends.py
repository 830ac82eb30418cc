"""The GPU implementation of an op: dispatched on a GPU, otherwise by Triton's interpreter."""

from collections.abc import Callable

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def gpu_backend(op) -> Callable:
    """Returns the function that `op` runs for CUDA tensors, checks included.  DEVICE: of its tensors."""
    return op if DEVICE == "cuda" else op._backend_fns["cuda"]
