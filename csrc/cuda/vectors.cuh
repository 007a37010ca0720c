// The smallest pieces: 16-byte loads and stores with conversion, sums over the lanes of a warp, vector atomics.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace mrt::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

template <int kBytes>
struct Word;
template <>
struct Word<16> {
  using type = uint4;
};
template <>
struct Word<8> {
  using type = uint2;
};

// kCount neighbours as floats, in one load (8 or 16 bytes, aligned as much) through the read-only cache.
template <typename V, int kCount>
__device__ __forceinline__ void read(const V* from, float (&to)[kCount]) {
  using W = typename Word<sizeof(V) * kCount>::type;
  const W word = __ldg(reinterpret_cast<const W*>(from));
  V values[kCount];
  std::memcpy(values, &word, sizeof(word));
  for (int i = 0; i < kCount; ++i) to[i] = static_cast<float>(values[i]);
}

template <typename V, int kCount>
__device__ __forceinline__ void write(const float (&from)[kCount], V* to) {
  using W = typename Word<sizeof(V) * kCount>::type;
  V values[kCount];
  for (int i = 0; i < kCount; ++i) values[i] = static_cast<V>(from[i]);
  W word;
  std::memcpy(&word, values, sizeof(word));
  *reinterpret_cast<W*>(to) = word;
}

// Over groups of kLanes neighbouring lanes; every lane gets the result.
template <int kLanes = kWarp, typename R>
__device__ __forceinline__ R sum_over_lanes(R x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

template <int kLanes = kWarp, typename R>
__device__ __forceinline__ R max_over_lanes(R x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const R other = __shfl_xor_sync(kAll, x, step);
    x = other > x ? other : x;
  }
  return x;
}

__device__ __forceinline__ float exponential(float x) { return __expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// Hopper adds four neighbouring floats in one atomic instruction; before, it takes four.
#ifndef MRT_VECTOR_ATOMICS
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define MRT_VECTOR_ATOMICS 1
#else
#define MRT_VECTOR_ATOMICS 0
#endif
#endif

__device__ __forceinline__ void atomic_add4(float* to, float4 x) {
#if MRT_VECTOR_ATOMICS
  atomicAdd(reinterpret_cast<float4*>(to), x);
#else
  atomicAdd(to, x.x);
  atomicAdd(to + 1, x.y);
  atomicAdd(to + 2, x.z);
  atomicAdd(to + 3, x.w);
#endif
}

}  // namespace mrt::cuda
