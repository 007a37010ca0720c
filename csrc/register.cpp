// Names and schemas of the ops, and one block of kernels per device. Gradients and fake shapes are registered in mrt/ops/native.py.
#include "ms_deform_attn.h"

STABLE_TORCH_LIBRARY(mrt, library) {
  library.def("ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  library.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations,"
      " Tensor attention_weights, bool deterministic=False) -> (Tensor, Tensor, Tensor)");
  library.def(
      "ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets,"
      " Tensor attention_logits) -> Tensor");
  library.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor reference_points,"
      " Tensor sampling_offsets, Tensor attention_logits, bool deterministic=False, bool skip_references=False)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
}

#define MRT_BIND(device)                                                                                \
  library.impl("ms_deform_attn", TORCH_BOX(&mrt::device::ms_deform_attn));                              \
  library.impl("ms_deform_attn_backward", TORCH_BOX(&mrt::device::ms_deform_attn_backward));            \
  library.impl("ms_deform_attn_fused", TORCH_BOX(&mrt::device::ms_deform_attn_fused));                  \
  library.impl("ms_deform_attn_fused_backward", TORCH_BOX(&mrt::device::ms_deform_attn_fused_backward));

#ifdef MRT_WITH_CPU
STABLE_TORCH_LIBRARY_IMPL(mrt, CPU, library) { MRT_BIND(cpu) }
#endif

#ifdef MRT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrt, CUDA, library) { MRT_BIND(cuda) }
#endif

// The GPUs this binary has code for, as setup.py passed them to nvcc: sm_80,compute_90. mrt/ops/native.py asks before it chooses CUDA.
#ifdef MRT_CUDA_CODE
#define MRT_TEXT(...) #__VA_ARGS__
#define MRT_TEXT_OF(...) MRT_TEXT(__VA_ARGS__)
extern "C" __attribute__((visibility("default"))) const char* mrt_cuda_code() { return MRT_TEXT_OF(MRT_CUDA_CODE); }
#endif
