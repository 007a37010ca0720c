// CPU host code: tensors to pointers, 16-bit values to float32 and back, work to threads, and the choice of instruction set.
#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "kernels.h"

namespace mrt::cpu {
namespace {

// About this many multiply-adds are worth a thread of their own.
constexpr int64_t kWorkPerThread = 1 << 18;

// The best one this processor has; like PyTorch's own kernels, ATEN_CPU_CAPABILITY=avx2 or =default asks for less.
const InstructionSet& instruction_set() {
#ifdef MRT_X86_LEVELS
  static const char* const asked = std::getenv("ATEN_CPU_CAPABILITY");
  static const std::string_view most = asked == nullptr ? "" : asked;
  static const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                                 __builtin_cpu_supports("avx512vl");
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (has_avx512 && most != "avx2" && most != "default") return avx512;
  if (has_avx2 && most != "default") return avx2;
#endif
  return baseline;
}

template <typename T>
const Kernels<T>& kernels() {
  if constexpr (sizeof(T) == sizeof(float)) {
    return instruction_set().f32;
  } else {
    return instruction_set().f64;
  }
}

int64_t grain(const Sizes& sizes, int64_t items_per_task) {
  const int64_t work = items_per_task * sizes.samples() * sizes.dim * 4;
  return std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(1, work));
}

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

template <typename T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

Tensor compact(const Tensor& tensor) { return torch::stable::contiguous(tensor); }
Tensor compact(const Tensor& tensor, ScalarType dtype) { return torch::stable::contiguous(torch::stable::to(tensor, dtype)); }
Tensor like(const Tensor& tensor, ScalarType dtype) { return torch::stable::new_empty(tensor, tensor.sizes(), dtype); }

template <typename T>
void run_forward(const Sizes& sizes, const Tensor& value, const Tensor* references, const Tensor& points, const Tensor& weights,
                 const Tensor& output) {
  Call<T> call{};
  call.sizes = &sizes;
  call.value = read<T>(value);
  call.references = references == nullptr ? nullptr : read<T>(*references);
  call.points = read<T>(points);
  call.weights = read<T>(weights);
  call.output = write<T>(output);
  torch::stable::parallel_for(0, sizes.batch * sizes.heads * sizes.queries, grain(sizes, 1),
                              [&](int64_t begin, int64_t end) { kernels<T>().forward(call, begin, end); });
}

Tensor forward(const Sizes& sizes, const Tensor& value, const Tensor* references, const Tensor& points, const Tensor& weights) {
  const ScalarType dtype = point_dtype(value);
  const Tensor wide = compact(value, dtype), where = compact(points), how_much = compact(weights);
  const Tensor output = torch::stable::new_empty(value, {sizes.batch, sizes.queries, sizes.heads * sizes.dim}, dtype);
  if (dtype == ScalarType::Double) {
    run_forward<double>(sizes, wide, references, where, how_much, output);
  } else {
    run_forward<float>(sizes, wide, references, where, how_much, output);
  }
  return torch::stable::to(output, value.scalar_type());
}

template <typename T>
void run_backward(const Sizes& sizes, const Tensor& grad_output, const Tensor& value, const Tensor* references, const Tensor& points,
                  const Tensor& weights, const Tensor& grad_value, const Tensor& grad_points, const Tensor& grad_weights) {
  Call<T> call{};
  call.sizes = &sizes;
  call.value = read<T>(value);
  call.references = references == nullptr ? nullptr : read<T>(*references);
  call.points = read<T>(points);
  call.weights = read<T>(weights);
  call.grad_output = read<T>(grad_output);
  call.grad_value = write<T>(grad_value);
  call.grad_points = write<T>(grad_points);
  call.grad_weights = write<T>(grad_weights);
  torch::stable::parallel_for(0, sizes.batch * sizes.heads, grain(sizes, sizes.queries),
                              [&](int64_t begin, int64_t end) { kernels<T>().backward(call, begin, end); });
}

Grads3 backward(const Sizes& sizes, const Tensor& grad_output, const Tensor& value, const Tensor* references, const Tensor& points,
                const Tensor& weights) {
  check_grad_output(value, sizes, grad_output);
  const ScalarType dtype = point_dtype(value);
  const Tensor wide = compact(value, dtype), upstream = compact(grad_output, dtype), where = compact(points), how_much = compact(weights);
  const Tensor grad_value = like(value, dtype), grad_points = like(points, dtype), grad_weights = like(weights, dtype);
  if (dtype == ScalarType::Double) {
    run_backward<double>(sizes, upstream, wide, references, where, how_much, grad_value, grad_points, grad_weights);
  } else {
    run_backward<float>(sizes, upstream, wide, references, where, how_much, grad_value, grad_points, grad_weights);
  }
  return {torch::stable::to(grad_value, value.scalar_type()), grad_points, grad_weights};
}

// A reference point moves all heads' points of its query and level: by (W, H) cells per unit.
template <typename T>
void sum_reference_gradient(const Sizes& sizes, const T* grad_offsets, T* grad_references) {
  const int64_t levels = sizes.levels.size(), samples = sizes.samples();
  torch::stable::parallel_for(0, sizes.batch * sizes.queries, grain(sizes, 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t l = 0; l < levels; ++l) {
        T x = 0, y = 0;
        for (int64_t m = 0; m < sizes.heads; ++m) {
          const T* grads = grad_offsets + ((row * sizes.heads + m) * samples + l * sizes.points) * 2;
          for (int64_t p = 0; p < sizes.points; ++p) {
            x += grads[2 * p];
            y += grads[2 * p + 1];
          }
        }
        grad_references[(row * levels + l) * 2] = x * sizes.levels[l].width;
        grad_references[(row * levels + l) * 2 + 1] = y * sizes.levels[l].height;
      }
    }
  });
}

}  // namespace

Tensor ms_deform_attn(Tensor value, Shapes shapes, Tensor locations, Tensor weights) {
  return forward(check_plain(value, shapes, locations, weights), value, nullptr, locations, weights);
}

Grads3 ms_deform_attn_backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor locations, Tensor weights) {
  return backward(check_plain(value, shapes, locations, weights), grad_output, value, nullptr, locations, weights);
}

Tensor ms_deform_attn_fused(Tensor value, Shapes shapes, Tensor references, Tensor offsets, Tensor logits) {
  const Sizes sizes = check_fused(value, shapes, references, offsets, logits);
  const Tensor centres = compact(references);
  return forward(sizes, value, &centres, offsets, logits);
}

Grads4 ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor references, Tensor offsets, Tensor logits) {
  const Sizes sizes = check_fused(value, shapes, references, offsets, logits);
  const Tensor centres = compact(references);
  const auto [grad_value, grad_offsets, grad_logits] = backward(sizes, grad_output, value, &centres, offsets, logits);
  const Tensor grad_references = like(references, references.scalar_type());
  if (references.scalar_type() == ScalarType::Double) {
    sum_reference_gradient(sizes, read<double>(grad_offsets), write<double>(grad_references));
  } else {
    sum_reference_gradient(sizes, read<float>(grad_offsets), write<float>(grad_references));
  }
  return {grad_value, grad_references, grad_offsets, grad_logits};
}

}  // namespace mrt::cpu
