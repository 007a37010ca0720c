// How the threads of machine.h take turns. The jumps between stacks need a build without _FORTIFY_SOURCE.
#include "machine.h"

#include <numeric>

namespace emulator {

Machine machine;

namespace {
constexpr size_t kStack = 128 << 10;
}

unsigned Machine::random(unsigned below) {
  random_ = random_ * 6364136223846793005u + 1442695040888963407u;
  return static_cast<unsigned>((random_ >> 33) % below);
}

bool Machine::fail(const char* what) {
  if (error.empty()) {
    error = std::string(what) + " by thread " + std::to_string(thread.x) + " of block " + std::to_string(block.x) + ", " +
            std::to_string(block.y) + ", " + std::to_string(block.z);
  }
  return false;
}

void Machine::fiber_main() {
  for (;;) {  // one turn per block
    machine.kernel_();
    machine.fibers_[machine.thread.x].state = State::kDone;
    machine.yield();
  }
}

__attribute__((noinline)) void Machine::resume(unsigned index) {
  thread = Size(index, 0, 0);
  if (_setjmp(scheduler_) != 0) return;
  Fiber& fiber = fibers_[index];
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

__attribute__((noinline)) void Machine::yield() {
  if (_setjmp(fibers_[thread.x].place) == 0) _longjmp(scheduler_, 1);
}

void Machine::wait_for_block() {
  fibers_[thread.x].state = State::kAtBarrier;
  yield();
}

uint64_t Machine::exchange_bits(unsigned mask, uint64_t bits, size_t bytes, int source) {
  if (mask != 0xffffffffu) fail("a shuffle without all lanes in its mask");
  const unsigned me = thread.x;
  const int set = fibers_[me].exchanges++ % 2;
  Warp& warp = warps_[me / 32];
  warp.slots[set][me % 32] = bits;
  if (warp.arrived == 0) warp.bytes[set] = bytes;
  if (warp.bytes[set] != bytes) fail("a shuffle that met another one");
  if (++warp.arrived < 32) {
    fibers_[me].state = State::kAtShuffle;
    yield();
  } else {
    warp.arrived = 0;
    for (unsigned lane = 0; lane < 32; ++lane) fibers_[me / 32 * 32 + lane].state = State::kReady;
  }
  return warps_[me / 32].slots[set][source];
}

// Until all of its threads are done or at a barrier. Returns false if some are neither.
bool Machine::run_warp(unsigned warp) {
  for (bool ran = true; ran;) {
    ran = false;
    const unsigned first = random(32), stride = 2 * random(16) + 1;
    for (unsigned i = 0; i < 32; ++i) {
      const unsigned index = warp * 32 + (first + i * stride) % 32;
      if (fibers_[index].state != State::kReady) continue;
      resume(index);
      ran = true;
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (fibers_[warp * 32 + lane].state == State::kAtShuffle) return fail("a shuffle that not all lanes reached");
  }
  return true;
}

void Machine::run_block(unsigned count) {
  for (const auto& [variable, bytes] : shared) std::memset(variable, 0xff, bytes);
  warps_.assign(count / 32, Warp{});
  for (unsigned i = 0; i < count; ++i) {
    fibers_[i].state = State::kReady;
    fibers_[i].exchanges = 0;
  }
  for (unsigned done = 0; done < count;) {
    const unsigned warps = count / 32, first = random(warps);
    const bool forwards = random(2) == 0;
    for (unsigned i = 0; i < warps; ++i) {
      if (!run_warp((first + (forwards ? i : warps - i)) % warps)) return;
    }
    done = 0;
    for (unsigned i = 0; i < count; ++i) done += fibers_[i].state == State::kDone;
    if (done != 0 && done != count) {
      fail("a barrier that some threads will not reach");  // the hardware waits only for the others; no kernel of ours means that
      return;
    }
    for (unsigned i = 0; i < count && done == 0; ++i) fibers_[i].state = State::kReady;
  }
}

bool Machine::run(const Size& grid, const Size& threads, std::function<void()> kernel) {
  launches.emplace_back(grid, threads);
  kernel_ = std::move(kernel);
  grid_size = grid;
  block_size = threads;
  if (fibers_.size() < threads.x) {
    fibers_ = std::vector<Fiber>(threads.x);
    for (Fiber& fiber : fibers_) fiber.stack = std::make_unique<char[]>(kStack);
  }
  for (Fiber& fiber : fibers_) {  // afresh: an error may have left them anywhere
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Machine::fiber_main, 0);
    fiber.started = false;
  }
  std::vector<unsigned> order(static_cast<size_t>(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random(static_cast<unsigned>(i))]);
  for (const unsigned index : order) {
    if (!error.empty()) return false;
    block = Size(index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y);
    run_block(threads.x);
  }
  return error.empty();
}

}  // namespace emulator
