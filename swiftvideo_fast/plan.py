"""What a run takes before it is run: memory a rank by part, work, traffic; and what would make it fit.

    swiftvideo plan --preset wan-14b --gpus 64 --memory 80

What a rank holds of a parameter of n elements is a stretch of ceil(n / gpus) (train/engine.py): these sizes
are exact.  Activations are planes of (tokens / sequence) x dim, as stored:
    teacher, jvp    few at once under no_grad, the tangent's among them, and the MLP's in chunks of rows
    student         one a block, kept for the backward, and those of one block that is run again; or two a
                    block (with attention's outputs), or all of them: by --recompute
(counted by `python -m bench memory`, which follows every tensor).
Work is two operations a multiplication in matrix products; its time is that over a rate you have measured.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from swiftvideo_fast.config.strict import want
from swiftvideo_fast.models.wan.network import MLP_ROWS, PATCH, PRESETS, RECOMPUTE, Wan

USABLE = 0.94           # of a device: context, workspaces and fragments take the rest
STRIDE_T, STRIDE = 4, 8
SCALES = 256            # 8-bit moments share a scale of 4 bytes by so many
BUCKET = 100_000_000    # as train/engine.py's
HELD, CHUNKED = 11, 6   # planes under no_grad: in attention; beside the MLP's chunk of rows
BLOCK = 21              # planes of a block run again, beside three of the MLP's width (39 at 1.3B, 29 at 14B)
KEPT, LAST = 19, 11     # planes of a block kept whole, beside two of the MLP's width; beside all blocks


@dataclass(frozen=True)
class Plan:
    """A CCD run under ZeRO-3.  memory: of a GPU, in GB.  frames, size: of a clip, in
    pixels.  micro: clips a backward pass.  moments: bits.  sequence: GPUs that share a clip's tokens."""

    preset: str
    gpus: int
    memory: float
    frames: int = 61
    size: tuple[int, int] = (832, 480)
    micro: int = 1
    dtype: str = "bfloat16"
    moments: int = 32
    sequence: int = 1
    offload: bool = False
    recompute: str = "blocks"

    def __post_init__(self):
        c = PRESETS[self.preset]
        want(self.frames % STRIDE_T == 1, "--frames", self.frames, "4n + 1")
        want(all(side % (STRIDE * PATCH) == 0 for side in self.size), "--size", self.size, "multiples of 16")
        want(self.gpus % self.sequence == 0, "--gpus", self.gpus, f"a multiple of --sequence {self.sequence}")
        want(c.heads % self.sequence == 0 and self.tokens % self.sequence == 0, "--sequence", self.sequence,
             f"a divisor of {c.heads} heads and {self.tokens} tokens")

    @property
    def tokens(self) -> int:
        w, h = self.size
        return ((self.frames - 1) // STRIDE_T + 1) * (w // STRIDE // PATCH) * (h // STRIDE // PATCH)

    def parts(self) -> dict[str, int]:
        """Bytes a rank by part; those on the GPU."""
        return {name: size for name, size in self.held().items()
                if not (self.offload and name in ("masters", "optimizer", "gradients"))}

    def held(self) -> dict[str, int]:
        """Bytes a rank by part, on the GPU or, offloaded, beside it."""
        sizes, blocks = parameters(self.preset)
        own = sum(-(-n // self.gpus) for n in sizes)
        stored = 2 if self.dtype == "bfloat16" else 4
        moments = 8 * own if self.moments == 32 else 2 * own + 2 * 4 * own // SCALES
        return {
            "parameters": stored * own,
            "masters": 4 * own,
            "optimizer": moments,
            "average": 4 * own + (stored * own if stored < 4 else 0),
            "teacher": stored * own,
            "gradients": 4 * own,
            "reduced at once": stored * min(BUCKET, sum(sizes)),
            "gathered blocks": 2 * stored * blocks,
            "activations": self.activations(stored),
        }

    def activations(self, stored: int) -> int:
        c = PRESETS[self.preset]
        tokens = self.tokens // self.sequence
        plane = self.micro * tokens * c.dim * stored
        wide = c.ffn_dim / c.dim
        jvp = plane * max(HELD, CHUNKED + 4 * wide * min(1, MLP_ROWS / tokens))
        attention = plane + 4 * self.micro * tokens * c.heads                       # o and lse
        student = {
            "nothing": plane * (c.layers * (KEPT + 2 * wide) + LAST),
            "blocks": plane * (c.layers + BLOCK + 3 * wide),
            "blocks but attention": plane * (c.layers + BLOCK + 3 * wide) + (c.layers - 1) * attention,
        }[self.recompute]
        return int(max(jvp, student))

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    @property
    def fits(self) -> bool:
        return self.total <= USABLE * self.memory * 1e9

    def work(self) -> float:
        """Operations of a pass on a GPU: guided teacher (2), jvp, student, what runs again, backward."""
        c = PRESETS[self.preset]
        sizes, blocks = parameters(self.preset)
        linear = 2 * blocks * c.layers * self.tokens
        attention = 4 * self.tokens**2 * c.dim * c.layers
        again = {"nothing": (0, 0), "blocks": (1, 1), "blocks but attention": (1, 0)}[self.recompute]
        return self.micro / self.sequence * (
            linear * (2 + 2 + 1 + 2 + again[0]) + attention * (2 + 3 + 1 + 2.5 + again[1]))

    def traffic(self) -> dict[str, float]:
        """Bytes that a GPU receives in a pass."""
        c = PRESETS[self.preset]
        stored = 2 if self.dtype == "bfloat16" else 4
        others = stored * sum(parameters(self.preset)[0]) * (1 - 1 / self.gpus)
        plane = self.micro * self.tokens // self.sequence * c.dim * stored
        planes = c.layers * 4 * (2 + 2 + 2 + 1)     # q, k, v, o of: teacher, jvp, student twice, backward
        return {"gathering weights": 4 * others, "reducing gradients": others,
                "exchanging tokens": planes * plane * (1 - 1 / self.sequence)}


def parameters(preset: str) -> tuple[list[int], int]:
    """(elements of every parameter, elements of one block)."""
    with torch.device("meta"):
        net = Wan(PRESETS[preset])
    return [p.numel() for p in net.parameters()], sum(p.numel() for p in net.blocks[0].parameters())


def mend(plan: Plan) -> tuple[str, Plan] | None:
    """The cheapest change after which the plan fits: of the optimizer, of the split, of the machine."""
    for words, change in changes(plan):
        if change.fits:
            return words, change
    return None


def changes(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """From the cheapest to the dearest."""
    if plan.micro > 1:
        yield "--micro 1", (plan := replace(plan, micro=1))
    if plan.moments == 32:
        yield "--moments 8", replace(plan, moments=8)
    heads = PRESETS[plan.preset].heads
    for n in range(plan.sequence + 1, min(plan.gpus, heads) + 1):
        if heads % n == plan.tokens % n == plan.gpus % n == 0:
            yield f"--sequence {n}", replace(plan, sequence=n)
    yield "--offload", replace(plan, offload=True)
    for n in range(1, 8):
        yield f"--gpus {plan.gpus << n}", replace(plan, gpus=plan.gpus << n)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", required=True, choices=[f"wan-{name}" for name in PRESETS])
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--memory", type=float, default=80, help="of a GPU, in GB")
    parser.add_argument("--frames", type=int, default=Plan.frames)
    parser.add_argument("--size", default="832x480", help="width x height in pixels")
    parser.add_argument("--micro", type=int, default=Plan.micro, help="clips a backward pass")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=Plan.dtype)
    parser.add_argument("--moments", type=int, choices=(8, 32), default=Plan.moments, help="bits")
    parser.add_argument("--sequence", type=int, default=Plan.sequence, help="GPUs that share a clip's tokens")
    parser.add_argument("--offload", action="store_true", help="masters and moments on the CPU")
    parser.add_argument("--recompute", choices=RECOMPUTE, default=Plan.recompute, help="the student's policy")
    parser.add_argument("--tflops", type=float, help="a measured rate, for the time of a pass")


def from_arguments(args: argparse.Namespace) -> Plan:
    """ValueError for what cannot be shared out."""
    given = {f.name: getattr(args, f.name) for f in fields(Plan)}
    width, _, height = args.size.partition("x")
    want(width.isdecimal() and height.isdecimal(), "--size", args.size, "as 832x480")
    return Plan(**given | {"preset": args.preset.removeprefix("wan-"), "size": (int(width), int(height))})


def report(plan: Plan, tflops: float | None = None) -> str:
    """The plan in words."""
    w, h = plan.size
    lines = [f"CCD of wan-{plan.preset} on {plan.gpus} GPUs of {plan.memory:g} GB: {plan.micro} clips of "
             f"{plan.frames} frames of {w}x{h} ({plan.tokens:,} tokens) a pass on {plan.sequence} GPUs"]
    on_gpu = plan.parts()
    lines += [f"{size / 1e9:10.2f} GB  {name}" + ("" if name in on_gpu else ", on the CPU")
              for name, size in plan.held().items()]
    usable = USABLE * plan.memory
    lines += [f"{plan.total / 1e9:10.2f} GB  in all, of {usable:.1f} usable: "
              + ("fits" if plan.fits else "does not fit")]
    if not plan.fits:
        found = mend(plan)
        lines += [f"the cheapest change that makes it fit: {found[0]} ({found[1].total / 1e9:.2f} GB)"
                  if found else "no single change makes it fit"]
    lines += [f"{bytes_ / 1e9:10.2f} GB  received a pass, {name}" for name, bytes_ in plan.traffic().items()]
    lines += [f"{plan.work() / 1e12:10.0f} TFLOP a pass" + (
        f": {plan.work() / 1e12 / tflops:.1f} s at {tflops:g} TFLOP/s" if tflops else
        "; --tflops, a rate that `python -m bench` gives on that GPU, makes it a time")]
    return "\n".join(lines)
