// Compiled once per instruction set (SAM2_FAST_ISA). The portable object also selects the set at
// run time. docs/kernels/hiera_block.md describes the tiling and its arithmetic.
#include "csrc/hiera_block.h"

#include <cstdlib>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/hiera_block/worker.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// Desired tokens of a task. Many tokens reuse weights that are loaded from an outer cache.
int64_t target_tokens(const HieraBlockParams& params) {
  if (params.pool) return 256;
  return params.weights.dim_out <= 192 ? 64 : 192;
}

// Windows of a task: fewer than desired if threads would otherwise be idle.
int64_t group_of(const HieraBlockParams& params, int64_t windows, int64_t area, int num_threads) {
  const int64_t target = target_tokens(params);
  int64_t group = target > area ? target / area : 1;
  while (group > 1 && ceil_div(windows, group) < 4 * num_threads) --group;
  return group;
}

// Division of a call's tokens into tiles.
template <class Dot>
struct Plan {
  int64_t windows, group;        // with windows: their number, and windows of a tile
  int64_t blocks;                // with global attention: blocks of 64 tokens of an image
  int64_t columns, out_columns;  // of a tile, before and after pooling

  static Plan of(const HieraBlockParams& params, int num_threads) {
    Plan plan{};
    plan.blocks = ceil_div(params.height * params.width, kBlock);
    plan.columns = kBlock;
    plan.out_columns = kBlock;
    const int64_t window = params.window;
    if (window == 0) return plan;
    const int64_t across = ceil_div(params.width, window);
    const int64_t down = ceil_div(params.height, window);
    const int64_t area = round_up(window * window, Dot::kDepth);
    plan.windows = params.batch * across * down;
    plan.group = group_of(params, plan.windows, area, num_threads);
    plan.columns = round_up(plan.group * area, kColumns);
    plan.out_columns =
        params.pool ? round_up(plan.group * (window * window / 4), kColumns) : plan.columns;
    return plan;
  }
};

// Called by every thread with the same arguments. The threads share the loops, and each loop ends
// with a barrier.
template <class Dot>
void run_all(const Worker<Dot>& worker, const Plan<Dot>& plan) {
  if (worker.params.window > 0) {
    const int64_t tasks = ceil_div(plan.windows, plan.group);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < tasks; ++i) {
      worker.run_windows(i * plan.group, smaller(plan.windows, (i + 1) * plan.group));
    }
    return;
  }
  for (int64_t image = 0; image < worker.params.batch; ++image) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < plan.blocks; ++i) worker.project_block(image, i);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < plan.blocks; ++i) worker.finish_block(image, i);
  }
}

// Memory of a call that all threads share. With an arena without memory only its size is computed.
template <class Dot>
struct CallMemory {
  typedef typename Dot::Unit Unit;
  Unit *copies, *pad_key;
  WholeImage<Dot> whole_image;

  static CallMemory allocate(Arena& arena, const HieraBlockParams& params, int64_t copied_units,
                             int64_t blocks) {
    const int64_t pitch = params.weights.dim_out / Dot::kDepth * kBlock;
    const int64_t whole_units = params.window > 0 ? 0 : blocks * pitch;
    CallMemory call_memory{};
    call_memory.copies = arena.allocate<Unit>(copied_units);
    call_memory.pad_key = arena.allocate<Unit>(params.weights.dim_out / Dot::kDepth);
    call_memory.whole_image.q = arena.allocate<Unit>(whole_units);
    call_memory.whole_image.k = arena.allocate<Unit>(whole_units);
    call_memory.whole_image.v = arena.allocate<Unit>(whole_units);
    call_memory.whole_image.pitch = pitch;
    return call_memory;
  }
};

template <class Dot>
bool run(const HieraBlockParams& params, int num_threads) {
  const HieraBlockWeights& weights = params.weights;
  WeightCopies<Dot> copies{weights.storage, nullptr};
  Matrices<Dot>::of(weights, copies);  // computes the size of the copies
  const Plan<Dot> plan = Plan<Dot>::of(params, num_threads);
  Arena call_size{nullptr}, thread_size{nullptr};
  CallMemory<Dot>::allocate(call_size, params, copies.units, plan.blocks);
  Tile<Dot>::allocate(thread_size, params, plan.columns, plan.out_columns);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, call_size.used + thread_size.used * num_threads));
  if (memory == nullptr) return false;
  Arena arena{memory};
  const auto call_memory = CallMemory<Dot>::allocate(arena, params, copies.units, plan.blocks);
  copies.start(call_memory.copies);
  Matrices<Dot> matrices = Matrices<Dot>::of(weights, copies);
  for (int64_t i = 0; i < weights.dim_out; i += Dot::kDepth) {
    call_memory.pad_key[i / Dot::kDepth] = Dot::pack(weights.qkv.bias + weights.dim_out + i, 1);
  }
  matrices.pad_key = call_memory.pad_key;
#pragma omp parallel num_threads(num_threads)
  {
    Arena thread_arena{memory + call_size.used + thread_size.used * thread_number()};
    const Worker<Dot> worker{
        params, matrices, call_memory.whole_image,
        Tile<Dot>::allocate(thread_arena, params, plan.columns, plan.out_columns)};
    run_all(worker, plan);
  }
  std::free(memory);
  return true;
}

}  // namespace

bool hiera_block(const HieraBlockParams& params, int num_threads) {
#if defined(__AVX512BF16__)
  if (params.weights.storage == Storage::kBfloat16) return run<DotBfloat16>(params, num_threads);
#endif
  return run<DotFloat>(params, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(hiera_block, HieraBlockParams)

}  // namespace sam2_fast
