"""python -m bench memory: what a pass of the real network keeps alive at once, on any machine.

    python -m bench memory --preset wan-1.3b --frames 61 --size 832x480 --pass jvp
    python -m bench memory --against torch              beside torch.func.jvp with math attention
    python -m bench memory --pass step --png step.png   the timeline of a whole CCD step
    python -m bench memory --table                      1.3B and 14B on 80 and 141 GB, as Markdown

The passes:
    jvp     the EMA network and its tangent, under no_grad
    train   the student's loss, forward and backward, each block recomputed in the backward
    step    Algorithm 1 whole: guided teacher, jvp of the EMA, student, clipped gradients, AdamW, average
A step is taken on one device, one clip, nothing sharded.  It holds, beside gradients, the student, the EMA's
copy and the teacher as stored (bf16), and in fp32 the masters, AdamW's two moments and the EMA: 22 bytes a
parameter; AdamW goes parameter by parameter.  In the table n devices share what is held and the gradients, as
under ZeRO-3: each has an n-th, two gathered blocks, and a clip of its own.
On a machine with a GPU the pass is also run there, on weights of zero, and the allocator's own peak printed.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from bench.account import GRADIENT, Account, grouped
from swiftvideo_fast import jvp, ops, path
from swiftvideo_fast.config import Ccd
from swiftvideo_fast.data.latents import Latents
from swiftvideo_fast.models import wan
from swiftvideo_fast.models.conditioning import Condition, velocity
from swiftvideo_fast.models.wan import PRESETS, Wan, cast
from swiftvideo_fast.objectives.ccd import ConsistencyDistillation
from swiftvideo_fast.ops import reference

STRIDE_T, STRIDE = 4, 8                 # of the codec: pixel frames and pixels a latent
TEXT, IMAGE = 512, 257                  # tokens of the two encoders
DEVICES_GB = (80, 141)                  # H100, H200
USABLE = 0.94                           # of a device: context, workspaces and fragments take the rest


@dataclass(frozen=True)
class Setting:
    """What is accounted for.  frames: 4n + 1, in pixel space; size: (width, height), multiples of 16."""

    preset: str = "1.3b"
    frames: int = 61
    size: tuple[int, int] = (832, 480)
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self):
        if self.frames % STRIDE_T != 1 or any(s % (2 * STRIDE) for s in self.size):
            raise ValueError(f"memory: {self.frames} frames of {self.size[0]}x{self.size[1]}; "
                             "want 4n + 1 frames, sides multiples of 16")

    @property
    def latent(self) -> tuple[int, int, int]:
        return (self.frames - 1) // STRIDE_T + 1, self.size[1] // STRIDE, self.size[0] // STRIDE

    @property
    def tokens(self) -> int:
        return math.prod(self.latent) // 4

    def point(self) -> path.Point:
        x0, x1 = (torch.randn(1, PRESETS[self.preset].latent, *self.latent) for _ in range(2))
        t = torch.full((1,), 0.5)
        return path.Point(x0, x1, t, path.interpolate(x0, x1, t))

    def condition(self) -> Condition:
        c = PRESETS[self.preset]
        text, null_text = (torch.randn(1, TEXT, c.text_dim) for _ in range(2))
        image = torch.randn(1, IMAGE, c.image_dim) if c.image_dim else None
        return Condition(torch.randn(1, c.condition, *self.latent), text, null_text, image)

    def network(self, *, trained: bool) -> Wan:
        """Of the preset's sizes, its values left as they are found; made on the current default device."""
        with unset_fake_temporarily(), torch.device("meta"):
            net = cast(Wan(PRESETS[self.preset]), self.dtype).requires_grad_(trained)
        for module in net.modules():    # Module.to_empty would swap tensors, which fakes refuse
            for name, p in module._parameters.items():
                module._parameters[name] = nn.Parameter(torch.zeros(p.shape, dtype=p.dtype), p.requires_grad)
        net.recompute = trained
        return net


# --- the passes: each gives its account and the function to run under it ---------------------------------


def jvp_pass(setting: Setting) -> tuple[Account, Callable]:
    net, point, condition = setting.network(trained=False), setting.point(), setting.condition()

    def run():
        with torch.no_grad():
            return jvp(lambda x, t: velocity(net, x, t, condition), (point.x_t, point.t),
                       (point.velocity, torch.ones_like(point.t)))

    return _account(net.parameters(), point, condition, net=net), run


