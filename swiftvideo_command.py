"""The command `swiftvideo`, outside of the package so that an interrupt while that is imported is one line.

Importing torch takes seconds, and importing anything of swiftvideo_fast imports torch first.
"""

import sys


def main() -> int:
    try:
        from swiftvideo_fast import cli

        return cli.main()
    except KeyboardInterrupt:
        print("swiftvideo: interrupted", file=sys.stderr)
        return 130
