"""python -m bench: importing a bench_X module registers its cases."""

import importlib
import pkgutil

import bench
from bench.harness import main

for module in pkgutil.iter_modules(bench.__path__, "bench."):
    if module.name.startswith("bench.bench_"):
        importlib.import_module(module.name)
raise SystemExit(main())
