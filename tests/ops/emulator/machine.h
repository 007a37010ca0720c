// A GPU of one core: blocks one after another, a block's threads as fibers that change at shuffles and barriers.
//
// All orders are random, from a seed: blocks, warps in a block, lanes in a warp. A warp runs until its next __syncthreads before another warp
// begins, so that warps are as far apart as barriers allow: where one is missing, a warp reads what another has not written yet. Shared
// memory is filled with NaN before each block. Errors: a shuffle or barrier that not all threads reach, different shuffles meeting in a
// warp, a launch the hardware would refuse, an access beyond the announced buffers or misaligned (in __ldg and atomics).
//
// It shows wrong arithmetic, wrong indices, missing barriers. It cannot show what only parallel blocks or the memory model bring about, what
// nvcc makes of the source, limits of registers and shared memory, and anything about speed.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace emulator {

struct Size {
  unsigned x = 1, y = 1, z = 1;
  constexpr Size(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline bool launchable(const Size& grid, const Size& block) {
  const bool grid_fits = grid.x >= 1 && grid.x <= 0x7fffffffu && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535;
  return grid_fits && block.x >= 1 && block.x <= 1024 && block.x % 32 == 0 && block.y == 1 && block.z == 1;
}

class Machine {
 public:
  Size thread, block, block_size, grid_size;
  std::string error;                                 // of the last run; empty: none
  std::vector<std::pair<const void*, size_t>> buffers;  // what kernels may access
  std::vector<std::pair<void*, size_t>> shared;      // all __shared__ variables
  std::vector<std::pair<Size, Size>> launches;       // grid and block sizes, to see which kernel was chosen

  bool run(const Size& grid, const Size& threads, std::function<void()> kernel);
  void seed(uint64_t seed) { random_ = seed * 2 + 1; }

  // For kernels.
  int lane() const { return static_cast<int>(thread.x % 32); }
  void wait_for_block();
  bool may_access(const void* from, size_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(from);
    for (const auto& [buffer, size] : buffers) {
      const auto first = reinterpret_cast<uintptr_t>(buffer);
      if (begin >= first && begin + bytes <= first + size) return begin % bytes == 0 || fail("a misaligned access");
    }
    return fail("an access outside of all buffers");
  }
  template <typename T>
  T exchange(unsigned mask, T x, int source) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof(T));
    bits = exchange_bits(mask, bits, sizeof(T), source);
    std::memcpy(&x, &bits, sizeof(T));
    return x;
  }

 private:
  enum class State { kReady, kAtShuffle, kAtBarrier, kDone };
  struct Fiber {
    ucontext_t context;
    jmp_buf place;
    std::unique_ptr<char[]> stack;
    State state = State::kDone;
    bool started = false;
    int exchanges = 0;
  };
  struct Warp {
    uint64_t slots[2][32];  // two sets: nobody is two exchanges ahead of another lane
    size_t bytes[2];
    int arrived = 0;
  };

  static void fiber_main();
  void resume(unsigned index);
  void yield();
  void run_block(unsigned count);
  bool run_warp(unsigned warp);
  uint64_t exchange_bits(unsigned mask, uint64_t bits, size_t bytes, int source);
  bool fail(const char* what);
  unsigned random(unsigned below);

  std::function<void()> kernel_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  jmp_buf scheduler_;
  uint64_t random_ = 1;
};

extern Machine machine;

}  // namespace emulator
