// Compiled once per instruction set (SAM2_FAST_ISA). The portable object also selects the set at
// run time. docs/kernels/window_attention.md describes the tiling and its arithmetic.
#include "csrc/window_attention.h"

#include <cstdlib>

#include "csrc/cpu/attend.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/window.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

enum Part : int64_t { kQueries, kKeys, kValues };  // of qkv

// Keys and values of one head, in blocks of 64 tokens: keys [blocks][head_dim / kDepth][64], values
// [blocks][head_dim][64 / kDepth].
template <class Dot>
struct Packed {
  typedef typename Dot::Unit Unit;
  Unit *k, *v;

  static Packed allocate(Arena& arena, int64_t units) {
    Unit* const k = arena.allocate<Unit>(units);
    return {k, arena.allocate<Unit>(units)};
  }
};

// Scratch memory of one thread.
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  float *tokens, *attention_out;  // [head_dim][stride]: gathered tokens, attention's output
  Unit* q;                        // [head_dim / kDepth][64]
  Softmax softmax;

  static Tile allocate(Arena& arena, int64_t head_dim, int64_t stride, int64_t units) {
    float* const tokens = arena.allocate<float>(head_dim * stride);
    float* const attention_out = arena.allocate<float>(head_dim * stride);
    Unit* const q = arena.allocate<Unit>(units);
    return {tokens, attention_out, q, Softmax::allocate(arena, head_dim)};
  }
};

// Division of a call's work. Threads share pairs of a window and a head. With global attention,
// they first pack the keys and values of all heads, then share pairs of a head and a block of
// queries.
template <class Dot>
struct Plan {
  static constexpr int64_t kDepth = Dot::kDepth;
  const WindowAttentionParams& params;
  int64_t head_dim = params.head_dim, channels = params.heads * head_dim;
  int64_t pitch = head_dim / kDepth * kBlock;  // units of a block of keys or of values
  int64_t queries_per_cell = params.pool ? 4 : 1, stride = row_stride(queries_per_cell * kBlock);
  bool is_global = params.window == 0;  // a single window with all tokens
  int64_t side = is_global ? larger(params.height, params.width) : params.window;
  Grid grid{params.height, params.width, side, params.pool};
  int64_t across = ceil_div(params.width, side), down = ceil_div(params.height, side);
  int64_t largest =
      smaller(side, params.height) * smaller(side, params.width);  // maximum tokens of a window
  int64_t blocks = ceil_div(largest, kBlock);
  int64_t query_blocks = ceil_div(largest / queries_per_cell, kBlock);
};

// Memory that all threads share: the key of a token outside the grid and, with global attention,
// keys and values of all heads.
template <class Dot>
struct Shared {
  typedef typename Dot::Unit Unit;
  const Unit* pad_key;  // [heads * head_dim / kDepth]
  Packed<Dot> image;    // empty with windows

