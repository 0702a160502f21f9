// Compiled once per instruction set (SAM2_FAST_ISA); the portable object also holds the choice
// between them. docs/kernels/window_attention.md has the tiling and its arithmetic.
#include "csrc/window_attention.h"

#include <cstdlib>

#include "csrc/cpu/attend.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/window.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

enum Part : int64_t { kQueries, kKeys, kValues };

// One head's keys and values of a window, in blocks of 64 tokens: keys
// [blocks][head_dim / kDepth][64], values [blocks][head_dim][64 / kDepth].
template <class Dot>
struct Packed {
  typedef typename Dot::Unit Unit;
  Unit *k, *v;

  static Packed take(Arena& arena, int64_t units) {
    Unit* const k = arena.take<Unit>(units);
    return {k, arena.take<Unit>(units)};
  }
};

// One thread's.
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  float *gathered, *attended;  // [head_dim][stride]
  Unit* q;                     // [head_dim / kDepth][64]
  Softmax softmax;

  static Tile take(Arena& arena, int64_t head, int64_t stride, int64_t units) {
    float* const gathered = arena.take<float>(head * stride);
    float* const attended = arena.take<float>(head * stride);
    Unit* const q = arena.take<Unit>(units);
    return {gathered, attended, q, Softmax::take(arena, head)};
  }
};

// How a call's work is divided. Windows are shared out with their heads; where every token attends
// to all, keys and values of a head are packed first, together.
template <class Dot>
struct Plan {
  static constexpr int64_t kDepth = Dot::kDepth;
  const WindowAttentionParams& params;
  int64_t head = params.head_dim, channels = params.heads * head;
  int64_t pitch = head / kDepth * kBlock;  // units of a block of keys or values
  int64_t corners = params.pool ? 4 : 1, stride = row_stride(corners * kBlock);
  bool whole = params.window == 0;  // every token attends to all
  int64_t side = whole ? larger(params.height, params.width) : params.window;
  Grid grid{params.height, params.width, side, params.pool};
  int64_t across = ceil_div(params.width, side), down = ceil_div(params.height, side);
  int64_t largest = smaller(side, params.height) * smaller(side, params.width);  // window's tokens
  int64_t blocks = ceil_div(largest, kBlock);
  int64_t query_blocks = ceil_div(largest / corners, kBlock);
};

// What all threads share: a token outside the grid, and keys and values of all heads where every
// token attends to all.
template <class Dot>
struct Shared {
  typedef typename Dot::Unit Unit;
  const Unit* pad_key;  // [heads * head_dim / kDepth]
  Packed<Dot> image;

  static Shared take(const Plan<Dot>& plan, Arena& arena) {
    Unit* const pad_key = arena.take<Unit>(plan.channels);
    const int64_t units = plan.whole ? plan.params.heads * plan.blocks * plan.pitch : 0;
    const Shared shared{pad_key, Packed<Dot>::take(arena, units)};
    if (arena.memory == nullptr) return shared;
    for (int64_t i = 0; i < plan.channels; i += Dot::kDepth) {
      pad_key[i / Dot::kDepth] = Dot::pack(plan.params.pad + plan.channels + i, 1);
    }
    return shared;
  }
};

template <class Dot>
struct Worker {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth;
  const Plan<Dot>& plan;
  const Shared<Dot>& shared;
  Tile<Dot> tile;
  Packed<Dot> own;  // of a window
  const WindowAttentionParams& params = plan.params;
  int64_t head = plan.head, stride = plan.stride, steps = head / kDepth;
  float scale = softmax_scale(head);

  // out[head_dim][...]: a part of one head from the tokens in `rows`, then a zero where values need
  // a partner. What lies beyond does not matter: columns of queries are independent, and keys are
  // counted.
  void gather(const int64_t* rows, Part part, int64_t h, int64_t count, float* out) const {
    const int64_t heads = params.heads;
    const int64_t columns = part == kValues ? round_up(count, kDepth) : count;
    gather_rows(params.qkv, params.storage, head, count, columns, out, stride,
                [&](int64_t i) { return (rows[i] * 3 + part) * heads + h; });
  }

  void pack_block(const Window& window, int64_t h, int64_t block, const Packed<Dot>& out) const {
    const int64_t first = block * kBlock, count = smaller(kBlock, window.tokens() - first);
    const int64_t columns = round_up(count, kColumns);
    int64_t rows[kBlock];
    window.token_rows(plan.grid, first, count, rows);
    gather(rows, kKeys, h, count, tile.gathered);
    pack_rows<Dot, Identity>(tile.gathered, stride, nullptr, head, columns,
                             out.k + block * plan.pitch, kBlock);
    gather(rows, kValues, h, count, tile.gathered);
    pack_along<Dot>(tile.gathered, stride, nullptr, head, columns, out.v + block * plan.pitch,
                    kBlock / kDepth);
  }

