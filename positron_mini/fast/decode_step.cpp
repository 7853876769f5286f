// One token of each of N sequences through the whole model: what decoder.py does with PyTorch's operations, in one call.
//
// Writing a token takes little arithmetic: every weight is read once and used N times. PyTorch spends as long on starting its two
// hundred small operations as on a third of the reading; here the threads go through the layers together and meet five times in each.
//
// Shapes: N sequences, C width of the stream, H heads, K key/value heads, D channels of a head, F ffn, V vocabulary (a multiple of 16).
// A matrix (in, out) lies in blocks of 16 columns, (out / 16, in, 16); norms are multiplied into the matrix that follows them; the two
// channels that RoPE turns together lie side by side. decoder.py holds the other end of this layout.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

#include "vectors.h"

extern "C" int omp_get_thread_num(), omp_get_num_threads();  // declared here: some compilers come without omp.h

namespace {

constexpr int BLOCK = 16;    // columns
constexpr int ROWS = 8;      // sequences that share one reading of the weights
constexpr int AHEAD = 4096;  // bytes: what is read after that many others is asked for already
constexpr int VECTORS = BLOCK / LANES;

}  // namespace

extern "C" {

struct Matrix {
  const void* blocks;   // float, or int8 where there are scales
  const float* scales;  // of each column, or null
  int inputs, outputs;
};

struct Layer {
  Matrix qkv, o, gate_up, down;
  const float* gain;  // (H + K, D), of queries and keys
};

struct Model {
  int layers, C, H, K, D, F, V, context;
  float eps;
  const Layer* layer;
  Matrix head;
  const float* embedding;  // (V, C)
  const float* turns;      // (context, D / 2, 2): cosine and sine
};
}

namespace {

// --- products ---------------------------------------------------------------------------------------------------------------------

// Columns of one block: out (R, 16) = x (R, in) @ block. Several sums of a row run side by side, as each addition waits for the last.
template <int R, typename W>
void block_of_rows(const W* block, int inputs, const float* x, float* out) {
  constexpr int CHAINS = R * VECTORS >= 4 ? 1 : R * VECTORS == 2 ? 2 : 4;
  Vector sum[CHAINS][R][VECTORS] = {};
  for (int i = 0; i < inputs; i += CHAINS)
    for (int chain = 0; chain < CHAINS; ++chain) {
      __builtin_prefetch(reinterpret_cast<const char*>(block + (i + chain) * BLOCK) + AHEAD);
      for (int v = 0; v < VECTORS; ++v) {
        const Vector w = load(block + (i + chain) * BLOCK + v * LANES);
        for (int r = 0; r < R; ++r) sum[chain][r][v] += w * x[r * inputs + i + chain];
      }
    }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < VECTORS; ++v) {
      Vector all = sum[0][r][v];
      for (int chain = 1; chain < CHAINS; ++chain) all += sum[chain][r][v];
      store(out + r * BLOCK + v * LANES, all);
    }
}

template <typename W>
void block_of(const W* block, int inputs, const float* x, int rows, float* out) {
  switch (rows) {
    case 1: return block_of_rows<1>(block, inputs, x, out);
    case 2: return block_of_rows<2>(block, inputs, x, out);
    case 3: return block_of_rows<3>(block, inputs, x, out);
    case 4: return block_of_rows<4>(block, inputs, x, out);
    case 5: return block_of_rows<5>(block, inputs, x, out);
    case 6: return block_of_rows<6>(block, inputs, x, out);
    case 7: return block_of_rows<7>(block, inputs, x, out);
    default: return block_of_rows<8>(block, inputs, x, out);
  }
}

// 16 columns of x (rows, in) @ matrix, rows at most ROWS.
void columns(const Matrix& m, int block, const float* x, int rows, float (*out)[BLOCK]) {
  const size_t first = size_t(block) * m.inputs * BLOCK;
  if (m.scales == nullptr) return block_of(static_cast<const float*>(m.blocks) + first, m.inputs, x, rows, out[0]);
  block_of(static_cast<const int8_t*>(m.blocks) + first, m.inputs, x, rows, out[0]);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < BLOCK; ++c) out[r][c] *= m.scales[block * BLOCK + c];
}

