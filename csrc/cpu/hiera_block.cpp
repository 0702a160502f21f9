// Compiled once per instruction set (SAM2_FAST_ISA); the portable object also holds the choice
// between them. docs/kernels/hiera_block.md has the tiling and its arithmetic.
#include "csrc/hiera_block.h"

#include <cstdlib>

#include "csrc/cpu/attend.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/gelu.h"
#include "csrc/cpu/window.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// The call's weights as Dot reads them, and one thread's tile: every array is [rows][stride], rows
// of floats or of units.
template <class Dot>
struct Matrices {
  typedef typename Dot::Unit Unit;
  const Unit *qkv, *proj, *fc1, *fc2, *shortcut, *pad_key;
};

template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  int64_t stride;      // of the tile before pooling
  int64_t out_stride;  // of the tile after pooling
  float *x, *y, *f;    // residual stream before and after the attention, a product not yet packed
  Unit *n, *q, *k, *v, *o;
  Softmax softmax;
};

// Queries, keys and values of a whole image, in blocks of 64 tokens: [blocks][dim_out / kDepth][64]
// units, values [..][dim_out][64 / kDepth].
template <class Dot>
struct Whole {
  typename Dot::Unit *q, *k, *v;
  int64_t pitch;  // units of a block
};

// Windows of a task: enough that weights, which stream from an outer cache, serve many tokens; few
// enough that no thread idles.
int64_t group_of(const HieraBlockParams& p, int64_t windows, int64_t area, int num_threads) {
  const int64_t target = p.pool ? 256 : p.dim_out <= 192 ? 64 : 192;
  int64_t group = target > area ? target / area : 1;
  while (group > 1 && (windows + group - 1) / group < 4 * num_threads) --group;
  return group;
}

template <class Dot>
struct Block {
  typedef typename Dot::Unit Unit;
  const HieraBlockParams& p;
  Matrices<Dot> w;
  int64_t depth = Dot::kDepth;
  int64_t head = p.dim_out / p.heads;
  int64_t widest = p.dim > p.dim_out ? p.dim : p.dim_out;
  float scale = kLog2E / std::sqrt(static_cast<float>(head));
  Grid grid{p.height, p.width, p.window, p.pool};

  // out[rows][columns] floats = weight[rows][steps numbers] in
  void linear(const Unit* weight, int64_t rows, int64_t numbers, const Unit* in, int64_t stride,
              int64_t columns, float* out) const {
    multiply<Dot>({weight, numbers / depth, 1}, in, stride, out, stride, rows, columns,
                  numbers / depth, false);
  }

  int64_t tile_bytes(int64_t columns)
      const {  // seven arrays and slack for vectors that start at a window's last columns
    return 4 * (8 * widest * row_stride(columns) + 8 * kBlock + kBlock * kBlock +
                Softmax::floats(head)) +
           64;
  }

  Tile<Dot> tile(char* memory, int64_t columns, int64_t out_columns) const {
    const int64_t step = widest * row_stride(columns) + kBlock;
    float* const at = reinterpret_cast<float*>(memory);
    const auto units = [&](int64_t i) { return reinterpret_cast<Unit*>(at + i * step); };
    return {row_stride(columns),
            row_stride(out_columns),
            at,
            p.pool ? at + step : at,
            at + 2 * step,
            units(3),
            units(4),
            units(5),
            units(6),
            units(7),
            Softmax(at + 8 * step, at + 8 * step + kBlock * kBlock, head)};
  }

  void gather(const Window& window, float* x, int64_t stride) const {
    int64_t rows[kBlock];
    for (int64_t from = 0; from < window.tokens(); from += kBlock) {
      const int64_t count = smaller(kBlock, window.tokens() - from);
      window.places(grid, from, count, rows);
      gather_rows(p.x, p.storage, p.dim, count, count, x + from, stride,
                  [&](int64_t i) { return rows[i]; });
    }
  }

  void clear(float* x, int64_t stride, int64_t rows, int64_t from, int64_t to) const {
    for (int64_t c = 0; c < rows; ++c) {
      for (int64_t i = from; i < to; ++i) x[c * stride + i] = 0;
    }
  }

