"""Type tests of a Dual under any Python from 3.11 on, with a stub in place of torch.

    python3.13 tests/type_test_cases.py         prints the wrong results; exit status 1 if any
"""

import builtins
import dis
import importlib.util
import sys
import types
from _abc import _abc_instancecheck
from abc import ABCMeta
from pathlib import Path


class Tensor:
    pass


class Parameter(Tensor):
    pass


class FloatTensor(metaclass=type("tensortype", (type,), {})):
    pass


Registered = ABCMeta("Registered", (), {})
Registered.register(Tensor)
torch = types.ModuleType("torch")
torch.Tensor, torch.Parameter, torch.FloatTensor = Tensor, Parameter, FloatTensor
torch.compiler = types.SimpleNamespace(is_compiling=lambda: False)
KINDS, ALIAS, TABLE = (int, Tensor), isinstance, {"kinds": [str, Tensor]}


def load() -> types.ModuleType:
    """Returns the module typetest, imported by this Python over the stub."""
    path = Path(__file__).parents[1] / "swiftvideo_fast" / "typetest.py"
    spec = importlib.util.spec_from_file_location("typetest_over_a_stub", path)
    module, real = importlib.util.module_from_spec(spec), sys.modules.get("torch")
    sys.modules["torch"] = torch
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["torch"]
        if real is not None:
            sys.modules["torch"] = real
    return module


typetest = load()


class Dual:
    __class__ = property(typetest.reported_class)

    def itself(self):
        return self


# --- type tests, each with its result --------------------------------------------------------------------


def tensor(x):                              # True
    return isinstance(x, torch.Tensor)


def negated(x):                             # False
    return not isinstance(x, torch.Tensor)


def in_a_tuple(x):                          # True
    return isinstance(x, (int, (list, torch.Tensor)))


def in_a_union(x):                          # True
    return isinstance(x, int | torch.Tensor)


def another(x):                             # False
    return isinstance(x, (int, torch.Parameter))


def by_global(x):                           # True
    return isinstance(x, KINDS)


def by_local(x):                            # True
    kind, other = torch.Tensor, x
    return isinstance(other, kind)


def by_cell(x):                             # True
    kind = torch.Tensor
    return isinstance(x, kind) and (lambda: isinstance(x, kind))()


def by_item(x):                             # True
    return isinstance(x, TABLE["kinds"][1])


def by_type(x):                             # False
    return isinstance(x, (type(None), type(KINDS)))


def of_an_expression(x):                    # True
    return isinstance([x.itself()][0], torch.Tensor)


def of_a_choice(x):                         # True
    return isinstance(x if x is not None else 3, torch.Tensor)


def of_nested_choices(x):                   # True
    return isinstance(((x if KINDS else 1) if x is not None else 2) if TABLE else 3, torch.Tensor)


def of_a_comprehension(x):                  # True
    return isinstance([z for z in [y for y in (x, x)]][0], torch.Tensor)            # noqa: C416


def in_a_comprehension(x):                  # 1
    return len([y for y in [x, 3] if isinstance(y, torch.Tensor)])


def in_a_chain(x):                          # 1
    return 1 if isinstance(x, torch.Tensor) and not isinstance(x, (list, torch.Parameter)) else 2


def by_another_name(x):                     # True
    return ALIAS(x, torch.Tensor) and builtins.isinstance(x, torch.Tensor)


def over_lines(x):                          # True
    return isinstance(
        x,
        (
            int,
            torch.Tensor,
        ),
    )


def by_pattern(x):                          # 2
    match x:
        case list():
            return 1
        case torch.Tensor():
            return 2
    return 3


def by_class(x):                            # True
    return x.__class__ is torch.Tensor and issubclass(x.__class__, torch.Tensor)


def after_an_error(x):                      # True
    try:
        raise KeyError if isinstance(x, torch.Tensor) else ValueError
    except KeyError:
        return isinstance(x, torch.Tensor)


def of_another_function(x):                 # False: the callee is not isinstance
    isinstance = _abc_instancecheck
    return isinstance(Registered, x)


# --- undecidable type tests: an error, never a wrong result -----------------------------------------------


def by_call(x):
    return isinstance(x, tuple([torch.Tensor]))


def starred(x):
    return isinstance(*(x, torch.Tensor))


def starred_with_keywords(x):
    ask = isinstance
    return ask(*(x, torch.Tensor), **{})


def legacy(x):
    return isinstance(x, torch.FloatTensor)


RESULTS = {tensor: True, negated: False, in_a_tuple: True, in_a_union: True, another: False,
           by_global: True, by_local: True, by_cell: True, by_item: True, by_type: False,
           of_an_expression: True, of_a_choice: True, of_nested_choices: True, of_a_comprehension: True,
           in_a_comprehension: 1, in_a_chain: 1, by_another_name: True, over_lines: True, by_pattern: 2,
           by_class: True, after_an_error: True, of_another_function: False}
REFUSED = (by_call, starred, starred_with_keywords, legacy)


def wrong(repeats: int = 60) -> list[str]:
    """Returns the wrong results, repeated until Python specializes the code, with and without positions."""
    x, found = Dual(), []
    for test, result in [*RESULTS.items(), *dict.fromkeys(REFUSED, TypeError).items()]:
        bare = types.FunctionType(test.__code__.replace(co_linetable=b""), globals())
        for name, function in ((test.__name__, test), (f"{test.__name__} without positions", bare)):
            got = {_result(function, x) for _ in range(repeats)}
            if got != {result}:
                found.append(f"{name}: {got}, want {result}")
    return found + _unknown_instructions(x)


def _result(function, x):
    try:
        return function(x)
    except TypeError:
        return TypeError


def _unknown_instructions(x) -> list[str]:
    """Replaces each instruction by an unknown one, as of a later Python: the result is True or an error."""
    real, found = dis.get_instructions, []
    for where in range(len([*real(tensor)])):
        function = types.FunctionType(tensor.__code__.replace(co_name=f"tensor{where}"), globals())
        typetest.dis = types.SimpleNamespace(**vars(dis) | {"get_instructions": lambda code: [
            at._replace(opname="LOAD_LATER") if i == where and at.opname.startswith("LOAD") else at  # noqa: B023
            for i, at in enumerate(real(code))]})
        if _result(function, x) not in (True, TypeError):
            found.append(f"instruction {where} unknown: {_result(function, x)}")
    function = types.FunctionType(tensor.__code__.replace(co_name="lost"), globals())
    typetest.dis = types.SimpleNamespace(**vars(dis) | {"stack_effect": lambda *args, jump: 0})
    if _result(function, x) is not TypeError:
        found.append(f"the stack unknown: {_result(function, x)}")
    typetest.dis = dis
    return found


if __name__ == "__main__":
    print("\n".join(failures := wrong()))
    raise SystemExit(len(failures) > 0)
