"""python -m swiftvideo_fast: the command line."""

from swiftvideo_fast.cli import main

raise SystemExit(main())
