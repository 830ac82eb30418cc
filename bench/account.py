"""Memory prediction: tracks every storage that a program allocates until it is freed.

On the meta device nothing is allocated or computed, so a network of any size can be predicted on any
machine.  A fused op counts as its outputs: workspace inside kernels and a GPU allocator's rounding and
fragmentation are not included.
"""

import re
import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import meta

GRADIENT = "gradients"
OUTSIDE = "outside"
BLOCK = re.compile(r"(?<!\w)blocks\.(\d+)")


@dataclass(frozen=True)
class Plane:
    """One storage: bytes, shape, dtype, and the module and op that allocated it."""

    bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    where: str
    op: str

    def __str__(self) -> str:
        sizes = " x ".join(map(str, self.shape)) or "scalar"
        return f"{sizes} {str(self.dtype).removeprefix('torch.')} by {self.op} in {self.where}"


class Account(TorchDispatchMode):
    """Live bytes beyond those of `known` tensors (weights, optimizer states), while the mode is on.

    peak: most live bytes after any op.  where, op, planes: module, op and live storages at the peak.
    peak_gradients, peak_activations: of known tensors' gradients and of everything else, each at its own
    peak.  timeline: live bytes after each op.  phases: (index of the first op, name), e.g. "student
    backward".  tops: {(phase number, network block): most live bytes after an op there}.
    """

    def __init__(self, known: Iterable[Tensor] = (), **networks: nn.Module):
        super().__init__()
        self.live, self.alive = {}, 0
        self.peak, self.where, self.op, self._planes = 0, "", "", []
        self.peak_activations, self.peak_gradients, self.gradients = 0, 0, 0
        self.zeros = False
        self.timeline: list[int] = []
        self.phases: list[tuple[int, str]] = []
        self.tops: dict[tuple[int, int | None], int] = {}
        self.networks = networks
        self.entered, self.backward_at = [], OUTSIDE
        self.known = {x.untyped_storage()._cdata: x for x in known}

    @property
    def known_bytes(self) -> int:
        return sum(x.untyped_storage().nbytes() for x in self.known.values())

    @property
    def planes(self) -> list[Plane]:
        return list(self.live.values()) if self._planes is None else self._planes

    def follow(self, x: Tensor, op: str = "given") -> None:
        """Counts x's storage from now until it is freed; torch's zero tensors have none."""
        if x._is_zerotensor():
            self.zeros = True
            return
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self.live or key in self.known:
            return
        self.live[key] = Plane(storage.nbytes(), tuple(x.shape), x.dtype, self.here(), op)
        self.alive += storage.nbytes()
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        if self._planes is None:        # copying after every op that raises the peak would be quadratic
            self._planes = list(self.live.values())
        plane = self.live.pop(key)
        self.alive -= plane.bytes
        self.gradients -= plane.bytes * (plane.where == GRADIENT)

    def _gradient(self, p: Tensor) -> None:
        """Relabels a storage as a parameter gradient once it is p.grad."""
        key = p.grad.untyped_storage()._cdata
        if (plane := self.live.get(key)) and plane.where != GRADIENT:
            self.live[key] = replace(plane, where=GRADIENT)
            self.gradients += plane.bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (value := meta.read(func, args, kwargs)) is not None:
            return value
        if self.zeros and meta.infers(func):
            return func(*args, **kwargs)
        result = meta.run(func, args, kwargs)
        op = func._schema.name.partition("::")[2]
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.follow(x, op)
        self._note()
        if self.alive > self.peak:
            self.peak, self.where, self.op, self._planes = self.alive, self.here(), op, None
        return result

    def _note(self) -> None:
        network, block = place(self.here())
        phase = f"{network} backward" if torch._C._current_autograd_node() else network
        if not self.phases or self.phases[-1][1] != phase:
            self.phases.append((len(self.timeline), phase))
        self.timeline.append(self.alive)
        key = len(self.phases), block
        self.tops[key] = max(self.alive, self.tops.get(key, 0))
        self.peak_gradients = max(self.peak_gradients, self.gradients)
        self.peak_activations = max(self.peak_activations, self.alive - self.gradients)

    # --- the running module ------------------------------------------------------------------------------

    def here(self) -> str:
        if self.entered:
            return self.entered[-1]
        return self.backward_at if torch._C._current_autograd_node() else OUTSIDE

    def __enter__(self):
        self.hooks = ExitStack()
        for of, network in self.networks.items():
            for name, module in network.named_modules():
                self._watch(module, ".".join(filter(None, (of, name))))
        for x in self.known.values():
            if x.requires_grad:
                self.hooks.callback(x.register_post_accumulate_grad_hook(self._gradient).remove)
        return super().__enter__()

    def __exit__(self, *error):
        self.hooks.close()
        return super().__exit__(*error)

    def _watch(self, module: nn.Module, name: str) -> None:
        """Tracks the module during its forward, and from the gradient of its output on in backward."""
        def enter(module, args):
            self.entered.append(name)

        def leave(module, args, output):
            self.entered.pop()
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(at_backward)

        def at_backward(gradient):
            self.backward_at = f"{name} backward"

        for handle in (module.register_forward_pre_hook(enter),
                       module.register_forward_hook(leave, always_call=True)):
            self.hooks.callback(handle.remove)


@cache
def place(where: str) -> tuple[str, int | None]:
    """Returns (network, block number or None) of a module's name."""
    block = BLOCK.search(where)
    return where.split(".")[0].split(" ")[0], int(block[1]) if block else None


def grouped(planes: list[Plane]) -> list[tuple[int, Plane]]:
    """Returns (count, plane) of equal planes, most bytes first."""
    counts = Counter(planes)
    return sorted(((n, plane) for plane, n in counts.items()), key=lambda row: -row[0] * row[1].bytes)
