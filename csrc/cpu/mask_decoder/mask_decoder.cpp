// Compiled once per instruction set (SAM2_FAST_ISA). The portable object also selects the set at
// run time. docs/kernels/mask_decoder.md describes the passes and their arithmetic.
#include "csrc/mask_decoder.h"

#include <cstdlib>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/mask_decoder/worker.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// Every thread calls the following functions with the same arguments. The threads share the loops,
// and each loop ends with a barrier. Computations outside loops are repeated by every thread.

template <class Dot>
void decode(Worker<Dot>& worker, int64_t object) {
  const MaskDecoderWeights& weights = worker.weights;
  const Matrices<Dot>& matrices = worker.matrices;
  PromptTokens<Dot>& tokens = worker.tokens;
  // two alternating buffers, because a thread may still merge the partial results of one pass while
  // another thread writes those of the next pass
  float* partial = worker.shared.partial[object % 2];
  float* next_partial = worker.shared.partial[(object + 1) % 2];
  const AttentionLayer<Dot> attentions[3] = {
      {weights.layers[0].token_to_image, matrices.layers[0].token_to_image},
      {weights.layers[1].token_to_image, matrices.layers[1].token_to_image},
      {weights.final_attention, matrices.final_attention}};
  tokens.read_prompts(object);
  tokens.attend_self(weights.layers[0], matrices.layers[0].self_attention, true);
  tokens.project_queries(attentions[0]);
#pragma omp for schedule(static)
  for (int64_t b = 0; b < worker.blocks; ++b) {
    worker.attend_block(worker.first_keys(b), b, partial);
  }
  for (int layer = 0; layer < 2; ++layer) {
    const TwoWayLayerWeights& l = weights.layers[layer];
    const LayerMatrices<Dot>& m = matrices.layers[layer];
    worker.merge_blocks(partial);
    tokens.add_attention(attentions[layer], l.norm2);
    tokens.mlp(l, m);
    tokens.project_keys({l.image_to_token, m.image_to_token});
    if (layer == 0) {
      tokens.attend_self(weights.layers[1], matrices.layers[1].self_attention, false);
    }
    const AttentionLayer<Dot>& next = attentions[layer + 1];
    tokens.project_queries(next);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < worker.blocks; ++b) {
      worker.update_image_block(layer, next, b, next_partial);
    }
    float* const previous = partial;
    partial = next_partial;
    next_partial = previous;
  }
  worker.merge_blocks(partial);
  tokens.add_attention(attentions[2], weights.final_norm);
  worker.run_heads();
#pragma omp for schedule(static)
  for (int64_t b = 0; b < worker.blocks; ++b) worker.predict_masks(object, b);
#pragma omp master
  {
    tokens.write_tokens(object);
    float* const quality = worker.params.quality + object * weights.iou_values;
    for (int64_t i = 0; i < weights.iou_values; ++i) quality[i] = worker.quality[i];
  }
}

template <class Dot>
void run_all(Worker<Dot> worker) {
  const MaskDecoderParams& params = worker.params;
  for (int64_t object = 0; object < params.objects; ++object) {
    if (object == 0 || params.images > 1) {
#pragma omp for schedule(static)
      for (int64_t b = 0; b < worker.blocks; ++b) worker.read_image(object, b);
#pragma omp for schedule(static)
      for (int64_t b = 0; b < worker.blocks; ++b) worker.project_first_layer(b);
    }
    if (object == 0 && caches_frame(params)) {
#pragma omp for schedule(static)
      for (int64_t b = 0; b < worker.blocks; ++b) worker.read_frame(b);
    }
    decode(worker, object);
  }
}

// Memory of a call that all threads share. With an arena without memory only its size is computed.
template <class Dot>
struct CallMemory {
  typename Dot::Unit* copies;
  MlpMatrices<Dot>* masks;
  Shared<Dot> shared;

  static CallMemory allocate(Arena& arena, const MaskDecoderParams& params, int64_t copied_units) {
    CallMemory call_memory{};
    call_memory.copies = arena.allocate<typename Dot::Unit>(copied_units);
    call_memory.masks = arena.allocate<MlpMatrices<Dot>>(params.weights.num_masks);
    call_memory.shared = Shared<Dot>::allocate(arena, params);
    return call_memory;
  }
};

template <class Dot>
bool run(const MaskDecoderParams& params, int num_threads) {
  const MaskDecoderWeights& weights = params.weights;
  WeightCopies<Dot> copies{weights.storage, nullptr};
  const Matrices<Dot> counted = Matrices<Dot>::of(weights, copies, nullptr);
  Arena call_size{nullptr}, thread_size{nullptr};
  const auto counted_memory = CallMemory<Dot>::allocate(call_size, params, copies.units);
  Worker<Dot>::allocate(thread_size, params, counted, counted_memory.shared);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, call_size.used + thread_size.used * num_threads));
  if (memory == nullptr) return false;
  Arena arena{memory};
  const auto call_memory = CallMemory<Dot>::allocate(arena, params, copies.units);
  copies.start(call_memory.copies);
  const Matrices<Dot> matrices = Matrices<Dot>::of(weights, copies, call_memory.masks);
#pragma omp parallel num_threads(num_threads)
  {
    Arena thread_arena{memory + call_size.used + thread_size.used * thread_number()};
    run_all(Worker<Dot>::allocate(thread_arena, params, matrices, call_memory.shared));
  }
  std::free(memory);
  return true;
}

}  // namespace

bool mask_decoder(const MaskDecoderParams& params, int num_threads) {
#if defined(__AVX512BF16__)
  if (params.weights.storage == Storage::kBfloat16) return run<DotBfloat16>(params, num_threads);
#endif
  return run<DotFloat>(params, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(mask_decoder, MaskDecoderParams)

}  // namespace sam2_fast
