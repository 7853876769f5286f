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

// e^x for x <= 0, to 2e-7 relative; what is under e^-87 counts as e^-87, and NaN stays NaN.
inline Vector exp_of(Vector x) {
  const Vector least = Vector{} - 87.0f;
  x = x < least ? least : x;
  const Integers n = __builtin_convertvector(x * 1.44269504f - 0.5f, Integers);
  const Vector r = x - __builtin_convertvector(n, Vector) * 0.693147181f;
  Vector p = r * (1 / 5040.0f) + 1 / 720.0f;
  p = p * r + 1 / 120.0f;
  p = p * r + 1 / 24.0f;
  p = p * r + 1 / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Integers power = (n + 127) << 23;
  Vector two;
  std::memcpy(&two, &power, sizeof two);
  return p * two;
}

float sum_of(Vector v) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += v[i];
  return sum;
}

// One head of one sequence, its rows side by side: (T, D) from rows `stride` apart.
void pack(const float* from, long stride, int T, int D, float* to) {
  for (int t = 0; t < T; ++t) std::copy_n(from + t * stride, D, to + t * D);
}

// Blocks of 32 positions as columns, (T / 32, D, 32), of rows `stride` apart.
void pack_columns(const float* from, long stride, int T, int D, float* to) {
  for (int t = 0; t < T; ++t)
    for (int d = 0; d < D; ++d) to[((t / COLUMNS) * D + d) * COLUMNS + t % COLUMNS] = from[t * stride + d];
}

// What a thread needs for one head: rows (T, D), columns in blocks (T / 32, D, 32), probabilities and scores of a block of keys (T, 32),
// and for each query the sum of dy * y.
struct Room {
  Room(int T, int D)
      : q(T * D), k(T * D), v(T * D), dy(T * D), dq(T * D), dk(T * D), dv(T * D), kt(T * D), vt(T * D), p(T * COLUMNS), s(T * COLUMNS),
        delta(T) {}
  std::vector<float> q, k, v, dy, dq, dk, dv, kt, vt, p, s, delta;
};

void forward_head(Room& room, const float* q, long q_stride, int T, int D, float* y, float* lse) {
  const float scale = 1 / std::sqrt(float(D));
  float* s = room.s.data();  // (ROWS, T)
  for (int first = 0; first < T; first += ROWS) {
    const int seen = (first + ROWS - 1) / COLUMNS * COLUMNS + COLUMNS;  // keys in all tiles that are not left out
    for (int key = 0; key < seen; key += COLUMNS)
      tile<false>({q + first * q_stride, q_stride, 1}, room.kt.data() + key * D, COLUMNS, D, s + key, T, scale);
    float sums[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      float* row = s + r * T;
      const int end = first + r + 1;
      std::fill(row + end, row + seen, -INFINITY);
      Vector most = load(row);
      for (int key = LANES; key < seen; key += LANES) {
        const Vector other = load(row + key);
        most = other > most ? other : most;
      }
      float top = most[0];
      for (int i = 1; i < LANES; ++i) top = std::max(top, most[i]);
      Vector sum = {};
      for (int key = 0; key < seen; key += LANES) {
        const Vector p = exp_of(load(row + key) - top);
        store(row + key, p);
        sum += p;
      }
      std::fill(row + end, row + seen, 0.0f);
      sums[r] = sum_of(sum);
      lse[first + r] = top + std::log(sums[r]);
    }
    for (int d = 0; d < D; d += COLUMNS) {
      tile<false>({s, T, 1}, room.v.data() + d, D, seen, y + first * q_stride + d, q_stride);
      for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < COLUMNS; ++c) y[(first + r) * q_stride + d + c] /= sums[r];
    }
  }
}

