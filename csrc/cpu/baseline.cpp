// The kernels for whatever instruction set the compiler targets by default (SSE2 on x86-64, NEON on arm64).
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#include "kernels.h"

#define MRT_INSTRUCTION_SET baseline
#define MRT_VECTOR_BYTES 16
#define MRT_WITH_DOUBLES
#include "vectors.inl"
#include "points.inl"
#include "slices.inl"
