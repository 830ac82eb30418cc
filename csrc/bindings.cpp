// Python bindings of the ops: allocate outputs, fill a kernel's arguments by name, run it over torch's threads.
// swiftvideo_fast.ops checks the arguments.
#include <torch/extension.h>

#include "dispatch.h"
#include "tensors.h"

namespace {

using namespace swiftvideo;

template <typename T> Strided<T> strided(const Maybe& x) {
  if (!x) return {};
  return {data<const T>(*x), x->stride(0), x->stride(1), x->stride(2)};
}
Maybe unit_stride(const Maybe& x) {
  return !x || x->size(3) == 1 || x->stride(3) == 1 ? x : Maybe(x->contiguous());
}

std::tuple<Tensor, Maybe, Tensor> attend(Maybe q, Maybe tq, Maybe k, Maybe tk, Maybe v, Maybe tv,
                                         double scale, bool causal, bool tangent) {
  for (Maybe* x : {&q, &tq, &k, &tk, &v, &tv}) *x = unit_stride(*x);
  const int64_t B = q->size(0), H = q->size(1), N = q->size(2), D = q->size(3);
  const Tensor o = at::empty({B, N, H, D}, q->options());
  const Tensor lse = at::empty({B, H, N}, q->options().dtype(wide(*q)));
  const Maybe to = tangent ? Maybe(at::empty_like(o)) : std::nullopt;
  by_dtype("attention", q->scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Attention<T> a{.q = strided<T>(q),
                         .tq = strided<T>(tq),
                         .k = strided<T>(k),
                         .tk = strided<T>(tk),
                         .v = strided<T>(v),
                         .tv = strided<T>(tv),
                         .o = data<T>(o),
                         .to = data<T>(to),
                         .lse = data<Wide<T>>(lse),
                         .B = B,
                         .H = H,
                         .G = k->size(1),
                         .N = N,
                         .M = k->size(2),
                         .D = D,
                         .scale = scale,
                         .causal = causal};
    int64_t next = 0;
    const int64_t tasks = B * H * pieces(N, QUERIES);
    at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1,
                     [&](int64_t, int64_t) { kernels<T>().attention(a, &next, tasks); });
  });
  return {o.transpose(1, 2), to ? Maybe(to->transpose(1, 2)) : to, lse};
}
auto attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, bool causal) {
  auto [o, _, lse] = attend(q, {}, k, {}, v, {}, scale, causal, false);
  return std::make_tuple(o, lse);
}
auto attention_jvp(const Tensor& q, const Maybe& tq, const Tensor& k, const Maybe& tk, const Tensor& v,
                   const Maybe& tv, double scale, bool causal) {
  auto [o, to, lse] = attend(q, tq, k, tk, v, tv, scale, causal, true);
  return std::make_tuple(o, *to, lse);
}

std::tuple<Tensor, Maybe> modulated(Tensor x, Maybe tx, Tensor s, Maybe ts, Tensor b, Maybe tb, double eps,
                                    bool tangent) {
  x = dense(x), tx = dense(tx);
  s = widened(s, x), ts = widened(ts, x), b = widened(b, x), tb = widened(tb, x);
  const Tensor y = output(x);
  const Maybe ty = tangent ? Maybe(output(x)) : std::nullopt;
  const int64_t N = x.size(1), C = x.size(2);
  by_dtype("modulate", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    const Modulate<T> a{.x = data<T>(x),
                        .tx = data<T>(tx),
                        .s = data<A>(s),
                        .ts = data<A>(ts),
                        .b = data<A>(b),
                        .tb = data<A>(tb),
                        .y = data<T>(y),
                        .ty = data<T>(ty),
                        .N = N,
                        .C = C,
                        .eps = eps,
                        .nontemporal = nontemporal(x, tx ? 4 : 2)};
    over(x.size(0) * N, C, [&](int64_t begin, int64_t end) { kernels<T>().modulate(a, begin, end); });
  });
  return {y, ty};
}
Tensor modulate(const Tensor& x, const Tensor& s, const Tensor& b, double eps) {
  return std::get<0>(modulated(x, {}, s, {}, b, {}, eps, false));
}
auto modulate_jvp(const Tensor& x, const Maybe& tx, const Tensor& s, const Maybe& ts, const Tensor& b,
                  const Maybe& tb, double eps) {
  auto [y, ty] = modulated(x, tx, s, ts, b, tb, eps, true);
  return std::make_tuple(y, *ty);
}
std::tuple<Tensor, Tensor, Tensor> modulate_backward(Tensor dy, Tensor x, const Tensor& s, double eps) {
  dy = dense(dy), x = dense(x);
  const Tensor gain = widened(s, x), dx = output(x);
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2), chunks = pieces(N, CHUNK_ROWS);
  const Tensor ds = at::empty({B, chunks, C}, gain.options()), db = at::empty_like(ds);
  by_dtype("modulate", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    const ModulateBackward<T> a{.dy = data<T>(dy),
                                .x = data<T>(x),
                                .s = data<A>(gain),
                                .dx = data<T>(dx),
                                .ds = data<A>(ds),
                                .db = data<A>(db),
                                .N = N,
                                .C = C,
                                .chunks = chunks,
                                .eps = eps};
    over(B * chunks, std::min(N, CHUNK_ROWS) * C,
         [&](int64_t begin, int64_t end) { kernels<T>().modulate_backward(a, begin, end); });
  });
  return {dx, ds.sum(1).to(s.scalar_type()), db.sum(1).to(s.scalar_type())};
}

