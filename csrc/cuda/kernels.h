// The border between CUDA host code (tensors, streams) and the kernels: plain pointers, launched on a stream, no synchronisation.
//
// Every launch_* function picks the kernel: the fast one where fast.h says it fits, else the generic one of generic.cu.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mrt::cuda {

constexpr int kLevels = 16;  // room for as many as the checks let through

struct Geometry {  // passed by value to every kernel
  int64_t batch, cells, heads, dim, queries, points, levels;  // N, S, M, D, Q, P, L
  int64_t samples, items;                                     // K = L * P; N * Q * M
  int32_t height[kLevels], width[kLevels], start[kLevels];    // start: index of the level's first cell
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
struct Gradients {  // of the inputs of the same names; every element is written
  R* points;
  R* weights;
};

template <typename V, typename R>
cudaError_t launch_forward(const Geometry& geometry, const Inputs<V, R>& inputs, V* output, cudaStream_t stream);

// grad_value (N, S, M, D) must be zero: it is added to, in any order, so its last bits differ from run to run.
template <typename V, typename R>
cudaError_t launch_backward(const Geometry& geometry, const Inputs<V, R>& inputs, const V* grad_output, const Gradients<R>& gradients,
                            R* grad_value, cudaStream_t stream);

// The same with grad_value bit for bit the same in every run: summed as 64-bit integers (see sums.cuh), then written once.
// Work space, both zero: `sums` (N, S, M, D) and `bounds` (N, M) of 64-bit words.
template <typename V, typename R>
cudaError_t launch_deterministic_backward(const Geometry& geometry, const Inputs<V, R>& inputs, const V* grad_output,
                                          const Gradients<R>& gradients, V* grad_value, unsigned long long* sums,
                                          unsigned long long* bounds, cudaStream_t stream);

// grad_references (N, Q, L, 2) from the offsets' gradient (N, Q, M, L, P, 2).
template <typename R>
cudaError_t launch_reference_gradient(const Geometry& geometry, const R* grad_offsets, R* grad_references, cudaStream_t stream);

}  // namespace mrt::cuda
