"""python -m swiftvideo_fast.demo.table: trains, measures and prints the comparison.

A second call resumes; an interrupted call prints the results so far.
"""

import argparse
import json
import sys
from pathlib import Path

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config.strict import want
from swiftvideo_fast.demo.pool import Task, run_tasks
from swiftvideo_fast.demo.table import layout, work
from swiftvideo_fast.demo.table.methods import METHODS, PAIRED, rate_source, uses_pairs
from swiftvideo_fast.demo.table.work import FIRST_SEED, TEACHER, Table

TRAIN, VALIDATE, MEASURE, WATCH, DERIVATIVE = "train", "validate", "measure", "watch", "derivative"
Place = tuple                       # name of a task: seed, name, kind, and the rate if from a grid


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m swiftvideo_fast.demo.table", description=__doc__)
    p.add_argument("--dir", type=Path, default=Path("runs/table"), help="folder of runs and tables")
    p.add_argument("--configs", type=Path, default=Path("configs/demo"), help="folder of the demo's configs")
    p.add_argument("--seeds", type=int, default=3, help="number of seeds; seed 0 is completed first")
    p.add_argument("--steps", type=int, default=200, help="student steps of every method")
    p.add_argument("--clips", type=int, default=256, help="test clips per seed; half as many for validation")
    p.add_argument("--into", type=Path, help="a markdown file to write the tables to, between its two marks")
    p.add_argument("--show", action="store_true", help="run nothing; print the results so far")
    args = p.parse_args(arguments)
    table = Table(args.dir, args.configs, args.steps, args.clips)
    try:
        want(0 < args.seeds <= max(layout.T_QUANTILE), "--seeds", args.seeds, "1 to 8")
        want(args.steps >= 20, "--steps", args.steps, "20 or more: the last stage takes 3/20 of them")
        want(args.clips >= 4, "--clips", args.clips, "4 or more")
        want(args.dir.exists() or not args.show, "--dir", args.dir, "an existing folder of results")
        for seed in range(args.seeds if not args.show else 0):
            run_tasks(tasks(table, seed))
    except (ValueError, OSError) as why:
        print(f"swiftvideo table: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("swiftvideo table: interrupted; repeat the command to resume", file=sys.stderr)
        return 130
    finally:
        if args.dir.exists():
            show(table, args.seeds, args.into)
    return 0


def tasks(table: Table, seed: int) -> dict[Place, Task]:
    """Returns all tasks of a seed with their dependencies.  Later seeds need the rates chosen by seed 0."""
    todo: dict[Place, Task] = {(seed, TEACHER, MEASURE): Task(work.measure_teacher, (table, seed)),
                               (seed, "real", MEASURE): Task(work.measure_real, (table, seed))}

    def grid(name: str) -> tuple[float, ...]:
        rates = METHODS[name].rates
        return rates if seed == FIRST_SEED and not isinstance(rates, str) else ()

    def chosen(name: str) -> set[Place]:
        source = rate_source(name)
        return {(seed, source, VALIDATE, rate) for rate in grid(source) if len(grid(source)) > 1}

    def trained(name: str | None) -> set[Place]:
        runs = {(seed, name, TRAIN, rate) for rate in grid(name)} or {(seed, name, TRAIN)} if name else set()
        return runs | chosen(name) if name else runs

    for name, method in METHODS.items():
        ready = trained(method.start) | (trained(PAIRED) if uses_pairs(method) else set())
        for rate in grid(name):
            train = seed, name, TRAIN, rate
            todo[train] = Task(work.train, (table, name, seed, rate), frozenset(ready))
            if len(grid(name)) > 1:
                after = frozenset({train})
                todo[seed, name, VALIDATE, rate] = Task(work.validate, (table, name, rate), after)
        if not grid(name):
            todo[seed, name, TRAIN] = Task(work.train, (table, name, seed), frozenset(ready | chosen(name)))
        done = frozenset(trained(name))
        if method.measured:
            after = done | {(seed, TEACHER, MEASURE)}
            todo[seed, name, MEASURE] = Task(work.measure, (table, name, seed), after)
        if method.watched:
            todo[seed, name, WATCH] = Task(work.watch, (table, name, seed), done)
    if layout.MAP in METHODS:
        done = frozenset(trained(layout.MAP))
        todo[seed, layout.MAP, DERIVATIVE] = Task(work.compare_derivatives, (table, layout.MAP, seed), done)
    return todo


def show(table: Table, seeds: int, into: Path | None) -> None:
    """Prints the tables; writes table.md, table.json and charts to the table's folder, and to a document."""
    results = layout.collect(table, seeds)
    sections = layout.sections(results)
    print("".join(f"\n{section.text()}\n" for section in sections))
    text = "\n".join(layout.markdown(section) for section in sections)
    for name, content in {"table.md": text, "table.json": json.dumps(results.as_json(), indent=1) + "\n",
                          **layout.curves(results)}.items():
        with atomic_write(table.folder / name) as tmp:
            tmp.write_text(content)
    if into:
        layout.paste(into, text)
        for name, content in layout.curves(results).items():
            with atomic_write(into.with_suffix("") / name) as tmp:
                tmp.write_text(content)


if __name__ == "__main__":
    sys.exit(main())
