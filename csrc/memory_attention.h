// Memory attention: a frame's tokens attend to themselves and to what each object remembers, layer
// after layer. Contract between bindings and kernels. No torch, no Python.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/storage.h"

namespace sam2_fast {

struct MemoryLayerWeights {
  Norm norm1;                               // [dim]
  Linear self_q, self_k, self_v, self_out;  // dim -> dim
  Norm norm2;
  Linear q, k, v, out;  // attention to the memories: k, v memory_dim -> dim, the others dim -> dim
  Norm norm3;
  Linear linear1, linear2;  // dim -> hidden -> dim, ReLU between
};

struct MemoryAttentionWeights {
  const MemoryLayerWeights* layers;  // [num_layers]
  Norm norm;                         // [dim], after the last layer
  Storage storage;                   // of the linear layers' weights
  int64_t num_layers;
  int64_t dim, memory_dim, hidden;  // channels, even; memory_dim <= dim
};

struct MemoryAttentionParams {
  const void* x;    // [images, tokens, dim], contiguous, `storage`
  void* out;        // [objects, tokens, dim], contiguous, `storage`
  Storage storage;  // of x and out
  MemoryAttentionWeights weights;
  const float* cos;         // [tokens, dim / 2]: of the angles by which pairs (2i, 2i + 1) of a
                            // token's channels are rotated
  const float* sin;         // [tokens, dim / 2]
  const void* const* maps;  // [slots] memories, each [tokens, memory_dim], contiguous,
                            // `map_storage`
  Storage map_storage;
  const float* place;     // [tokens, memory_dim]: added to every map for its keys
  const float* temporal;  // [rows, memory_dim]: and one of these rows
  const int64_t* slots;   // object o remembers maps slots[first[o]] .. slots[first[o + 1] - 1]
  const int64_t* rows;    // with these rows of `temporal`
  const int64_t* first;   // [objects + 1]
  const float* pointers;  // [pointer tokens, memory_dim]: not rotated
  const float* pointer_positions;  // [pointer tokens, memory_dim]: added for their keys
  const int64_t* first_pointer;    // [objects + 1] pointer tokens
  int64_t images;                  // 1, shared by the objects, or as many as objects
  int64_t objects;
  int64_t tokens;  // >= 1
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). Each token's
// arithmetic is the same for any number of threads and whatever the other objects. Every object has
// one key or more. Returns false, with nothing written, without scratch memory.
bool memory_attention_cpu(const MemoryAttentionParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
