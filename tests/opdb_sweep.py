"""jvp of every operator of PyTorch's OpInfo database, in every call form, against torch's forward mode.

    python tests/opdb_sweep.py                    every operator in every form, 2 samples each
    python tests/opdb_sweep.py --samples 100      more samples
    python tests/opdb_sweep.py softmax linalg     only operators whose name holds one of the words
    python tests/opdb_sweep.py --forms keyword slice
    python tests/opdb_sweep.py --compiled         under torch.compile as well (backend eager): an hour
    python tests/opdb_sweep.py --slice 3/12       one of twelve parts: under torch.compile a process each
    python tests/opdb_sweep.py --programs 3000    random programs of views and writes instead (programs.py)

Forms: as in the database, as a method, in place; by keyword, by keyword in reversed order, with numpy's
names; on slices, transposes and expanded inputs; in bfloat16 and under autocast, where the error against
float64 may be twice torch's.  With several tensors also with only the first tangent, and without it.  Outcome
of a sample:
    right       value and tangent equal torch.autograd.forward_ad's
    refused     NoTangent
    wrong       anything else: a differing value, a differing or missing tangent, another error
The exit status is 1 if one is wrong or fewer than 98 % are right.
"""

import argparse
import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import MethodDescriptorType, WrapperDescriptorType

import programs
import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from swiftvideo_fast import Dual, NoTangent, binding, jvp
from swiftvideo_fast.dual import is_differentiable, parts
from swiftvideo_fast.jvp import ForwardMode
from swiftvideo_fast.layout import copy_as

RANDOM_VALUES = {"empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty_permuted"}
ALIASES = {"dim": "axis", "keepdim": "keepdims", "input": "x", "other": "x2"}
CALLS = ("plain", "method", "in place", "keyword", "reversed", "numpy")
LAYOUTS = ("slice", "transpose", "expanded")
PRECISIONS = ("bfloat16", "autocast")
FORMS = CALLS + LAYOUTS + PRECISIONS
LOW = torch.bfloat16
TORCHS_OWN = {("native_group_norm", "expanded")}                # reads a weight past its end


def operators(words: list[str], dtype: torch.dtype = torch.float64) -> list:
    return [op for op in op_db
            if op.supports_forward_ad and dtype in op.dtypes and op.name not in RANDOM_VALUES
            and (not words or any(w in op.full_name for w in words))]


# --- calls -----------------------------------------------------------------------------------------------


def called(op, form: str) -> Callable | None:
    """fn(x, *args, **kwargs) that calls the operator in this form; None where it has none."""
    is_method = isinstance(op.op, MethodDescriptorType | WrapperDescriptorType)
    if form == "method":
        return op.method_variant and by_name(getattr(op.method_variant, "__name__", op.name))
    if form == "in place":
        return (op.inplace_variant if op.supports_inplace_autograd else None) and \
            by_name(getattr(op.inplace_variant, "__name__", op.name))
    plain = by_name(op.op.__name__) if is_method else op.op
    if form in ("keyword", "reversed", "numpy"):
        named = not is_method and getattr(op.op, "__name__", "__")
        return None if not named or named.startswith("__") else by_keyword(op.op, form)
    return plain


def by_name(method: str) -> Callable:
    """x.method(...): Python itself refuses Tensor.method(x) for an x that is no Tensor."""
    return lambda x, *args, **kwargs: getattr(x, method)(*args, **kwargs)


def by_keyword(function: Callable, form: str) -> Callable | None:
    binding.load_signatures(function)
    signatures = binding.SIGNATURES[function]

    def call(*args, **kwargs):
        for names, _, _ in signatures:
            if len(args) <= len(names):
                named = dict(zip(names, args)) | kwargs
                if form == "numpy":
                    named = {ALIASES.get(name, name): value for name, value in named.items()}
                if form == "reversed":
                    named = dict(reversed(named.items()))
                try:
                    return function(**named)
                except TypeError as error:
                    last = error
        raise Unfit from last
    return call if signatures else None


class Unfit(Exception):
    """The call has no such form."""


def relaid(x: Tensor, form: str) -> Tensor:
    """x in new memory, laid out as the form says."""
    if x.dim() and x.numel() and x.layout is torch.strided:
        if form == "slice":
            gapped = torch.zeros(*x.shape[:-1], x.shape[-1] + 3, dtype=x.dtype)
            gapped[..., 1:-2] = x
            return gapped[..., 1:-2]
        if form == "transpose":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if form == "expanded":
            return x[:1].clone().expand(x.shape)
    return x.clone()


# --- one sample ------------------------------------------------------------------------------------------