  // q, k or v (`which` 0, 1, 2) of the tile, without bias, to t.f
  void project(const Tile<Dot>& t, int64_t which, int64_t columns) const {
    linear(w.qkv + which * p.dim_out * (p.dim / depth), p.dim_out, p.dim, t.n, t.stride, columns,
           t.f);
  }

  const float* bias_of(int64_t which) const { return p.qkv.bias + which * p.dim_out; }

  void attend_window(const Window& window, const Tile<Dot>& t, int64_t at, int64_t out_at) const {
    const int64_t queries = p.pool ? window.tokens() / 4 : window.tokens(), q_stride = t.out_stride;
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = h * head / depth;
      const Keys<Dot> keys{t.k + row * t.stride + at,
                           t.v + h * head * (t.stride / depth) + at / depth,
                           t.stride,
                           kBlock,
                           t.stride / depth,
                           kBlock / depth,
                           window.tokens()};
      for (int64_t i = 0; i < queries; i += kBlock) {
        const int64_t count = smaller(kBlock, queries - i), columns = round_up(count, kColumns);
        const Unit* const q = t.q + row * q_stride + out_at + i;
        if (window.padded > 0) {
          begin_with<Dot>(w.pad_key + row, bias_of(2) + h * head, window.padded, q, q_stride,
                          columns, head / depth, head, t.softmax);
        }
        attend<Dot>(q, q_stride, columns, head / depth, keys, head, scale, window.padded == 0,
                    t.softmax);
        finish<Dot>(t.softmax, head, count, t.o + row * q_stride + out_at + i, q_stride);
      }
    }
  }

  // y += proj(o), then y += fc2(gelu(fc1(norm(y)))), the hidden channels in parts of dim_out. Sums
  // are complete before they meet y.
  void project_and_mlp(const Tile<Dot>& t, int64_t columns) const {
    const int64_t stride = t.out_stride;
    float* const sum = reinterpret_cast<float*>(t.k);  // keys are not needed any more
    linear(w.proj, p.dim_out, p.dim_out, t.o, stride, columns, t.f);
    add_rows(t.y, t.f, stride, p.proj.bias, p.dim_out, columns);
    normalise<Dot>(t.y, stride, p.norm2_weight, p.norm2_bias, p.epsilon, p.dim_out, columns, t.n,
                   stride);
    for (int64_t from = 0; from < p.hidden; from += p.dim_out) {
      const int64_t part = smaller(p.dim_out, p.hidden - from);
      linear(w.fc1 + from * (p.dim_out / depth), part, p.dim_out, t.n, stride, columns, t.f);
      pack_rows<Dot, GeluOf<Dot>>(t.f, stride, p.fc1.bias + from, part, columns, t.q, stride);
      const Left<Unit> weight{w.fc2 + from / depth, p.hidden / depth, 1};
      multiply<Dot>(weight, t.q, stride, sum, stride, p.dim_out, columns, part / depth, from > 0);
    }
    add_rows(t.y, sum, stride, p.fc2.bias, p.dim_out, columns);
  }

  void scatter(const Window& window, const float* y, int64_t stride) const {
    const int64_t results = p.pool ? window.tokens() / 4 : window.tokens();
    int64_t rows[kBlock];
    for (int64_t from = 0; from < results; from += kBlock) {
      const int64_t count = smaller(kBlock, results - from);
      window.places_of_results(grid, from, count, rows);
      scatter_rows(y + from, stride, p.dim_out, count, p.out, p.storage,
                   [&](int64_t i) { return rows[i]; });
    }
  }

  int64_t room(const Window& window) const {
    return round_up(window.tokens(), depth);
  }  // columns: an even start for pairs of values

  void windows(int64_t first, int64_t last, const Tile<Dot>& t) const {
    int64_t used = 0, cells = 0;
    for (int64_t i = first; i < last; ++i) {
      const Window window = window_of(grid, i);
      gather(window, t.x + used, t.stride);
      clear(t.x, t.stride, p.dim, used + window.tokens(), used + room(window));
      used += room(window), cells += window.tokens() / 4;
    }
    const int64_t columns = round_up(used, kColumns),
                  out_columns = p.pool ? round_up(cells, kColumns) : columns;
    clear(t.x, t.stride, p.dim, used, columns);
    normalise<Dot>(t.x, t.stride, p.norm1_weight, p.norm1_bias, p.epsilon, p.dim, columns, t.n,
                   t.stride);
    project(t, 1, columns);
    pack_rows<Dot, Identity>(t.f, t.stride, bias_of(1), p.dim_out, columns, t.k, t.stride);
    project(t, 2, columns);
    pack_along<Dot>(t.f, t.stride, bias_of(2), p.dim_out, columns, t.v, t.stride / depth);
    project(t, 0, columns);
    if (p.pool) {
      pool_windows(first, last, t, t.x);  // x is not needed any more
      pack_rows<Dot, Identity>(t.x, t.out_stride, bias_of(0), p.dim_out, out_columns, t.q,
                               t.out_stride);
      linear(w.shortcut, p.dim_out, p.dim, t.n, t.stride, columns, t.f);
      clear(t.y, t.out_stride, p.dim_out, 0, out_columns);
      pool_windows(first, last, t, t.y);
      for (int64_t c = 0; c < p.dim_out; ++c) {
        for (int64_t i = 0; i < out_columns; ++i) t.y[c * t.out_stride + i] += p.shortcut.bias[c];
      }
    } else {
      pack_rows<Dot, Identity>(t.f, t.stride, bias_of(0), p.dim_out, columns, t.q, t.stride);
    }
    int64_t at = 0, out_at = 0;
    for (int64_t i = first; i < last; ++i) {
      const Window window = window_of(grid, i);
      attend_window(window, t, at, out_at);
      at += room(window), out_at += p.pool ? window.tokens() / 4 : room(window);
    }
    project_and_mlp(t, out_columns);
    out_at = 0;
    for (int64_t i = first; i < last; ++i) {
      const Window window = window_of(grid, i);
      scatter(window, t.y + out_at, t.out_stride);
      out_at += p.pool ? window.tokens() / 4 : room(window);
    }
  }

  void pool_windows(int64_t first, int64_t last, const Tile<Dot>& t, float* out) const {
    int64_t at = 0, out_at = 0;
    for (int64_t i = first; i < last; ++i) {
      const Window window = window_of(grid, i);
      largest_of_cells(t.f + at, t.stride, p.dim_out, window.tokens() / 4, out + out_at,
                       t.out_stride);
      at += room(window), out_at += window.tokens() / 4;
    }
  }

  // A block of 64 tokens of an image where every token attends to all: its queries, keys and values
  // to the arrays of the whole image.
  void project_block(int64_t image, int64_t block, const Tile<Dot>& t,
                     const Whole<Dot>& all) const {
    const Window tokens = run_of(image, block);
    clear(t.x, t.stride, p.dim, tokens.tokens(), kBlock);
    gather(tokens, t.x, t.stride);
    normalise<Dot>(t.x, t.stride, p.norm1_weight, p.norm1_bias, p.epsilon, p.dim, kBlock, t.n,
                   t.stride);
    project(t, 0, kBlock);
    pack_rows<Dot, Identity>(t.f, t.stride, bias_of(0), p.dim_out, kBlock,
                             all.q + block * all.pitch, kBlock);
    project(t, 1, kBlock);
    pack_rows<Dot, Identity>(t.f, t.stride, bias_of(1), p.dim_out, kBlock,
                             all.k + block * all.pitch, kBlock);
    project(t, 2, kBlock);
    pack_along<Dot>(t.f, t.stride, bias_of(2), p.dim_out, kBlock, all.v + block * all.pitch,
                    kBlock / depth);
  }

  void finish_block(int64_t image, int64_t block, const Tile<Dot>& t, const Whole<Dot>& all) const {
    const Window tokens = run_of(image, block);
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = h * head / depth * kBlock;
      const Keys<Dot> keys{all.k + row, all.v + row,       kBlock, all.pitch, kBlock / depth,
                           all.pitch,   p.height * p.width};
      attend<Dot>(all.q + block * all.pitch + row, kBlock, kBlock, head / depth, keys, head, scale,
                  true, t.softmax);
      finish<Dot>(t.softmax, head, kBlock, t.o + h * head / depth * t.stride, t.stride);
    }
    clear(t.y, t.stride, p.dim, tokens.tokens(), kBlock);
    gather(tokens, t.y, t.stride);
    project_and_mlp(t, kBlock);
    scatter(tokens, t.y, t.stride);
  }

  // 64 tokens in the order of x, as a window one row high
  Window run_of(int64_t image, int64_t block) const {
    const int64_t first = block * kBlock;
    return {image, 0, first, 1, smaller(kBlock, p.height * p.width - first), 0};
  }
};

