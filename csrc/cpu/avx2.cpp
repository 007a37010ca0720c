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
#pragma GCC target("arch=x86-64-v3")
#define MRT_INSTRUCTION_SET avx2
#define MRT_VECTOR_BYTES 32
#include "vectors.inl"
#include "points.inl"
#include "slices.inl"
#endif
