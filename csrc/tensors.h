// From torch's tensors to the kernels' pointers: dtype dispatch, layout, and work division over torch's threads.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <functional>
#include <optional>

#include "vec.h"

namespace swiftvideo {

using at::Tensor;
using Maybe = std::optional<Tensor>;

template <typename F> auto by_dtype(const char* op, at::ScalarType dtype, F f) {
  switch (dtype) {
    case at::kFloat: return f(float{});
    case at::kDouble: return f(double{});
    case at::kBFloat16: return f(bf16{});
    default:
      TORCH_CHECK_VALUE(false, op, ": the CPU has kernels for float32, bfloat16 and float64; got ", dtype);
  }
}
inline at::ScalarType wide(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// True if x has this dtype and needs no dispatcher: a CPU tensor, not a subclass, fake, lazy negative or inference
// tensor, and no active mode beyond autograd's bookkeeping.
inline bool plain(const Tensor& x, at::ScalarType dtype) {
  using K = at::DispatchKey;
  constexpr at::DispatchKeySet usual(
      {K::CPU, K::BackendSelect, K::ADInplaceOrView, K::AutogradCPU, K::AutocastCPU});
  const auto mode = c10::impl::tls_local_dispatch_key_set();
  return x.scalar_type() == dtype && !x.is_inference() &&
         usual.has_all((x.key_set() | mode.included_) - mode.excluded_);
}

template <typename T> T* data(const Tensor& x) { return static_cast<T*>(x.data_ptr()); }
template <typename T> T* data(const Maybe& x) { return x ? data<T>(*x) : nullptr; }

inline Tensor dense(const Tensor& x) { return x.contiguous(); }
inline Maybe dense(const Maybe& x) { return x ? Maybe(x->contiguous()) : x; }
inline Tensor widened(const Tensor& x, const Tensor& like) { return x.to(wide(like)).contiguous(); }
inline Maybe widened(const Maybe& x, const Tensor& like) { return x ? Maybe(widened(*x, like)) : x; }
inline Tensor output(const Tensor& x) { return at::empty(x.sizes(), x.options()); }

constexpr int64_t GRAIN = 1 << 14;  // least elements per thread
constexpr int64_t CACHE = 1 << 25;  // bytes; larger tensors may not stay in the last-level cache
inline void over(int64_t items, int64_t elements_each, const std::function<void(int64_t, int64_t)>& run) {
  at::parallel_for(0, items, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, elements_each)), run);
}
inline int64_t pieces(int64_t n, int64_t each) { return (n + each - 1) / each; }
inline bool nontemporal(const Tensor& plane, int64_t planes) {
  return planes * int64_t(plane.nbytes()) > CACHE;
}

}  // namespace swiftvideo
