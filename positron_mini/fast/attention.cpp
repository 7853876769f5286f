// Causal attention and its gradients in fp32, for training on a CPU: what attention.py asks for in place of PyTorch's operation.
//
// Every product here is a tile: a few rows times a few vectors of columns, summed in registers. Tiles of which every key comes after
// every query are left out, and the probabilities are made again on the way back instead of being kept (Dao 2023, arXiv 2307.08691).
//
// Shapes: B sequences, T positions (a multiple of 32), H heads, K key/value heads, D channels of a head (a multiple of 32).
// q, y (B, T, H, D), k, v (B, T, K, D), their gradients alike; lse (B, H, T): ln of the sum of exponentials that each query divided by.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

constexpr int ROWS = LANES == 16 ? 8 : 2;  // of a tile: as many as its sums fit the registers
constexpr int COLUMNS = 32;  // of a tile
constexpr int VECTORS = COLUMNS / LANES;

// A matrix read by rows, `row` numbers apart, or by columns: its element (r, i) is at[r * row + i * step].
struct Left {
  const float* at;
  long row, step;
};

// out (ROWS, 32), rows `stride` apart: the product of `left` (ROWS, n) and `right` (n, 32), rows `wide` apart, times `scale`, added to
// what is there or in its place.
template <bool ADD>
inline void tile(Left left, const float* right, long wide, int n, float* out, long stride, float scale = 1) {
  Vector sum[ROWS][VECTORS] = {};
  for (int i = 0; i < n; ++i)
    for (int v = 0; v < VECTORS; ++v) {
      const Vector column = load(right + i * wide + v * LANES);
      for (int r = 0; r < ROWS; ++r) sum[r][v] += column * left.at[r * left.row + i * left.step];
    }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) {
      float* to = out + r * stride + v * LANES;
      store(to, ADD ? load(to) + sum[r][v] * scale : sum[r][v] * scale);
    }
}

// How queries and keys are made of what the projections gave: divided by their root-mean-square, times `weight` (D), then turned by the
// angles of their position: channels i and i + D / 2 are a point of the plane. cos, sin: (T, D).
struct Turn {
  const float *cos, *sin;
  float eps;

  template <class T>
  void forward(const T* from, const float* weight, int t, int D, float* to) const {
    const int half = D / 2;
    const float scale = scale_of(from, D);
    for (int d = 0; d < half; d += LANES) {
      const Vector a = load(from + d) * scale * load(weight + d), b = load(from + half + d) * scale * load(weight + half + d);
      store(to + d, a * load(cos + t * D + d) - b * load(sin + t * D + d));
      store(to + half + d, b * load(cos + t * D + half + d) + a * load(sin + t * D + half + d));
    }
  }

  // The gradient of `from`, of that of what became of it (overwritten); the weight's is added to dweight.
  template <class T>
  void backward(const T* from, const float* weight, int t, int D, float* gradient, T* to, float* dweight) const {
    const int half = D / 2;
    const float scale = scale_of(from, D);
    Vector dots = {};
    for (int d = 0; d < half; d += LANES) {
      const Vector a = load(gradient + d), b = load(gradient + half + d);
      const Vector da = a * load(cos + t * D + d) + b * load(sin + t * D + half + d);
      const Vector db = b * load(cos + t * D + half + d) - a * load(sin + t * D + d);
      const Vector x = load(from + d), y = load(from + half + d);
      store(dweight + d, load(dweight + d) + da * x * scale);
      store(dweight + half + d, load(dweight + half + d) + db * y * scale);
      const Vector wa = da * load(weight + d), wb = db * load(weight + half + d);
      dots += wa * x + wb * y;
      store(gradient + d, wa);
      store(gradient + half + d, wb);
    }
    const float pull = sum_of(dots) * scale * scale * scale / D;
    for (int d = 0; d < D; d += LANES) store(to + d, load(gradient + d) * scale - load(from + d) * pull);
  }

 private:
  template <class T>
  float scale_of(const T* from, int D) const {
    Vector squares = {};
    for (int d = 0; d < D; d += LANES) squares += load(from + d) * load(from + d);
    return 1 / std::sqrt(sum_of(squares) / D + eps);
  }
};

// Rows of D numbers side by side: (T, D) from rows `stride` apart.
template <class T>
void pack(const T* from, long stride, int rows, int D, float* to) {
  for (int t = 0; t < rows; ++t)
    for (int d = 0; d < D; d += LANES) store(to + t * D + d, load(from + t * stride + d));
}

// The same rows as columns, in blocks of 32 positions: (T / 32, D, 32) from (T, D).
void pack_columns(const float* from, int T, int D, float* to) {
  for (int t = 0; t < T; ++t)
    for (int d = 0; d < D; ++d) to[((t / COLUMNS) * D + d) * COLUMNS + t % COLUMNS] = from[t * D + d];
}

