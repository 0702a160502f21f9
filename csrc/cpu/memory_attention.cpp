// Compiled once per instruction set (SAM2_FAST_ISA); the portable object also holds the choice
// between them. docs/kernels/memory_attention.md has the phases and their arithmetic.
#include "csrc/memory_attention.h"

#include <cstdlib>

#include "csrc/cpu/attend.h"
#include "csrc/cpu/dispatch.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

constexpr float kEpsilon = 1e-5f;  // of the norms
constexpr int64_t kWindow = 4096;  // keys that are made and attended to before the next ones: with
                                   // their values 5 MB in float32
static_assert(kWindow % kBlock == 0, "whole blocks");

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Dot>
struct Matrices {  // of a layer
  const typename Dot::Unit *self_q, *self_k, *self_v, *self_out, *q, *k, *v, *out, *hidden, *last;
};

// What all threads share. Tokens lie in blocks of 64 columns: [blocks][rows][64] floats or units.
template <class Dot>
struct Shared {
  typedef typename Dot::Unit Unit;
  float *cos, *sin;         // [blocks][dim / 2][64]
  float *start, *x, *next;  // residual streams: a frame's after its first self-attention, an
                            // object's, an object's after self-attention
  Unit* first_q;            // a frame's queries to the memories in the first layer
  Unit *q, *k, *v;  // a layer's queries; keys and values of the tokens, or of a window of memories
  float* states;    // [blocks] softmax states without scores
};

// One thread's tile of 64 columns: [rows][kStride].
template <class Dot>
struct Tile {
  typedef typename Dot::Unit Unit;
  float *y, *f, *sum;
  Unit *n, *o, *h;
  float* scores;
};

template <class Dot>
struct Stack {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth, kStride = kBlock + 16;
  const MemoryAttentionParams& p;
  int64_t blocks = (p.tokens + kBlock - 1) / kBlock;
  int64_t pitch = p.dim * kBlock;           // floats of a block of tokens
  int64_t units = p.dim / kDepth * kBlock;  // units of a block of queries, keys or values
  int64_t memory_units = p.memory_dim * (kBlock / kDepth);  // units of a block of a memory's values
  int64_t state = Softmax::floats(p.memory_dim);
  float scale = kLog2E / std::sqrt(static_cast<float>(p.dim));

  int64_t tile_floats() const {
    return 6 * p.dim * kStride + kBlock * kBlock + Softmax::floats(p.dim);
  }

  Tile<Dot> tile(float* at) const {
    const int64_t step = p.dim * kStride;
    const auto part = [&](int64_t i) { return at + i * step; };
    return {part(0),
            part(1),
            part(2),
            reinterpret_cast<Unit*>(part(3)),
            reinterpret_cast<Unit*>(part(4)),
            reinterpret_cast<Unit*>(part(5)),
            part(6)};
  }

  // f[rows][64] = weight[rows][numbers] in
  void linear(const Unit* weight, int64_t rows, int64_t numbers, const Unit* in, float* f) const {
    multiply<Dot>({weight, numbers / kDepth, 1}, in, kStride, f, kStride, rows, kBlock,
                  numbers / kDepth, false);
  }

  // Rows in pairs, turned by the place of a block's tokens, or left (block < 0), to out[dim /
  // kDepth][64].
  void pack_turned(const Shared<Dot>& s, const float* f, const float* bias, int64_t block,
                   Unit* out) const {
    for (int64_t r = 0; r < p.dim; r += 2) {
      const int64_t angles = block < 0 ? 0 : (block * p.dim / 2 + r / 2) * kBlock;
      for (int64_t i = 0; i < kBlock; i += kLanes) {
        Vec pair[2] = {load(f + r * kStride + i) + bias[r],
                       load(f + (r + 1) * kStride + i) + bias[r + 1]};
        if (block >= 0) {
          const Vec even = pair[0], odd = pair[1], c = load(s.cos + angles + i),
                    t = load(s.sin + angles + i);
          pair[0] = even * c - odd * t;
          pair[1] = even * t + odd * c;
        }
        for (int64_t d = 0; d < 2; d += kDepth)
          Dot::put(pair + d, out + (r + d) / kDepth * kBlock + i);
      }
    }
  }

  void gather(const void* data, Storage storage, int64_t first, int64_t count, int64_t columns,
              float* out, int64_t stride) const {
    gather_rows(data, storage, columns, count, kBlock, out, stride,
                [&](int64_t i) { return first + i; });
  }

  int64_t count_of(int64_t block) const { return smaller(kBlock, p.tokens - block * kBlock); }

  void norm(const float* x, int64_t stride, const float* weight, const float* bias,
            const Tile<Dot>& t) const {
    normalise<Dot>(x, stride, weight, bias, kEpsilon, p.dim, kBlock, t.n, kStride);
  }

