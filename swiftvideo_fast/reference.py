"""docs/config.md from the code: each shipped config with its memory, each key with type, default and limits.

    python -m swiftvideo_fast.reference         writes the page; tests/test_reference.py holds it to the code

A key's meaning is in the docstring of its section's dataclass, as `key: what it is.`
"""

import re
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path

from swiftvideo_fast import config
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import Config, Engine, Model, Optim, Run, Sample, Times, shipped
from swiftvideo_fast.objectives.da import Da
from swiftvideo_fast.plan import USABLE, Plan
from swiftvideo_fast.train.recipe import TABLES

PAGE = Path(__file__).parents[1] / "docs" / "config.md"
NODE, MEMORY = 8, 80            # GPUs; GB of one
DECODING = 44.4e9               # bytes of the decoder's graph, by `python -m bench memory --pass da`

# What the paper gives, by key: "Implementation Details", Algorithm 1, Table 2d, the supplement.
PAPER = {
    "run.steps": "1000, then 2000 with da; 2000 with ta",
    "batch": "1 a GPU", "videos.frames": 61, "videos.width": 832, "videos.height": 480,
    "optim.lr": 1e-6, "ema": 0.95, "times.mean": -0.6, "times.std": 1.4, "times.uniform": False,
    "sample.sampler": "euler",
    "ccd.guidance": 3.0, "ccd.warmup": 1000, "ccd.norm": "l2", "ccd.c": 0.1, "ccd.r_max": 1.0,
    "da.weight": 0.01, "da.start": "after 1000 steps", "da.lr": 1e-6, "da.backbone": "DINOv2",
    "ta.steps": "[8, 4], then [4, 2]", "ta.count": 5000, "ta.winner": "sampled", "ta.beta": 2500.0,
    "ta.reflow": 2.0, "ta.rank": "LoRA; its rank not given",
    **{f"{name}.guidance": 3.0 for name in ("dcd", "lcm", "pcm", "dmd2", "osv")},
}
INTRO = """# Configs

This page is made from the code by `python -m swiftvideo_fast.reference`.

A config is a YAML file of sections. `swiftvideo train FILE run.steps=400 da=` replaces values, written as in
YAML; an empty value takes a value or a section away. `base: FILE` starts from another config, named from the
file's own folder. A config, and the weights in `model`, are looked for where they are named, then among the
shipped files, so `swiftvideo train demo/ccd.yaml` works in any folder. `--dry-run` prints the whole config,
checks it and its inputs, and writes nothing.

## Shipped

GB of memory a GPU, on one node of {node} GPUs and on four, with a clip of 61 frames of 832x480 a pass: what
`swiftvideo plan` counts, and where an adversary decodes, the {decoding:.1f} GB that the decoder's graph holds
before the student's backward (`python -m bench memory --pass da`). Of {memory} GB {usable:.1f} are usable.

| config | what it trains | one node | four nodes |
|---|---|--:|--:|"""


def page() -> str:
    """The page, as Markdown."""
    lines = [INTRO.format(node=NODE, memory=MEMORY, usable=USABLE * MEMORY, decoding=DECODING / 1e9)]
    lines += [row(*about(name)) for name in shipped.configs()]
    for title, cls, where in sections():
        lines += [f"\n## {title}\n\n{parts(cls)[0]}\n", "| key | type | default | limits | paper | meaning |",
                  "|---|---|---|---|---|---|", *(row(*key(cls, f, where)) for f in options(cls))]
    return "\n".join(lines) + "\n"


def sections() -> Iterator[tuple[str, type, str]]:
    """(title, dataclass, prefix of its keys in PAPER) in the order of the page."""
    for name, cls in ("run", Run), ("model", Model), ("optim", Optim), ("times", Times), ("sample", Sample), (
            "engine", Engine):
        yield f"`{name}`", cls, name
    yield "Without a section", Config, "config"
    plugs = TABLES.plugs()
    for name, cls in plugs["data"].items():
        yield f"`data` with `name: {name}`", cls, name
    for name, cls in plugs["objective"].items():
        yield f"`objective` with `name: {name}`", cls, name
    yield "`da`", Da, "da"


