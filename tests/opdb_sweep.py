"""PyTorch's own operator database through Dual, against torch's own forward mode.

    python tests/opdb_sweep.py                    every operator, function and method and in-place form, 4
    samples each,
                                                   with every tangent, the first alone, all but the first
    python tests/opdb_sweep.py --samples 100      more samples
    python tests/opdb_sweep.py softmax linalg     only operators whose name holds one of the words

Each sample ends as one of
    equal       value and tangent as torch.autograd.forward_ad gives them, in float64
    raised      NoTangent
    wrong       anything else: a differing value, a differing or missing tangent, another error
The exit status is 1 if one is wrong or fewer than 99 % are equal.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator
from types import MethodDescriptorType, WrapperDescriptorType

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map

from swiftvideo_fast import Dual, NoTangent
from swiftvideo_fast.dual import parts, smooth
from swiftvideo_fast.jvp import Forward

RANDOM_VALUES = {"empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty_permuted"}


def operators(words: list[str], dtype: torch.dtype = torch.float64) -> list:
    return [op for op in op_db
            if op.supports_forward_ad and dtype in op.dtypes and op.name not in RANDOM_VALUES
            and (not words or any(w in op.full_name for w in words))]


def forms(op) -> Iterator[tuple[str, object]]:
    """The function, and where the database knows them the method and the in-place method."""
    is_method = isinstance(op.op, MethodDescriptorType | WrapperDescriptorType)
    yield "", by_name(op.op.__name__) if is_method else op.op
    for form, variant in ((".method", op.method_variant), (".inplace", op.inplace_variant)):
        if variant is not None and (form == ".method" or op.supports_inplace_autograd):
            yield form, by_name(getattr(variant, "__name__", op.name))


def by_name(method: str):
    """x.method(...): Python itself refuses Tensor.method(x) for an x that is no Tensor."""
    return lambda x, *args, **kwargs: getattr(x, method)(*args, **kwargs)


def outcome(function, sample, tangents) -> str:
    inputs = (sample.input, sample.args, sample.kwargs)
    try:
        want = by_torch(function, inputs, iter(tangents))
    except Exception:
        return "skipped"                               # torch itself refuses
    try:
        got = by_dual(function, inputs, iter(tangents))
    except NoTangent:
        return "raised"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {str(error)[:200]}"
    return compare(got, want)


def by_torch(function, inputs, tangents):
    torch.manual_seed(0)
    with fwd.dual_level():
        x, args, kwargs = tree_map(lambda x: paired(x, tangents, fwd.make_dual), inputs)
        pairs = [fwd.unpack_dual(y) if isinstance(y, Tensor) else (y, None)
                 for y in tree_leaves(function(x, *args, **kwargs))]
        return [(p.clone() if isinstance(p, Tensor) else p, t) for p, t in pairs]


def by_dual(function, inputs, tangents):
    torch.manual_seed(0)
    with Forward() as forward:
        given = tree_map(lambda x: paired(x, tangents, Dual), inputs)
        shared = {memory(parts(x)[0]): memory(parts(x)[1]) for x in tree_leaves(given) if isinstance(x, Dual)}
        got = [parts(forward.dual(y)) for y in tree_leaves(function(given[0], *given[1], **given[2]))]
    for p, t in got:
        if t is not None and shared.get(memory(p)) != (memory(t) if memory(t) in shared.values() else None):
            raise AssertionError("the tangent shares memory where its primal does not, or the reverse")
    return got


def paired(x, tangents: Iterator[Tensor | None], pair):
    t = next(tangents) if smooth(x) else None
    if not isinstance(x, Tensor):
        return x
    return x.clone() if t is None else pair(x.clone(), t.clone())


def memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def compare(got: list, want: list) -> str:
    if len(got) != len(want):
        return f"wrong: {len(got)} results, want {len(want)}"
    for (p, t), (p_want, t_want) in zip(got, want, strict=True):
        if not isinstance(p_want, Tensor):
            if p != p_want:
                return "wrong: value"
            continue
        t = torch.zeros_like(p) if t is None else t
        t_want = torch.zeros_like(p_want) if t_want is None else t_want
        for name, a, b in (("value", p, p_want), ("tangent", t, t_want)):
            try:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)
            except AssertionError as error:
                return f"wrong: {name}: {' '.join(str(error).split())[:160]}"
    return "equal"


def sweep(ops, samples: int, dtype: torch.dtype = torch.float64) -> Iterator[tuple[str, str]]:
    """(operator and form, outcome) of up to `samples` samples of each operator in each form."""
    for op in ops:
        rng = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        for sample, _ in zip(op.sample_inputs("cpu", dtype), range(samples), strict=False):
            tensors = [x for x in tree_leaves((sample.input, sample.args, sample.kwargs)) if smooth(x)]
            tangents = [torch.randn(x.shape, dtype=x.dtype, generator=rng) for x in tensors]
            for given in missing(tangents):
                for form, function in forms(op):
                    yield op.full_name + form, outcome(function, sample, given)


def missing(tangents: list[Tensor]) -> list[list[Tensor | None]]:
    """All of them; and where there are several, the first alone and all but the first."""
    rest = [[tangents[0]] + [None] * len(tangents[1:]), [None, *tangents[1:]]] if len(tangents) > 1 else []
    return [tangents, *rest] if tangents else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--complex", action="store_true", help="complex128 in place of float64")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    dtype = torch.complex128 if arguments.complex else torch.float64
    counts = Counter()
    for name, result in sweep(operators(arguments.words, dtype), arguments.samples, dtype):
        kind = result.split(":")[0]
        counts[kind] += 1
        if kind in ("wrong", "raised"):
            print(f"{name:50} {result}")
    tried = sum(counts[kind] for kind in ("equal", "raised", "wrong"))
    print(f"{tried} samples: {counts['equal']} equal ({counts['equal'] / tried:.2%}), "
          f"{counts['raised']} raised, {counts['wrong']} wrong; "
          f"{counts['skipped']} that torch's own forward mode refuses")
    return int(counts["wrong"] > 0 or counts["equal"] < 0.99 * tried)


if __name__ == "__main__":
    raise SystemExit(main())
