"""python -m bench ...: the table of cases.   python -m bench COMMAND ...: each with --help."""

import importlib
import os
import pkgutil
import sys

import bench

os.environ.setdefault("KINETO_LOG_LEVEL", "99")   # torch's profiler logs each start and stop on stderr
COMMANDS = ("compile_report", "data", "gpu", "growth", "hopper_card", "hopper_report", "memory", "sampling",
            "step", "sweep", "tune", "versus")

if sys.argv[1:2] and sys.argv[1] in COMMANDS:
    command = importlib.import_module(f"bench.{sys.argv[1]}")
    raise SystemExit(command.main(sys.argv[2:]))

for module in pkgutil.iter_modules(bench.__path__, "bench."):
    if module.name.startswith("bench.bench_"):
        importlib.import_module(module.name)
raise SystemExit(importlib.import_module("bench.table").main(sys.argv[1:]))