std::tuple<Tensor, Maybe> norm_roped(Tensor x, Maybe tx, Tensor w, Maybe cos, Maybe sin, double eps) {
  x = dense(x), tx = dense(tx), w = widened(w, x), cos = widened(cos, x), sin = widened(sin, x);
  const Tensor y = output(x);
  const Maybe ty = tx ? Maybe(output(x)) : std::nullopt;
  const int64_t N = x.size(1), C = x.size(2), D = cos ? 2 * cos->size(1) : 2;
  by_dtype("norm_rope", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    const NormRope<T> a{.x = data<T>(x),
                        .tx = data<T>(tx),
                        .w = data<A>(w),
                        .cos = data<A>(cos),
                        .sin = data<A>(sin),
                        .y = data<T>(y),
                        .ty = data<T>(ty),
                        .N = N,
                        .C = C,
                        .D = D,
                        .eps = eps,
                        .nontemporal = nontemporal(x, tx ? 4 : 2)};
    over(x.size(0) * N, C, [&](int64_t begin, int64_t end) { kernels<T>().norm_rope(a, begin, end); });
  });
  return {y, ty};
}
Tensor norm_rope(const Tensor& x, const Tensor& w, const Maybe& cos, const Maybe& sin, double eps) {
  return std::get<0>(norm_roped(x, {}, w, cos, sin, eps));
}
auto norm_rope_jvp(const Tensor& x, const Tensor& tx, const Tensor& w, const Maybe& cos, const Maybe& sin,
                   double eps) {
  auto [y, ty] = norm_roped(x, tx, w, cos, sin, eps);
  return std::make_tuple(y, *ty);
}
std::tuple<Tensor, Tensor> norm_rope_backward(Tensor dy, Tensor x, const Tensor& w, Maybe cos, Maybe sin,
                                              double eps) {
  dy = dense(dy), x = dense(x), cos = widened(cos, x), sin = widened(sin, x);
  const Tensor gain = widened(w, x), dx = output(x);
  const int64_t N = x.size(1), C = x.size(2), D = cos ? 2 * cos->size(1) : 2, rows = x.size(0) * N;
  const Tensor dw = at::empty({pieces(rows, CHUNK_ROWS), C}, gain.options());
  by_dtype("norm_rope", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    const NormRopeBackward<T> a{.dy = data<T>(dy),
                                .x = data<T>(x),
                                .w = data<A>(gain),
                                .cos = data<A>(cos),
                                .sin = data<A>(sin),
                                .dx = data<T>(dx),
                                .dw = data<A>(dw),
                                .rows = rows,
                                .N = N,
                                .C = C,
                                .D = D,
                                .eps = eps};
    over(dw.size(0), CHUNK_ROWS * C,
         [&](int64_t begin, int64_t end) { kernels<T>().norm_rope_backward(a, begin, end); });
  });
  return {dx, dw.sum(0).to(w.scalar_type())};
}

