"""The GPU room of an op, wherever the tests run: on a GPU as dispatched; elsewhere interpreted."""

from collections.abc import Callable

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def gpu_room(op) -> Callable:
    """What `op` runs for CUDA tensors, checks included; DEVICE tells where its tensors must lie."""
    return op if DEVICE == "cuda" else op._backend_fns["cuda"]