def outcome(function: Callable, sample, tangents, form: str) -> str:
    inputs = (sample.input, sample.args, sample.kwargs)
    low = form in PRECISIONS
    context = torch.autocast("cpu", LOW) if form == "autocast" else nullcontext()
    cast = {"bfloat16": LOW, "autocast": torch.float32}.get(form)
    if low:
        inputs, tangents = narrowed((inputs, tangents), cast)
    try:
        with context:
            want = by_torch(function, inputs, iter(tangents), form)
        exact = by_torch(function, *(narrowed(x, torch.float64) for x in (inputs, iter(tangents))),
            form) if low else None
    except Exception:
        return "skipped"                               # torch itself refuses
    try:
        with context:
            got = by_dual(function, inputs, iter(tangents), form)
    except NoTangent:
        return "refused"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {str(error)[:200]}"
    if not low:
        return same(got, want)
    found = close(got, want, exact)
    if found != "right":                               # torch.func.jvp's own formulas can err more
        with context:
            found = close(got, by_func(function, inputs, iter(tangents), form), exact)
    return found


def narrowed(tree, dtype: torch.dtype):
    if isinstance(tree, Iterator):
        return iter([narrowed(x, dtype) for x in tree])
    return tree_map(lambda x: x.to(dtype) if is_differentiable(x)
                    else dtype if x in (torch.float64, LOW) else x, tree)


def by_torch(function, inputs, tangents, form):
    torch.manual_seed(0)
    with fwd.dual_level():
        x, args, kwargs = tree_map(lambda x: paired(x, tangents, fwd.make_dual, form), inputs)
        pairs = [fwd.unpack_dual(y) if isinstance(y, Tensor) else (y, None)
                 for y in tree_leaves(function(x, *args, **kwargs))]
        return [(p.clone() if isinstance(p, Tensor) else p, t) for p, t in pairs]


def by_func(function, inputs, tangents, form):
    """By torch.func.jvp, where all results are tensors."""
    leaves, spec = tree_flatten(inputs)
    given = {i: t for i, x in enumerate(leaves) if is_differentiable(x) and (t := next(tangents)) is not None}

    def call(*values):
        filled = list(leaves)
        for i, value in zip(given, values, strict=True):
            filled[i] = value
        x, args, kwargs = tree_unflatten(filled, spec)
        return tree_leaves(function(x, *args, **kwargs))
    torch.manual_seed(0)
    ys, ts = torch.func.jvp(call, tuple(relaid(leaves[i], form) for i in given), tuple(given.values()))
    return list(zip(ys, ts, strict=True))


def by_dual(function, inputs, tangents, form):
    torch.manual_seed(0)
    with ForwardMode() as forward:
        given = tree_map(lambda x: paired(x, tangents, lambda p, t: Dual(p, copy_as(t, p)), form), inputs)
        shared = {memory(parts(x)[0]): memory(parts(x)[1]) for x in tree_leaves(given) if isinstance(x, Dual)}
        got = [parts(forward.dual(y)) for y in tree_leaves(function(given[0], *given[1], **given[2]))]
    for p, t in got:
        if t is not None and shared.get(memory(p)) != (memory(t) if memory(t) in shared.values() else None):
            raise AssertionError("the tangent shares memory where its primal does not, or the reverse")
    return got


def paired(x, tangents: Iterator[Tensor | None], pair, form: str):
    t = next(tangents) if is_differentiable(x) else None
    if not isinstance(x, Tensor):
        return x
    return relaid(x, form) if t is None else pair(relaid(x, form), t.clone())


def memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def same(got: list, want: list) -> str:
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
    return "right"


def close(got: list, want: list, exact: list) -> str:
    """The tangent errs at most twice as much as torch's, plus two ulps of the largest value."""
    for (p, t), (p_want, t_want), (_, t_exact) in zip(got, want, exact, strict=True):
        if not isinstance(p_want, Tensor) or not is_differentiable(p_want):
            continue
        if p.dtype != p_want.dtype:
            return f"wrong: dtype {p.dtype}, want {p_want.dtype}"
        t, t_want, t_exact = (torch.zeros(p.shape, dtype=torch.float64) if x is None else x.double()
                              for x in (t, t_want, t_exact))
        if t_exact.shape != t.shape or not t.numel() or not (t_exact + t_want).isfinite().all():
            continue
        ulp = torch.finfo(LOW).eps * t_exact.abs().max()
        if not (t - t_exact).abs().max() <= 2 * (t_want - t_exact).abs().max() + 2 * ulp:
            return (f"wrong: tangent errs by {(t - t_exact).abs().max():.1e}, torch's by "
                    f"{(t_want - t_exact).abs().max():.1e} of {t_exact.abs().max():.1e}")
    return "right"


