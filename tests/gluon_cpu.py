"""A small interpreter of Gluon on the CPU: torch tensors, one thread per partition, modelled mbarriers.

    module = load(kernel, launch)           the last module's namespace, Gluon replaced by this file
    module["attention"](*tensors)           runs every program of the grid, in order

It checks the arithmetic, masks, parities, counts, which slot is read when, the epilogue, and that no
accumulator is used before a wait has ended its product.  Not layouts, registers, or TMA's rules.  A product
reads its memory when it is issued; tests/protocol.py explores all other orders from `trace`: if a list, it
gets each program's operations, by partition.
"""

import itertools
import sys
import threading
import types
from pathlib import Path

import torch

LIMIT = 10.0                                            # timeout of a wait, seconds
trace: list | None = None
here = threading.local()                                # ids, grid, log, issued: this thread's program
failed = threading.Event()                              # set when a partition fails: ends the others' waits


class Layout:
    def __init__(self, *args):
        self.args = args

    parent = property(lambda self: self.args[1])


class MBarrierLayout(Layout):
    pass


class Value:
    """A tensor or a scalar and its layout.  product: the number of the product in flight that writes it."""

    def __init__(self, x, layout=None, product=None):
        self.data, self.layout, self.product = torch.as_tensor(x), layout, product

    @property
    def x(self):
        assert self.product is None, "a product in flight is used before a wait has ended it"
        return self.data

    type = property(lambda self: types.SimpleNamespace(layout=self.layout))

    def to(self, dtype):
        return Value(self.x.to(dtype), self.layout)

    def __getitem__(self, index):
        return Value(self.x[index], self.layout and self.layout.parent)

    def __bool__(self):
        return bool(self.x)

    def __index__(self):
        return int(self.x)


def raw(x):
    return x.x if isinstance(x, Value) else x


def operator(name):
    def apply(self, other):
        if isinstance(other, Pointer):
            return other + self
        return Value(getattr(self.x, name)(raw(other)), self.layout or getattr(other, "layout", None))
    return apply


for _name in ("add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod lt le gt ge and "
              "xor").split():
    setattr(Value, f"__{_name}__", operator(f"__{_name}__"))


class Pointer:
    """An address, or a tensor of them, within one tensor's storage."""

    def __init__(self, flat, at):
        self.flat, self.at = flat, at

    dtype = property(lambda self: types.SimpleNamespace(element_ty=self.flat.dtype))

    def __add__(self, other):
        return Pointer(self.flat, self.at + raw(other))


class Memory:
    """Shared memory, or a view of it.  place: (allocation, slot)."""

    def __init__(self, x, layout, place):
        self.x, self.place, self.shape, self.dtype = x, place, list(x.shape), x.dtype
        self.type = types.SimpleNamespace(layout=layout)

    def index(self, i):
        return Memory(self.x[int(i)], self.type.layout, (self.place[0], int(i)))

    def reshape(self, shape):
        return Memory(self.x.view(shape), self.type.layout, self.place)

    def permute(self, order):
        return Memory(self.x.permute(order), self.type.layout, self.place)

    def store(self, value):
        note("write", self.place)
        self.x.copy_(raw(value))

    def load(self, layout):
        note("read", self.place)
        return Value(self.x.clone(), layout)


class Barrier:
    def __init__(self, name):
        self.name, self.changed = name, threading.Condition()
        self.count = self.pending = self.bytes = self.parity = 0

    def move(self, arrivals=0, size=0):
        with self.changed:
            self.pending, self.bytes = self.pending - arrivals, self.bytes + size
            assert self.pending >= 0, "more arrivals than the barrier counts"
            if self.pending == 0 and self.bytes == 0:
                self.parity, self.pending = self.parity ^ 1, self.count
                self.changed.notify_all()


class Barriers:
    def __init__(self, count, number):
        self.each = [Barrier((number, i)) for i in range(count)]

    def index(self, i):
        return self.each[int(i)]


def init(bar, count):
    bar.count = bar.pending = count


def expect(bar, size):
    note("expect", bar.name, size, bar.count)
    bar.move(1, size)


def arrive(bar):
    note("arrive", bar.name, bar.count)
    bar.move(1)


