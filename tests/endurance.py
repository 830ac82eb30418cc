"""The long forms of test_engine.py, by hand:

    python tests/endurance.py same            50 steps by every engine and split, C++ and reference ops
    python tests/endurance.py kills           40 kills of a run of two ranks, of one rank or all
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import fleet  # noqa: E402
import sharded  # noqa: E402
import test_engine  # noqa: E402
import tiny  # noqa: E402


def same(folder: Path, processes, count: int) -> bool:
    good = True
    for work in (tiny.train, sharded.train_by_reference):
        found = test_engine.compare(folder, processes, test_engine.SPLITS, count, work)
        for split, (far, allowed) in found.items():
            shown = [f"{a:.1e} of {b:.1e}" for a, b in zip(far, allowed)]
            print(f"{work.__name__:20}{split}  losses {shown[0]}  average {shown[1]}", flush=True)
        good &= test_engine.within(found)
    return good


def kills(folder: Path, processes, count: int) -> bool:
    """A run for each five kills."""
    good = True
    cfg = test_engine.config(folder, "killed", 2, steps=12)
    want = test_engine.undisturbed(processes, cfg, 2)
    for seed in range(count // 5):
        differ = test_engine.kill(processes, cfg, 2, want, times=5, seed=seed, seconds=6)
        print(f"5 kills, seed {seed}: " + (f"{differ} differ" if differ else "the same bits"), flush=True)
        good &= not differ
        test_engine.shutil.rmtree(cfg.run.dir)
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["same", "kills"])
    parser.add_argument("--count", type=int, help="steps (50), or kills (40)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tiny.write_inputs(Path(name))
        passed = {"same": same, "kills": kills}[args.what](
            Path(name), fleet.server(), args.count or {"same": 50, "kills": 40}[args.what])
    sys.exit(not passed)
