// Vectors of one register: how to load, store, shuffle and sum them. Included before points.inl and slices.inl, once per instruction set
// (baseline.cpp, avx2.cpp, avx512.cpp), each time into an unnamed namespace of its own. MRT_VECTOR_BYTES is the register's length.

namespace mrt::cpu {
namespace {

constexpr int kBytes = MRT_VECTOR_BYTES;
// Of a row, kept in registers; wider heads are done in several passes over the channels. Fewer for float64, which nobody waits for but
// the compiler.
template <typename T>
constexpr int kMaxVectors = sizeof(T) == sizeof(double) ? 2 : kBytes == 16 ? 8 : 4;

// Vectors of one register in the compiler's own notation. Comparisons give Integers: all bits set or none.
template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kBytes)));
  typedef int32_t integers __attribute__((vector_size(kBytes)));
  using integer = int32_t;
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kBytes)));
  typedef int64_t integers __attribute__((vector_size(kBytes)));
  using integer = int64_t;
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
using Integers = typename VectorOf<T>::integers;
template <typename T>
using Integer = typename VectorOf<T>::integer;
template <typename T>
constexpr int kLanes = kBytes / sizeof(T);
template <typename T>
using Lanes = std::make_integer_sequence<int, kLanes<T>>;

#define MRT_INLINE inline __attribute__((always_inline))

template <typename T>
MRT_INLINE Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
MRT_INLINE Integers<T> load_integers(const Integer<T>* from) {
  Integers<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename E, typename V>
MRT_INLINE void store(E* to, V v) {
  std::memcpy(to, &v, sizeof(v));
}

template <typename T>
MRT_INLINE void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) __builtin_prefetch(from + i);
}

template <typename T>
MRT_INLINE Vector<T> first_lanes(Vector<T> v, int64_t count) {  // zeros after them
  Integers<T> lane;
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return lane < static_cast<Integer<T>>(count) ? v : Vector<T>{};
}

// The first `count` elements, zeros after them. Reads a whole vector unless that would pass `end`.
template <typename T>
MRT_INLINE Vector<T> load_part(const T* from, int64_t count, const T* end) {
  if (end - from >= kLanes<T>) return first_lanes<T>(load(from), count);
  Vector<T> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}

template <typename E, typename V>
MRT_INLINE void store_part(E* to, V v, int64_t count) {
  constexpr int64_t half = sizeof(V) / sizeof(E) / 2;
  if (count >= half) std::memcpy(to, &v, half * sizeof(E));
  for (int64_t i = count >= half ? half : 0; i < count; ++i) to[i] = v[i];
}

// 16-bit numbers to float and back, by their bits, so that every instruction set does the same.
typedef uint16_t Halves __attribute__((vector_size(kBytes / 2)));
typedef uint32_t Bits __attribute__((vector_size(kBytes)));

MRT_INLINE Vector<float> widen(Halves halves, Storage storage) {
  const Bits bits = __builtin_convertvector(halves, Bits);
  if (storage == Storage::kBFloat16) return (Vector<float>)(bits << 16);
  const Bits sign = (bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  const Bits normal = (magnitude << 13) + (112u << 23), infinite = normal + (112u << 23);  // exponents are biased by 15, and by 127
  const Vector<float> subnormal = __builtin_convertvector((Integers<float>)magnitude, Vector<float>) * 0x1p-24f;
  return (Vector<float>)(sign | (magnitude < 0x400 ? (Bits)subnormal : magnitude < 0x7c00 ? normal : infinite));
}

// To the nearest, to the even one of two.
MRT_INLINE Halves narrow(Vector<float> v, Storage storage) {
  const Bits bits = (Bits)v;
  if (storage == Storage::kBFloat16) {
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(v == v ? rounded : Bits{} + 0x7fc0, Halves);
  }
  const Bits sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  const Bits normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Bits subnormal = (Bits)((Vector<float>)magnitude + 0.5f) - 0x3f000000;  // 0.5 has its last bit where a subnormal half has its own
  const Bits finite = magnitude < (113u << 23) ? subnormal : normal;
  const Bits result = magnitude < 0x477ff000 ? finite : magnitude <= 0x7f800000 ? Bits{} + 0x7c00 : Bits{} + 0x7e00;
  return __builtin_convertvector(sign | result, Halves);
}

// A vector of an array's numbers, from element `at` on.
template <typename T>
MRT_INLINE Vector<T> load_numbers(const void* array, Storage storage, int64_t at) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (storage != Storage::kWide) {
      Halves halves;
      std::memcpy(&halves, static_cast<const uint16_t*>(array) + at, sizeof(halves));
      return widen(halves, storage);
    }
  }
  return load(static_cast<const T*>(array) + at);
}