  int64_t queries_of(const Window& window) const { return window.tokens() / plan.corners; }

  // Up to 64 queries from `first`, through attention and to their places.
  void attend_block(const Window& window, int64_t h, int64_t first,
                    const Packed<Dot>& packed) const {
    const int64_t total = queries_of(window), count = smaller(kBlock, total - first);
    const int64_t columns = round_up(count, kColumns);
    int64_t rows[kBlock];
    for (int64_t corner = 0; corner < plan.corners; ++corner) {
      window.token_rows(plan.grid, corner * total + first, count, rows);
      gather(rows, kQueries, h, count, tile.gathered + corner * count);
    }
    if (params.pool) {
      largest_of_cells(tile.gathered, stride, head, count, tile.gathered, stride);
    }
    pack_rows<Dot, Identity>(tile.gathered, stride, nullptr, head, columns, tile.q, kBlock);
    if (window.padded > 0) {
      const float* const value = params.pad + (kValues * params.heads + h) * head;
      start_with_repeated_key<Dot>(shared.pad_key + h * steps, value, window.padded, tile.q, kBlock,
                                   columns, steps, head, tile.softmax);
    }
    const Keys<Dot> keys{packed.k,        packed.v,   kBlock,         plan.pitch,
                         kBlock / kDepth, plan.pitch, window.tokens()};
    attend<Dot>(tile.q, kBlock, columns, steps, keys, head, scale, window.padded == 0,
                tile.softmax);
    store_attended<DotFloat>(tile.softmax, head, columns, tile.attended, stride);
    window.result_rows(plan.grid, first, count, rows);
    scatter_rows(tile.attended, stride, head, count, params.out, params.storage,
                 [&](int64_t i) { return rows[i] * params.heads + h; });
  }

  void attend_window(const Window& window, int64_t h) const {
    for (int64_t i = 0; i * kBlock < window.tokens(); ++i) pack_block(window, h, i, own);
    for (int64_t i = 0; i < queries_of(window); i += kBlock) attend_block(window, h, i, own);
  }

  Packed<Dot> image_head(int64_t h) const {
    const int64_t at = h * plan.blocks * plan.pitch;
    return {shared.image.k + at, shared.image.v + at};
  }
};

// Every thread calls this: loops are shared out, each ends with a barrier.
template <class Dot>
void run_all(const Worker<Dot>& worker) {
  const Plan<Dot>& plan = worker.plan;
  const int64_t batch = plan.params.batch, heads = plan.params.heads;
  if (!plan.whole) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < batch * plan.across * plan.down * heads; ++i) {
      worker.attend_window(window_of(plan.grid, i / heads), i % heads);
    }
    return;
  }
  for (int64_t image = 0; image < batch; ++image) {
    const Window all{image, 0, 0, plan.params.height, plan.params.width, 0};
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < heads * plan.blocks; ++i) {
      const int64_t h = i / plan.blocks;
      worker.pack_block(all, h, i % plan.blocks, worker.image_head(h));
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < heads * plan.query_blocks; ++i) {
      const int64_t h = i / plan.query_blocks;
      worker.attend_block(all, h, i % plan.query_blocks * kBlock, worker.image_head(h));
    }
  }
}

template <class Dot>
bool run(const WindowAttentionParams& params, int num_threads) {
  const Plan<Dot> plan{params};
  const int64_t own_units = plan.whole ? 0 : plan.blocks * plan.pitch;
  const auto worker_of = [&](const Shared<Dot>& shared, Arena& arena) -> Worker<Dot> {
    const auto tile = Tile<Dot>::take(arena, plan.head, plan.stride, plan.pitch);
    return {plan, shared, tile, Packed<Dot>::take(arena, own_units)};
  };
  Arena shared_size{nullptr}, thread_size{nullptr};
  worker_of(Shared<Dot>::take(plan, shared_size), thread_size);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, shared_size.used + thread_size.used * num_threads));
  if (memory == nullptr) return false;
  Arena arena{memory};
  const Shared<Dot> shared = Shared<Dot>::take(plan, arena);
#pragma omp parallel num_threads(num_threads)
  {
    Arena own{memory + shared_size.used + thread_size.used * thread_number()};
    run_all(worker_of(shared, own));
  }
  std::free(memory);
  return true;
}

}  // namespace

bool window_attention(const WindowAttentionParams& params, int num_threads) {
#if defined(__AVX512BF16__)
  if (params.storage == Storage::kBfloat16) return run<DotBfloat16>(params, num_threads);
#endif
  return run<DotFloat>(params, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(window_attention, WindowAttentionParams)

}  // namespace sam2_fast
