// Compiled once per instruction set (SAM2_FAST_ISA); the portable object also holds the choice
// between them. docs/kernels/memory_encoder.md has the passes and their arithmetic.
#include "csrc/memory_encoder.h"

#include <cstdlib>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/mask_rows.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

constexpr int64_t kTileColumns = 128;  // tokens of a tile, where rows are shorter: weights come
                                       // from an outer cache once for all of them
constexpr int64_t kStripRows =
    8;  // of tokens, for which a thread walks down the mask: each start makes a few rows again

// The call's weights as Dot reads them; blocks: fc1 and fc2 of each.
template <class Dot>
struct Matrices {
  typedef typename Dot::Unit Unit;
  const void* convolutions[4];
  const Unit *mask_proj, *low_proj, *out_proj;
  const Unit** blocks;

  static Matrices of(const MemoryEncoderParams& p, Copies<Dot>& copies, const Unit** blocks) {
    Matrices w{};
    w.blocks = blocks;
    for (int i = 0; i < 4; ++i) {
      const MaskConvolution& c = p.convolutions[i];
      w.convolutions[i] =
          i < 2 ? c.weight : copies.of(c.weight, 9 * c.channels * p.convolutions[i - 1].channels);
    }
    w.mask_proj = copies.of(p.mask_proj.weight, p.dim * p.convolutions[3].channels);
    w.low_proj = copies.of(p.low_proj.weight, p.dim * p.dim),
    w.out_proj = copies.of(p.out_proj.weight, p.memory_dim * p.dim);
    for (int64_t i = 0; i < 2 * p.num_blocks; ++i) {
      const FuserBlock& block = p.blocks[i / 2];
      const Unit* const weight =
          copies.of(i % 2 == 0 ? block.fc1.weight : block.fc2.weight, p.dim * p.hidden);
      if (blocks != nullptr) blocks[i] = weight;
    }
    return w;
  }
};

// A thread's tile of whole rows of tokens, row after row: every array is [channels][stride] floats
// or [channels / kDepth][stride] units.
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  int64_t stride;
  float *f, *g;
  Unit *n, *q;

  Tile(const MemoryEncoderParams& p, int64_t group, Arena& arena)
      : stride(row_stride(group * p.width + kColumns)) {
    int64_t widest = p.dim > p.memory_dim ? p.dim : p.memory_dim;
    if (p.convolutions[3].channels > widest) widest = p.convolutions[3].channels;
    const int64_t count =
        widest * stride + kColumns;  // a last run is written past its end, by less than a vector
    f = arena.take<float>(count), g = arena.take<float>(count), n = arena.take<Unit>(count),
    q = arena.take<Unit>(count);
  }
};

// What all threads share: maps [height][dim][pitch] whose rows begin after kPad zeros, one read and
// one written.
struct Shared {
  float* maps[2];
  float* features;  // [tiles][dim][stride], projected low, where the objects share it
  const float* zeros;
};

template <class Dot>
struct Encoder {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth, kPad = 16;
  const MemoryEncoderParams& p;
  Matrices<Dot> w;
  Shared s;
  int64_t group;  // rows of a tile
  int64_t tiles = (p.height + group - 1) / group;
  int64_t pitch = kPad + round_up(p.width, 16), row_step = p.dim * pitch;

  static int64_t map_floats(const MemoryEncoderParams& p) {
    return p.height * p.dim * (kPad + round_up(p.width, 16)) + 4 * kPad;
  }
  bool shares() const { return p.images == 1 && p.objects > 1; }
  int64_t rows_of(int64_t tile) const {
    return p.height - tile * group < group ? p.height - tile * group : group;
  }
  int64_t columns_of(int64_t tile) const { return round_up(rows_of(tile) * p.width, kColumns); }

  // out[rows][columns] floats = weight[rows][numbers] in
  void linear(const Unit* weight, int64_t rows, int64_t numbers, const Unit* in, float* out,
              int64_t columns, int64_t stride) const {
    multiply<Dot>({weight, numbers / kDepth, 1}, in, stride, out, stride, rows, columns,
                  numbers / kDepth, false);
  }