def options(cls: type) -> list[Field]:
    """Fields that are keys and not sections."""
    hints, plugs = typing.get_type_hints(cls), TABLES.plugs()
    return [f for f in fields(cls) if not is_dataclass(hints[f.name]) and f.name not in plugs]


def key(cls: type, f: Field, where: str) -> tuple[str, ...]:
    """One row of a section's table."""
    limit = f.metadata.get("limit")
    limits = "" if limit is None else ", ".join(limit.names) or limit.wanted
    default = "required" if f.default is MISSING else written(f.default)
    paper = PAPER.get(f"{where}.{f.name}", PAPER.get(f.name, ""))
    return (f"`{f.name}`", kind(typing.get_type_hints(cls)[f.name]), default, limits, written(paper),
            meaning(cls, f.name))


def kind(hint: object) -> str:
    """A type in words: `int`, `float or null`, `[int, int]`."""
    if isinstance(hint, types.UnionType):
        return " or ".join("null" if part is types.NoneType else kind(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"[{', '.join(map(kind, typing.get_args(hint)))}]"
    return hint.__name__


def written(value: object) -> str:
    """A value as YAML has it."""
    special = {None: "null", True: "true", False: "false"}
    if isinstance(value, tuple):
        return f"[{', '.join(map(written, value))}]"
    if value is None or isinstance(value, bool):
        return special[value]
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def parts(cls: type) -> list[str]:
    """The docstring cut at its keys: what comes before, then keys and meaning in turn."""
    names = "|".join(f.name for f in options(cls))
    return re.split(rf"(?:^|(?<=[.;:]) )((?:{names})(?:, (?:{names}))*): ", " ".join(cls.__doc__.split()))


def meaning(cls: type, name: str) -> str:
    """Returns a key's description, from the docstring of the class or of the options it extends."""
    for owner in filter(is_dataclass, cls.__mro__):
        _, *cut = parts(owner)
        for keys, text in zip(cut[::2], cut[1::2]):
            if name in keys.split(", "):
                return text.strip(" .;")
    raise ValueError(f"{cls.__name__}: no meaning of {name}; want `{name}: what it is.` in the docstring")


def about(name: str) -> tuple[str, str, str, str]:
    """(name, the file's first sentence, GB a GPU on one node and on four) of a shipped config."""
    text = (shipped.FOLDER / name).read_text()
    size = ", 14B" if "14b/" in name else ""
    if based := re.search("^base: (.*)", text, re.M):
        text = (shipped.FOLDER / name).parent.joinpath(based[1]).read_text()
    comment = "\n".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    first = re.split(r"(?<!eq)\.\s|:\n", comment)[0].rstrip(".").replace("\n", " ") + size
    sizes = [f"{memory(name, nodes) / 1e9:.1f}" for nodes in (1, 4)] if name.startswith("wan/") else ["", ""]
    return f"`{name}`", first, *sizes


def memory(name: str, nodes: int) -> int:
    """Bytes a GPU of a shipped config of Wan's, each group of engine.sequence GPUs with a clip a pass."""
    cfg = config.from_dict(config.read(shipped.FOLDER / name), TABLES.plugs())    # no data needed
    preset, e, da = "14b" if "14B" in cfg.model.weights else "1.3b", cfg.engine, cfg.da
    plan = Plan(preset, NODE * nodes, MEMORY, dtype=e.dtype, moments=cfg.optim.moments, sequence=e.sequence,
                offload=e.offload, recompute=cfg.model.recompute, objective=cfg.objective.name)
    if not da or da.project:
        return plan.total
    kept = plan.sizes.layers * plan.tokens // e.sequence * plan.sizes.dim * plan.stored     # a plane a block
    return plan.total + max(0, kept + int(DECODING) - plan.activations())


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    with atomic_write(PAGE) as tmp:
        tmp.write_text(page())
    print(f"wrote {PAGE}")
