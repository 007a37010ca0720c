// CPU host code: tensors to pointers, 16-bit values to float32 and back, work to threads, and the choice of instruction set.
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "kernels.h"

namespace mrt::cpu {
namespace {

// About this many multiply-adds are worth a thread of their own.
constexpr int64_t kWorkPerThread = 1 << 18;

// The best one this processor has; like PyTorch's own kernels, ATEN_CPU_CAPABILITY=avx2 or =default asks for less.
const Kernels<float>& instruction_set() {
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
    return instruction_set();
  } else {
    return doubles;
  }
}

int64_t grain(const Sizes& sizes, int64_t items_per_task) {
  const int64_t work = items_per_task * sizes.samples() * sizes.dim * 4;
  return std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(1, work));
}

// Whether one thread's queries of a slice read so few rows (four a point) that copying the whole map would cost more than it gives: below
// about four times the map's cells, as measured.
bool few_queries(const Sizes& sizes, int64_t queries) { return queries * sizes.samples() < sizes.cells; }

// Into how many parts the backward pass divides a slice's queries: enough for all threads, while each adds to more cells than its own
// gradient map has.
int64_t parts(const Sizes& sizes) {
  const int64_t slices = std::max<int64_t>(1, sizes.batch * sizes.heads), threads = torch::stable::get_num_threads();
  const int64_t worthwhile = sizes.queries * sizes.samples() * 4 / std::max<int64_t>(1, sizes.cells);
  return std::max<int64_t>(1, std::min((threads + slices - 1) / slices, worthwhile));
}

// malloc takes so much from the system anew each time. Its first use costs a fraction in pages of 2 MiB, where the system grants them.
Tensor in_large_pages(Tensor tensor) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 1 << 21, fresh = 32 << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(tensor.data_ptr()), bytes = tensor.numel() * tensor.element_size();
  const uintptr_t first = (start + page - 1) / page * page, last = (start + bytes) / page * page;
  if (bytes >= fresh) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return tensor;
}

void fill_with_zeros(const Tensor& tensor) {
  const int64_t bytes = tensor.numel() * tensor.element_size();
  torch::stable::parallel_for(0, bytes, 1 << 20, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(tensor.data_ptr()) + begin, 0, end - begin);
  });
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
Tensor like(const Tensor& tensor, ScalarType dtype) { return in_large_pages(torch::stable::new_empty(tensor, tensor.sizes(), dtype)); }

Storage storage(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  return dtype == ScalarType::BFloat16 ? Storage::kBFloat16 : dtype == ScalarType::Half ? Storage::kHalf : Storage::kWide;
}

template <typename T>
Call<T> make_call(const Sizes& sizes, int64_t queries, const Tensor& value, const Tensor* references, const QueryRows& points,
                  const QueryRows& weights) {
  Call<T> call{};
  call.sizes = &sizes;
  call.storage = storage(value);
  const Rows rows = kernels<T>().rows;
  call.in_place = rows.whole(sizes.dim) && reads_in_place<T>(sizes.dim / rows.lanes) && few_queries(sizes, queries);
  call.value = value.data_ptr();
  call.references = references == nullptr ? nullptr : read<T>(*references);
  call.points = points.tensor.data_ptr();
  call.weights = weights.tensor.data_ptr();
  call.point_step = points.step;
  call.weight_step = weights.step;
  call.point_storage = storage(points.tensor);
  return call;
}

template <typename T>
void run_forward(const Sizes& sizes, const Tensor& value, const Tensor* references, const QueryRows& points, const QueryRows& weights,
                 const Tensor& output) {
  const int64_t items = sizes.batch * sizes.heads * sizes.queries, share = items / torch::stable::get_num_threads() + 1;
  Call<T> call = make_call<T>(sizes, std::min(sizes.queries, share), value, references, points, weights);
  call.output = output.data_ptr();
  torch::stable::parallel_for(0, items, grain(sizes, 1),
                              [&](int64_t begin, int64_t end) { kernels<T>().forward(call, begin, end); });
}

Tensor forward(const Sizes& sizes, const Tensor& value, const Tensor* references, const Tensor& points, const Tensor& weights) {
  const Tensor map = compact(value);
  const QueryRows where = in_rows(points), how_much = in_rows(weights);
  const Tensor output = in_large_pages(torch::stable::new_empty(value, {sizes.batch, sizes.queries, sizes.heads * sizes.dim}));
  if (value.scalar_type() == ScalarType::Double) {
    run_forward<double>(sizes, map, references, where, how_much, output);
  } else {
    run_forward<float>(sizes, map, references, where, how_much, output);
  }
  return output;
}