def train_pass(setting: Setting) -> tuple[Account, Callable]:
    net, point, condition = setting.network(trained=True), setting.point(), setting.condition()

    def run():
        F = torch.zeros_like(point.x_t)
        ops.ccd_loss(velocity(net, point.x_t, point.t, condition), F, F).mean().backward()

    return _account(net.parameters(), point, condition, student=net), run


def step_pass(setting: Setting) -> tuple[Account, Callable]:
    student, average, teacher = (setting.network(trained=trained) for trained in (True, False, False))
    point, condition = setting.point(), setting.condition()
    objective = ConsistencyDistillation(Ccd(), student, average, teacher)
    weights = list(student.parameters())
    masters, averages = ([p.detach().float().clone() for p in weights] for _ in range(2))
    moments = [torch.zeros_like(master) for master in masters for _ in range(2)]
    optimizers = [torch.optim.AdamW([master], lr=1e-6, fused=True) for master in masters]
    for i, (master, optimizer) in enumerate(zip(masters, optimizers, strict=True)):
        optimizer.state[master] = {"step": torch.zeros(()), "exp_avg": moments[2 * i],
                                   "exp_avg_sq": moments[2 * i + 1]}

    def run():
        loss, _ = objective(point, Latents(point.x0, condition, []), 0, None)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0, foreach=False)
        for p, master, optimizer in zip(weights, masters, optimizers, strict=True):
            master.grad, p.grad = p.grad.float(), None
            optimizer.step()
            master.grad = None
            p.data.copy_(master)
        ops.ema_(averages, masters, 0.95, list(average.parameters()))

    known = [*weights, *average.parameters(), *teacher.parameters(), *masters, *averages, *moments]
    return _account(known, point, condition, student=student, average=average, teacher=teacher), run


PASSES = {"jvp": jvp_pass, "train": train_pass, "step": step_pass}


def _account(known, point: path.Point, condition: Condition, **networks: nn.Module) -> Account:
    account = Account(known, **networks)
    for x in (*vars(point).values(), *vars(condition).values()):
        if x is not None:
            account.follow(x)
    return account


def faked(name: str, setting: Setting) -> Account:
    """The account of a pass of which nothing is computed."""
    with FakeTensorMode():
        account, run = PASSES[name](setting)
        with account:
            run()
    return account


@contextmanager
def plain_torch():
    """The ops are their references in here: math attention, nothing fused, the MLP whole."""
    with ExitStack() as swapped:
        for name in ("attention", "modulate", "norm_rope", "gate", "gelu", "tangent", "ccd_loss"):
            swapped.enter_context(patch.object(ops, name, getattr(reference, name)))
        swapped.enter_context(patch.object(wan, "MLP_ROWS", sys.maxsize))
        yield


def by_torch(setting: Setting) -> Account:
    """The account of torch.func.jvp."""
    with FakeTensorMode(), plain_torch():
        net, point, condition = setting.network(trained=False), setting.point(), setting.condition()
        account = _account(net.parameters(), point, condition, net=net)
        with torch.no_grad(), account:
            torch.func.jvp(lambda x, t: velocity(net, x, t, condition), (point.x_t, point.t),
                           (point.velocity, torch.ones_like(point.t)))
    return account


def measured(name: str, setting: Setting) -> int:
    """Bytes the GPU's allocator held at most beyond weights and states, in a real pass."""
    with torch.device("cuda"):
        account, run = PASSES[name](setting)
        run()                           # the first pass also builds kernels and handles
        torch.cuda.reset_peak_memory_stats()
        run()
    return torch.cuda.max_memory_allocated() - account.known_bytes


# --- what it says ----------------------------------------------------------------------------------------


def report(name: str, setting: Setting, account: Account) -> str:
    """Peak, place, and the planes alive there, those under 1 % of the peak together."""
    planes = [p for p in account.planes if p.where != GRADIENT]
    gradients = sum(p.bytes for p in account.planes) - sum(p.bytes for p in planes)
    large = [(n, p) for n, p in grouped(planes) if n * p.bytes >= 0.01 * account.peak]
    small = account.peak - gradients - sum(n * p.bytes for n, p in large)
    width, height = setting.size
    dtype = str(setting.dtype).removeprefix("torch.")
    return "\n".join([
        f"{name} pass of wan-{setting.preset}, {dtype}, {setting.frames} frames of {width}x{height}: "
        f"{setting.tokens:,} tokens",
        f"weights and states {account.known_bytes / 1e9:9.3f} GB",
        f"peak beyond them   {account.peak / 1e9:9.3f} GB   at {account.op} in {account.where}",
        *[f"{gradients / 1e6:12.1f} MB   gradients"] * bool(gradients),
        *(f"{n * p.bytes / 1e6:12.1f} MB   {n} of {p}" for n, p in large),
        f"{small / 1e6:12.1f} MB   smaller planes"])


