// Compiled once per instruction set (SAM2_FAST_ISA); the portable object also holds the choice
// between them. docs/kernels/memory_attention.md has the phases and their arithmetic.
#include "csrc/memory_attention.h"

#include <cstdlib>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/memory_attention/worker.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

constexpr int64_t kWindow = 4096;  // keys that are made and attended to before the next ones: with
                                   // their values 5 MB in float32
static_assert(kWindow % kBlock == 0, "whole blocks");

// Every thread calls the following with the same arguments: loops are shared out, each ends with a
// barrier.

// out = x + self-attention(x), and its queries to the memories to q.
template <class Dot>
void self_attention(const Worker<Dot>& worker, int64_t layer, const float* x, float* out,
                    typename Dot::Unit* q) {
#pragma omp for schedule(dynamic, 1)
  for (int64_t block = 0; block < worker.blocks; ++block) worker.project_self(layer, x, block);
#pragma omp for schedule(dynamic, 1)
  for (int64_t block = 0; block < worker.blocks; ++block) {
    worker.attend_self(layer, x, block, out);
    worker.project_queries(layer, out, block, q);
  }
}

// `count` keys from `from` are made, and attended to by all queries.
template <class Dot>
void attend_window(const Worker<Dot>& worker, int64_t layer, const typename Dot::Unit* q,
                   KeySource source, int64_t from, int64_t count, bool fresh) {
#pragma omp for schedule(static)
  for (int64_t i = 0; i < ceil_div(count, kBlock); ++i) {
    const int64_t num_keys = smaller(kBlock, count - i * kBlock);
    worker.project_keys(layer, source, from + i * kBlock, num_keys, i);
  }
#pragma omp for schedule(dynamic, 1)
  for (int64_t block = 0; block < worker.blocks; ++block) {
    worker.attend_memory(q, block, count, fresh);
  }
}

// out = what the layer makes of x, the stream after self-attention.
template <class Dot>
void memory_and_mlp(const Worker<Dot>& worker, int64_t layer, int64_t object,
                    const typename Dot::Unit* q, const float* x, float* out) {
  const MemoryAttentionParams& params = worker.params;
  bool fresh = true;
  for (int64_t map = params.first[object]; map < params.first[object + 1]; ++map) {
    for (int64_t from = 0; from < params.tokens; from += kWindow) {
      const int64_t count = smaller(kWindow, params.tokens - from);
      attend_window(worker, layer, q, KeySource{map}, from, count, fresh);
      fresh = false;
    }
  }
  const int64_t end = params.first_pointer[object + 1];
  for (int64_t from = params.first_pointer[object]; from < end; from += kWindow) {
    attend_window(worker, layer, q, KeySource{-1}, from, smaller(kWindow, end - from), fresh);
    fresh = false;
  }
#pragma omp for schedule(dynamic, 1)
  for (int64_t block = 0; block < worker.blocks; ++block) {
    worker.finish_layer(layer, x, block, out);
  }
}

template <class Dot>
void run_all(const Worker<Dot>& worker) {
  const MemoryAttentionParams& params = worker.params;
  const Shared<Dot>& shared = worker.shared;
  for (int64_t image = 0; image < params.images; ++image) {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < worker.blocks; ++block) worker.read_tokens(image, block);
    self_attention(worker, 0, shared.stream, shared.frame, shared.frame_q);
    const int64_t first = params.images == 1 ? 0 : image;
    const int64_t end = params.images == 1 ? params.objects : image + 1;
    for (int64_t object = first; object < end; ++object) {
      memory_and_mlp(worker, 0, object, shared.frame_q, shared.frame, shared.stream);
      for (int64_t layer = 1; layer < params.weights.num_layers; ++layer) {
        self_attention(worker, layer, shared.stream, shared.after_self, shared.q);
        memory_and_mlp(worker, layer, object, shared.q, shared.after_self, shared.stream);
      }
#pragma omp for schedule(static)
      for (int64_t block = 0; block < worker.blocks; ++block) {
        worker.write_out(shared.stream, object, block);
      }
    }
  }
}

int64_t most_pointers(const MemoryAttentionParams& params) {
  int64_t most = 0;
  for (int64_t o = 0; o < params.objects; ++o) {
    most = larger(params.first_pointer[o + 1] - params.first_pointer[o], most);
  }
  return most;
}

// Without memory the arena only counts, and nothing is written.
template <class Dot>
Shared<Dot> shared_of(const MemoryAttentionParams& params, Copies<Dot>& copies, Arena& arena) {
  typedef typename Dot::Unit Unit;
  const MemoryAttentionWeights& weights = params.weights;
  const int64_t blocks = ceil_div(params.tokens, kBlock);
  const int64_t pointer_blocks = ceil_div(smaller(most_pointers(params), kWindow), kBlock);
  const int64_t key_blocks = larger(blocks, pointer_blocks);
  const int64_t stream = blocks * weights.dim * kBlock;
  const int64_t block_units = weights.dim / Dot::kDepth * kBlock;
  Shared<Dot> shared{};
  Unit* const room = arena.take<Unit>(copies.units);
  auto* const layers = arena.take<LayerMatrices<Dot>>(weights.num_layers);
  shared.layers = layers;
  shared.cos = arena.take<float>(blocks * weights.dim / 2 * kBlock);
  shared.sin = arena.take<float>(blocks * weights.dim / 2 * kBlock);
  shared.frame = arena.take<float>(stream);
  shared.stream = arena.take<float>(stream);
  shared.after_self = arena.take<float>(stream);
  shared.frame_q = arena.take<Unit>(blocks * block_units);
  shared.q = arena.take<Unit>(blocks * block_units);
  shared.k = arena.take<Unit>(key_blocks * block_units);
  shared.v = arena.take<Unit>(key_blocks * block_units);
  shared.softmaxes = arena.take<float>(blocks * Softmax::floats(weights.memory_dim));
  if (arena.memory == nullptr) return shared;
  copies.start(room);
  for (int64_t i = 0; i < weights.num_layers; ++i) {
    layers[i] = LayerMatrices<Dot>::of(weights, weights.layers[i], copies);
  }
  return shared;
}

template <class Dot>
bool run(const MemoryAttentionParams& params, int num_threads) {
  const MemoryAttentionWeights& weights = params.weights;
  Copies<Dot> copies{weights.storage, nullptr};
  for (int64_t i = 0; i < weights.num_layers; ++i) {
    LayerMatrices<Dot>::of(weights, weights.layers[i], copies);  // counts
  }
  Arena shared_size{nullptr}, thread_size{nullptr};
  shared_of(params, copies, shared_size);
  Tile<Dot>::take(thread_size, weights.dim);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, shared_size.used + thread_size.used * num_threads));
  if (memory == nullptr) return false;
  Arena arena{memory};
  const Shared<Dot> shared = shared_of(params, copies, arena);
#pragma omp parallel num_threads(num_threads)
  {
    Arena own{memory + shared_size.used + thread_size.used * thread_number()};
    run_all(Worker<Dot>{params, shared, Tile<Dot>::take(own, weights.dim)});
  }
  std::free(memory);
  return true;
}

}  // namespace

bool memory_attention(const MemoryAttentionParams& params, int num_threads) {
#if defined(__AVX512BF16__)
  if (params.weights.storage == Storage::kBfloat16) return run<DotBfloat16>(params, num_threads);
#endif
  return run<DotFloat>(params, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(memory_attention, MemoryAttentionParams)

}  // namespace sam2_fast