  static Shared allocate(const Plan<Dot>& plan, Arena& arena) {
    Unit* const pad_key = arena.allocate<Unit>(plan.channels);
    const int64_t units = plan.is_global ? plan.params.heads * plan.blocks * plan.pitch : 0;
    const Shared shared{pad_key, Packed<Dot>::allocate(arena, units)};
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
  Packed<Dot> window_packed;  // keys and values of the current window
  const WindowAttentionParams& params = plan.params;
  int64_t head_dim = plan.head_dim, stride = plan.stride, steps = head_dim / kDepth;
  float scale = softmax_scale(head_dim);

  // out[head_dim][...] = queries, keys or values of head h of the tokens `rows`. Values are padded
  // with a zero to whole units. Other columns may be undefined, because columns of queries are
  // independent and only existing keys are used.
  void gather(const int64_t* rows, Part part, int64_t h, int64_t count, float* out) const {
    const int64_t heads = params.heads;
    const int64_t columns = part == kValues ? round_up(count, kDepth) : count;
    gather_rows(params.qkv, params.storage, head_dim, count, columns, out, stride,
                [&](int64_t i) { return (rows[i] * 3 + part) * heads + h; });
  }

  void pack_block(const Window& window, int64_t h, int64_t block, const Packed<Dot>& out) const {
    const int64_t first = block * kBlock, count = smaller(kBlock, window.tokens() - first);
    const int64_t columns = round_up(count, kColumns);
    int64_t rows[kBlock];
    window.token_rows(plan.grid, first, count, rows);
    gather(rows, kKeys, h, count, tile.tokens);
    pack_rows<Dot, Identity>(tile.tokens, stride, nullptr, head_dim, columns,
                             out.k + block * plan.pitch, kBlock);
    gather(rows, kValues, h, count, tile.tokens);
    pack_along<Dot>(tile.tokens, stride, nullptr, head_dim, columns, out.v + block * plan.pitch,
                    kBlock / kDepth);
  }

  int64_t queries_of(const Window& window) const { return window.tokens() / plan.queries_per_cell; }

  // Computes up to 64 queries from `first` and stores their results.
  void attend_block(const Window& window, int64_t h, int64_t first,
                    const Packed<Dot>& packed) const {
    const int64_t num_queries = queries_of(window), count = smaller(kBlock, num_queries - first);
    const int64_t columns = round_up(count, kColumns);
    int64_t rows[kBlock];
    for (int64_t corner = 0; corner < plan.queries_per_cell; ++corner) {
      window.token_rows(plan.grid, corner * num_queries + first, count, rows);
      gather(rows, kQueries, h, count, tile.tokens + corner * count);
    }
    if (params.pool) {
      max_pool_cells(tile.tokens, stride, head_dim, count, tile.tokens, stride);
    }
    pack_rows<Dot, Identity>(tile.tokens, stride, nullptr, head_dim, columns, tile.q, kBlock);
    if (window.padded > 0) {
      const float* const value = params.pad + (kValues * params.heads + h) * head_dim;
      start_with_repeated_key<Dot>(shared.pad_key + h * steps, value, window.padded, tile.q, kBlock,
                                   columns, steps, head_dim, tile.softmax);
    }
    const Keys<Dot> keys{packed.k,        packed.v,   kBlock,         plan.pitch,
                         kBlock / kDepth, plan.pitch, window.tokens()};
    attend<Dot>(tile.q, kBlock, columns, steps, keys, head_dim, scale, window.padded == 0,
                tile.softmax);
    store_attention<DotFloat>(tile.softmax, head_dim, columns, tile.attention_out, stride);
    window.result_rows(plan.grid, first, count, rows);
    scatter_rows(tile.attention_out, stride, head_dim, count, params.out, params.storage,
                 [&](int64_t i) { return rows[i] * params.heads + h; });
  }

  void attend_window(const Window& window, int64_t h) const {
    for (int64_t i = 0; i * kBlock < window.tokens(); ++i) pack_block(window, h, i, window_packed);
    for (int64_t i = 0; i < queries_of(window); i += kBlock) {
      attend_block(window, h, i, window_packed);
    }
  }

  Packed<Dot> image_head(int64_t h) const {
    const int64_t offset = h * plan.blocks * plan.pitch;
    return {shared.image.k + offset, shared.image.v + offset};
  }
};

// Called by every thread. The threads share the loops, and each loop ends with a barrier.
template <class Dot>
void run_all(const Worker<Dot>& worker) {
  const Plan<Dot>& plan = worker.plan;
  const int64_t batch = plan.params.batch, heads = plan.params.heads;
  if (!plan.is_global) {
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
  const int64_t window_units = plan.is_global ? 0 : plan.blocks * plan.pitch;
  const auto worker_of = [&](const Shared<Dot>& shared, Arena& arena) -> Worker<Dot> {
    const auto tile = Tile<Dot>::allocate(arena, plan.head_dim, plan.stride, plan.pitch);
    return {plan, shared, tile, Packed<Dot>::allocate(arena, window_units)};
  };
  Arena shared_size{nullptr}, thread_size{nullptr};
  worker_of(Shared<Dot>::allocate(plan, shared_size), thread_size);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, shared_size.used + thread_size.used * num_threads));
  if (memory == nullptr) return false;
  Arena arena{memory};
  const Shared<Dot> shared = Shared<Dot>::allocate(plan, arena);
#pragma omp parallel num_threads(num_threads)
  {
    Arena thread_arena{memory + shared_size.used + thread_size.used * thread_number()};
    run_all(worker_of(shared, thread_arena));
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