void backward_head(Room& room, int T, int D, const float* lse) {
  const float scale = 1 / std::sqrt(float(D));
  const float *q = room.q.data(), *dy = room.dy.data();
  float *p = room.p.data(), *s = room.s.data();  // (T, 32) each: a block of keys
  for (int block = 0; block < T; block += COLUMNS) {
    for (int first = block; first < T; first += ROWS) {
      float *ps = p + first * COLUMNS, *ss = s + first * COLUMNS;
      tile<false>({q + first * D, D, 1}, room.kt.data() + block * D, COLUMNS, D, ps, COLUMNS, scale);
      tile<false>({dy + first * D, D, 1}, room.vt.data() + block * D, COLUMNS, D, ss, COLUMNS);
      for (int r = 0; r < ROWS; ++r) {
        const int query = first + r;
        for (int c = 0; c < COLUMNS; c += LANES) {
          float *at = ps + r * COLUMNS + c, *to = ss + r * COLUMNS + c;
          Vector exponent = load(at) - lse[query];
          exponent = exponent > 0.0f ? Vector{} : exponent;  // of keys to come it may be anything
          const Vector chance = exp_of(exponent);
          store(at, chance);
          store(to, chance * (load(to) - room.delta[query]) * scale);
        }
        if (query < block + COLUMNS - 1) {
          std::fill(ps + r * COLUMNS + query - block + 1, ps + (r + 1) * COLUMNS, 0.0f);
          std::fill(ss + r * COLUMNS + query - block + 1, ss + (r + 1) * COLUMNS, 0.0f);
        }
      }
      for (int d = 0; d < D; d += COLUMNS)
        tile<true>({ss, COLUMNS, 1}, room.k.data() + block * D + d, D, COLUMNS, room.dq.data() + first * D + d, D);
    }
    for (int key = 0; key < COLUMNS; key += ROWS)
      for (int d = 0; d < D; d += COLUMNS) {
        const long from = block * COLUMNS + key, to = (block + key) * D + d;
        tile<true>({p + from, 1, COLUMNS}, dy + block * D + d, D, T - block, room.dv.data() + to, D);
        tile<true>({s + from, 1, COLUMNS}, q + block * D + d, D, T - block, room.dk.data() + to, D);
      }
  }
}

}  // namespace

extern "C" {

void attention_forward(const float* q, const float* k, const float* v, float* y, float* lse, int B, int T, int H, int K, int D,
                       int threads) {
#pragma omp parallel num_threads(threads)
  {
    Room room(T, D);
#pragma omp for schedule(dynamic)
    for (int unit = 0; unit < B * K; ++unit) {
      const long b = unit / K, kv = unit % K, keys = (b * T * K + kv) * D;
      pack_columns(k + keys, K * D, T, D, room.kt.data());
      pack(v + keys, K * D, T, D, room.v.data());
      for (int h = kv * (H / K); h < (kv + 1) * (H / K); ++h)
        forward_head(room, q + (b * T * H + h) * D, H * D, T, D, y + (b * T * H + h) * D, lse + (b * H + h) * T);
    }
  }
}

void attention_backward(const float* q, const float* k, const float* v, const float* y, const float* lse, const float* dy, float* dq,
                        float* dk, float* dv, int B, int T, int H, int K, int D, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Room room(T, D);
#pragma omp for schedule(dynamic)
    for (int unit = 0; unit < B * K; ++unit) {
      const long b = unit / K, kv = unit % K, keys = (b * T * K + kv) * D;
      pack(k + keys, K * D, T, D, room.k.data());
      pack_columns(k + keys, K * D, T, D, room.kt.data());
      pack_columns(v + keys, K * D, T, D, room.vt.data());
      std::fill(room.dk.begin(), room.dk.end(), 0.0f);
      std::fill(room.dv.begin(), room.dv.end(), 0.0f);
      for (int h = kv * (H / K); h < (kv + 1) * (H / K); ++h) {
        const long head = (b * T * H + h) * D;
        pack(q + head, H * D, T, D, room.q.data());
        pack(dy + head, H * D, T, D, room.dy.data());
        for (int t = 0; t < T; ++t) {
          float sum = 0;
          for (int d = 0; d < D; ++d) sum += room.dy[t * D + d] * y[head + t * H * D + d];
          room.delta[t] = sum;
        }
        std::fill(room.dq.begin(), room.dq.end(), 0.0f);
        backward_head(room, T, D, lse + (b * H + h) * T);
        for (int t = 0; t < T; ++t) std::copy_n(room.dq.data() + t * D, D, dq + head + t * H * D);
      }
      for (int t = 0; t < T; ++t) {
        std::copy_n(room.dk.data() + t * D, D, dk + keys + t * K * D);
        std::copy_n(room.dv.data() + t * D, D, dv + keys + t * K * D);
      }
    }
  }
}
}
