"""python -m bench: importing a bench_X module registers its cases.  The others are commands of their own."""

import importlib
import pkgutil
import sys

import bench

if sys.argv[1:] and sys.argv[1] in ("gpu", "sm90", "tune", "versus"):
    raise SystemExit(importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:]))

for module in pkgutil.iter_modules(bench.__path__, "bench."):
    if module.name.startswith("bench.bench_"):
        importlib.import_module(module.name)
raise SystemExit(importlib.import_module("bench.harness").main())
