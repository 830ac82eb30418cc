"""The long forms of test_engine.py, run by hand:

    python tests/endurance.py same            50 steps with every engine and split, C++ and reference ops
    python tests/endurance.py kills           40 kills of a run of two ranks, of one rank or all
    python tests/endurance.py launches        torchrun and deepspeed, 6 steps of two ranks each
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import launch  # noqa: E402
import sharded  # noqa: E402
import test_engine  # noqa: E402
import tiny  # noqa: E402
import yaml  # noqa: E402
from test_train import everything  # noqa: E402

from swiftvideo_fast.config import to_dict  # noqa: E402
from swiftvideo_fast.train import recipe  # noqa: E402

LAUNCHERS = ["torchrun --nproc-per-node 2 --master-port PORT -m",
             "deepspeed --num_gpus 2 --master_port PORT --module"]


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
    """Runs one training per five kills."""
    good = True
    cfg = test_engine.config(folder, "killed", 2, steps=12)
    want = test_engine.undisturbed(processes, cfg, 2)
    for seed in range(count // 5):
        differ = test_engine.kill(processes, cfg, 2, want, times=5, seed=seed, seconds=6)
        print(f"5 kills, seed {seed}: " + (f"{differ} differ" if differ else "the same bits"), flush=True)
        good &= not differ
        test_engine.shutil.rmtree(cfg.run.dir)
    return good


def launches(folder: Path, processes, count: int) -> bool:
    """Checks that both launchers' runs have the bits of a run by tests/launch.py."""
    cfg = test_engine.config(folder, "launched", 2, steps=count)
    (folder / "launched.yaml").write_text(yaml.safe_dump(to_dict(cfg)))
    want = everything(test_engine.ended(processes, cfg, 2, recipe.train).rename(folder / "wanted"))
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    beside = str(Path(sys.executable).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths),
                                "PATH": os.pathsep.join([beside, os.environ["PATH"]])}
    good = True
    for launcher in LAUNCHERS:
        port = str(launch.free_port())
        command = [word.replace("PORT", port) for word in launcher.split()]
        subprocess.run([*command, "swiftvideo_fast", "train", str(folder / "launched.yaml")], check=True,
                       env=environment)
        same = everything(Path(cfg.run.dir).rename(folder / command[0])) == want
        print(f"{command[0]}: " + ("the same bits" if same else "differs"), flush=True)
        good &= same
    return good


FORMS = {"same": (same, 50), "kills": (kills, 40), "launches": (launches, 6)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(FORMS))
    parser.add_argument("--count", type=int, help="steps (50; launches: 6), or kills (40)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tiny.write_inputs(Path(name))
        form, count = FORMS[args.what]
        passed = form(Path(name), launch.server(), args.count or count)
    sys.exit(not passed)
