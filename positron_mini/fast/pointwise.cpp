// What lies between the products of a training step: norms, SwiGLU, cross-entropy, and their gradients. training.py calls it.
//
// PyTorch takes several passes over memory for each of these, and a temporary tensor for every pass; here each is one.
//
// Shapes: N rows (positions of a micro-batch), C channels of the stream, F hidden channels, V vocabulary; C and F multiples of 32.
// Numbers called T are float or Bf16, the dtype of the products. Rows are shared by the threads; results do not depend on how.

#include <cmath>

#include "vectors.h"

namespace {

constexpr int CHUNK = 64;  // rows whose part of a weight's gradient is summed by one thread; training.py knows it too

// sum = x + delta, unless delta is null; h = sum divided by its root-mean-square, times weight.
template <class T>
void add_norm(const float* x, const T* delta, const float* weight, float eps, float* sum, T* h, int N, int C, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int n = 0; n < N; ++n) {
    const float* from = x + long(n) * C;
    Vector squares = {};
    for (int c = 0; c < C; c += LANES) {
      Vector v = load(from + c);
      if (delta) {
        v += load(delta + long(n) * C + c);
        store(sum + long(n) * C + c, v);
      }
      squares += v * v;
    }
    if (delta) from = sum + long(n) * C;
    const float scale = 1 / std::sqrt(sum_of(squares) / C + eps);
    for (int c = 0; c < C; c += LANES) store(h + long(n) * C + c, load(from + c) * scale * load(weight + c));
  }
}

// dx = past + the gradient of x when dh is that of h = norm(x); past may be null, or dx itself. Also as `narrow`, unless that is null.
// dweight (N / CHUNK rounded up, C): the weight's gradient, to be summed.
template <class T>
void norm_backward(const float* x, const float* weight, const T* dh, float eps, const float* past, float* dx, T* narrow, float* dweight,
                   int N, int C, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int chunk = 0; chunk < (N + CHUNK - 1) / CHUNK; ++chunk) {
    float* dw = dweight + long(chunk) * C;
    std::fill_n(dw, C, 0.0f);
    for (long n = long(chunk) * CHUNK; n < std::min(N, (chunk + 1) * CHUNK); ++n) {
      Vector squares = {}, dots = {};
      for (int c = 0; c < C; c += LANES) {
        const Vector v = load(x + n * C + c);
        squares += v * v;
        dots += v * load(dh + n * C + c) * load(weight + c);
      }
      const float scale = 1 / std::sqrt(sum_of(squares) / C + eps);
      const float pull = sum_of(dots) * scale * scale * scale / C;
      for (int c = 0; c < C; c += LANES) {
        const Vector v = load(x + n * C + c), d = load(dh + n * C + c);
        Vector gradient = d * load(weight + c) * scale - v * pull;
        store(dw + c, load(dw + c) + d * v * scale);
        if (past) gradient += load(past + n * C + c);
        store(dx + n * C + c, gradient);
        if (narrow) store(narrow + n * C + c, gradient);
      }
    }
  }
}

inline Vector sigmoid(Vector x) {
  const Vector e = exp_of(x < 0.0f ? x : -x);  // of the one that cannot overflow
  return (x < 0.0f ? e : Vector{} + 1.0f) / (e + 1.0f);
}

// act (N, F) = silu(gate) * up; gate and up lie side by side in gate_up (N, 2 F).
template <class T>
void swiglu(const T* gate_up, T* act, int N, int F, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int n = 0; n < N; ++n)
    for (int f = 0; f < F; f += LANES) {
      const T* at = gate_up + 2L * n * F + f;
      const Vector gate = load(at);
      store(act + long(n) * F + f, gate * sigmoid(gate) * load(at + F));
    }
}

// The gradient of gate_up when dact is that of act, and act again, in dact's place.
template <class T>
void swiglu_backward(const T* gate_up, T* dact, T* dgate_up, int N, int F, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int n = 0; n < N; ++n)
    for (int f = 0; f < F; f += LANES) {
      const T* at = gate_up + 2L * n * F + f;
      T* to = dgate_up + 2L * n * F + f;
      const Vector gate = load(at), up = load(at + F), d = load(dact + long(n) * F + f), share = sigmoid(gate), silu = gate * share;
      store(to, d * up * (share + silu * (1.0f - share)));
      store(to + F, d * silu);
      store(dact + long(n) * F + f, silu * up);
    }
}

inline float as_float(float x) { return x; }
inline float as_float(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

// losses (N): -ln of the probability of each target; logits become their gradients, the probabilities minus 1 at the target.
template <class T>
void cross_entropy(T* logits, const int64_t* targets, float* losses, int N, int V, int threads) {
  const int whole = V / LANES * LANES;
#pragma omp parallel for num_threads(threads)
  for (int n = 0; n < N; ++n) {
    T* row = logits + long(n) * V;
    T ending[LANES];  // the last numbers, filled up with what adds nothing
    store(ending, Vector{} - INFINITY);
    std::copy_n(row + whole, V - whole, ending);
    Vector most = load(ending);
    for (int v = 0; v < whole; v += LANES) {
      const Vector other = load(row + v);
      most = other > most ? other : most;
    }
    const float top = largest_of(most);
    Vector sums[4] = {exp_of(load(ending) - top)};
    if (V - whole < LANES)
      for (int i = V - whole; i < LANES; ++i) sums[0][i] = 0;
    int v = 0;
    for (; v + 4 * LANES <= whole; v += 4 * LANES)
      for (int i = 0; i < 4; ++i) sums[i] += exp_of(load(row + v + i * LANES) - top);
    for (; v < whole; v += LANES) sums[0] += exp_of(load(row + v) - top);
    const float lse = top + std::log(sum_of(sums[0] + sums[1] + sums[2] + sums[3]));
    const float at_target = as_float(row[targets[n]]);
    losses[n] = lse - at_target;
    for (v = 0; v < whole; v += LANES) store(row + v, exp_of(load(row + v) - lse));
    store(ending, exp_of(load(ending) - lse));
    std::copy_n(ending, V - whole, row + whole);
    T right[LANES];
    store(right, Vector{} + (std::exp(at_target - lse) - 1));
    row[targets[n]] = right[0];
  }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                                               \
  extern "C" void add_norm_##SUFFIX(const float* x, const T* delta, const float* weight, float eps, float* sum, T* h, int N, int C,      \
                                    int threads) {                                                                                      \
    add_norm(x, delta, weight, eps, sum, h, N, C, threads);                                                                             \
  }                                                                                                                                     \
  extern "C" void norm_backward_##SUFFIX(const float* x, const float* weight, const T* dh, float eps, const float* past, float* dx,      \
                                         T* narrow, float* dweight, int N, int C, int threads) {                                        \
    norm_backward(x, weight, dh, eps, past, dx, narrow, dweight, N, C, threads);                                                        \
  }                                                                                                                                     \
  extern "C" void swiglu_##SUFFIX(const T* gate_up, T* act, int N, int F, int threads) { swiglu(gate_up, act, N, F, threads); }          \
  extern "C" void swiglu_backward_##SUFFIX(const T* gate_up, T* dact, T* dgate_up, int N, int F, int threads) {                          \
    swiglu_backward(gate_up, dact, dgate_up, N, F, threads);                                                                            \
  }                                                                                                                                     \
  extern "C" void cross_entropy_##SUFFIX(T* logits, const int64_t* targets, float* losses, int N, int V, int threads) {                  \
    cross_entropy(logits, targets, losses, N, V, threads);                                                                              \
  }

EXPORT(float, float32)
EXPORT(Bf16, bfloat16)
