// Vectors of the width that this translation unit's flags allow, in the compiler's vector types.  Intrinsics only
// where those do not suffice (streaming stores; 32 to 16 bits, for which GCC 12 emits permutes at half the speed).
//
// isa.cpp compiles every op once per instruction set (SV_ISA: baseline, avx2, avx512), each in its own namespace: a
// machine without AVX-512 never runs AVX-512 code.  For the same reason nothing here calls an inline function of
// the standard library: the linker keeps one copy, perhaps the AVX-512 one.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef SV_ISA
#define SV_ISA baseline
#endif
#define SV_INLINE inline __attribute__((always_inline))

namespace swiftvideo {

struct bf16 { uint16_t bits; };

template <typename T> struct WideOf { using type = float; };
template <> struct WideOf<double> { using type = double; };
template <typename T> using Wide = typename WideOf<T>::type;  // the arithmetic type for storage T

namespace SV_ISA {

#if defined(__AVX512F__)
constexpr int REGISTER = 64, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int REGISTER = 32, REGISTERS = 16;
#else
constexpr int REGISTER = 16, REGISTERS = 16;
#endif

template <typename A> struct Types;
template <> struct Types<float> {
  typedef float vec __attribute__((vector_size(REGISTER)));
  typedef uint32_t index, ints __attribute__((vector_size(REGISTER)));
  typedef float half __attribute__((vector_size(REGISTER / 2)));
  static constexpr int mantissa = 23, bias = 127, terms = 7;  // terms of exp's series: half an ulp of error
  static constexpr float log_min = -88.0f,
                         log_max = 88.8f;  // where exp's exponent reaches 0's and infinity's
};
template <> struct Types<double> {
  typedef double vec __attribute__((vector_size(REGISTER)));
  typedef uint64_t index, ints __attribute__((vector_size(REGISTER)));
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
  static constexpr double log_min = -709.0, log_max = 709.9;
};
template <typename A> using V = typename Types<A>::vec;
template <typename A> using Ints = typename Types<A>::ints;
template <typename A> using Index = typename Types<A>::index;
template <typename A> constexpr int LANES = REGISTER / sizeof(A);

// a - 0 is exactly a and compiles to a broadcast; 0 + a would be an addition, with -0 becoming 0.
template <typename A> SV_INLINE V<A> splat(A a) { return a - V<A>{}; }
template <typename A> SV_INLINE Ints<A> iota() {
  Ints<A> i;
  for (int lane = 0; lane < LANES<A>; ++lane) i[lane] = lane;
  return i;
}

// --- memory: storage T outside, Wide<T> in registers -------------------------------------------------------------

typedef uint16_t Halves __attribute__((vector_size(REGISTER / 2)));
typedef uint32_t Words __attribute__((vector_size(REGISTER)));

SV_INLINE float widen(float x) { return x; }
SV_INLINE double widen(double x) { return x; }
SV_INLINE float widen(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

SV_INLINE V<float> load(const float* p) {
  V<float> v;
  memcpy(&v, p, sizeof v);
  return v;
}
SV_INLINE V<double> load(const double* p) {
  V<double> v;
  memcpy(&v, p, sizeof v);
  return v;
}
SV_INLINE V<float> load(const bf16* p) {
  Halves h;
  memcpy(&h, p, sizeof h);
  return (V<float>)(__builtin_convertvector(h, Words) << 16);
}

// Rounds to the nearest bfloat16, ties to even, as float; NaN stays NaN.
SV_INLINE V<float> nearest_bf16(V<float> v) {
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  return v == v ? (V<float>)rounded : v;
}
SV_INLINE void store(float* p, V<float> v) { memcpy(p, &v, sizeof v); }
SV_INLINE void store(double* p, V<double> v) { memcpy(p, &v, sizeof v); }
SV_INLINE Halves upper_halves(V<float> v) {
  const Words words = (Words)v >> 16;
#if defined(__AVX512F__)
  return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)words);  // the unmasked one warns in GCC 12
#else
  return __builtin_convertvector(words, Halves);
#endif
}
SV_INLINE void store(bf16* p, V<float> v) {
  const Halves h = upper_halves(nearest_bf16(v));
  memcpy(p, &h, sizeof h);
}

// Non-temporal store, for data not read again soon; p is aligned to the value.  The last one needs a fence.
template <typename T, typename R> SV_INLINE void nontemporal(T* p, R v) {
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof v == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)v);
#endif
#if defined(__x86_64__)
  if constexpr (sizeof v == 16) return _mm_stream_si128((__m128i*)p, (__m128i)v);