// What a thread needs for one head: rows (T, D), columns in blocks (T / 32, D, 32), probabilities and scores of a block of keys (T, 32),
// and for each query the sum of dy * y.
struct Room {
  Room(int T, int D)
      : q(T * D), k(T * D), v(T * D), y(T * D), dy(T * D), dq(T * D), dk(T * D), dv(T * D), kt(T * D), vt(T * D), p(T * COLUMNS),
        s(T * COLUMNS), delta(T) {}
  std::vector<float> q, k, v, y, dy, dq, dk, dv, kt, vt, p, s, delta;
};

void forward_head(Room& room, int T, int D, const int* begins, float* lse) {
  const float scale = 1 / std::sqrt(float(D));
  float* s = room.s.data();  // (ROWS, T)
  for (int first = 0; first < T; first += ROWS) {
    const int low = begins ? begins[first] / COLUMNS * COLUMNS : 0;
    const int seen = (first + ROWS - 1) / COLUMNS * COLUMNS + COLUMNS;  // keys in all tiles that are not left out
    for (int key = low; key < seen; key += COLUMNS)
      tile<false>({room.q.data() + first * D, D, 1}, room.kt.data() + key * D, COLUMNS, D, s + key, T, scale);
    float sums[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      float* row = s + r * T;
      const int begin = begins ? begins[first + r] : 0, end = first + r + 1;
      std::fill(row + low, row + begin, -INFINITY);
      std::fill(row + end, row + seen, -INFINITY);
      Vector most = load(row + low);
      for (int key = low + LANES; key < seen; key += LANES) {
        const Vector other = load(row + key);
        most = other > most ? other : most;
      }
      const float top = largest_of(most);
      Vector sum = {};
      for (int key = low; key < seen; key += LANES) {
        const Vector p = exp_of(load(row + key) - top);
        store(row + key, p);
        sum += p;
      }
      std::fill(row + low, row + begin, 0.0f);
      std::fill(row + end, row + seen, 0.0f);
      sums[r] = sum_of(sum);
      lse[first + r] = top + std::log(sums[r]);
    }
    float* y = room.y.data() + first * D;
    for (int d = 0; d < D; d += COLUMNS) tile<false>({s + low, T, 1}, room.v.data() + low * D + d, D, seen - low, y + d, D);
    for (int r = 0; r < ROWS; ++r)
      for (int d = 0; d < D; ++d) y[r * D + d] /= sums[r];
  }
}

void backward_head(Room& room, int T, int D, const int* begins, const float* lse) {
  const float scale = 1 / std::sqrt(float(D));
  const float *q = room.q.data(), *dy = room.dy.data();
  float *p = room.p.data(), *s = room.s.data();  // (T, 32) each: a block of keys
  for (int block = 0; block < T; block += COLUMNS) {
    int first = block;
    for (; first < T && (!begins || begins[first] < block + COLUMNS); first += ROWS) {
      float *ps = p + first * COLUMNS, *ss = s + first * COLUMNS;
      tile<false>({q + first * D, D, 1}, room.kt.data() + block * D, COLUMNS, D, ps, COLUMNS, scale);
      tile<false>({dy + first * D, D, 1}, room.vt.data() + block * D, COLUMNS, D, ss, COLUMNS);
      for (int r = 0; r < ROWS; ++r) {
        const int query = first + r;
        float *at = ps + r * COLUMNS, *to = ss + r * COLUMNS;
        for (int c = 0; c < COLUMNS; c += LANES) {
          Vector exponent = load(at + c) - lse[query];
          exponent = exponent > 0.0f ? Vector{} : exponent;  // of keys to come it may be anything
          const Vector chance = exp_of(exponent);
          store(at + c, chance);
          store(to + c, chance * (load(to + c) - room.delta[query]) * scale);
        }
        const int hidden = begins ? std::clamp(begins[query] - block, 0, COLUMNS) : 0, seen = std::min(query - block + 1, COLUMNS);
        std::fill(at, at + hidden, 0.0f);
        std::fill(to, to + hidden, 0.0f);
        std::fill(at + seen, at + COLUMNS, 0.0f);
        std::fill(to + seen, to + COLUMNS, 0.0f);
      }
      for (int d = 0; d < D; d += COLUMNS)
        tile<true>({ss, COLUMNS, 1}, room.k.data() + block * D + d, D, COLUMNS, room.dq.data() + first * D + d, D);
    }
    for (int key = 0; key < COLUMNS; key += ROWS)
      for (int d = 0; d < D; d += COLUMNS) {
        const long from = block * COLUMNS + key, to = (block + key) * D + d;
        tile<true>({p + from, 1, COLUMNS}, dy + block * D + d, D, first - block, room.dv.data() + to, D);
        tile<true>({s + from, 1, COLUMNS}, q + block * D + d, D, first - block, room.dk.data() + to, D);
      }
  }
}

// One of the B x K units of work, a key/value head of a sequence: where its numbers lie in rows of all heads, (B T, H + 2 K, D).
struct Unit {
  Unit(long unit, int T, int H, int K, int D)
      : b(unit / K), kv(unit % K), row((H + 2L * K) * D), keys(b * T * row + (H + kv) * D), values(keys + long(K) * D) {}
  long b, kv, row, keys, values;
};