  // The zeros around a row of a map.
  void clear_borders(int64_t y, float* map) const {
    for (int64_t c = 0; c < p.dim; ++c) {
      float* const row = map + y * row_step + c * pitch;
      for (int64_t i = 0; i < kPad; ++i) row[i] = 0;
      for (int64_t i = kPad + p.width; i < pitch; ++i) row[i] = 0;
    }
    for (int64_t i = 0; y == p.height - 1 && i < 4 * kPad; ++i) map[p.height * row_step + i] = 0;
  }

  // out[word][i] = in[i][word], 16 rows at a time: where they are a power of two long, more would
  // crowd into a few sets of the cache
  template <class Word>
  static void turn(const Word* in, int64_t words, int64_t count, Word* out, int64_t stride) {
    for (int64_t first = 0; first < count; first += 16) {
      const int64_t end = first + 16 < count ? first + 16 : count;
      for (int64_t w = 0; w < words; ++w) {
        for (int64_t i = first; i < end; ++i) out[w * stride + i] = in[i * words + w];
      }
    }
  }

  void project_low(int64_t image, int64_t tile, const Tile<Dot>& t, float* out) const {
    const int64_t token = image * p.height * p.width + tile * group * p.width,
                  count = rows_of(tile) * p.width;
    if (p.storage == Copies<Dot>::kRead) {  // a token's channels already lie as units
      turn(static_cast<const Unit*>(p.low) + token * (p.dim / kDepth), p.dim / kDepth, count, t.q,
           t.stride);
    } else {
      if (p.storage == Storage::kFloat32)
        turn(static_cast<const float*>(p.low) + token * p.dim, p.dim, count, t.g, t.stride);
      else
        gather_rows(p.low, p.storage, p.dim, count, count, t.g, t.stride,
                    [&](int64_t i) { return token + i; });
      pack_rows<Dot, Identity>(t.g, t.stride, s.zeros, p.dim, columns_of(tile), t.q, t.stride);
    }
    linear(w.low_proj, p.dim, p.dim, t.q, out, columns_of(tile), t.stride);
  }

  // The mask's rows of a tile, projected, plus the projected features.
  void enter(int64_t object, int64_t tile, const Tile<Dot>& t, MaskRows<Dot>& mask) const {
    const int64_t y = tile * group;
    float* const features = shares() ? s.features + tile * p.dim * t.stride : t.g;
    if (!shares() || object == 0) project_low(p.images > 1 ? object : 0, tile, t, features);
    mask.produce(4, y + rows_of(tile));
    linear(w.mask_proj, p.dim, p.convolutions[3].channels, t.n, t.f, columns_of(tile), t.stride);
    for (int64_t c = 0; c < p.dim; ++c) {
      const float bias = p.mask_proj.bias[c] + p.low_proj.bias[c];
      for (int64_t g = 0; g < rows_of(tile); ++g) {
        const int64_t from = c * t.stride + g * p.width;
        float* const to = s.maps[0] + (y + g) * row_step + c * pitch + kPad;
        for (int64_t i = 0; i < p.width; ++i) to[i] = t.f[from + i] + features[from + i] + bias;
      }
    }
  }

  // V vectors of R rows of one channel: each vector of the map is loaded once for all rows that
  // read it.
  template <int R, int V>
  void depthwise_tile(const float* in, int64_t y, const float* weight, float bias,
                      float* out) const {
    Vec sums[R][V];
    for (int k = 0; k < R; ++k) {
      for (int v = 0; v < V; ++v) sums[k][v] = fill(bias);
    }
#pragma GCC unroll 8
    for (int r = -3; r < R + 3; ++r) {
      if (y + r < 0 || y + r >= p.height) continue;
#pragma GCC unroll 7
      for (int dx = 0; dx < 7; ++dx) {
        Vec x[V];
        for (int v = 0; v < V; ++v) x[v] = load(in + (y + r) * row_step + dx - 3 + v * kLanes);
        for (int k = 0; k < R; ++k) {
          const int dy = r + 3 - k;
          if (dy < 0 || dy > 6) continue;
          const Vec scale = fill(weight[dy * 7 + dx]);
          for (int v = 0; v < V; ++v) sums[k][v] = sums[k][v] + x[v] * scale;
        }
      }
    }
    for (int k = 0; k < R; ++k) {
      for (int v = 0; v < V; ++v) store(out + k * p.width + v * kLanes, sums[k][v]);
    }
  }

