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

// How points and weights, or their gradients, lie in memory: as R, or rounded to 16 bits.
enum class Storage : int { kWide, kBFloat16, kHalf };

// V: dtype of values and outputs; R: dtype of references, of points and weights unless these have 16 bits, and of the arithmetic: float,
// or double for double values.
template <typename V, typename R>
struct Inputs {
  const V* value;       // (N, S, M, D)
  const R* references;  // (N, Q, L, 2), or null: the plain op
  const void* points;   // (N, Q, M, L, P, 2): offsets in cells, or (plain op) locations as shares
  const void* weights;  // (N, Q, M, K): logits, or (plain op) attention weights
  int64_t point_step, weight_step;  // elements from one query's points (weights) to the next one's: at least M * K * 2 (M * K)
  Storage storage;                  // of points and weights
};

struct Gradients {  // of the inputs of the same names, contiguous; every element is written
  void* points;
  void* weights;
  Storage storage;
};

template <typename V, typename R>
cudaError_t launch_forward(const Geometry& geometry, const Inputs<V, R>& inputs, V* output, cudaStream_t stream);

// grad_value (N, S, M, D) must be zero: it is added to, in any order, so its last bits differ from run to run. Gradients of 16 bits are for
// calls that writes_16_bits() only.
template <typename V, typename R>
cudaError_t launch_backward(const Geometry& geometry, const Inputs<V, R>& inputs, const V* grad_output, const Gradients& gradients,
                            R* grad_value, cudaStream_t stream);
template <typename V, typename R>
bool writes_16_bits(const Geometry& geometry, const Inputs<V, R>& inputs, const V* grad_output);

// The same with grad_value bit for bit the same in every run: summed as 64-bit integers (see sums.cuh), then written once.
// Work space, both zero: `sums` (N, S, M, D) and `bounds` (N, M) of 64-bit words.
template <typename V, typename R>
cudaError_t launch_deterministic_backward(const Geometry& geometry, const Inputs<V, R>& inputs, const V* grad_output,
                                          const Gradients& gradients, V* grad_value, unsigned long long* sums,
                                          unsigned long long* bounds, cudaStream_t stream);

// grad_references (N, Q, L, 2) from the offsets' gradient (N, Q, M, L, P, 2).
template <typename R>
cudaError_t launch_reference_gradient(const Geometry& geometry, const R* grad_offsets, R* grad_references, cudaStream_t stream);

}  // namespace mrt::cuda
