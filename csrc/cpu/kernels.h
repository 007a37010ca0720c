// The border between host code (tensors, threads) and the vector kernels (plain pointers, one thread's share of the work).
#pragma once

#include <cstdint>

#include "../ms_deform_attn.h"

namespace mrt::cpu {

// One call of the op on contiguous arrays of T (float or double). A "slice" is one head of one image: slice = n * M + m.
template <typename T>
struct Call {
  const Sizes* sizes;
  const T* value;        // (N, S, M, D)
  const T* references;   // (N, Q, L, 2), or null: the plain op
  const T* points;       // (N, Q, M, L, P, 2): offsets in cells, or (plain op) locations as shares
  const T* weights;      // (N, Q, M, K): logits, or (plain op) attention weights
  T* output;             // (N, Q, M, D), forward only
  const T* grad_output;  // the rest: backward only
  T* grad_value;
  T* grad_points;
  T* grad_weights;
};

// One instruction set's kernels. `forward` computes items [begin, end) of N * M * Q, item = slice * Q + q; `backward` whole slices.
template <typename T>
struct Kernels {
  void (*forward)(const Call<T>& call, int64_t begin, int64_t end);
  void (*backward)(const Call<T>& call, int64_t begin, int64_t end);
};

struct InstructionSet {
  Kernels<float> f32;
  Kernels<double> f64;
};

extern const InstructionSet baseline;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MRT_X86_LEVELS
extern const InstructionSet avx2;
extern const InstructionSet avx512;
#endif

}  // namespace mrt::cpu
