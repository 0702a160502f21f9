// Compiled once per instruction set (SAM2_FAST_ISA). The portable object also selects the set at
// run time. docs/kernels/memory_encoder.md describes the passes and their arithmetic.
#include "csrc/memory_encoder.h"

#include <cstdlib>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/memory_encoder/worker.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// Desired tokens of a tile. Weights are loaded from an outer cache once per tile.
constexpr int64_t kTileColumns = 128;
// Desired rows of tokens in a strip, which a thread computes from top to bottom. The first rows of
// a strip need a few rows of the mask's levels that the strip above computes, too.
constexpr int64_t kStripRows = 8;

// Rows of a tile, and tiles of a strip: as desired, or fewer if threads would otherwise be idle.
struct Division {
  int64_t group, strip;

  Division(int64_t height, int64_t width, int num_threads)
      : group(width < kTileColumns ? kTileColumns / width : 1) {
    while (group > 1 && ceil_div(height, group) < 4 * num_threads) --group;
    strip = kStripRows > group ? kStripRows / group : 1;
    while (strip > 1 && ceil_div(height, strip * group) < 4 * num_threads) --strip;
  }
};

// Called by every thread. The threads share the loops, and each loop ends with a barrier.
template <class Dot>
void run_all(Worker<Dot>& worker, int64_t strip) {
  const MemoryEncoderParams& params = worker.params;
  const int64_t tiles = worker.layout.tiles;
  worker.mask.prepare();
#pragma omp for schedule(static)
  for (int64_t y = 0; y < params.height; ++y) {
    for (float* const map : worker.shared.maps) worker.clear_borders(y, map);
  }
  for (int64_t object = 0; object < params.objects; ++object) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < ceil_div(tiles, strip); ++i) {
      worker.mask.start(object, i * strip * worker.layout.group);
      for (int64_t tile = i * strip; tile < tiles && tile < (i + 1) * strip; ++tile) {
        worker.merge_mask_and_features(object, tile);
      }
    }
    for (int64_t b = 0; b < params.weights.num_blocks; ++b) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t tile = 0; tile < tiles; ++tile) worker.fuse(object, b, tile);
    }
  }
}

// Memory of a call that all threads share. With an arena without memory only its size is computed.
template <class Dot>
struct CallMemory {
  typename Dot::Unit* copies;
  FuserBlockMatrices<Dot>* blocks;
  float *first_map, *second_map, *features;

  CallMemory(const MemoryEncoderParams& params, const Layout& layout, int64_t copied_units,
             int64_t stride, Arena& arena) {
    copies = arena.allocate<typename Dot::Unit>(copied_units);
    blocks = arena.allocate<FuserBlockMatrices<Dot>>(params.weights.num_blocks);
    first_map = arena.allocate<float>(layout.map_floats());
    second_map = arena.allocate<float>(layout.map_floats());
    features =
        arena.allocate<float>(shares_features(params) ? layout.tiles * layout.dim * stride : 0);
  }
};

template <class Dot>
bool run(const MemoryEncoderParams& params, int num_threads) {
  const MemoryEncoderWeights& weights = params.weights;
  WeightCopies<Dot> copies{weights.storage, nullptr};
  const Matrices<Dot> counted = Matrices<Dot>::of(weights, copies, nullptr);
  const Division division(params.height, params.width, num_threads);
  const Layout layout{params.height, params.width, weights.dim, division.group};
  Arena thread_size{nullptr}, size{nullptr};
  const int64_t stride = Tile<Dot>(params, layout.group, thread_size).stride;
  MaskRows<Dot>(params, counted.convolutions, layout.group, nullptr, stride, thread_size);
  const int64_t thread_bytes = thread_size.used;
  CallMemory<Dot>(params, layout, copies.units, stride, size);
  const int64_t call_bytes = size.used;
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, call_bytes + thread_bytes * num_threads));
  if (memory == nullptr) return false;
  Arena arena{memory};
  const CallMemory<Dot> call(params, layout, copies.units, stride, arena);
  copies.start(call.copies);
  const Matrices<Dot> matrices = Matrices<Dot>::of(weights, copies, call.blocks);
  const Shared shared{{call.first_map, call.second_map}, call.features};
#pragma omp parallel num_threads(num_threads)
  {
    Arena thread_arena{memory + call_bytes + thread_bytes * thread_number()};
    std::memset(thread_arena.memory, 0, static_cast<size_t>(thread_bytes));
    const Tile<Dot> tile(params, layout.group, thread_arena);
    const MaskRows<Dot> mask(params, matrices.convolutions, layout.group,
                             reinterpret_cast<float*>(tile.normed), stride, thread_arena);
    Worker<Dot> worker{params, matrices, shared, layout, tile, mask};
    run_all(worker, division.strip);
  }
  std::free(memory);
  return true;
}

}  // namespace

bool memory_encoder(const MemoryEncoderParams& params, int num_threads) {
#if defined(__AVX512BF16__)
  if (params.weights.storage == Storage::kBfloat16) return run<DotBfloat16>(params, num_threads);
#endif
  return run<DotFloat>(params, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(memory_encoder, MemoryEncoderParams)

}  // namespace sam2_fast
