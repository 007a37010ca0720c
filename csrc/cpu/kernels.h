// The border between host code (tensors, threads) and the vector kernels (plain pointers, one thread's share of the work).
#pragma once

#include <cstdint>

#include "../ms_deform_attn.h"

namespace mrt::cpu {

// How numbers lie in memory: as the kernel's own type, or with 16 bits, widened to float as they are read and rounded as they are written.
enum class Storage { kWide, kBFloat16, kHalf };

// Which rows of whole registers may be read in place: the usual ones, to leave less to compile. float64 is for checking gradients.
template <typename T>
constexpr bool reads_in_place(int64_t registers) {
  return sizeof(T) == sizeof(float) && (registers & (registers - 1)) == 0;
}

// One call of the op, for a kernel that computes in T (float or double). Arrays are contiguous, but for the rows of points and of weights,
// one for each query, which may lie further apart. A "slice" is one head of one image: slice = n * M + m.
template <typename T>
struct Call {
  const Sizes* sizes;
  const void* value;        // (N, S, M, D)
  const T* references;      // (N, Q, L, 2), or null: the plain op
  const void* points;       // (N, Q, M, L, P, 2): offsets in cells, or (plain op) locations as shares
  const void* weights;      // (N, Q, M, K): logits, or (plain op) attention weights
  void* output;             // (N, Q, M, D), forward only
  const void* grad_output;  // from here on: backward only
  void* grad_value;
  void* grad_points;
  void* grad_weights;
  int64_t point_step, weight_step;         // elements from one query's points (weights) to the next one's
  Storage storage = Storage::kWide;        // of value, output, grad_output and grad_value
  Storage point_storage = Storage::kWide;  // of points and weights
  Storage grad_storage = Storage::kWide;   // of grad_points and grad_weights; with 16 bits a row of channels must fit into one pass
  bool in_place = false;                   // value's rows are read where they are, and (see below) gradients added to where they are
  int64_t parts = 1;                       // into how many parts the backward pass divides a slice's queries
  T* part_grads = nullptr;                 // with more than one: each part's own gradient map, (N * M, parts, passes, S + 1, row)

  // 16 bits are too few to add up in. grad_value must be zeros beforehand.
  bool adds_in_place() const { return in_place && storage == Storage::kWide; }
};

// How an instruction set lays out a row of channels: in whole registers of `lanes` elements, and at most `longest` in one pass.
struct Rows {
  int64_t lanes, longest;

  bool whole(int64_t dim) const { return dim % lanes == 0 && dim <= longest; }  // registers, without padding, in one pass
  int64_t padded(int64_t dim) const { return dim < longest ? (dim + lanes - 1) / lanes * lanes : longest; }
  int64_t passes(int64_t dim) const { return (dim + longest - 1) / longest; }
};

// One instruction set's kernels. `forward` computes items [begin, end) of N * M * Q, item = slice * Q + q; `backward` parts of slices,
// of N * M * parts; `combine` sums the parts' gradient maps into grad_value, for cells [begin, end) of N * M * S.
template <typename T>
struct Kernels {
  void (*forward)(const Call<T>& call, int64_t begin, int64_t end);
  void (*backward)(const Call<T>& call, int64_t begin, int64_t end);
  void (*combine)(const Call<T>& call, int64_t begin, int64_t end);
  Rows rows;
};

// float64 is for checking gradients: one instruction set is enough, and a third of the build is saved.
extern const Kernels<double> doubles;
extern const Kernels<float> baseline;
#if defined(__x86_64__) && defined(__GNUC__)  // Clang too
#define MRT_X86_LEVELS
extern const Kernels<float> avx2;
extern const Kernels<float> avx512;
#endif

}  // namespace mrt::cpu
