"""Exponential moving average of parameter shards, with a low-precision copy: swiftvideo_fast::ema_.

    average <- decay average + (1 - decay) master        copy <- average
in one pass over memory.  average and master are float32 (or float64): bfloat16 would lose a step of 1e-6.
"""

import torch
from torch import Tensor

from swiftvideo_fast.ops import check, cpu


def ema_(average: list[Tensor], master: list[Tensor], decay: float,
         copy: list[Tensor] | None = None) -> None:
    """Updates each average in place and writes the result into its copy, which may have any float dtype."""
    if not copy:
        if average or master:                            # a rank may hold no shard
            _update(average, master, decay, [])
        return
    dtypes = dict.fromkeys([c.dtype for c in copy])
    if len(dtypes) == 1:
        return _update(average, master, decay, copy)
    _check_counts(average, master, copy)
    for dtype in dtypes:                                 # norms and time layers stay fp32 in a bf16 network
        mine = [i for i, c in enumerate(copy) if c.dtype == dtype]
        _update(*([xs[i] for i in mine] for xs in (average, master)), decay, [copy[i] for i in mine])


def _update(average: list[Tensor], master: list[Tensor], decay: float, copy: list[Tensor]) -> None:
    """ema_op, bypassing the dispatcher (1 us per tensor, Zen 5) and the checks in Python (almost as much) for
    plain CPU tensors.  Inputs that C++ does not accept go to ema_op, which may raise."""
    plain = all(type(x) in (Tensor, torch.nn.Parameter) and x.is_cpu for x in average[:1] + master[:1])
    if torch.compiler.is_compiling() or not plain or not cpu.ema_if_plain(average, master, decay, copy):
        ema_op(average, master, decay, copy)


@torch.library.custom_op("swiftvideo_fast::ema_", mutates_args=("average", "copy"), device_types="cpu")
def ema_op(average: list[Tensor], master: list[Tensor], decay: float, copy: list[Tensor]) -> None:
    """Updates the averages in place.  copy: empty for none, else one dtype."""
    _check(average, master, copy)
    cpu.ema_(average, master, decay, copy)


@ema_op.register_kernel("cuda")
def _(average, master, decay, copy):
    from swiftvideo_kernels.ema import ema_ as launch

    _check(average, master, copy)
    launch(average, master, decay, copy or None)


@ema_op.register_fake
def _(average, master, decay, copy):
    return None


def _check_counts(average: list[Tensor], master: list[Tensor], copy: list[Tensor]) -> None:
    if len(master) != len(average) or len(copy) not in (0, len(average)):
        raise ValueError(f"ema_: master and copy hold {len(master)} and {len(copy)} tensors; "
                         f"want one for each of the {len(average)} in average")


def _check(average: list[Tensor], master: list[Tensor], copy: list[Tensor]) -> None:
    _check_counts(average, master, copy)
    exact = [check.compute_dtype(xs[0].dtype) if xs else None for xs in (average, copy)]
    for i, (a, m) in enumerate(zip(average, master, strict=True)):
        if m.shape != a.shape or m.dtype != average[0].dtype or a.dtype != exact[0]:
            raise ValueError(f"ema_: average[{i}] is {tuple(a.shape)} {a.dtype}, master[{i}] "
                             f"{tuple(m.shape)} {m.dtype}; want one shape, in float32 (or float64)")
    for i, (a, c) in enumerate(zip(average, copy, strict=False)):
        if c.shape != a.shape or c.dtype != copy[0].dtype or a.dtype != exact[1]:
            raise ValueError(f"ema_: copy[{i}] is {tuple(c.shape)} {c.dtype}; want {tuple(a.shape)} in one "
                             f"dtype, that of average or narrower")
    for name, tensors in (("average", average), ("copy", copy)):
        for i, x in enumerate(tensors):
            if not x.is_contiguous():
                raise ValueError(f"ema_: {name}[{i}] has strides {x.stride()}; want contiguous storage")
