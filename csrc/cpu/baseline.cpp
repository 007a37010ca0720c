// The kernels for whatever instruction set the compiler targets by default (SSE2 on x86-64, NEON on arm64).
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "kernels.h"

#define MRT_INSTRUCTION_SET baseline
#include "slices.inl"
