// The smallest pieces: 16-byte loads and stores with conversion, sums over the lanes of a warp, vector atomics.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

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

// The same pointer into global memory, unknown to the compiler, which would else compute it anew wherever it is used, to save two registers.
template <typename T>
__device__ __forceinline__ T* opaque(T* pointer) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+l"(pointer));
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// base + offset in global memory, in one instruction.
template <typename T>
__device__ __forceinline__ T* advance(T* base, unsigned offset, unsigned bytes = sizeof(T)) {
#ifdef __CUDA_ARCH__
  T* result;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(result) : "r"(offset), "r"(bytes), "l"(base));
  __builtin_assume(__isGlobal(result));
  return result;
#else
  return base + offset * static_cast<uint64_t>(bytes / sizeof(T));
#endif
}

// kCount neighbours as floats, from one word (8 or 16 bytes).
template <typename V, int kCount>
__device__ __forceinline__ void unpack(const typename Word<sizeof(V) * kCount>::type& word, float (&to)[kCount]) {
  if constexpr (std::is_same_v<V, c10::BFloat16>) {  // the upper half of a float
    unsigned pairs[kCount / 2];
    std::memcpy(pairs, &word, sizeof(word));
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const unsigned low = pairs[i] << 16, high = pairs[i] & 0xffff0000u;
      std::memcpy(&to[2 * i], &low, sizeof(low));
      std::memcpy(&to[2 * i + 1], &high, sizeof(high));
    }
  } else {
    V values[kCount];
    std::memcpy(values, &word, sizeof(word));
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = static_cast<float>(values[i]);
  }
}

// The same in one load through the read-only cache; aligned to its size.
template <typename V, int kCount>
__device__ __forceinline__ void read(const V* from, float (&to)[kCount]) {
  unpack<V>(__ldg(reinterpret_cast<const typename Word<sizeof(V) * kCount>::type*>(from)), to);
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

// Numbers of points and weights. All threads answer the question for their storage alike.
__device__ __forceinline__ float from_bits(unsigned bits, Storage storage) {  // the lower 16
  if (storage == Storage::kBFloat16) {  // the upper half of a float
    const unsigned upper = bits << 16;
    float x;
    std::memcpy(&x, &upper, sizeof(x));
    return x;
  }
  const uint16_t lower = static_cast<uint16_t>(bits);
  c10::Half x;
  std::memcpy(&x, &lower, sizeof(x));
  return static_cast<float>(x);
}

__device__ __forceinline__ unsigned to_bits(float x, Storage storage) {
  uint16_t bits;
  if (storage == Storage::kBFloat16) {
    const c10::BFloat16 rounded(x);
    std::memcpy(&bits, &rounded, sizeof(bits));
  } else {
    const c10::Half rounded(x);
    std::memcpy(&bits, &rounded, sizeof(bits));
  }
  return bits;
}

__device__ __forceinline__ float read_number(const void* array, Storage storage, int64_t at) {
  if (storage == Storage::kWide) return __ldg(static_cast<const float*>(array) + at);
  return from_bits(__ldg(static_cast<const unsigned short*>(array) + at), storage);
}

__device__ __forceinline__ float2 read_pair(const void* array, Storage storage, int64_t at) {  // `at` counts pairs
  if (storage == Storage::kWide) return __ldg(static_cast<const float2*>(array) + at);
  const unsigned bits = __ldg(static_cast<const unsigned*>(array) + at);
  return make_float2(from_bits(bits, storage), from_bits(bits >> 16, storage));
}

__device__ __forceinline__ void write_number(void* array, Storage storage, int64_t at, float x) {
  if (storage == Storage::kWide) {
    static_cast<float*>(array)[at] = x;
  } else {
    static_cast<unsigned short*>(array)[at] = static_cast<unsigned short>(to_bits(x, storage));
  }
}

__device__ __forceinline__ void write_pair(void* array, Storage storage, int64_t at, float2 x) {
  if (storage == Storage::kWide) {
    static_cast<float2*>(array)[at] = x;
  } else {
    static_cast<unsigned*>(array)[at] = to_bits(x.x, storage) | to_bits(x.y, storage) << 16;
  }
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

// What is less than 2^-126 becomes 0.
__device__ __forceinline__ float exponential(float x) {
#ifdef __CUDA_ARCH__
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x * 1.44269504f));
  return x;
#else
  return __expf(x);
#endif
}
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