// The first `count` numbers of a vector, no more than it has.
template <typename T>
MRT_INLINE void store_numbers(void* array, Storage storage, int64_t at, Vector<T> v, int64_t count) {
  const auto put = [count](auto* to, auto numbers) {
    if (count >= kLanes<T>) {
      store(to, numbers);
    } else if (count > 0) {
      store_part(to, numbers, count);
    }
  };
  if constexpr (sizeof(T) == sizeof(float)) {
    if (storage != Storage::kWide) return put(static_cast<uint16_t*>(array) + at, narrow(v, storage));
  }
  put(static_cast<T*>(array) + at, v);
}

// V vectors' worth of a row of `width` elements, from element `at` on of an array of `size`.
template <typename T, int V>
MRT_INLINE void load_row(const void* array, Storage storage, int64_t at, int64_t width, int64_t size, Vector<T> (&row)[V]) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (storage != Storage::kWide) {
      const uint16_t *from = static_cast<const uint16_t*>(array) + at, *end = static_cast<const uint16_t*>(array) + size;
      for (int v = 0; v < V; ++v, from += kLanes<T>) {
        const int64_t left = width - v * kLanes<T>;
        Halves halves{};
        if (end - from >= kLanes<T>) {
          std::memcpy(&halves, from, sizeof(halves));
        } else {
          for (int64_t i = 0; i < left && i < kLanes<T>; ++i) halves[i] = from[i];
        }
        row[v] = left >= kLanes<T> ? widen(halves, storage) : first_lanes<T>(widen(halves, storage), left);
      }
      return;
    }
  }
  const T *from = static_cast<const T*>(array) + at, *end = static_cast<const T*>(array) + size;
  for (int v = 0; v < V; ++v, from += kLanes<T>) {
    const int64_t left = width - v * kLanes<T>;
    row[v] = left >= kLanes<T> ? load(from) : load_part(from, left, end);
  }
}

template <typename T, int V>
MRT_INLINE void store_row(void* array, Storage storage, int64_t at, int64_t width, const Vector<T> (&row)[V]) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (storage != Storage::kWide) {
      uint16_t* to = static_cast<uint16_t*>(array) + at;
      for (int v = 0; v < V; ++v, to += kLanes<T>) {
        const int64_t left = width - v * kLanes<T>;
        left >= kLanes<T> ? store(to, narrow(row[v], storage)) : store_part(to, narrow(row[v], storage), left);
      }
      return;
    }
  }
  T* to = static_cast<T*>(array) + at;
  for (int v = 0; v < V; ++v, to += kLanes<T>) {
    const int64_t left = width - v * kLanes<T>;
    left >= kLanes<T> ? store(to, row[v]) : store_part(to, row[v], left);
  }
}

// The elements I of a and b, counted on from a to b. GCC has Clang's name for it from release 12 on.
template <int... I, typename V>
MRT_INLINE V pick(V a, V b) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, I...);
#else
  using Indices = decltype(a < b);  // integers of the same length, as many
  return __builtin_shuffle(a, b, Indices{I...});
#endif
}

// One half of a vector: the lower (0) or the upper (1).
template <typename Half, int kWhich, int... I, typename V>
MRT_INLINE Half half_of(V v, std::integer_sequence<int, I...>) {
  static_assert(sizeof(V) == 2 * sizeof(Half));
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(v, v, kWhich * static_cast<int>(sizeof...(I)) + I...);
#else
  Half half;
  std::memcpy(&half, reinterpret_cast<const char*>(&v) + kWhich * sizeof(half), sizeof(half));
  return half;
#endif
}

