// Stands in for CUDA's header of this name, so that a plain C++ compiler reads csrc/cuda/*.cu and the kernels run on the CPU.
//
// Only what the kernels use. machine.h says how the threads run, what that shows and what it cannot show.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#include "machine.h"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)
#define __shared__ static

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
using dim3 = emulator::Size;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

inline const dim3& threadIdx = emulator::machine.thread;
inline const dim3& blockIdx = emulator::machine.block;
inline const dim3& blockDim = emulator::machine.block_size;
inline const dim3& gridDim = emulator::machine.grid_size;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
using cudaStream_t = struct Stream*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <typename... Wanted, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Wanted...), Given&&... arguments) {
  const std::tuple<Wanted...> all(std::forward<Given>(arguments)...);
  if (!emulator::launchable(config->gridDim, config->blockDim)) return cudaErrorInvalidConfiguration;
  return emulator::machine.run(config->gridDim, config->blockDim, [&] { std::apply(kernel, all); }) ? cudaSuccess : cudaErrorLaunchFailure;
}

// Of a warp and of a block.
template <typename T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32) {
  const int lane = emulator::machine.lane();
  return emulator::machine.exchange(mask, x, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int other) {
  return emulator::machine.exchange(mask, x, emulator::machine.lane() ^ other);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T x, unsigned distance) {
  const int lane = emulator::machine.lane(), source = lane - static_cast<int>(distance);
  return emulator::machine.exchange(mask, x, source < 0 ? lane : source);
}
inline void __syncwarp() { emulator::machine.exchange(0xffffffffu, 0, emulator::machine.lane()); }
inline void __syncthreads() { emulator::machine.wait_for_block(); }

// Memory. Aligned, and inside a buffer that was announced.
template <typename T>
T __ldg(const T* from) {
  if (!emulator::machine.may_access(from, sizeof(T))) return T{};
  T x;
  std::memcpy(&x, from, sizeof(T));
  return x;
}
template <typename T>
T emulated_add(T* to, T x) {
  const T before = *to;
  *to += x;
  return before;
}
inline int atomicAdd(int* to, int x) { return emulated_add(to, x); }  // only in shared memory
inline void atomicAdd(float* to, float x) {
  if (emulator::machine.may_access(to, sizeof(x))) emulated_add(to, x);
}
inline void atomicAdd(double* to, double x) {
  if (emulator::machine.may_access(to, sizeof(x))) emulated_add(to, x);
}
inline void atomicAdd(unsigned long long* to, unsigned long long x) {
  if (emulator::machine.may_access(to, sizeof(x))) emulated_add(to, x);
}
inline void atomicAdd(float4* to, float4 x) {
  if (!emulator::machine.may_access(to, sizeof(x))) return;
  *to = {to->x + x.x, to->y + x.y, to->z + x.z, to->w + x.w};
}
inline void atomicMax(unsigned long long* to, unsigned long long x) {
  if (emulator::machine.may_access(to, sizeof(x)) && x > *to) *to = x;
}

inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32); }
inline long long __float2ll_rn(float x) { return llrintf(x); }
inline long long __double2ll_rn(double x) { return llrint(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