#endif
  memcpy(p, &v, sizeof v);
}
SV_INLINE void stream(float* p, V<float> v) { nontemporal(p, v); }
SV_INLINE void stream(double* p, V<double> v) { nontemporal(p, v); }
SV_INLINE void stream(bf16* p, V<float> v) { nontemporal(p, upper_halves(nearest_bf16(v))); }

SV_INLINE void put(float* p, float x) { *p = x; }
SV_INLINE void put(double* p, double x) { *p = x; }
SV_INLINE void put(bf16* p, float x) {
  bf16 all[LANES<float>];
  store(all, splat(x));
  *p = all[0];
}

// Calls f(offset, All{}) for each full register of a row, and f(offset, Some{n}) for the n remaining lanes.
struct All {};
struct Some { int64_t n; };
constexpr bool full(All) { return true; }
constexpr bool full(Some) { return false; }
template <typename A, typename F> SV_INLINE void sweep(int64_t length, F f) {
  int64_t c = 0;
  for (; c + LANES<A> <= length; c += LANES<A>) f(c, All{});
  if (c < length) f(c, Some{length - c});
}
template <typename T> SV_INLINE V<Wide<T>> load(const T* p, All) { return load(p); }
template <typename T> SV_INLINE void store(T* p, V<Wide<T>> v, All) { store(p, v); }
template <typename T> SV_INLINE V<Wide<T>> load(const T* p, Some some) {
  T whole[LANES<Wide<T>>] = {};
  memcpy(whole, p, some.n * sizeof(T));
  return load(whole);
}
template <typename T> SV_INLINE void store(T* p, V<Wide<T>> v, Some some) {
  T whole[LANES<Wide<T>>];
  store(whole, v);
  memcpy(p, whole, some.n * sizeof(T));
}

// An output tensor of rows.  Uses non-temporal stores if larger than the caches: a normal store would first read
// the line that it replaces.  Remaining lanes, and tensors not aligned to a register, use normal stores.
template <typename T> struct Plane {
  T* data;
  bool streams;
  Plane(T* data, int64_t row, bool nontemporal)
      : data(data), streams(nontemporal && !((uintptr_t)data % REGISTER) && !(row * sizeof(T) % REGISTER)) {}
  ~Plane() {
#if defined(__x86_64__)
    if (streams) _mm_sfence();
#endif
  }
  Plane(const Plane&) = delete;
  template <typename N> SV_INLINE void put(int64_t at, V<Wide<T>> v, N n) const {
    if (streams && full(n))
      stream(data + at, v);
    else
      store(data + at, v, n);
  }
};
// A null tangent is zero.
template <typename T, typename N> SV_INLINE V<Wide<T>> load_or_zero(const T* p, int64_t at, N n) {
  return p ? load(p + at, n) : V<Wide<T>>{};
}
template <typename A> SV_INLINE V<A> keep(V<A> v, All) { return v; }
template <typename A> SV_INLINE V<A> keep(V<A> v, Some some) {
  return iota<A>() < Index<A>(some.n) ? v : V<A>{};
}

// Scratch memory, aligned to 64 bytes.
template <typename A> struct Scratch {
  A* data;
  explicit Scratch(int64_t n) : data(static_cast<A*>(aligned_alloc(64, (n * sizeof(A) + 63) / 64 * 64))) {}
  ~Scratch() { free(data); }
  Scratch(const Scratch&) = delete;
};

// --- arithmetic --------------------------------------------------------------------------------------------------

