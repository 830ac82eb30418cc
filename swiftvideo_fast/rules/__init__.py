"""Forward-mode rules, grouped by kind.  Importing the package fills `dispatch.RULES`."""

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
