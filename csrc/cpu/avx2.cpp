// The kernels for x86-64 processors with AVX2 and FMA (x86-64-v3), chosen at run time. Standard headers come first: only what follows the
// pragma may use these instructions.
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#include "kernels.h"

#ifdef MRT_X86_LEVELS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC target("arch=x86-64-v3")
#endif
#define MRT_INSTRUCTION_SET avx2
#define MRT_VECTOR_BYTES 32
#include "vectors.inl"
#include "points.inl"
#include "slices.inl"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
