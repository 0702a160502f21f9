// Compiled once per instruction set (SAM2_FAST_ISA). The portable object also selects the set at
// run time. docs/kernels/memory_attention.md describes the phases and their arithmetic.
#include "csrc/memory_attention.h"

#include <cstdlib>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/memory_attention/worker.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// Number of keys that are computed and attended to at a time. With their values they take 5 MB in
// float32.
constexpr int64_t kKeyWindow = 4096;
static_assert(kKeyWindow % kBlock == 0, "whole blocks");

// Every thread calls the following functions with the same arguments. The threads share the loops,
// and each loop ends with a barrier.

// out = x + self-attention(x); q = queries of `out` to the memories.
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

// Computes `count` keys from `from` on, then lets all queries attend to them.
template <class Dot>
void attend_key_window(const Worker<Dot>& worker, int64_t layer, const typename Dot::Unit* q,
                       KeySource source, int64_t from, int64_t count, bool reset) {
#pragma omp for schedule(static)
  for (int64_t i = 0; i < ceil_div(count, kBlock); ++i) {
    const int64_t num_keys = smaller(kBlock, count - i * kBlock);
    worker.project_keys(layer, source, from + i * kBlock, num_keys, i);
  }
#pragma omp for schedule(dynamic, 1)
  for (int64_t block = 0; block < worker.blocks; ++block) {
    worker.attend_memory(q, block, count, reset);
  }
}

// Attention to the memories and MLP of a layer. x: the residual stream after self-attention; out:
// the stream after the layer.
template <class Dot>
void memory_and_mlp(const Worker<Dot>& worker, int64_t layer, int64_t object,
                    const typename Dot::Unit* q, const float* x, float* out) {
  const MemoryAttentionParams& params = worker.params;
  bool reset = true;
  for (int64_t map = params.first[object]; map < params.first[object + 1]; ++map) {
    for (int64_t from = 0; from < params.tokens; from += kKeyWindow) {
      const int64_t count = smaller(kKeyWindow, params.tokens - from);
      attend_key_window(worker, layer, q, KeySource{map}, from, count, reset);
      reset = false;
    }
  }
  const int64_t end = params.first_pointer[object + 1];
  for (int64_t from = params.first_pointer[object]; from < end; from += kKeyWindow) {
    attend_key_window(worker, layer, q, KeySource{-1}, from, smaller(kKeyWindow, end - from),
                      reset);
    reset = false;
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

int64_t max_pointers(const MemoryAttentionParams& params) {
  int64_t maximum = 0;
  for (int64_t o = 0; o < params.objects; ++o) {
    maximum = larger(params.first_pointer[o + 1] - params.first_pointer[o], maximum);
  }
  return maximum;
}

// Allocates shared memory and, unless the arena only computes its size, copies the weights.
template <class Dot>
Shared<Dot> shared_of(const MemoryAttentionParams& params, WeightCopies<Dot>& copies,
                      Arena& arena) {
  typedef typename Dot::Unit Unit;
  const MemoryAttentionWeights& weights = params.weights;
  const int64_t blocks = ceil_div(params.tokens, kBlock);
  const int64_t pointer_blocks = ceil_div(smaller(max_pointers(params), kKeyWindow), kBlock);
  const int64_t key_blocks = larger(blocks, pointer_blocks);
  const int64_t stream = blocks * weights.dim * kBlock;
  const int64_t block_units = weights.dim / Dot::kDepth * kBlock;
  Shared<Dot> shared{};
  Unit* const copied_weights = arena.allocate<Unit>(copies.units);
  auto* const layers = arena.allocate<LayerMatrices<Dot>>(weights.num_layers);
  shared.layers = layers;
  shared.cos = arena.allocate<float>(blocks * weights.dim / 2 * kBlock);
  shared.sin = arena.allocate<float>(blocks * weights.dim / 2 * kBlock);
  shared.frame = arena.allocate<float>(stream);
  shared.stream = arena.allocate<float>(stream);
  shared.after_self = arena.allocate<float>(stream);
  shared.frame_q = arena.allocate<Unit>(blocks * block_units);
  shared.q = arena.allocate<Unit>(blocks * block_units);
  shared.k = arena.allocate<Unit>(key_blocks * block_units);
  shared.v = arena.allocate<Unit>(key_blocks * block_units);
  shared.softmaxes = arena.allocate<float>(blocks * Softmax::state_floats(weights.memory_dim));
  if (arena.memory == nullptr) return shared;
  copies.start(copied_weights);
  for (int64_t i = 0; i < weights.num_layers; ++i) {
    layers[i] = LayerMatrices<Dot>::of(weights, weights.layers[i], copies);
  }
  return shared;
}

template <class Dot>
bool run(const MemoryAttentionParams& params, int num_threads) {
  const MemoryAttentionWeights& weights = params.weights;
  WeightCopies<Dot> copies{weights.storage, nullptr};
  for (int64_t i = 0; i < weights.num_layers; ++i) {
    LayerMatrices<Dot>::of(weights, weights.layers[i], copies);  // computes the size of the copies
  }
  Arena shared_size{nullptr}, thread_size{nullptr};
  shared_of(params, copies, shared_size);
  Tile<Dot>::allocate(thread_size, weights.dim);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, shared_size.used + thread_size.used * num_threads));
  if (memory == nullptr) return false;
  Arena arena{memory};
  const Shared<Dot> shared = shared_of(params, copies, arena);
#pragma omp parallel num_threads(num_threads)
  {
    Arena thread_arena{memory + shared_size.used + thread_size.used * thread_number()};
    run_all(Worker<Dot>{params, shared, Tile<Dot>::allocate(thread_arena, weights.dim)});
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
