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

// One head's keys and values of a window, in blocks of 64 tokens: keys [blocks][head_dim /
// kDepth][64], values [blocks][head_dim][64 / kDepth].
template <class Dot>
struct Packed {
  typename Dot::Unit *k, *v;
};

template <class Dot>
struct Scratch {
  typedef typename Dot::Unit Unit;
  float *x, *y;  // [head_dim][stride]: what was gathered, what is to be scattered
  Unit* q;       // [head_dim / kDepth][64]
  Softmax softmax;
};

template <class Dot>
struct Attention {
  typedef typename Dot::Unit Unit;
  const WindowAttentionParams& p;
  int64_t depth = Dot::kDepth, head = p.head_dim, steps = head / depth;
  int64_t pitch = steps * kBlock;  // units of a block of keys or values
  int64_t corners = p.pool ? 4 : 1, stride = row_stride(corners * kBlock);
  float scale = kLog2E / std::sqrt(static_cast<float>(head));
  Grid grid{p.height, p.width, p.window, p.pool};
  const float* zeros;   // [head_dim]
  const Unit* pad_key;  // [heads * head_dim / kDepth]

  // out[head_dim][...]: a part of one head from the tokens in `rows`, then a zero where values need
  // a partner. What lies beyond does not matter: the columns of queries do not meet, and keys are
  // counted.
  void gather(const int64_t* rows, Part part, int64_t h, int64_t count, float* out) const {
    const int64_t heads = p.heads;
    gather_rows(p.qkv, p.storage, head, count, part == kValues ? round_up(count, depth) : count,
                out, stride, [&](int64_t i) { return (rows[i] * 3 + part) * heads + h; });
  }

  void pack_block(const Window& window, int64_t h, int64_t block, const Packed<Dot>& all,
                  const Scratch<Dot>& s) const {
    const int64_t first = block * kBlock, count = smaller(kBlock, window.tokens() - first),
                  columns = round_up(count, kColumns);
    int64_t rows[kBlock];
    window.places(grid, first, count, rows);
    gather(rows, kKeys, h, count, s.x);
    pack_rows<Dot, Identity>(s.x, stride, zeros, head, columns, all.k + block * pitch, kBlock);
    gather(rows, kValues, h, count, s.x);
    pack_along<Dot>(s.x, stride, zeros, head, columns, all.v + block * pitch, kBlock / depth);
  }

  int64_t queries(const Window& window) const { return window.tokens() / corners; }

  // Up to 64 queries from `first`, through attention and to their places.
  void attend_block(const Window& window, int64_t h, int64_t first, const Packed<Dot>& all,
                    const Scratch<Dot>& s) const {
    const int64_t total = queries(window), count = smaller(kBlock, total - first),
                  columns = round_up(count, kColumns);
    int64_t rows[kBlock];
    for (int64_t corner = 0; corner < corners; ++corner) {
      window.places(grid, corner * total + first, count, rows);
      gather(rows, kQueries, h, count, s.x + corner * count);
    }
    if (p.pool) largest_of_cells(s.x, stride, head, count, s.x, stride);
    pack_rows<Dot, Identity>(s.x, stride, zeros, head, columns, s.q, kBlock);
    if (window.padded > 0) {
      const float* const value = p.pad + (kValues * p.heads + h) * head;
      begin_with<Dot>(pad_key + h * steps, value, window.padded, s.q, kBlock, columns, steps, head,
                      s.softmax);
    }
    const Keys<Dot> keys{all.k, all.v, kBlock, pitch, kBlock / depth, pitch, window.tokens()};
    attend<Dot>(s.q, kBlock, columns, steps, keys, head, scale, window.padded == 0, s.softmax);
    finish<DotFloat>(s.softmax, head, columns, s.y, stride);
    window.places_of_results(grid, first, count, rows);
    scatter_rows(s.y, stride, head, count, p.out, p.storage,
                 [&](int64_t i) { return rows[i] * p.heads + h; });
  }

  void window(const Window& window, int64_t h, const Packed<Dot>& all,
              const Scratch<Dot>& s) const {
    for (int64_t i = 0; i * kBlock < window.tokens(); ++i) pack_block(window, h, i, all, s);
    for (int64_t i = 0; i < queries(window); i += kBlock) attend_block(window, h, i, all, s);
  }
};