template <typename T>
void run_backward(const Sizes& sizes, const Tensor& grad_output, const Tensor& value, const Tensor* references, const QueryRows& points,
                  const QueryRows& weights, const Tensor& grad_value, const Tensor& grad_points, const Tensor& grad_weights) {
  Call<T> call = make_call<T>(sizes, sizes.queries, value, references, points, weights);
  call.grad_output = grad_output.data_ptr();
  call.grad_value = grad_value.data_ptr();
  call.grad_points = grad_points.data_ptr();
  call.grad_weights = grad_weights.data_ptr();
  call.grad_storage = storage(grad_points);
  const int64_t slices = sizes.batch * sizes.heads;
  const Kernels<T>& run = kernels<T>();
  Tensor maps;
  if (call.adds_in_place()) {
    fill_with_zeros(grad_value);
  } else {
    call.parts = parts(sizes);
    if (call.parts > 1) {
      const int64_t map = run.rows.passes(sizes.dim) * (sizes.cells + 1) * run.rows.padded(sizes.dim);
      maps = torch::stable::new_empty(value, {slices * call.parts * map}, point_dtype(value));
      call.part_grads = write<T>(maps);
    }
  }
  torch::stable::parallel_for(0, slices * call.parts, grain(sizes, sizes.queries / call.parts),
                              [&](int64_t begin, int64_t end) { run.backward(call, begin, end); });
  if (call.parts == 1) return;
  torch::stable::parallel_for(0, slices * sizes.cells, kWorkPerThread / (call.parts * sizes.dim) + 1,
                              [&](int64_t begin, int64_t end) { run.combine(call, begin, end); });
}

// Gradients of points and weights are wide, or rounded to the dtype of these: only if all of them are known at once.
Grads3 backward(const Sizes& sizes, const Tensor& grad_output, const Tensor& value, const Tensor* references, const Tensor& points,
                const Tensor& weights, bool rounded) {
  check_grad_output(value, sizes, grad_output);
  const Tensor upstream = compact(grad_output), map = compact(value);
  const QueryRows where = in_rows(points), how_much = in_rows(weights);
  const ScalarType dtype = rounded && kernels<float>().rows.passes(sizes.dim) == 1 ? points.scalar_type() : point_dtype(value);
  const Tensor grad_value = like(value, value.scalar_type()), grad_points = like(points, dtype), grad_weights = like(weights, dtype);
  if (value.scalar_type() == ScalarType::Double) {
    run_backward<double>(sizes, upstream, map, references, where, how_much, grad_value, grad_points, grad_weights);
  } else {
    run_backward<float>(sizes, upstream, map, references, where, how_much, grad_value, grad_points, grad_weights);
  }
  return {grad_value, grad_points, grad_weights};
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

// `deterministic` changes nothing here: no order of additions depends on timing.
Grads3 ms_deform_attn_backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor locations, Tensor weights, bool) {
  return backward(check_plain(value, shapes, locations, weights), grad_output, value, nullptr, locations, weights, false);
}

Tensor ms_deform_attn_fused(Tensor value, Shapes shapes, Tensor references, Tensor offsets, Tensor logits) {
  const Sizes sizes = check_fused(value, shapes, references, offsets, logits);
  const Tensor centres = compact(references);
  return forward(sizes, value, &centres, offsets, logits);
}

Grads4 ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor references, Tensor offsets, Tensor logits,
                                     bool, bool skip_references) {
  const Sizes sizes = check_fused(value, shapes, references, offsets, logits);
  const Tensor centres = compact(references);
  const auto [grad_value, grad_offsets, grad_logits] = backward(sizes, grad_output, value, &centres, offsets, logits, skip_references);
  Tensor grad_references;
  if (skip_references) {
    grad_references = no_reference_gradient(references);
  } else {
    grad_references = like(references, references.scalar_type());
    if (references.scalar_type() == ScalarType::Double) {
      sum_reference_gradient(sizes, read<double>(grad_offsets), write<double>(grad_references));
    } else {
      sum_reference_gradient(sizes, read<float>(grad_offsets), write<float>(grad_references));
    }
  }
  return {grad_value, grad_references, as_given(grad_offsets, offsets), as_given(grad_logits, logits)};
}

}  // namespace mrt::cpu