// The sum over all lanes, by a tree.
template <typename A> SV_INLINE A sum_lanes(V<A> v) {
#pragma GCC unroll 4
  for (int step = LANES<A> / 2; step > 0; step /= 2) v += __builtin_shuffle(v, iota<A>() ^ Index<A>(step));
  return v[0];
}

// Transposes a square of registers: each step swaps the off-diagonal corners of every pair of sub-squares.
template <typename A> SV_INLINE void transpose(V<A> (&rows)[LANES<A>]) {
#pragma GCC unroll 4
  for (int step = 1; step < LANES<A>; step *= 2) {
    const Ints<A> lane = iota<A>(), right = lane & Index<A>(step);
    const Ints<A> left_of = lane + (right ? Ints<A>{} + Index<A>(LANES<A> - step) : Ints<A>{});
    const Ints<A> right_of = lane + (right ? Ints<A>{} + Index<A>(LANES<A>) : Ints<A>{} + Index<A>(step));
#pragma GCC unroll 16
    for (int row = 0; row < LANES<A>; ++row)
      if (!(row & step)) {
        const V<A> upper = rows[row], lower = rows[row + step];
        rows[row] = __builtin_shuffle(upper, lower, left_of);
        rows[row + step] = __builtin_shuffle(upper, lower, right_of);
      }
  }
}

// Sums over a row: each lane adds RUN registers in A, then adds that to a double.  A float sum over 1536 channels
// alone errs more than torch's whole op; converting every register would cost more than the rest of the row.
constexpr int64_t RUN = 16;
template <typename A> struct Sum {
  V<A> run{};
  V<double> all{};
  SV_INLINE void add(V<A> v) { run += v; }
  SV_INLINE void join() {
    if constexpr (sizeof(A) == sizeof(double)) {
      all += run;
    } else {
      Types<float>::half parts[2];
      memcpy(parts, &run, sizeof run);
      all += __builtin_convertvector(parts[0], V<double>) + __builtin_convertvector(parts[1], V<double>);
    }
    run = V<A>{};
  }
  SV_INLINE double total() const { return sum_lanes<double>(all); }
};
template <typename A, typename F, typename... Sums> SV_INLINE void sum_over(int64_t length, F f,
                                                                            Sums&... sums) {
  for (int64_t first = 0; first < length; first += RUN * LANES<A>) {
    const int64_t rest = length - first, some = RUN * LANES<A>;
    sweep<A>(rest < some ? rest : some, [&](int64_t c, auto n) { f(first + c, n); });
    (sums.join(), ...);
  }
}

struct InverseFactorials {
  double of[14] = {1};
  constexpr InverseFactorials() {
    for (int k = 1; k < 14; ++k) of[k] = of[k - 1] / k;
  }
};
constexpr InverseFactorials INVERSE_FACTORIAL;

// exp to about an ulp: x = n log 2 + y with |y| <= log 2 / 2, Taylor in y, times 2^n.
template <typename A> SV_INLINE V<A> exp(V<A> x) {
  using C = Types<A>;
  constexpr A magic = A(3ull << (C::mantissa - 1));  // adding it rounds to an integer, in the low bits
  constexpr A log2_high = A(0.693359375), log2_low = A(-2.12194440054690583e-4);
  const V<A> low = splat<A>(C::log_min), top = splat<A>(C::log_max);
  const V<A> above = low > x ? low : x, inside = top < above ? top : above;  // this order keeps NaN
  const V<A> shifted = inside * A(1.44269504088896340736) + magic;
  const V<A> n = shifted - magic;
  const V<A> y = (inside - n * log2_high) - n * log2_low;
  V<A> series = splat<A>(A(INVERSE_FACTORIAL.of[C::terms]));
#pragma GCC unroll 16
  for (int k = C::terms - 1; k >= 0; --k) series = series * y + A(INVERSE_FACTORIAL.of[k]);
  const V<A> power = (V<A>)(((Ints<A>)shifted + Index<A>(C::bias)) << C::mantissa);
  return series * power;
}

}  // namespace SV_ISA
}  // namespace swiftvideo
