// Starting a kernel, and the internal launch functions of the .cu files.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "kernels.h"

namespace mrt::cuda {

// A function instead of <<<...>>>, so that a plain C++ compiler can read the sources too (tests/ops/emulator).
template <typename... Wanted, typename... Given>
cudaError_t launch(void (*kernel)(Wanted...), dim3 blocks, int threads, cudaStream_t stream, Given&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Given>(arguments)...);
}

inline dim3 blocks_for(int64_t threads, int per_block) { return dim3(static_cast<unsigned>((threads + per_block - 1) / per_block)); }

// A number of channels as a function's argument: [&](auto dim) { constexpr int kDim = decltype(dim)::value; }
template <int kNumber>
struct Number {
  static constexpr int value = kNumber;
};

// generic.cu. Sum: FloatSum<R> of sums.cuh.
template <typename V, typename R>
cudaError_t launch_generic_forward(const Geometry& geometry, const Inputs<V, R>& inputs, V* output, cudaStream_t stream);
template <typename V, typename R, typename Sum>
cudaError_t launch_generic_backward(const Geometry& geometry, const Inputs<V, R>& inputs, const V* grad_output,
                                    const Gradients& gradients, const Sum& grad_value, cudaStream_t stream);

// tiles.cu: adds to grad_value only; for calls that fits_tiles() of fast.h.
template <typename V>
cudaError_t launch_tiles(const Geometry& geometry, const Inputs<V, float>& inputs, const V* grad_output, float* grad_value,
                         cudaStream_t stream);

}  // namespace mrt::cuda
