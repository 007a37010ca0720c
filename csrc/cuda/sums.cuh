// Where the backward kernels add up value's gradient: floats in any order, or integers, whose sum does not depend on the order.
//
// FixedSum is what torch.use_deterministic_algorithms asks for. A slice (one head of one image) has one scale, a power of two: the largest
// sum that can occur, Q times `bound` (the largest |grad_output| of an item times the sum of its |attention weights|), stays below 2^61.
// Each contribution is rounded to a multiple of 1/scale, so an element of grad_value is off by at most
//     (contributions to it) * Q * bound * 2^-61,
// some 2^-46 of the slice's largest contribution in an encoder of 22,000 queries: far below float32's own rounding, which still happens to
// each product and once at the end. A contribution that is no finite number turns its whole slice into NaN.
#pragma once

#include <type_traits>

#include "vectors.cuh"

namespace mrt::cuda {

constexpr unsigned long long kNotFinite = 0x7ff8000000000000ull;  // a NaN's bits: as integers above those of every positive number

struct NoSum {  // somebody else sees to value's gradient
  static constexpr bool kAdds = false;
  __device__ __forceinline__ int from(int64_t) const { return 0; }
};

template <typename R>
struct FloatSum {
  static constexpr bool kAdds = true;
  R* sums;  // (N, S, M, D)

  // Pointers and scale of one slice; `first` is the index of the slice's element that `at` counts from.
  struct Slice {
    R* sums;
    __device__ __forceinline__ void add(int64_t at, R x) const { atomicAdd(sums + at, x); }
    __device__ __forceinline__ void add4(int64_t at, float4 x) const { atomic_add4(sums + at, x); }
  };
  __device__ __forceinline__ Slice from(int64_t first) const { return {sums + first}; }
  __device__ __forceinline__ Slice slice(const Geometry&, int64_t, int64_t first) const { return from(first); }
};

// What FixedSum and the kernel that reads its sums agree on.
struct Scale {
  int exponent;  // one unit of the sums is 2^-exponent
  bool finite;

  // `bound` holds a double's bits. Within [-limit, limit] both 2^exponent and its inverse are normal numbers.
  static __device__ __forceinline__ Scale of(unsigned long long bound, int64_t queries, int limit) {
    double largest;
    std::memcpy(&largest, &bound, sizeof(largest));
    largest *= static_cast<double>(queries);
    unsigned long long bits;
    std::memcpy(&bits, &largest, sizeof(bits));
    const int above = static_cast<int>(bits >> 52) - 1022;  // largest < 2^above
    const int exponent = 61 - above;
    return {exponent > limit ? limit : exponent < -limit ? -limit : exponent, above <= 1024};
  }
  static __device__ __forceinline__ double power(int exponent) {
    const unsigned long long bits = static_cast<unsigned long long>(exponent + 1023) << 52;
    double result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
  }
};

template <typename R>
constexpr int kScaleLimit = std::is_same_v<R, float> ? 126 : 1022;

template <typename R>
struct FixedSum {
  static constexpr bool kAdds = true;
  unsigned long long *sums, *bounds;  // (N, S, M, D) and (N, M)

  struct Slice {
    unsigned long long *sums, *bound;
    R scale;
    __device__ __forceinline__ void add(int64_t at, R x) const {
      const R scaled = x * scale;
      if (scaled > R(-4e18) && scaled < R(4e18)) {  // below 2^62, and a NaN fails both
        atomicAdd(sums + at, static_cast<unsigned long long>(nearest(scaled)));
      } else {
        atomicMax(bound, kNotFinite);
      }
    }
  };
  __device__ __forceinline__ Slice slice(const Geometry& g, int64_t index, int64_t first) const {
    const Scale scale = Scale::of(bounds[index], g.queries, kScaleLimit<R>);
    return {sums + first, bounds + index, static_cast<R>(Scale::power(scale.exponent))};
  }
  static __device__ __forceinline__ long long nearest(float x) { return __float2ll_rn(x); }
  static __device__ __forceinline__ long long nearest(double x) { return __double2ll_rn(x); }
};

}  // namespace mrt::cuda