std::tuple<Tensor, Maybe> gated(Tensor x, Maybe tx, Tensor y, Maybe ty, Tensor g, Maybe tg, bool tangent) {
  x = dense(x), tx = dense(tx), y = dense(y), ty = dense(ty), g = widened(g, x), tg = widened(tg, x);
  const Tensor z = output(x);
  const Maybe tz = tangent ? Maybe(output(x)) : std::nullopt;
  const int64_t N = x.size(1), C = x.size(2);
  by_dtype("gate", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    const Gate<T> a{.x = data<T>(x),
                    .tx = data<T>(tx),
                    .y = data<T>(y),
                    .ty = data<T>(ty),
                    .g = data<A>(g),
                    .tg = data<A>(tg),
                    .z = data<T>(z),
                    .tz = data<T>(tz),
                    .N = N,
                    .C = C,
                    .nontemporal = nontemporal(x, tangent ? 6 : 3)};
    over(x.size(0) * N, C, [&](int64_t begin, int64_t end) { kernels<T>().gate(a, begin, end); });
  });
  return {z, tz};
}
Tensor gate(const Tensor& x, const Tensor& y, const Tensor& g) {
  return std::get<0>(gated(x, {}, y, {}, g, {}, false));
}
auto gate_jvp(const Tensor& x, const Maybe& tx, const Tensor& y, const Maybe& ty, const Tensor& g,
              const Maybe& tg) {
  auto [z, tz] = gated(x, tx, y, ty, g, tg, true);
  return std::make_tuple(z, *tz);
}
std::tuple<Tensor, Tensor> gate_backward(Tensor dz, Tensor y, const Tensor& g) {
  dz = dense(dz), y = dense(y);
  const Tensor gain = widened(g, y), dy = output(y);
  const int64_t B = y.size(0), N = y.size(1), C = y.size(2), chunks = pieces(N, CHUNK_ROWS);
  const Tensor dg = at::empty({B, chunks, C}, gain.options());
  by_dtype("gate", y.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    const GateBackward<T> a{.dz = data<T>(dz),
                            .y = data<T>(y),
                            .g = data<A>(gain),
                            .dy = data<T>(dy),
                            .dg = data<A>(dg),
                            .N = N,
                            .C = C,
                            .chunks = chunks};
    over(B * chunks, std::min(N, CHUNK_ROWS) * C,
         [&](int64_t begin, int64_t end) { kernels<T>().gate_backward(a, begin, end); });
  });
  return {dy, dg.sum(1).to(g.scalar_type())};
}

void gelu_of(const Tensor& x, const Maybe& tx, const Maybe& y, const Maybe& ty) {
  by_dtype("gelu", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Gelu<T> a{.x = data<T>(x),
                    .tx = data<T>(tx),
                    .y = data<T>(y),
                    .ty = data<T>(ty),
                    .nontemporal = nontemporal(x, tx ? 4 : 2)};
    const int64_t size = x.numel();
    over(pieces(size, GRAIN), GRAIN, [&](int64_t begin, int64_t end) {
      kernels<T>().gelu(a, begin * GRAIN, std::min(size, end * GRAIN));
    });
  });
}
Tensor gelu(Tensor x) {
  x = dense(x);
  const Tensor y = output(x);
  gelu_of(x, {}, y, {});
  return y;
}
std::tuple<Tensor, Tensor> gelu_jvp(Tensor x, Tensor tx) {
  x = dense(x), tx = dense(tx);
  const Tensor y = output(x), ty = output(x);
  gelu_of(x, tx, y, ty);
  return {y, ty};
}
Tensor gelu_backward(Tensor dy, Tensor x) {
  x = dense(x), dy = dense(dy);
  const Tensor dx = output(x);
  gelu_of(x, dy, {}, dx);
  return dx;
}

std::tuple<Tensor, Tensor> ccd_gradient(Tensor v, Tensor F, Tensor dF, const Tensor& t, double r,
                                        const std::string& norm, double c) {
  v = dense(v), F = dense(F), dF = dense(dF);
  const Tensor rt = widened(t, F) * r, g = at::empty(F.sizes(), F.options().dtype(wide(F)));
  const int64_t B = F.size(0), size = B ? F.numel() / B : 0, parts = pieces(size, PIECE);
  const Tensor squares = at::empty({B, parts}, F.options().dtype(at::kDouble));
  Tensor length;
  by_dtype("ccd_gradient", F.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    CcdGradient<T> a{.v = data<T>(v),
                     .F = data<T>(F),
                     .dF = data<T>(dF),
                     .g = data<A>(g),
                     .rt = data<A>(rt),
                     .factor = nullptr,
                     .squares = data<double>(squares),
                     .size = size,
                     .pieces = parts,
                     .nontemporal = nontemporal(F, 4)};
    const auto run = [&](auto kernel) {
      over(B * parts, std::min(size, PIECE), [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
      length = squares.sum(1).sqrt();
    };
    if (norm == "clip") return run(kernels<T>().ccd_gradient);
    run(kernels<T>().ccd_gradient_squares);
    const Tensor factor =
        ((norm == "rms" ? length / std::sqrt(double(size)) : length) + c).reciprocal().to(wide(F));
    a.factor = data<A>(factor);
    run(kernels<T>().ccd_gradient);
  });
  return {g, length.to(wide(F))};
}

std::tuple<Tensor, Tensor> ccd_loss(Tensor F_student, Tensor F, Tensor g) {
  F_student = dense(F_student), F = dense(F), g = dense(g);
  const Tensor residual = output(F);
  const int64_t B = F.size(0), size = B ? F.numel() / B : 0, parts = pieces(size, PIECE);
  const Tensor squares = at::empty({B, parts}, F.options().dtype(at::kDouble));
  by_dtype("ccd_loss", F.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const CcdLoss<T> a{.F_student = data<T>(F_student),
                       .F = data<T>(F),
                       .g = data<Wide<T>>(g),
                       .residual = data<T>(residual),
                       .squares = data<double>(squares),
                       .size = size,
                       .pieces = parts,
                       .nontemporal = nontemporal(F, 4)};
    over(B * parts, std::min(size, PIECE),
         [&](int64_t begin, int64_t end) { kernels<T>().ccd_loss(a, begin, end); });
  });
  return {squares.sum(1).to(wide(F)), residual};
}