def draw(account: Account, png: str, title: str) -> None:
    """Live bytes after each op, on a line over the ops; the peak is marked and named."""
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot

    alive = [b / 1e9 for b in account.timeline]
    top = max(range(len(alive)), key=alive.__getitem__)
    figure, axes = pyplot.subplots(figsize=(11, 4), layout="constrained")
    axes.fill_between(range(len(alive)), alive, step="post", color="#9bbbe0", linewidth=0)
    axes.annotate(f"{account.peak / 1e9:.3f} GB\n{account.op} in {account.where}", (top, alive[top]),
                  (0.5, 0.93), textcoords="axes fraction", va="top", arrowprops={"arrowstyle": "-"})
    axes.set(title=title, xlabel="operations", ylabel="GB alive beyond weights and states")
    axes.set(xlim=(0, len(alive)), ylim=(0, 1.25 * account.peak / 1e9))
    figure.savefig(png, dpi=110)
    pyplot.close(figure)


def devices_needed(account: Account, gathered: int, capacity_gb: int) -> int | None:
    """The least number of devices, sharing weights, states and gradients, that hold the pass."""
    usable = USABLE * capacity_gb * 1e9
    if account.known_bytes + account.peak <= usable:
        return 1
    room = usable - account.peak_activations - gathered
    shared = account.known_bytes + account.peak_gradients
    return max(2, math.ceil(shared / room)) if room > 0 else None


def table(settings: list[Setting]) -> Iterator[str]:
    """Lines of Markdown: each network and pass, what it takes, and the devices it takes."""
    columns = ["network", "pass", "weights and states, GB", "gradients", "activations",
               "peak beyond the first", *(f"devices of {gb} GB" for gb in DEVICES_GB)]
    yield f"| {' | '.join(columns)} |\n|---|---|{'--:|' * (len(columns) - 2)}"
    for setting in settings:
        with FakeTensorMode():
            block = setting.network(trained=False).blocks[0]
        gathered = 2 * sum(p.numel() * p.element_size() for p in block.parameters())
        for name in PASSES:
            account = faked(name, setting)
            needed = [devices_needed(account, gathered, gb) or "none" for gb in DEVICES_GB]
            sizes = account.known_bytes, account.peak_gradients, account.peak_activations, account.peak
            yield (f"| Wan {setting.preset} | {name} | {' | '.join(f'{b / 1e9:.2f}' for b in sizes)} | "
                   f"{' | '.join(map(str, needed))} |")


def setting_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="wan-1.3b", choices=[f"wan-{name}" for name in PRESETS])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])


def setting_of(args: argparse.Namespace, frames: int, size: str) -> Setting:
    width, height = map(int, size.split("x"))
    return Setting(args.preset.removeprefix("wan-"), frames, (width, height), getattr(torch, args.dtype))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    setting_arguments(parser)
    parser.add_argument("--frames", type=int, default=61)
    parser.add_argument("--size", default="832x480", help="width x height in pixels")
    parser.add_argument("--pass", dest="name", choices=PASSES, default="jvp")
    parser.add_argument("--against", choices=["torch"], help="beside torch.func.jvp with math attention")
    parser.add_argument("--png", help="draw the timeline into this file")
    parser.add_argument("--table", action="store_true", help="every pass of 1.3B and 14B, as Markdown")
    args = parser.parse_args(argv)
    setting = setting_of(args, args.frames, args.size)
    if args.table:
        for line in table([replace(setting, preset=name) for name in ("1.3b", "14b")]):
            print(line, flush=True)
        return 0
    account = faked(args.name, setting)
    said = report(args.name, setting, account)
    print(said)
    if args.against:
        theirs = by_torch(setting)
        print(f"torch.func.jvp     {theirs.peak / 1e9:9.3f} GB   at {theirs.op} in {theirs.where}: "
              f"{theirs.peak / account.peak:.1f} times ours")
    if torch.cuda.is_available():
        gb = measured(args.name, setting) / 1e9
        print(f"measured           {gb:9.3f} GB   on {torch.cuda.get_device_name()}")
    if args.png:
        draw(account, args.png, said.splitlines()[0])
    return 0
