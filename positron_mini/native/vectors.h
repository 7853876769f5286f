// A vector register of numbers, by the vector types that GCC and Clang share.

#pragma once

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