template <class Dot>
bool run(const HieraBlockParams& p, int num_threads) {
  typedef typename Dot::Unit Unit;
  Copies<Dot> copies{p.weights, nullptr};
  const int64_t square = p.dim_out * p.dim_out;
  const auto matrices = [&]() -> Matrices<Dot> {
    return {copies.of(p.qkv.weight, 3 * p.dim_out * p.dim),
            copies.of(p.proj.weight, square),
            copies.of(p.fc1.weight, p.hidden * p.dim_out),
            copies.of(p.fc2.weight, p.hidden * p.dim_out),
            copies.of(p.shortcut.weight, p.dim_out * p.dim),
            nullptr};
  };
  matrices();
  Block<Dot> block{p, {}};
  const int64_t across = p.window ? (p.width + p.window - 1) / p.window : 1,
                down = p.window ? (p.height + p.window - 1) / p.window : 1;
  const int64_t windows = p.batch * across * down,
                area = round_up(p.window * p.window, Dot::kDepth);
  const int64_t group = p.window ? group_of(p, windows, area, num_threads) : 1;
  const int64_t columns = p.window ? round_up(group * area, kColumns) : kBlock;
  const int64_t blocks =
      (p.height * p.width + kBlock - 1) / kBlock;  // of an image, where every token attends to all
  const int64_t pitch = p.dim_out / Dot::kDepth * kBlock, whole = p.window ? 0 : 3 * blocks * pitch;
  const int64_t shared = round_up(copies.units + p.dim_out + whole, 16),
                thread_bytes = round_up(block.tile_bytes(columns), 64);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, 4 * shared + thread_bytes * num_threads));
  if (memory == nullptr) return false;
  copies.next = reinterpret_cast<Unit*>(memory), copies.units = 0;
  block.w = matrices();
  Unit* const pad_key = copies.next + copies.units;
  for (int64_t i = 0; i < p.dim_out; i += Dot::kDepth)
    pad_key[i / Dot::kDepth] = Dot::pack(p.qkv.bias + p.dim_out + i, 1);
  block.w.pad_key = pad_key;
  Unit* const q = pad_key + p.dim_out;
  const Whole<Dot> all{q, q + blocks * pitch, q + 2 * blocks * pitch, pitch};
#pragma omp parallel num_threads(num_threads)
  {
    const int64_t out_columns =
        p.pool ? round_up(group * (p.window * p.window / 4), kColumns) : columns;
    const Tile<Dot> tile =
        block.tile(memory + 4 * shared + thread_bytes * thread_number(), columns, out_columns);
    if (p.window) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < (windows + group - 1) / group; ++i)
        block.windows(i * group, smaller(windows, (i + 1) * group), tile);
    } else {
      for (int64_t image = 0; image < p.batch; ++image) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < blocks; ++i) block.project_block(image, i, tile, all);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < blocks; ++i) block.finish_block(image, i, tile, all);
      }
    }
  }
  std::free(memory);
  return true;
}

}  // namespace

bool hiera_block(const HieraBlockParams& p, int num_threads) {
#if defined(__AVX512BF16__)
  if (p.weights == Storage::kBfloat16) return run<DotBfloat16>(p, num_threads);
#endif
  return run<DotFloat>(p, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(hiera_block, HieraBlockParams)

}  // namespace sam2_fast