  template <int R>
  void depthwise_rows(const float* in, int64_t y, const float* weight, float bias,
                      float* out) const {
    int64_t i = 0;
    for (; i + kTileVectors * kLanes <= p.width; i += kTileVectors * kLanes) {
      depthwise_tile<R, kTileVectors>(in + i, y, weight, bias, out + i);
    }
    for (; i < p.width; i += kLanes) depthwise_tile<R, 1>(in + i, y, weight, bias, out + i);
  }

  void depthwise(const FuserBlock& block, const float* map, int64_t tile,
                 const Tile<Dot>& t) const {
    for (int64_t c = 0; c < p.dim; ++c) {
      const float* const in = map + c * pitch + kPad;
      float* const out = t.f + c * t.stride;
      const int64_t rows = rows_of(tile), y = tile * group;
      const bool pairs = p.width % kLanes ==
                         0;  // else a row written past its end would spoil the one made with it
      int64_t g = 0;
      for (; pairs && g + 2 <= rows; g += 2)
        depthwise_rows<2>(in, y + g, block.depthwise + c * 49, block.bias[c], out + g * p.width);
      for (; g < rows; ++g)
        depthwise_rows<1>(in, y + g, block.depthwise + c * 49, block.bias[c], out + g * p.width);
    }
  }

  // One block's tile of maps[b % 2] to the other map; after the last block to the output.
  void fuse(int64_t object, int64_t b, int64_t tile, const Tile<Dot>& t) const {
    const FuserBlock& block = p.blocks[b];
    const int64_t columns = columns_of(tile), y = tile * group;
    const bool last = b == p.num_blocks - 1;
    const float* const map = s.maps[b % 2];
    depthwise(block, map, tile, t);
    normalise<Dot>(t.f, t.stride, block.norm_weight, block.norm_bias, p.epsilon, p.dim, columns,
                   t.n, t.stride);
    for (int64_t from = 0; from < p.hidden; from += p.dim) {
      const int64_t part = p.hidden - from < p.dim ? p.hidden - from : p.dim;
      linear(w.blocks[2 * b] + from * (p.dim / kDepth), part, p.dim, t.n, t.f, columns, t.stride);
      pack_rows<Dot, GeluOf<Dot>>(t.f, t.stride, block.fc1.bias + from, part, columns, t.q,
                                  t.stride);
      const Left<Unit> weight{w.blocks[2 * b + 1] + from / kDepth, p.hidden / kDepth, 1};
      multiply<Dot>(weight, t.q, t.stride, t.g, t.stride, p.dim, columns, part / kDepth, from > 0);
    }
    for (int64_t c = 0; c < p.dim; ++c) {
      const float gamma = block.gamma[c], bias = block.fc2.bias[c];
      for (int64_t g = 0; g < rows_of(tile); ++g) {
        const int64_t at = (y + g) * row_step + c * pitch + kPad;
        const float *const x = map + at, *const inner = t.g + c * t.stride + g * p.width;
        float* const to = last ? t.f + c * t.stride + g * p.width : s.maps[(b + 1) % 2] + at;
        for (int64_t i = 0; i < p.width; ++i) to[i] = x[i] + gamma * (inner[i] + bias);
      }
    }
    if (last) leave(object, tile, t);
  }