def compiled(function: Callable, sample, tangents) -> str:
    """jvp of the call under torch.compile, backend eager, against jvp."""
    leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
    moving = [i for i, x in enumerate(leaves) if is_differentiable(x)]

    def call(*values):
        filled = list(leaves)
        for i, value in zip(moving, values):
            filled[i] = value
        x, args, kwargs = tree_unflatten(filled, spec)
        return [y for y in tree_leaves(function(x, *args, **kwargs)) if isinstance(y, Tensor)]
    run = lambda *pair: jvp(call, *pair)                                                   # noqa: E731
    primals = lambda: tuple(leaves[i].clone() for i in moving)                             # noqa: E731
    torch._dynamo.reset()
    try:
        torch.manual_seed(0)
        want = run(primals(), tuple(tangents))
    except Exception:
        return "skipped"
    try:
        torch.manual_seed(0)
        got = torch.compile(run, backend="eager")(primals(), tuple(tangents))
    except Exception as error:                         # usually Dynamo's own error: no result
        got, refusal = None, f"refused: {type(error).__name__}"
    if got is None:
        gc.collect()                                   # freeing the error may do harm
    if dispatch_keys() != UNHARMED:
        return "wrong: torch's dispatch keys changed"
    if got is None:
        return refusal
    try:
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, equal_nan=True)
    except AssertionError as error:
        return f"wrong: {' '.join(str(error).split())[:160]}"
    return "right"


def dispatch_keys() -> tuple[str, str]:
    return str(torch._C._dispatch_tls_local_exclude_set()), str(torch._C._dispatch_tls_local_include_set())


UNHARMED = dispatch_keys()

# --- all of them -----------------------------------------------------------------------------------------


def sweep(ops, samples: int, forms=FORMS, dtype=torch.float64) -> Iterator[tuple[str, str, str]]:
    """(operator, form, outcome) of up to `samples` samples of each; forms: names, or a choice by operator."""
    for op in ops:
        rng = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        for form in forms(op) if callable(forms) else forms:
            if form in PRECISIONS and LOW not in op.dtypes or (op.name, form) in TORCHS_OWN \
                    or (function := called(op, form)) is None:
                continue
            for sample, _ in zip(op.sample_inputs("cpu", dtype), range(samples), strict=False):
                tensors = [x for x in tree_leaves((sample.input, sample.args, sample.kwargs))
                           if is_differentiable(x)]
                tangents = [torch.randn(x.shape, dtype=x.dtype, generator=rng) for x in tensors]
                for given in missing(tangents):
                    if form == "compiled":
                        yield op.full_name, form, compiled(function, sample, given)
                    else:
                        yield op.full_name, form, outcome(function, sample, given, form)


def missing(tangents: list[Tensor]) -> list[list[Tensor | None]]:
    """All of them; and where there are several, the first alone and all but the first."""
    rest = [[tangents[0]] + [None] * len(tangents[1:]), [None, *tangents[1:]]] if len(tangents) > 1 else []
    return [tangents, *rest] if tangents else []


def tally(results) -> tuple[Counter, list[str]]:
    """Counts by kind and by (form, kind), and the names of what was refused or wrong."""
    counts, told = Counter(), []
    for name, form, result in results:
        kind = result.split(":")[0]
        counts[kind] += 1
        counts[form, kind] += 1
        if kind in ("wrong", "refused"):
            told.append(f"{name:45} {form:10} {result}")
    return counts, told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=[*FORMS, "compiled"])
    parser.add_argument("--compiled", action="store_true", help="under torch.compile as well")
    parser.add_argument("--slice", default="0/1", metavar="I/N", help="the I-th of N parts of the operators")
    parser.add_argument("--complex", action="store_true", help="complex128 in place of float64")
    parser.add_argument("--programs", type=int, help="so many random programs of views and writes instead")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.programs:
        results = programs.run(arguments.programs)
    else:
        dtype = torch.complex128 if arguments.complex else torch.float64
        forms = [*arguments.forms, *["compiled"] * arguments.compiled]
        part, parts_in_all = map(int, arguments.slice.split("/"))
        chosen = list(operators(arguments.words, dtype))[part::parts_in_all]
        results = sweep(chosen, arguments.samples, forms, dtype)
    counts, told = tally(results)
    print("\n".join(sorted(set(told))))
    print(f"{'':12}{'right':>8}{'refused':>9}{'wrong':>7}{'not torch':>11}")
    for form in dict.fromkeys(key[0] for key in counts if isinstance(key, tuple)):
        print(f"{form:12}" + "".join(f"{counts[form, kind]:>{width}}" for kind, width in
                                     (("right", 8), ("refused", 9), ("wrong", 7), ("skipped", 11))))
    tried = sum(counts[kind] for kind in ("right", "refused", "wrong"))
    print(f"{tried} samples: {counts['right']} right ({counts['right'] / tried:.2%}), "
          f"{counts['refused']} refused, {counts['wrong']} wrong; "
          f"{counts['skipped']} that torch's own forward mode refuses")
    return int(counts["wrong"] > 0 or counts["right"] < 0.98 * tried)


if __name__ == "__main__":
    raise SystemExit(main())