  // Queries, keys and values of a frame's tokens for their attention to themselves.
  void project_self(const MemoryLayer& l, const Matrices<Dot>& w, const float* x, int64_t block,
                    const Tile<Dot>& t, const Shared<Dot>& s) const {
    norm(x + block * pitch, kBlock, l.norm1_weight, l.norm1_bias, t);
    linear(w.self_q, p.dim, p.dim, t.n, t.f);
    pack_turned(s, t.f, l.self_q.bias, block, s.q + block * units);
    linear(w.self_k, p.dim, p.dim, t.n, t.f);
    pack_turned(s, t.f, l.self_k.bias, block, s.k + block * units);
    linear(w.self_v, p.dim, p.dim, t.n, t.f);
    pack_along<Dot>(t.f, kStride, l.self_v.bias, p.dim, kBlock, s.v + block * units,
                    kBlock / kDepth);
  }

  // out = x + the attention to themselves
  void attend_self(const MemoryLayer& l, const Matrices<Dot>& w, const float* x, int64_t block,
                   float* out, const Tile<Dot>& t, const Shared<Dot>& s) const {
    const Keys<Dot> keys{s.k, s.v, kBlock, units, kBlock / kDepth, units, p.tokens};
    const Softmax softmax{t.scores, t.scores + kBlock * kBlock, p.dim};
    attend<Dot>(s.q + block * units, kBlock, kBlock, p.dim / kDepth, keys, p.dim, scale, true,
                softmax);
    finish<Dot>(softmax, p.dim, kBlock, t.o, kStride);
    linear(w.self_out, p.dim, p.dim, t.o, t.f);
    sum_rows(x + block * pitch, t.f, l.self_out.bias, out + block * pitch);
  }

  // out[dim][64] = x[dim][64] + f + bias
  void sum_rows(const float* x, const float* f, const float* bias, float* out) const {
    for (int64_t r = 0; r < p.dim; ++r) {
      for (int64_t i = 0; i < kBlock; i += kLanes) {
        store(out + r * kBlock + i,
              load(x + r * kBlock + i) + (load(f + r * kStride + i) + bias[r]));
      }
    }
  }

  void memory_queries(const MemoryLayer& l, const Matrices<Dot>& w, const float* x, int64_t block,
                      Unit* q, const Tile<Dot>& t, const Shared<Dot>& s) const {
    norm(x + block * pitch, kBlock, l.norm2_weight, l.norm2_bias, t);
    linear(w.q, p.dim, p.dim, t.n, t.f);
    pack_turned(s, t.f, l.q.bias, block, q + block * units);
  }

