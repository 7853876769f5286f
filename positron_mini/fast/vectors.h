// A vector register of numbers, by the vector types that GCC and Clang share, and numbers of 16 bits that are computed with in fp32.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;  // numbers of a register
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef uint32_t Unsigned __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline Vector load(const int8_t* from) {
  Bytes b;
  std::memcpy(&b, from, sizeof b);
#if defined(__AVX512F__)  // GCC does not find these instructions by itself
  return Vector(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(__m128i(b))));
#elif defined(__AVX2__)
  return Vector(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
#else
  return __builtin_convertvector(b, Vector);
#endif
}

inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

// The upper half of a float.
struct Bf16 {
  uint16_t bits;
};

inline Vector load(const Bf16* from) {
#if defined(__AVX512F__)
  return Vector(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), 16));
#else
  Unsigned bits;
  for (int i = 0; i < LANES; ++i) bits[i] = uint32_t(from[i].bits) << 16;
  return Vector(bits);
#endif
}

// Rounded to the nearest, ties to even; NaN stays NaN.
inline void store(Bf16* to, Vector v) {
  const Unsigned bits = Unsigned(v);
  const Unsigned rounded = v == v ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : Unsigned{} + 0x7fc0;
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(__m512i(rounded)));
#else
  for (int i = 0; i < LANES; ++i) to[i].bits = uint16_t(rounded[i]);
#endif
}

inline float sum_of(Vector v) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += v[i];
  return sum;
}

inline float largest_of(Vector v) {
  float most = v[0];
  for (int i = 1; i < LANES; ++i) most = std::max(most, v[i]);
  return most;
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
  return p * Vector((n + 127) << 23);
}