template <class T>
void forward(const T* qkv, const float* q_weight, const float* k_weight, Turn turn, const int* begins, T* y, float* lse, int B, int rows,
             int H, int K, int D, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Room room(rows, D);
#pragma omp for schedule(dynamic)
    for (int i = 0; i < B * K; ++i) {
      const Unit unit(i, rows, H, K, D);
      const int* from = begins ? begins + unit.b * rows : nullptr;
      for (int t = 0; t < rows; ++t) turn.forward(qkv + unit.keys + t * unit.row, k_weight, t, D, room.k.data() + t * D);
      pack_columns(room.k.data(), rows, D, room.kt.data());
      pack(qkv + unit.values, unit.row, rows, D, room.v.data());
      for (int h = unit.kv * (H / K); h < (unit.kv + 1) * (H / K); ++h) {
        const T* q = qkv + unit.b * rows * unit.row + h * D;
        for (int t = 0; t < rows; ++t) turn.forward(q + t * unit.row, q_weight, t, D, room.q.data() + t * D);
        forward_head(room, rows, D, from, lse + (unit.b * H + h) * rows);
        T* to = y + (unit.b * rows * H + h) * D;
        for (int t = 0; t < rows; ++t)
          for (int d = 0; d < D; d += LANES) store(to + long(t) * H * D + d, load(room.y.data() + t * D + d));
      }
    }
  }
}

template <class T>
void backward(const T* qkv, const float* q_weight, const float* k_weight, Turn turn, const int* begins, const T* y, const float* lse,
              const T* dy, T* dqkv, float* dq_weight, float* dk_weight, int B, int rows, int H, int K, int D, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Room room(rows, D);
#pragma omp for schedule(dynamic)
    for (int i = 0; i < B * K; ++i) {
      const Unit unit(i, rows, H, K, D);
      const int* from = begins ? begins + unit.b * rows : nullptr;
      for (int t = 0; t < rows; ++t) turn.forward(qkv + unit.keys + t * unit.row, k_weight, t, D, room.k.data() + t * D);
      pack_columns(room.k.data(), rows, D, room.kt.data());
      pack(qkv + unit.values, unit.row, rows, D, room.v.data());
      pack_columns(room.v.data(), rows, D, room.vt.data());
      std::fill(room.dk.begin(), room.dk.end(), 0.0f);
      std::fill(room.dv.begin(), room.dv.end(), 0.0f);
      for (int h = unit.kv * (H / K); h < (unit.kv + 1) * (H / K); ++h) {
        const long q = unit.b * rows * unit.row + h * D, out = (unit.b * rows * H + h) * D, head = unit.b * H + h;
        for (int t = 0; t < rows; ++t) turn.forward(qkv + q + t * unit.row, q_weight, t, D, room.q.data() + t * D);
        pack(y + out, H * D, rows, D, room.y.data());
        pack(dy + out, H * D, rows, D, room.dy.data());
        for (int t = 0; t < rows; ++t) {
          Vector sum = {};
          for (int d = 0; d < D; d += LANES) sum += load(room.dy.data() + t * D + d) * load(room.y.data() + t * D + d);
          room.delta[t] = sum_of(sum);
        }
        std::fill(room.dq.begin(), room.dq.end(), 0.0f);
        backward_head(room, rows, D, from, lse + head * rows);
        std::fill_n(dq_weight + head * D, D, 0.0f);
        for (int t = 0; t < rows; ++t) {
          const long at = q + t * unit.row;
          turn.backward(qkv + at, q_weight, t, D, room.dq.data() + t * D, dqkv + at, dq_weight + head * D);
        }
      }
      std::fill_n(dk_weight + i * D, D, 0.0f);
      for (int t = 0; t < rows; ++t) {
        const long key = unit.keys + t * unit.row, value = unit.values + t * unit.row;
        turn.backward(qkv + key, k_weight, t, D, room.dk.data() + t * D, dqkv + key, dk_weight + i * D);
        for (int d = 0; d < D; d += LANES) store(dqkv + value + d, load(room.dv.data() + t * D + d));
      }
    }
  }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                                               \
  extern "C" void attention_##SUFFIX(const T* qkv, const float* q_weight, const float* k_weight, const float* cos, const float* sin,     \
                                     float eps, const int* begins, T* y, float* lse, int B, int rows, int H, int K, int D,              \
                                     int threads) {                                                                                     \
    forward(qkv, q_weight, k_weight, Turn{cos, sin, eps}, begins, y, lse, B, rows, H, K, D, threads);                                   \
  }                                                                                                                                     \
  extern "C" void attention_backward_##SUFFIX(const T* qkv, const float* q_weight, const float* k_weight, const float* cos,              \
                                              const float* sin, float eps, const int* begins, const T* y, const float* lse,             \
                                              const T* dy, T* dqkv, float* dq_weight, float* dk_weight, int B, int rows, int H, int K,   \
                                              int D, int threads) {                                                                     \
    backward(qkv, q_weight, k_weight, Turn{cos, sin, eps}, begins, y, lse, dy, dqkv, dq_weight, dk_weight, B, rows, H, K, D, threads);  \
  }

EXPORT(float, float32)
EXPORT(Bf16, bfloat16)