  // 64 keys and values to block `at` of the window: of a map (map >= 0, tokens of `block`) or of
  // pointers from `first`
  void memory_keys(const MemoryLayer& l, const Matrices<Dot>& w, int64_t map, int64_t block,
                   int64_t first, int64_t count, int64_t at, const Tile<Dot>& t,
                   const Shared<Dot>& s) const {
    const void* const data = map < 0 ? static_cast<const void*>(p.pointers) : p.maps[p.slots[map]];
    gather(data, map < 0 ? Storage::kFloat32 : p.map_storage, first, count, p.memory_dim, t.y,
           kStride);
    for (int64_t c = 0; c < p.memory_dim; ++c) {
      for (int64_t i = 0; i < kBlock; i += kLanes)
        Dot::put_row(load(t.y + c * kStride + i), s.v + at * memory_units + c * (kBlock / kDepth),
                     i);
    }
    const float* const added = map < 0 ? p.pointer_positions : p.place;
    const float* const row = map < 0 ? nullptr : p.temporal + p.rows[map] * p.memory_dim;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < p.memory_dim; ++c) {
        const float place = added[(first + i) * p.memory_dim + c];
        t.y[c * kStride + i] += row == nullptr ? place : place + row[c];
      }
    }
    pack_rows<Dot, Identity>(t.y, kStride, zeros, p.memory_dim, kBlock, t.n, kStride);
    linear(w.k, p.dim, p.memory_dim, t.n, t.f);
    pack_turned(s, t.f, l.k.bias, block, s.k + at * units);
  }

  void attend_memory(const Unit* q, int64_t block, int64_t keys_count, bool fresh,
                     const Tile<Dot>& t, const Shared<Dot>& s) const {
    const Keys<Dot> keys{s.k, s.v, kBlock, units, kBlock / kDepth, memory_units, keys_count};
    const Softmax softmax{t.scores, s.states + block * state, p.memory_dim};
    attend<Dot>(q + block * units, kBlock, kBlock, p.dim / kDepth, keys, p.memory_dim, scale, fresh,
                softmax);
  }

  // What was attended to, projected, joins the stream; then the two linear layers.
  void leave_layer(const MemoryLayer& l, const Matrices<Dot>& w, const float* x, int64_t block,
                   float* out, const Tile<Dot>& t, const Shared<Dot>& s) const {
    finish<Dot>({t.scores, s.states + block * state, p.memory_dim}, p.memory_dim, kBlock, t.o,
                kStride);
    linear(w.v, p.dim, p.memory_dim, t.o, t.f);
    pack_rows<Dot, Identity>(t.f, kStride, l.v.bias, p.dim, kBlock, t.n, kStride);
    linear(w.out, p.dim, p.dim, t.n, t.f);
    sum_rows(x + block * pitch, t.f, l.out.bias, t.y);
    norm(t.y, kBlock, l.norm3_weight, l.norm3_bias, t);
    for (int64_t from = 0; from < p.hidden; from += p.dim) {
      const int64_t part = smaller(p.dim, p.hidden - from);
      linear(w.hidden + from * (p.dim / kDepth), part, p.dim, t.n, t.f);
      pack_rows<Dot, Relu>(t.f, kStride, l.hidden.bias + from, part, kBlock, t.h, kStride);
      const Left<Unit> weight{w.last + from / kDepth, p.hidden / kDepth, 1};
      multiply<Dot>(weight, t.h, kStride, t.sum, kStride, p.dim, kBlock, part / kDepth, from > 0);
    }
    sum_rows(t.y, t.sum, l.last.bias, out + block * pitch);
  }

  void write_out(const float* x, int64_t object, int64_t block, const Tile<Dot>& t) const {
    normalise<DotFloat>(x + block * pitch, kBlock, p.norm_weight, p.norm_bias, kEpsilon, p.dim,
                        kBlock, t.f, kStride);
    const int64_t first = object * p.tokens + block * kBlock;
    scatter_rows(t.f, kStride, p.dim, count_of(block), p.out, p.storage,
                 [&](int64_t i) { return first + i; });
  }

  // The frame's tokens to s.x, and its angles to s.cos and s.sin.
  void enter(int64_t image, int64_t block, const Shared<Dot>& s) const {
    const int64_t half = p.dim / 2, count = count_of(block);
    gather(p.x, p.storage, image * p.tokens + block * kBlock, count, p.dim, s.x + block * pitch,
           kBlock);
    gather(p.cos, Storage::kFloat32, block * kBlock, count, half, s.cos + block * half * kBlock,
           kBlock);
    gather(p.sin, Storage::kFloat32, block * kBlock, count, half, s.sin + block * half * kBlock,
           kBlock);
  }

  // Every thread calls the following with the same arguments: loops are shared out, and end
  // together.

  // out = x + self-attention(x), and the queries to the memories from it
  void meet_self(const MemoryLayer& l, const Matrices<Dot>& w, const float* x, float* out, Unit* q,
                 const Tile<Dot>& t, const Shared<Dot>& s) const {
#pragma omp for schedule(dynamic, 1)
    for (int64_t block = 0; block < blocks; ++block) project_self(l, w, x, block, t, s);
#pragma omp for schedule(dynamic, 1)
    for (int64_t block = 0; block < blocks; ++block) {
      attend_self(l, w, x, block, out, t, s);
      memory_queries(l, w, out, block, q, t, s);
    }
  }

  // Keys `from` .. `from + count` of a map (or, map < 0, of the pointers) are made and attended to
  // by all queries.
  void meet_window(const MemoryLayer& l, const Matrices<Dot>& w, const Unit* q, int64_t map,
                   int64_t from, int64_t count, bool fresh, const Tile<Dot>& t,
                   const Shared<Dot>& s) const {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (count + kBlock - 1) / kBlock; ++i) {
      const int64_t first = from + i * kBlock;
      memory_keys(l, w, map, map < 0 ? -1 : first / kBlock, first,
                  smaller(kBlock, count - i * kBlock), i, t, s);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t block = 0; block < blocks; ++block) attend_memory(q, block, count, fresh, t, s);
  }

  // out = the layer after self-attention, x
  void meet_memories(const MemoryLayer& l, const Matrices<Dot>& w, int64_t object, const Unit* q,
                     const float* x, float* out, const Tile<Dot>& t, const Shared<Dot>& s) const {
    bool fresh = true;
    for (int64_t map = p.first[object]; map < p.first[object + 1]; ++map) {
      for (int64_t from = 0; from < p.tokens; from += kWindow, fresh = false) {
        meet_window(l, w, q, map, from, smaller(kWindow, p.tokens - from), fresh, t, s);
      }
    }
    const int64_t last = p.first_pointer[object + 1];
    for (int64_t from = p.first_pointer[object]; from < last; from += kWindow, fresh = false) {
      meet_window(l, w, q, -1, from, smaller(kWindow, last - from), fresh, t, s);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t block = 0; block < blocks; ++block) leave_layer(l, w, x, block, out, t, s);
  }

  void run_all(const Matrices<Dot>* w, const Tile<Dot>& t, const Shared<Dot>& s) const {
    for (int64_t image = 0; image < p.images; ++image) {
#pragma omp for schedule(static)
      for (int64_t block = 0; block < blocks; ++block) enter(image, block, s);
      meet_self(p.layers[0], w[0], s.x, s.start, s.first_q, t, s);
      const int64_t first = p.images == 1 ? 0 : image, end = p.images == 1 ? p.objects : image + 1;
      for (int64_t object = first; object < end; ++object) {
        meet_memories(p.layers[0], w[0], object, s.first_q, s.start, s.x, t, s);
        for (int64_t i = 1; i < p.num_layers; ++i) {
          meet_self(p.layers[i], w[i], s.x, s.next, s.q, t, s);
          meet_memories(p.layers[i], w[i], object, s.q, s.next, s.x, t, s);
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block) write_out(s.x, object, block, t);
      }
    }
  }

  const float* zeros = nullptr;  // [memory_dim]
};

