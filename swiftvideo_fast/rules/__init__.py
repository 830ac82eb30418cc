"""The table of forward-mode rules, by idea.  Importing the package fills `dual.RULES`."""

from swiftvideo_fast.rules import (
    attention,
    constant,
    einops,
    elementwise,
    flash,
    linear,
    normalise,
    product,
    write,
)

__all__ = ["attention", "constant", "einops", "elementwise", "flash", "linear", "normalise", "product",
    "write"]