def wait(bar, parity):
    note("wait", bar.name, int(parity), bar.count)
    with bar.changed:
        ended = bar.changed.wait_for(lambda: bar.parity != int(parity) or failed.is_set(), LIMIT)
    if not ended or bar.parity == int(parity):
        raise TimeoutError("a wait that never ends")


def note(*operation):
    here.log.append(operation)


class TensorDescriptor:
    def __init__(self, x, shape, strides, box, layout):
        at = x if isinstance(x, Pointer) else Pointer(flat(x), x.storage_offset())
        self.at, self.box, self.layout = at, box, layout
        self.shape, self.strides = [int(n) for n in shape], [int(n) for n in strides]
        assert all(n > 0 for n in self.shape) and self.strides[-1] == 1 and not any(
            n % 8 for n in self.strides[:-1]), f"TMA cannot read {self.shape} by {self.strides}"


def flat(x):
    return x.new_empty(0).set_(x.untyped_storage())


def async_load(desc, at, bar, slot):
    """Loads the box at `at`; zeros beyond the tensor's ends."""
    at = [int(i) for i in at]
    size = [max(0, min(box, n - i)) for box, n, i in zip(desc.box, desc.shape, at)]
    start = int(desc.at.at) + sum(i * step for i, step in zip(at, desc.strides))
    slot.x.zero_()
    if all(size):
        slot.x[tuple(map(slice, size))] = desc.at.flat.as_strided(size, desc.strides, start)
    bytes_ = slot.x.numel() * slot.x.element_size()
    note("load", slot.place, bar.name, bytes_, bar.count, tuple(at))
    bar.move(0, -bytes_)


def async_store(desc, at, slot):
    """Rows beyond the tensor's end are not written.  TMA may read the slot until `store_wait`."""
    note("store", slot.place)
    at = [int(i) for i in at]
    size = [max(0, min(box, n - i)) for box, n, i in zip(desc.box, desc.shape, at)]
    start = int(desc.at.at) + sum(i * step for i, step in zip(at, desc.strides))
    if all(size):
        desc.at.flat.as_strided(size, desc.strides, start).copy_(slot.x[tuple(map(slice, size))])


def store_wait(pending):
    note("stored", pending)


def warpgroup_mma(a, b, acc, use_acc=True, is_async=False):
    note("product", tuple(x.place for x in (a, b) if isinstance(x, Memory)))
    product = (a.x if isinstance(a, Memory) else raw(a)).float() @ b.x.float()
    here.issued += 1                                    # acc may be in flight: products of a warp group chain
    return Value(acc.data + product if use_acc else product, acc.layout, here.issued)


def warpgroup_mma_wait(n, deps):
    note("at most", n)
    ended = []
    for x in deps:
        assert x.product is None or x.product <= here.issued - n, "the wait leaves the product it is for"
        ended.append(Value(x.data, x.layout))
    return ended[0] if len(ended) == 1 else tuple(ended)


