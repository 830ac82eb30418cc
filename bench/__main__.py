"""python -m bench: importing a bench_X module registers its cases.  sm90, gpu, tune: commands of their own."""

import importlib
import pkgutil
import sys

import bench

if sys.argv[1:2] in (["sm90"], ["gpu"], ["tune"]):
    raise SystemExit(importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:]))

from bench.harness import main  # noqa: E402

for module in pkgutil.iter_modules(bench.__path__, "bench."):
    if module.name.startswith("bench.bench_"):
        importlib.import_module(module.name)
raise SystemExit(main())
