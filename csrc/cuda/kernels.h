// The border between CUDA host code (tensors, streams) and the kernels: plain pointers, launched on a stream, no synchronisation.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mrt::cuda {

constexpr int kLevels = 16;  // room for as many as the checks let through

struct Geometry {  // passed by value to every kernel
  int64_t cells, heads, dim, queries, points, levels, samples;  // S, M, D, Q, P, L, K = L * P
  int64_t items;                                                // N * Q * M, one warp each
  int32_t height[kLevels], width[kLevels], start[kLevels];
};

// V: dtype of values and outputs; R: dtype of everything else (float, or double for double values), also of the arithmetic.
template <typename V, typename R>
struct Inputs {
  const V* value;       // (N, S, M, D)
  const R* references;  // (N, Q, L, 2), or null: the plain op
  const R* points;      // (N, Q, M, L, P, 2): offsets in cells, or (plain op) locations as shares
  const R* weights;     // (N, Q, M, K): logits, or (plain op) attention weights
};

template <typename R>
struct Gradients {
  R* value;    // (N, S, M, D), zeroed before: added to atomically
  R* points;   // as the inputs
  R* weights;
};

template <typename V, typename R>
cudaError_t launch_forward(const Geometry& geometry, const Inputs<V, R>& inputs, V* output, cudaStream_t stream);

template <typename V, typename R>
cudaError_t launch_backward(const Geometry& geometry, const Inputs<V, R>& inputs, const V* grad_output, const Gradients<R>& gradients,
                            cudaStream_t stream);

// grad_references (N, Q, L, 2) from the offsets' gradient (N, Q, M, L, P, 2).
template <typename R>
cudaError_t launch_reference_gradient(const Geometry& geometry, int64_t batch, const R* grad_offsets, R* grad_references,
                                      cudaStream_t stream);

}  // namespace mrt::cuda
