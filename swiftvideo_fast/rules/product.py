"""Products: the tangent is the sum over factors of the product with that factor replaced by its tangent."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftvideo_fast.dispatch import functions_named, rule, tangent
from swiftvideo_fast.dual import parts, primals
from swiftvideo_fast.rules.elementwise import copied, sum_terms

BILINEAR = "matmul __matmul__ mm bmm mv dot vdot inner outer ger kron"
CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"


def _bilinear(function, y, input, other):
    (a, ta), (b, tb) = parts(input), parts(other)
    return sum_terms([None if ta is None else function(ta, b), None if tb is None else function(a, tb)])


for _function in functions_named(*BILINEAR.split()):
    tangent(_function)(partial(_bilinear, _function))


@tangent("_grouped_mm", "grouped_mm")
def grouped_mm(y, mat_a, mat_b, offs=None, bias=None, out_dtype=None):
    """Grouped matmul of mixture-of-experts layers; torch supports no bias yet."""
    return _bilinear(partial(torch._grouped_mm, offs=offs, out_dtype=out_dtype), y, mat_a, mat_b)


@rule(Tensor.__rmatmul__)
def rmatmul(input, other):
    return torch.matmul(other, input)


@tangent("linear")
def linear(y, input, weight, bias=None):
    (x, tx), (w, tw), (_, tb) = parts(input), parts(weight), parts(bias)
    terms = [None if tx is None else F.linear(tx, w), None if tw is None else F.linear(x, tw), copied(tb)]
    return sum_terms(terms).expand(y.shape)


def _convolution(axes, function, y, input, weight, bias=None, *args):
    (x, tx), (w, tw), (_, tb) = parts(input), parts(weight), parts(bias)
    return sum_terms([
        None if tx is None else function(tx, w, None, *args),
        None if tw is None else function(x, tw, None, *args),
        None if tb is None else tb.reshape(-1, *[1] * axes).expand(y.shape).clone(),
    ])


for _name in CONVOLUTIONS.split():
    for _function in functions_named(_name):
        tangent(_function)(partial(_convolution, int(_name[-2]), _function))


@tangent("einsum")
def einsum(y, *args):
    """args: an equation and operands (or one list of them), or alternating operands and axis lists."""
    if isinstance(args[0], str) and len(args) == 2 and isinstance(args[1], list | tuple):
        args = args[0], *args[1]
    plain = primals(list(args))
    return sum_terms([torch.einsum(*plain[:i], t, *plain[i + 1:])
                  for i, (_, t) in enumerate(map(parts, args)) if t is not None])


def _with_addend(product, y, input, a, b, *, beta=1, alpha=1):
    t = parts(input)[1]
    run = _bilinear(product, y, a, b)
    return sum_terms([None if t is None else beta * t, None if run is None else alpha * run])


for _name, _product in dict(addmm=torch.mm, baddbmm=torch.bmm, addmv=torch.mv, addr=torch.outer).items():
    tangent(_name)(partial(_with_addend, _product))