template <class Dot>
Scratch<Dot> scratch_of(Arena& arena, int64_t head, int64_t stride, int64_t pitch) {
  float* const x = arena.take<float>(head * stride);
  float* const y = arena.take<float>(head * stride);
  typename Dot::Unit* const q = arena.take<typename Dot::Unit>(pitch);
  float* const scores = arena.take<float>(kBlock * kBlock);
  return {x, y, q, Softmax(scores, arena.take<float>(Softmax::floats(head)), head)};
}

template <class Dot>
Packed<Dot> packed_of(Arena& arena, int64_t units) {
  typename Dot::Unit* const k = arena.take<typename Dot::Unit>(units);
  return {k, arena.take<typename Dot::Unit>(units)};
}

// Windows are shared out with their heads; where every token attends to all, keys and values of a
// head are packed first, together.
template <class Dot>
bool run(const WindowAttentionParams& p, int num_threads) {
  typedef typename Dot::Unit Unit;
  Attention<Dot> attention{p};
  const int64_t channels = p.heads * p.head_dim, area = p.height * p.width, pitch = attention.pitch;
  const int64_t across = p.window ? (p.width + p.window - 1) / p.window : 1,
                down = p.window ? (p.height + p.window - 1) / p.window : 1;
  const int64_t largest =
      p.window ? smaller(p.window, p.height) * smaller(p.window, p.width) : area;
  const int64_t blocks = (largest + kBlock - 1) / kBlock,
                query_blocks = (largest / attention.corners + kBlock - 1) / kBlock;
  const int64_t shared_blocks = p.window ? 0 : p.heads * blocks, own_blocks = p.window ? blocks : 0;
  Arena size{nullptr};
  size.take<float>(p.head_dim), size.take<Unit>(channels),
      packed_of<Dot>(size, shared_blocks * pitch);
  const int64_t shared_bytes = size.used;
  scratch_of<Dot>(size, p.head_dim, attention.stride, pitch),
      packed_of<Dot>(size, own_blocks * pitch);
  const int64_t thread_bytes = size.used - shared_bytes;
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, shared_bytes + thread_bytes * num_threads));
  if (memory == nullptr) return false;
  Arena arena{memory};
  float* const zeros = arena.take<float>(p.head_dim);
  std::memset(zeros, 0, sizeof(float) * p.head_dim);
  Unit* const pad_key = arena.take<Unit>(channels);
  for (int64_t i = 0; i < channels; i += Dot::kDepth)
    pad_key[i / Dot::kDepth] = Dot::pack(p.pad + channels + i, 1);
  attention.zeros = zeros, attention.pad_key = pad_key;
  const Packed<Dot> whole = packed_of<Dot>(arena, shared_blocks * pitch);
#pragma omp parallel num_threads(num_threads)
  {
    Arena mine{memory + shared_bytes + thread_bytes * thread_number()};
    const Scratch<Dot> s = scratch_of<Dot>(mine, p.head_dim, attention.stride, pitch);
    const Packed<Dot> own = packed_of<Dot>(mine, own_blocks * pitch);
    const auto head_of = [&](int64_t h) {
      return Packed<Dot>{whole.k + h * blocks * pitch, whole.v + h * blocks * pitch};
    };
    if (p.window) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < p.batch * across * down * p.heads; ++i) {
        attention.window(window_of(attention.grid, i / p.heads), i % p.heads, own, s);
      }
    }
    for (int64_t image = 0; image < (p.window ? 0 : p.batch); ++image) {
      const Window all{image, 0, 0, p.height, p.width, 0};
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < p.heads * blocks; ++i)
        attention.pack_block(all, i / blocks, i % blocks, head_of(i / blocks), s);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < p.heads * query_blocks; ++i) {
        attention.attend_block(all, i / query_blocks, i % query_blocks * kBlock,
                               head_of(i / query_blocks), s);
      }
    }
  }
  std::free(memory);
  return true;
}

}  // namespace

bool window_attention(const WindowAttentionParams& p, int num_threads) {
#if defined(__AVX512BF16__)
  if (p.storage == Storage::kBfloat16) return run<DotBfloat16>(p, num_threads);
#endif
  return run<DotFloat>(p, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(window_attention, WindowAttentionParams)

}  // namespace sam2_fast