  void leave(int64_t object, int64_t tile, const Tile<Dot>& t) const {
    const int64_t token = (object * p.height + tile * group) * p.width,
                  count = rows_of(tile) * p.width;
    pack_rows<Dot, Identity>(t.f, t.stride, s.zeros, p.dim, columns_of(tile), t.n, t.stride);
    linear(w.out_proj, p.memory_dim, p.dim, t.n, t.g, columns_of(tile), t.stride);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < p.memory_dim; ++c) {
        write(p.out, p.out_storage, (token + i) * p.memory_dim + c,
              t.g[c * t.stride + i] + p.out_proj.bias[c]);
      }
    }
  }

  // Every thread calls this: loops are shared out, and end together.
  void run_all(const Tile<Dot>& t, MaskRows<Dot>& mask, int64_t strip) const {
    mask.prepare();
#pragma omp for schedule(static)
    for (int64_t y = 0; y < p.height; ++y) {
      for (float* const map : s.maps) clear_borders(y, map);
    }
    for (int64_t object = 0; object < p.objects; ++object) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < (tiles + strip - 1) / strip; ++i) {
        mask.start(object, i * strip * group);
        for (int64_t tile = i * strip; tile < tiles && tile < (i + 1) * strip; ++tile)
          enter(object, tile, t, mask);
      }
      for (int64_t b = 0; b < p.num_blocks; ++b) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t tile = 0; tile < tiles; ++tile) fuse(object, b, tile, t);
      }
    }
  }
};

// Rows of a tile, and tiles of a strip: large, but enough of them that no thread idles.
struct Division {
  int64_t group, strip;
  Division(const MemoryEncoderParams& p, int num_threads)
      : group(p.width < kTileColumns ? kTileColumns / p.width : 1), strip(1) {
    while (group > 1 && (p.height + group - 1) / group < 4 * num_threads) --group;
    strip = kStripRows > group ? kStripRows / group : 1;
    while (strip > 1 && (p.height + strip * group - 1) / (strip * group) < 4 * num_threads) --strip;
  }
};

template <class Dot>
bool run(const MemoryEncoderParams& p, int num_threads) {
  typedef typename Dot::Unit Unit;
  Copies<Dot> copies{p.weights, nullptr};
  Matrices<Dot>::of(p, copies, nullptr);
  const Division division(p, num_threads);
  char* memory = nullptr;
  for (int pass = 0; pass < 2; ++pass) {  // count, then compute
    Arena arena{memory}, one{nullptr};
    Unit* const room = arena.take<Unit>(copies.units);
    const Unit** const blocks = arena.take<const Unit*>(2 * p.num_blocks);
    float* const zeros = arena.take<float>(p.dim);
    const int64_t size = Encoder<Dot>::map_floats(p);
    const Tile<Dot> shape(p, division.group, one);
    const void* const none[4] = {};
    const MaskRows<Dot> rows(p, none, division.group, nullptr, shape.stride, one);
    const int64_t tiles = (p.height + division.group - 1) / division.group;
    const int64_t kept = p.images == 1 && p.objects > 1 ? tiles * p.dim * shape.stride : 0;
    float *const first = arena.take<float>(size), *const second = arena.take<float>(size),
                 *const features = arena.take<float>(kept);
    char* const threads = arena.take<char>(one.used * num_threads);
    if (pass == 0) {
      memory = static_cast<char*>(std::aligned_alloc(64, arena.used));
      if (memory == nullptr) return false;
      continue;
    }
    copies.next = room, copies.units = 0;
    for (int64_t i = 0; i < p.dim; ++i) zeros[i] = 0;
    const Encoder<Dot> encoder{p,
                               Matrices<Dot>::of(p, copies, blocks),
                               {{first, second}, features, zeros},
                               division.group};
#pragma omp parallel num_threads(num_threads)
    {
      Arena mine{threads + one.used * thread_number()};
      std::memset(mine.memory, 0, static_cast<size_t>(one.used));
      const Tile<Dot> tile(p, division.group, mine);
      MaskRows<Dot> mask(p, encoder.w.convolutions, division.group,
                         reinterpret_cast<float*>(tile.n), tile.stride, mine);
      encoder.run_all(tile, mask, division.strip);
    }
  }
  std::free(memory);
  return true;
}

}  // namespace

bool memory_encoder(const MemoryEncoderParams& p, int num_threads) {
#if defined(__AVX512BF16__)
  if (p.weights == Storage::kBfloat16) return run<DotBfloat16>(p, num_threads);
#endif
  return run<DotFloat>(p, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(memory_encoder, MemoryEncoderParams)

}  // namespace sam2_fast