void ema_(const std::vector<Tensor>& average, const std::vector<Tensor>& master, double decay,
          const std::vector<Tensor>& copy) {
  if (average.empty()) return;
  struct Part {
    size_t shard;
    int64_t begin, end;
  };
  std::vector<Tensor> from;
  std::vector<Part> parts;
  int64_t bytes = 0;
  for (size_t i = 0; i < average.size(); ++i) {
    from.push_back(dense(master[i]));
    const int64_t size = average[i].numel();
    for (int64_t at = 0; at < size; at += GRAIN) parts.push_back({i, at, std::min(size, at + GRAIN)});
    bytes += average[i].nbytes() + master[i].nbytes();
  }
  by_dtype("ema_", copy.empty() ? average[0].scalar_type() : copy[0].scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    over(parts.size(), GRAIN, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const auto [i, first, last] = parts[p];
        const Ema<T> a{.average = data<A>(average[i]),
                       .master = data<A>(from[i]),
                       .copy = copy.empty() ? nullptr : data<T>(copy[i]),
                       .decay = decay,
                       .nontemporal = bytes > CACHE};
        kernels<T>().ema(a, first, last);
      }
    });
  });
}

// ema_ of unchecked arguments; returns false, without an update, if they are wrong or need the dispatcher.
bool ema_if_plain(const std::vector<Tensor>& average, const std::vector<Tensor>& master, double decay,
                  const std::vector<Tensor>& copy) {
  const size_t count = average.size();
  if (!count || master.size() != count || (copy.size() && copy.size() != count)) return false;
  const auto exact = wide(average[0]), stored = copy.empty() ? exact : copy[0].scalar_type();
  for (size_t i = 0; i < count; ++i) {
    const Tensor &a = average[i], &m = master[i], &c = copy.empty() ? a : copy[i];
    if (!plain(a, exact) || !plain(m, exact) || !plain(c, stored) || wide(c) != exact) return false;
    if (!a.is_contiguous() || !c.is_contiguous()) return false;
    if (m.sizes() != a.sizes() || c.sizes() != a.sizes()) return false;
  }
  ema_(average, master, decay, copy);
  for (const Tensor& x : average) torch::autograd::impl::bump_version(x);
  for (const Tensor& x : copy) torch::autograd::impl::bump_version(x);
  return true;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of the ops; called through swiftvideo_fast.ops, never directly.";
  const auto def = [&](const char* name, auto f) {
    m.def(name, f, py::call_guard<py::gil_scoped_release>());
  };
  def("attention", &attention);
  def("attention_jvp", &attention_jvp);
  def("modulate", &modulate);
  def("modulate_jvp", &modulate_jvp);
  def("modulate_backward", &modulate_backward);
  def("norm_rope", &norm_rope);
  def("norm_rope_jvp", &norm_rope_jvp);
  def("norm_rope_backward", &norm_rope_backward);
  def("gate", &gate);
  def("gate_jvp", &gate_jvp);
  def("gate_backward", &gate_backward);
  def("gelu", &gelu);
  def("gelu_jvp", &gelu_jvp);
  def("gelu_backward", &gelu_backward);
  def("ccd_gradient", &ccd_gradient);
  def("ccd_loss", &ccd_loss);
  def("ema_", &ema_);
  def("ema_if_plain", &ema_if_plain);
  m.def("isas", &isas,
        "Returns the instruction sets of this machine, narrowest first; the last is the default.");
  m.def("use_isa", &use_isa, "Selects the ops' instruction set; returns the previous one.  For tests.");
}
