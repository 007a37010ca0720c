// CUDA host code: tensors to pointers, dtypes to kernels, on the caller's current stream.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../ms_deform_attn.h"
#include "kernels.h"

namespace mrt::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

Geometry geometry(const Sizes& sizes) {
  static_assert(kLevels >= kMaxLevels);
  const int64_t levels = sizes.levels.size();
  Geometry g{};
  g.batch = sizes.batch;
  g.cells = sizes.cells;
  g.heads = sizes.heads;
  g.dim = sizes.dim;
  g.queries = sizes.queries;
  g.points = sizes.points;
  g.levels = levels;
  g.samples = sizes.samples();
  g.items = sizes.batch * sizes.queries * sizes.heads;
  STD_TORCH_CHECK(g.items < (int64_t{1} << 33), "mrt: N * Q * M = ", g.items, " is more than one launch can take");
  for (int64_t i = 0; i < levels; ++i) {
    g.height[i] = sizes.levels[i].height;
    g.width[i] = sizes.levels[i].width;
    g.start[i] = sizes.levels[i].start;
  }
  return g;
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

Tensor compact(const Tensor& tensor) { return torch::stable::contiguous(tensor); }

Storage storage(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  return dtype == ScalarType::BFloat16 ? Storage::kBFloat16 : dtype == ScalarType::Half ? Storage::kHalf : Storage::kWide;
}

template <typename V, typename R>
Inputs<V, R> inputs(const Tensor& value, const Tensor* references, const QueryRows& points, const QueryRows& weights) {
  const R* centres = references == nullptr ? nullptr : data<const R>(*references);
  return {data<const V>(value), centres,     points.tensor.data_ptr(), weights.tensor.data_ptr(),
          points.step,          weights.step, storage(points.tensor)};
}

// Calls body with a value of the tensor's dtype and one of its arithmetic's.
template <typename Body>
void with_dtypes(const Tensor& value, const Body& body) {
  switch (value.scalar_type()) {
    case ScalarType::Float: return body(float{}, float{});
    case ScalarType::Double: return body(double{}, double{});
    case ScalarType::BFloat16: return body(c10::BFloat16{}, float{});
    default: return body(c10::Half{}, float{});  // the checks let nothing else through
  }
}

Tensor forward(const Sizes& sizes, const Tensor& value_in, const Tensor* references, const Tensor& points_in, const Tensor& weights_in) {
  const DeviceGuard guard(value_in.get_device_index());
  const Geometry g = geometry(sizes);
  const Tensor value = compact(value_in);
  const QueryRows points = in_rows(points_in), weights = in_rows(weights_in);
  Tensor output = torch::stable::new_empty(value, {sizes.batch, sizes.queries, sizes.heads * sizes.dim});
  with_dtypes(value, [&](auto v, auto r) {
    using V = decltype(v);
    using R = decltype(r);
    STD_CUDA_CHECK(launch_forward(g, inputs<V, R>(value, references, points, weights), data<V>(output), current_stream(value)));
  });
  return output;
}

// Gradients of points and weights are wide, or rounded to the dtype of these: only if all of them are known at once.
Grads3 backward(const Sizes& sizes, const Tensor& grad_output_in, const Tensor& value_in, const Tensor* references, const Tensor& points_in,
                const Tensor& weights_in, bool deterministic, bool rounded) {
  check_grad_output(value_in, sizes, grad_output_in);
  const DeviceGuard guard(value_in.get_device_index());
  const Geometry g = geometry(sizes);
  const Tensor value = compact(value_in), grad_output = compact(grad_output_in);
  const QueryRows points = in_rows(points_in), weights = in_rows(weights_in);
  const cudaStream_t stream = current_stream(value);
  Tensor grad_value, grad_points, grad_weights;
  with_dtypes(value, [&](auto v, auto r) {
    using V = decltype(v);
    using R = decltype(r);
    const Inputs<V, R> in = inputs<V, R>(value, references, points, weights);
    const bool narrow = rounded && !deterministic && writes_16_bits(g, in, data<const V>(grad_output));
    const ScalarType dtype = narrow ? points_in.scalar_type() : point_dtype(value);
    grad_points = torch::stable::new_empty(points_in, points_in.sizes(), dtype);
    grad_weights = torch::stable::new_empty(weights_in, weights_in.sizes(), dtype);
    const Gradients gradients{grad_points.data_ptr(), grad_weights.data_ptr(), storage(grad_points)};
    if (deterministic) {
      const Tensor sums = torch::stable::new_zeros(value, value.sizes(), ScalarType::Long);
      const Tensor bounds = torch::stable::new_zeros(value, {sizes.batch, sizes.heads}, ScalarType::Long);
      grad_value = torch::stable::new_empty(value, value.sizes());
      STD_CUDA_CHECK(launch_deterministic_backward(g, in, data<const V>(grad_output), gradients, data<V>(grad_value),
                                                   data<unsigned long long>(sums), data<unsigned long long>(bounds), stream));
    } else {  // added up in float32 (float64 for float64), whatever value is
      const Tensor sums = torch::stable::new_zeros(value, value.sizes(), point_dtype(value));
      STD_CUDA_CHECK(launch_backward(g, in, data<const V>(grad_output), gradients, data<R>(sums), stream));
      grad_value = torch::stable::to(sums, value.scalar_type());
    }
  });
  return {grad_value, grad_points, grad_weights};
}

Tensor reference_gradient(const Sizes& sizes, const Tensor& references, const Tensor& grad_offsets) {
  const DeviceGuard guard(references.get_device_index());
  const Geometry g = geometry(sizes);
  const Tensor grad = torch::stable::new_empty(references, references.sizes());
  const cudaStream_t stream = current_stream(references);
  if (references.scalar_type() == ScalarType::Double) {
    STD_CUDA_CHECK(launch_reference_gradient(g, data<const double>(grad_offsets), data<double>(grad), stream));
  } else {
    STD_CUDA_CHECK(launch_reference_gradient(g, data<const float>(grad_offsets), data<float>(grad), stream));
  }
  return grad;
}

}  // namespace

Tensor ms_deform_attn(Tensor value, Shapes shapes, Tensor locations, Tensor weights) {
  return forward(check_plain(value, shapes, locations, weights), value, nullptr, locations, weights);
}

Grads3 ms_deform_attn_backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor locations, Tensor weights, bool deterministic) {
  return backward(check_plain(value, shapes, locations, weights), grad_output, value, nullptr, locations, weights, deterministic, false);
}

Tensor ms_deform_attn_fused(Tensor value, Shapes shapes, Tensor references, Tensor offsets, Tensor logits) {
  const Sizes sizes = check_fused(value, shapes, references, offsets, logits);
  const Tensor centres = compact(references);
  return forward(sizes, value, &centres, offsets, logits);
}

Grads4 ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor references, Tensor offsets, Tensor logits,
                                     bool deterministic, bool skip_references) {
  const Sizes sizes = check_fused(value, shapes, references, offsets, logits);
  const Tensor centres = compact(references);
  const auto [grad_value, grad_offsets, grad_logits] =
      backward(sizes, grad_output, value, &centres, offsets, logits, deterministic, skip_references);
  const Tensor grad_references =
      skip_references ? no_reference_gradient(references) : reference_gradient(sizes, centres, grad_offsets);
  return {grad_value, grad_references, as_given(grad_offsets, offsets), as_given(grad_logits, logits)};
}

}  // namespace mrt::cuda