// --- threads ----------------------------------------------------------------------------------------------------------------------

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Where all threads wait for the last of them.
class Meeting {
 public:
  void wait(int threads) {
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.fetch_add(1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
      spins < 2000 ? pause() : std::this_thread::yield();  // a thread without a core of its own is let in
  }

 private:
  std::atomic<int> arrived_{0}, round_{0};
};

// --- the pass ---------------------------------------------------------------------------------------------------------------------

float inverse_rms(const float* x, int size, float eps) {
  float sum = 0;
  for (int i = 0; i < size; ++i) sum += x[i] * x[i];
  return 1 / std::sqrt(sum / size + eps);
}

// What one thread of a team does; all of them hold the same pointers.
class Pass {
 public:
  Pass(const Model& m, int N, int past, float* kv, float* work, float* logits, Meeting& meeting, int thread, int threads)
      : m_(m), N_(N), past_(past), kv_(kv), logits_(logits), meeting_(meeting), thread_(thread), threads_(threads),
        x_(work), qkv_(x_ + N * m.C), y_(qkv_ + N * (m.H + 2 * m.K) * m.D), hidden_(y_ + N * m.H * m.D), scale_(N), score_(m.context) {}

  void run(const int64_t* ids) {
    if (thread_ == 0)
      for (int n = 0; n < N_; ++n) std::copy_n(m_.embedding + ids[n] * m_.C, m_.C, x_ + n * m_.C);
    meeting_.wait(threads_);
    for (int l = 0; l < m_.layers; ++l) {
      const Layer& layer = m_.layer[l];
      measure();
      each(m_.layer[l].qkv.outputs / BLOCK, [&](int b) { normed(layer.qkv, b, qkv_); });
      each(N_ * m_.K, [&](int unit) { attend(layer, l, unit / m_.K, unit % m_.K); });
      each(m_.C / BLOCK, [&](int b) { add(layer.o, b, y_); });
      measure();
      each(m_.F / BLOCK, [&](int b) { gate(layer.gate_up, b); });
      each(m_.C / BLOCK, [&](int b) { add(layer.down, b, hidden_); });
    }
    measure();
    each(m_.V / BLOCK, [&](int b) { normed(m_.head, b, logits_); });
  }

 private:
  // This thread's share of `count` pieces of work; then the others are waited for.
  template <typename Work>
  void each(int count, Work work) {
    const int end = count * (thread_ + 1) / threads_;
    for (int i = count * thread_ / threads_; i < end; ++i) work(i);
    meeting_.wait(threads_);
  }

  // Rows of the stream in groups that share one reading: what(first row, rows, columns).
  template <typename What>
  void grouped(const Matrix& m, int block, const float* x, What what) {
    float out[ROWS][BLOCK];
    for (int first = 0; first < N_; first += ROWS) {
      const int rows = std::min(ROWS, N_ - first);
      columns(m, block, x + first * m.inputs, rows, out);
      for (int r = 0; r < rows; ++r) what(first + r, out[r]);
    }
  }

  // 1 / root-mean-square of each row of the stream: so little work that every thread does it for itself.
  void measure() {
    for (int n = 0; n < N_; ++n) scale_[n] = inverse_rms(x_ + n * m_.C, m_.C, m_.eps);
  }

  void normed(const Matrix& m, int block, float* to) {
    grouped(m, block, x_, [&](int n, const float* out) {
      float* row = to + size_t(n) * m.outputs + block * BLOCK;
      for (int c = 0; c < BLOCK; ++c) row[c] = out[c] * scale_[n];
    });
  }

  void add(const Matrix& m, int block, const float* from) {
    grouped(m, block, from, [&](int n, const float* out) {
      float* row = x_ + n * m_.C + block * BLOCK;
      for (int c = 0; c < BLOCK; ++c) row[c] += out[c];
    });
  }