def warp_specialize(parts, warps, registers):
    mine, logs, why = (here.ids, here.grid), [], []

    def run(function, args, log):
        (here.ids, here.grid), here.log, here.issued = mine, log, 0
        try:
            function(*args)
        except BaseException as error:                  # re-raised below
            why.append(f"{function.__name__}: {type(error).__name__} {error}")
            failed.set()
    threads = []
    for part in parts:
        logs.append([])
        threads.append(threading.Thread(target=run, args=(*part, logs[-1]), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed.clear()
    if why:
        raise RuntimeError("; ".join(why))
    if trace is not None:
        trace.append(logs)


class Kernel:
    def __init__(self, function):
        self.function, self.__name__ = function, function.__name__

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)

    def __getitem__(self, grid):
        def launch(*args, num_warps, enable_fp_fusion, **constants):
            args = [Pointer(flat(a), a.storage_offset()) if isinstance(a, torch.Tensor) else
                    Value(a) if isinstance(a, int | float) else a for a in args]
            for z, y, x in itertools.product(*map(range, grid[::-1])):
                here.ids = x, y, z
                here.grid, here.log, here.allocations = grid, [], 0
                self.function(*args, **constants)
        return launch


def jit(function=None, **_):
    return Kernel(function) if function else Kernel


def allocate(dtype, shape, layout):
    here.allocations += 1
    if isinstance(layout, MBarrierLayout):
        return Barriers(shape[0], here.allocations)
    return Memory(torch.full(shape, float("nan"), dtype=dtype), layout, (here.allocations, 0))


def store(pointer, value, mask):
    mask = torch.as_tensor(raw(mask)).expand(pointer.at.shape)
    pointer.flat[pointer.at[mask]] = raw(value)[mask].to(pointer.flat.dtype)


def elementwise(function):
    def apply(*args):
        layout = next((a.layout for a in args if isinstance(a, Value) and a.layout), None)
        tensors = [raw(a) for a in args]
        dtypes = [t.dtype for t in tensors[::-1] if isinstance(t, torch.Tensor) and t.dtype != torch.bool]
        dtype = dtypes[0] if dtypes else None
        tensors = [t if isinstance(t, torch.Tensor) else torch.as_tensor(t, dtype=dtype) for t in tensors]
        return Value(function(*tensors), layout)
    return apply


def language():
    gl = types.ModuleType("gl")
    gl.bfloat16, gl.float16, gl.float32 = torch.bfloat16, torch.float16, torch.float32
    gl.int32, gl.int64, gl.constexpr, gl.static_range = torch.int32, torch.int64, lambda value: value, range
    gl.SliceLayout = gl.NVMMADistributedLayout = gl.DotOperandLayout = gl.BlockedLayout = Layout
    gl.NVMMASharedLayout = types.SimpleNamespace(get_default_for=lambda shape, dtype: Layout())
    gl.program_id, gl.num_programs = lambda axis: Value(here.ids[axis]), lambda axis: Value(here.grid[axis])
    gl.zeros = lambda shape, dtype, layout: Value(torch.zeros(shape, dtype=dtype), layout)
    gl.arange = lambda a, b, layout: Value(torch.arange(a, b), layout)
    gl.where, gl.exp2, gl.log2 = elementwise(torch.where), elementwise(torch.exp2), elementwise(torch.log2)
    gl.maximum, gl.minimum = elementwise(torch.maximum), elementwise(torch.minimum)
    gl.max = lambda a, axis: Value(a.x.amax(axis), Layout(axis, a.layout))
    gl.sum = lambda a, axis: Value(a.x.sum(axis), Layout(axis, a.layout))
    gl.convert_layout = lambda a, layout: Value(a.x, layout)
    gl.load, gl.store = lambda pointer: Value(pointer.flat[pointer.at]), store
    gl.allocate_shared_memory, gl.warp_specialize = allocate, warp_specialize
    gl.inline_asm_elementwise = lambda text, constraints, args, dtype, is_pure, pack: args[0].to(dtype)
    return gl


def load(*paths: Path, **sources: str) -> dict:
    """The namespace of the last of these modules of swiftvideo_kernels, given in the order of their imports.

    sources: by module, text in place of the file's.
    """
    root = "triton.experimental.gluon"
    modules = {name: types.ModuleType(name) for name in (
        "triton.experimental", root, f"{root}.language", f"{root}.language.nvidia",
        f"{root}.language.nvidia.hopper", f"{root}.nvidia", f"{root}.nvidia.hopper")}
    modules["triton.experimental"].gluon = modules[root]
    modules[root].jit, modules[root].language = jit, language()
    modules[f"{root}.nvidia.hopper"].TensorDescriptor = TensorDescriptor
    hopper = modules[f"{root}.language.nvidia.hopper"]
    hopper.fence_async_shared = lambda: None
    hopper.mbarrier = types.SimpleNamespace(
        init=init, wait=wait, expect=expect, arrive=arrive, MBarrierLayout=MBarrierLayout)
    hopper.tma = types.SimpleNamespace(
        async_load=async_load, async_store=async_store, store_wait=store_wait,
        make_tensor_descriptor=TensorDescriptor)
    hopper.warpgroup_mma, hopper.warpgroup_mma_wait = warpgroup_mma, warpgroup_mma_wait
    modules |= {f"swiftvideo_kernels.{path.stem}": types.ModuleType(path.stem) for path in paths}
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        for path in paths:
            space = modules[f"swiftvideo_kernels.{path.stem}"].__dict__
            exec(compile(sources.get(path.stem) or path.read_text(), path, "exec"), space)
    finally:
        for name, module in kept.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    return space