template <class Dot>
bool run(const MemoryAttentionParams& p, int num_threads) {
  typedef typename Dot::Unit Unit;
  Stack<Dot> stack{p};
  const int64_t square = p.dim * p.dim, narrow = p.dim * p.memory_dim, wide = p.dim * p.hidden;
  Copies<Dot> copies{p.weights, nullptr};
  const auto matrices = [&](const MemoryLayer& l) -> Matrices<Dot> {
    return {copies.of(l.self_q.weight, square), copies.of(l.self_k.weight, square),
            copies.of(l.self_v.weight, square), copies.of(l.self_out.weight, square),
            copies.of(l.q.weight, square),      copies.of(l.k.weight, narrow),
            copies.of(l.v.weight, narrow),      copies.of(l.out.weight, square),
            copies.of(l.hidden.weight, wide),   copies.of(l.last.weight, wide)};
  };
  for (int64_t i = 0; i < p.num_layers; ++i) matrices(p.layers[i]);
  int64_t pointers = 0;
  for (int64_t o = 0; o < p.objects; ++o) {
    const int64_t count = p.first_pointer[o + 1] - p.first_pointer[o];
    pointers = count > pointers ? count : pointers;
  }
  const int64_t pointer_blocks = (smaller(pointers, kWindow) + kBlock - 1) / kBlock;
  const int64_t key_blocks = stack.blocks > pointer_blocks ? stack.blocks : pointer_blocks;
  char* memory = nullptr;
  for (int pass = 0; pass < 2; ++pass) {  // count, then compute
    Arena arena{memory};
    Unit* const copied = arena.take<Unit>(copies.units);
    Matrices<Dot>* const w = arena.take<Matrices<Dot>>(p.num_layers);
    float* const zeros = arena.take<float>(p.memory_dim);
    const int64_t stream = stack.blocks * stack.pitch, units = stack.blocks * stack.units,
                  angles = stack.blocks * p.dim / 2 * kBlock;
    const Shared<Dot> shared{arena.take<float>(angles),
                             arena.take<float>(angles),
                             arena.take<float>(stream),
                             arena.take<float>(stream),
                             arena.take<float>(stream),
                             arena.take<Unit>(units),
                             arena.take<Unit>(units),
                             arena.take<Unit>(key_blocks * stack.units),
                             arena.take<Unit>(key_blocks * stack.units),
                             arena.take<float>(stack.blocks * stack.state)};
    const int64_t thread_floats = round_up(stack.tile_floats(), 16);
    float* const tiles = arena.take<float>(thread_floats * num_threads);
    if (pass == 0) {
      memory = static_cast<char*>(std::aligned_alloc(64, arena.used));
      if (memory == nullptr) return false;
      continue;
    }
    copies.next = copied, copies.units = 0;
    for (int64_t i = 0; i < p.num_layers; ++i) w[i] = matrices(p.layers[i]);
    for (int64_t i = 0; i < p.memory_dim; ++i) zeros[i] = 0;
    stack.zeros = zeros;
#pragma omp parallel num_threads(num_threads)
    stack.run_all(w, stack.tile(tiles + thread_floats * thread_number()), shared);
  }
  std::free(memory);
  return true;
}

}  // namespace

bool memory_attention(const MemoryAttentionParams& p, int num_threads) {
#if defined(__AVX512BF16__)
  if (p.weights == Storage::kBfloat16) return run<DotBfloat16>(p, num_threads);
#endif
  return run<DotFloat>(p, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(memory_attention, MemoryAttentionParams)

}  // namespace sam2_fast
