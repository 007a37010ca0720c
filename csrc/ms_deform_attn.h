// Multi-scale deformable attention: sizes, checks and the host functions that register.cpp binds to devices.
//
// Shapes: N images, S cells (all levels, row by row, one after another), M heads, D channels per head, Q queries, L levels, P points;
// K = L * P sampling points per head and query.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <tuple>
#include <vector>

namespace mrt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shapes = std::vector<int64_t>;  // H0, W0, H1, W1, ...

constexpr int kMaxLevels = 16;  // so that the CUDA kernels can take the geometry as an argument

struct Level {
  int32_t height, width, start;  // start: index of the level's first cell
};

struct Sizes {
  int64_t batch, cells, heads, dim, queries, points;  // N, S, M, D, Q, P
  std::vector<Level> levels;
  int64_t samples() const { return static_cast<int64_t>(levels.size()) * points; }  // K
};

// The checks repeat mrt/ops/checks.py (which has the readable messages) so that a direct call of torch.ops.mrt.* cannot read out of bounds.
// `points` is the tensor of shape (N, Q, M, L, P, 2): sampling locations, or offsets for the fused op.
inline Sizes check_value(const Tensor& value, const Shapes& shapes, const Tensor& points) {
  STD_TORCH_CHECK(value.dim() == 4 && points.dim() == 6, "mrt: value must have 4 dimensions and the points 6, got ", value.dim(), " and ",
                  points.dim());
  const auto dtype = value.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                  "mrt: value must be float32, bfloat16, float16 or float64");
  STD_TORCH_CHECK(!shapes.empty() && shapes.size() % 2 == 0, "mrt: spatial_shapes must be H0, W0, H1, W1, ...");
  STD_TORCH_CHECK(shapes.size() <= 2 * kMaxLevels, "mrt: at most ", kMaxLevels, " levels, got ", shapes.size() / 2);
  Sizes sizes{value.size(0), value.size(1), value.size(2), value.size(3), points.size(1), points.size(4), {}};
  STD_TORCH_CHECK(sizes.cells < INT32_MAX, "mrt: more than 2^31 cells in one image");
  STD_TORCH_CHECK(sizes.heads >= 1 && sizes.dim >= 1 && sizes.points >= 1, "mrt: there must be at least one head, channel and point");
  int64_t start = 0;
  for (size_t i = 0; i < shapes.size(); i += 2) {
    const int64_t height = shapes[i], width = shapes[i + 1];
    STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= sizes.cells && width <= sizes.cells, "mrt: level of ", height, " x ", width,
                    " cells does not fit into value's ", sizes.cells);
    sizes.levels.push_back({static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(start)});
    start += height * width;
    STD_TORCH_CHECK(start <= sizes.cells, "mrt: spatial_shapes hold more cells than value's ", sizes.cells);
  }
  STD_TORCH_CHECK(start == sizes.cells, "mrt: spatial_shapes hold ", start, " cells, value ", sizes.cells);
  return sizes;
}

inline void check_like(const Tensor& value, const Tensor& tensor, ScalarType dtype, const char* name,
                       std::initializer_list<int64_t> expected) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) same = tensor.size(i) == expected.begin()[i];
  STD_TORCH_CHECK(same, "mrt: ", name, " has a shape that does not fit");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "mrt: ", name, " has a dtype that does not fit");
  STD_TORCH_CHECK(tensor.device() == value.device(), "mrt: ", name, " is not on value's device");
}

inline ScalarType point_dtype(const Tensor& value) {
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool has_16_bits(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::BFloat16 || tensor.scalar_type() == ScalarType::Half;
}

inline Sizes check_plain(const Tensor& value, const Shapes& shapes, const Tensor& locations, const Tensor& weights) {
  const Sizes s = check_value(value, shapes, locations);
  const int64_t levels = s.levels.size();
  check_like(value, locations, point_dtype(value), "sampling_locations", {s.batch, s.queries, s.heads, levels, s.points, 2});
  check_like(value, weights, point_dtype(value), "attention_weights", {s.batch, s.queries, s.heads, levels, s.points});
  return s;
}

inline Sizes check_fused(const Tensor& value, const Shapes& shapes, const Tensor& references, const Tensor& offsets, const Tensor& logits) {
  const Sizes s = check_value(value, shapes, offsets);
  const int64_t levels = s.levels.size();
  // Offsets and logits may both be of one 16-bit type: what a linear layer gave.
  const bool given = has_16_bits(offsets) && value.scalar_type() != ScalarType::Double;
  const ScalarType dtype = given ? offsets.scalar_type() : point_dtype(value);
  check_like(value, offsets, dtype, "sampling_offsets", {s.batch, s.queries, s.heads, levels, s.points, 2});
  check_like(value, references, point_dtype(value), "reference_points", {s.batch, s.queries, levels, 2});
  check_like(value, logits, dtype, "attention_logits", {s.batch, s.queries, s.heads, s.samples()});
  return s;
}

// A tensor (N, Q, ...) as rows, one for each query: compact ones, `step` elements from one to the next. Offsets and logits that are slices
// of one product are such; what is not is copied.
struct QueryRows {
  Tensor tensor;
  int64_t step;
};

inline QueryRows in_rows(const Tensor& tensor) {
  const int64_t batch = tensor.size(0), queries = tensor.size(1);
  int64_t size = 1;
  bool compact = true;
  for (int64_t i = tensor.dim() - 1; i >= 2; size *= tensor.size(i--)) {
    compact = compact && (tensor.size(i) == 1 || tensor.stride(i) == size);
  }
  const bool even = batch <= 1 || queries <= 1 || tensor.stride(0) == queries * tensor.stride(1);
  if (!compact || !even) return {torch::stable::contiguous(tensor), size};
  return {tensor, queries > 1 ? tensor.stride(1) : batch > 1 ? tensor.stride(0) : size};
}

inline void check_grad_output(const Tensor& value, const Sizes& s, const Tensor& grad_output) {
  check_like(value, grad_output, value.scalar_type(), "grad_output", {s.batch, s.queries, s.heads * s.dim});
}

// In place of the reference points' gradient where it is not wanted: nothing, but with N and Q.
inline Tensor no_reference_gradient(const Tensor& references) {
  return torch::stable::new_empty(references, {references.size(0), references.size(1), 0, 2});
}

// A gradient in the dtype of what it is the gradient of.
inline Tensor as_given(const Tensor& grad, const Tensor& given) {
  return grad.scalar_type() == given.scalar_type() ? grad : torch::stable::to(grad, given.scalar_type());
}

using Grads3 = std::tuple<Tensor, Tensor, Tensor>;
using Grads4 = std::tuple<Tensor, Tensor, Tensor, Tensor>;

#define MRT_DECLARE_BACKEND(device)                                                                                                     \
  namespace device {                                                                                                                    \
  Tensor ms_deform_attn(Tensor value, Shapes shapes, Tensor locations, Tensor weights);                                                 \
  Grads3 ms_deform_attn_backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor locations, Tensor weights,                     \
                                 bool deterministic);                                                                                   \
  Tensor ms_deform_attn_fused(Tensor value, Shapes shapes, Tensor references, Tensor offsets, Tensor logits);                           \
  Grads4 ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor references, Tensor offsets,              \
                                       Tensor logits, bool deterministic, bool skip_references);                                        \
  }

MRT_DECLARE_BACKEND(cpu)
MRT_DECLARE_BACKEND(cuda)
#undef MRT_DECLARE_BACKEND

}  // namespace mrt