template <int N, typename V, int... I>
MRT_INLINE V rotate(V v, std::integer_sequence<int, I...>) {
  return pick<(I + N) % static_cast<int>(sizeof...(I))...>(v, v);
}

// Every second element of a and b, from element N (0 or 1) on.
template <int N, typename V, int... I>
MRT_INLINE V every_second(V a, V b, std::integer_sequence<int, I...>) {
  return pick<2 * I + N...>(a, b);
}

// a0 b0 a1 b1 ..., starting with element N of each.
template <int N, typename V, int... I>
MRT_INLINE V interleave(V a, V b, std::integer_sequence<int, I...>) {
  return pick<I / 2 + N + I % 2 * static_cast<int>(sizeof...(I))...>(a, b);
}

// All lanes combined, in every lane.
template <typename T, typename Combine>
MRT_INLINE Vector<T> fold(Vector<T> v, const Combine& combine) {
  if constexpr (kLanes<T> > 8) v = combine(v, rotate<8>(v, Lanes<T>{}));
  if constexpr (kLanes<T> > 4) v = combine(v, rotate<4>(v, Lanes<T>{}));
  if constexpr (kLanes<T> > 2) v = combine(v, rotate<2>(v, Lanes<T>{}));
  return combine(v, rotate<1>(v, Lanes<T>{}));
}

template <typename T>
MRT_INLINE Vector<T> sum_of(Vector<T> v) {
  return fold<T>(v, [](Vector<T> a, Vector<T> b) { return a + b; });
}

template <typename T>
MRT_INLINE Vector<T> largest_of(Vector<T> v) {
  return fold<T>(v, [](Vector<T> a, Vector<T> b) { return a > b ? a : b; });
}

// The sums of a float vector's lanes that are 4 apart.
typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));
template <typename V>
MRT_INLINE Four sum_to_four(V v) {
  if constexpr (sizeof(V) == sizeof(Four)) {
    return v;
  } else {
    using Half = std::conditional_t<sizeof(V) == 2 * sizeof(Four), Four, Eight>;
    using Order = std::make_integer_sequence<int, sizeof(Half) / sizeof(float)>;
    return sum_to_four(half_of<Half, 0>(v, Order{}) + half_of<Half, 1>(v, Order{}));
  }
}

// The sums of four vectors' lanes, together cheaper than one by one.
MRT_INLINE void sum_lanes(const Vector<float> (&s)[4], float* sums) {
  const Four a = sum_to_four(s[0]), b = sum_to_four(s[1]), c = sum_to_four(s[2]), d = sum_to_four(s[3]);
  const Four ab = pick<0, 4, 1, 5>(a, b) + pick<2, 6, 3, 7>(a, b);
  const Four cd = pick<0, 4, 1, 5>(c, d) + pick<2, 6, 3, 7>(c, d);
  store(sums, pick<0, 1, 4, 5>(ab, cd) + pick<2, 3, 6, 7>(ab, cd));
}

MRT_INLINE void sum_lanes(const Vector<double> (&s)[4], double* sums) {
  for (int c = 0; c < 4; ++c) sums[c] = sum_of<double>(s[c])[0];
}

// exp(x) for x <= 0: x = n ln 2 + r, Taylor series for exp(r), n into the exponent. 1 ulp or so; 0 below exp(-80), before products with
// attention weights become denormal numbers, on which processors are slow.
MRT_INLINE Vector<float> exponential(Vector<float> argument) {
  const Integers<float> tiny = argument < -80.0f;
  const Vector<float> x = tiny ? Vector<float>{} : argument;
  const Integers<float> n = __builtin_convertvector(x * 1.44269504f - 0.5f, Integers<float>);  // rounds to nearest: x is not positive
  const Vector<float> whole = __builtin_convertvector(n, Vector<float>);
  const Vector<float> r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vector<float> e = r * (1.0f / 5040) + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  return tiny ? Vector<float>{} : e * (Vector<float>)((n + 127) << 23);
}

MRT_INLINE Vector<double> exponential(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace
}  // namespace mrt::cpu
