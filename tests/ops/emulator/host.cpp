// The CUDA host file over the emulated kernels, as the ops of torch.ops.NAMESPACE for tensors on the CPU. Three things are stubbed: the
// device guard, the current stream and the check of CUDA's errors. All else is csrc/cuda/ms_deform_attn.cpp and csrc/register.cpp, unchanged.
#define USE_CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "machine.h"

namespace {

int guarded = 0, streams = 0;  // how often a call asked for them

AOTITorchError emulated_stream(int32_t, void** stream) {
  ++streams;
  *stream = nullptr;
  emulator::machine.error.clear();
  emulator::machine.buffers.assign(1, {nullptr, ~size_t{0}});  // any: the outputs' are not known here
  return 0;
}

}  // namespace

namespace torch::stable::accelerator {
struct EmulatedGuard {
  explicit EmulatedGuard(int32_t) { ++guarded; }
};
}  // namespace torch::stable::accelerator

#define aoti_torch_get_current_cuda_stream emulated_stream
#define DeviceGuard EmulatedGuard
#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) STD_TORCH_CHECK((call) == cudaSuccess, "emulated: ", emulator::machine.error)
#include "ms_deform_attn.cpp"

namespace NAMESPACE = mrt;
#define MRT_WITH_CPU  // the block of kernels for tensors on the CPU ...
#define cpu cuda      // ... gets those of the namespace cuda
#define mrt NAMESPACE
#include "../register.cpp"
#undef mrt
#undef cpu

#pragma GCC visibility push(default)
extern "C" {
// Device guards and streams asked for since the last call, and forgets the launches counted so far.
void emulated_begin(int64_t seed) {
  emulator::machine.seed(static_cast<uint64_t>(seed));
  emulator::machine.launches.clear();
  guarded = streams = 0;
}
int emulated_guards() { return guarded; }
int emulated_streams() { return streams; }
}
#pragma GCC visibility pop