  // silu(gate) * up, for 16 channels.
  void gate(const Matrix& m, int block) {
    grouped(m, block, x_, [&](int n, const float* out) {
      float* row = hidden_ + n * m_.F + block * BLOCK;
      for (int c = 0; c < BLOCK; ++c) {
        const float g = out[c] * scale_[n];
        row[c] = g / (1 + std::exp(-g));
      }
    });
    grouped(m, block + m_.F / BLOCK, x_, [&](int n, const float* out) {
      float* row = hidden_ + n * m_.F + block * BLOCK;
      for (int c = 0; c < BLOCK; ++c) row[c] *= out[c] * scale_[n];
    });
  }

  // A head of q or k normed, scaled and turned to its position, in place.
  void turn(float* head, const float* gain) {
    const float scale = inverse_rms(head, m_.D, m_.eps);
    const float* turns = m_.turns + size_t(past_) * m_.D;
    for (int d = 0; d < m_.D; d += 2) {
      const float a = head[d] * scale * gain[d], b = head[d + 1] * scale * gain[d + 1];
      head[d] = a * turns[d] - b * turns[d + 1];
      head[d + 1] = a * turns[d + 1] + b * turns[d];
    }
  }

  // A key/value head of sequence n: store what is new, then let each query head that belongs to it gather.
  void attend(const Layer& layer, int l, int n, int k) {
    const int D = m_.D, shared = m_.H / m_.K;
    float* row = qkv_ + n * (m_.H + 2 * m_.K) * D;
    const size_t head = size_t(m_.context) * D, all = N_ * m_.K * head;
    float* keys = kv_ + 2 * l * all + (n * m_.K + k) * head;
    float* values = keys + all;
    float* new_key = row + (m_.H + k) * D;
    turn(new_key, layer.gain + (m_.H + k) * D);
    std::copy_n(new_key, D, keys + size_t(past_) * D);
    std::copy_n(row + (m_.H + m_.K + k) * D, D, values + size_t(past_) * D);
    for (int h = k * shared; h < (k + 1) * shared; ++h) {
      turn(row + h * D, layer.gain + h * D);
      gather(row + h * D, keys, values, y_ + (n * m_.H + h) * D);
    }
  }

  // y = softmax(q @ keys' / sqrt(D)) @ values, over the positions up to this one.
  void gather(const float* q, const float* keys, const float* values, float* y) {
    const int D = m_.D, seen = past_ + 1;
    const float scale = 1 / std::sqrt(float(D));
    float most = -INFINITY, sum = 0;
    for (int t = 0; t < seen; ++t) {
      float dot = 0;
      for (int d = 0; d < D; ++d) dot += q[d] * keys[size_t(t) * D + d];
      score_[t] = dot * scale;
      most = std::max(most, score_[t]);
    }
    std::fill_n(y, D, 0.f);
    for (int t = 0; t < seen; ++t) {
      const float p = std::exp(score_[t] - most);
      sum += p;
      for (int d = 0; d < D; ++d) y[d] += p * values[size_t(t) * D + d];
    }
    for (int d = 0; d < D; ++d) y[d] /= sum;
  }

  const Model& m_;
  const int N_, past_;
  float *kv_, *logits_;
  Meeting& meeting_;
  const int thread_, threads_;
  float *x_, *qkv_, *y_, *hidden_;  // (N, C), (N, (H + 2K) D), (N, H D), (N, F)
  std::vector<float> scale_, score_;
};

}  // namespace

// Logits (N, V) of the tokens after `ids` (N,), each of which continues `past` others whose keys and values lie in `kv`
// (2 layers, N, K, context, D); those of `ids` are added. The caller has checked every bound.
extern "C" void decode_step(const Model* model, const int64_t* ids, int N, int past, float* kv, float* logits, int threads) {
  const Model& m = *model;
  std::vector<float> work(size_t(N) * (m.C + (2 * m.H + 2 * m.K) * m.D + m.F));
  Meeting meeting;
#pragma omp parallel num_threads(threads)  // or fewer, where the system allows no more
  Pass(m, N, past, kv, work.data(), logits, meeting, omp_get_thread_num(), omp_get_num_threads()).run(ids);
}
