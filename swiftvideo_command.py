"""The command `swiftvideo`.  Outside the package, so that Ctrl-C during the imports prints one line.

Importing anything of swiftvideo_fast imports torch, which takes seconds.
"""

import sys


def main() -> int:
    try:
        from swiftvideo_fast import cli

        return cli.main()
    except KeyboardInterrupt:
        print("swiftvideo: interrupted", file=sys.stderr)
        return 130
