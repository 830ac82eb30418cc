"""Functions without a derivative or with derivative zero: evaluated on primals, returning plain values.

Reading a number or an address of a Dual (item, float, numpy, data_ptr) would lose its tangent: NoTangent.
"""

from functools import partial

from swiftvideo_fast.dispatch import functions_named, rule
from swiftvideo_fast.dual import Dual, NoTangent, is_differentiable, primals
from swiftvideo_fast.protocol import ATTRIBUTES

NON_DIFFERENTIABLE = """
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ eq ne lt le gt ge not_equal less less_equal greater
    greater_equal equal __bool__ __len__ __contains__ __invert__ __and__ __or__ __xor__ logical_and logical_or
    logical_xor logical_not isnan isinf isfinite isposinf isneginf isclose allclose isreal isin signbit any
    all is_nonzero count_nonzero argmax argmin argsort searchsorted bucketize nonzero argwhere size dim
    ndimension numel nelement stride storage_offset is_contiguous is_floating_point is_complex is_signed
    is_pinned is_shared is_same_size is_set_to is_inference is_conj is_neg is_sparse get_device element_size
    dim_order can_cast result_type detach floor ceil round trunc fix sign
    floor_divide __floordiv__ __rfloordiv__ rand_like randn_like randint_like new_tensor bernoulli multinomial
    one_hot int long short char byte bool is_cuda register_hook retain_grad backward
    register_post_accumulate_grad_hook
"""

VALUE_READS = """
    item tolist numpy __float__ __int__ __index__ __complex__ __array__ __dlpack__ data_ptr const_data_ptr
    untyped_storage storage _typed_storage
"""
BUFFERS = "empty_like zeros_like ones_like full_like new_empty new_zeros new_ones new_full new_empty_strided"


def _on_primals(function, *args, **kwargs):
    return function(*primals(args), **primals(kwargs))


def _refuse(function, x, *args, **kwargs):
    if x.tangent is not None and is_differentiable(x.p):
        raise _tangent_lost(function.__name__)
    return function(x.p, *primals(args), **kwargs)


def _tangent_lost(name: str) -> NoTangent:
    return NoTangent(f"Tensor.{name}: the tangent of a Dual would be lost; "
                     "call x.detach() first if that is intended")


def _cuda_array_interface(x: Dual):
    """Returns the interface by which raw kernels read an address; raises NoTangent with a tangent."""
    if x.tangent is not None:
        raise _tangent_lost("__cuda_array_interface__")
    return x.p.__cuda_array_interface__


def _buffer(function, *args, **kwargs):
    """Returns empty_like, zeros_like, ... of a Dual as a Dual: a later write may give it a tangent."""
    made = _on_primals(function, *args, **kwargs)
    return Dual(made, None) if is_differentiable(made) else made


for _function in functions_named(*NON_DIFFERENTIABLE.split()):
    rule(_function)(partial(_on_primals, _function))
for _function in functions_named(*VALUE_READS.split()):
    rule(_function)(partial(_refuse, _function))
for _function in functions_named(*BUFFERS.split()):
    rule(_function)(partial(_buffer, _function))
ATTRIBUTES["__cuda_array_interface__"] = _cuda_array_interface
