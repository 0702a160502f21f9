// Memory attention, all layers: a frame's tokens attend to themselves and to each object's
// memories. Interface between the binding and the kernel; uses neither torch nor Python.
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
  const float* cos;         // [tokens, dim / 2]: cosines of the angles by which the channel pairs
                            // (2i, 2i + 1) of a token are rotated
  const float* sin;         // [tokens, dim / 2]: sines of these angles
  const void* const* maps;  // memory maps, each [tokens, memory_dim], contiguous, `map_storage`
  Storage map_storage;
  // the keys of a map come from map + map_positions + one row of `temporal`, its values from the
  // map alone
  const float* map_positions;  // [tokens, memory_dim]
  const float* temporal;       // [temporal rows, memory_dim]
  const int64_t* slots;        // entries first[o] .. first[o + 1] - 1: indices of object o's maps
  const int64_t* rows;         // for each entry of `slots` a row of `temporal`
  const int64_t* first;        // [objects + 1] offsets in `slots`
  const float* pointers;       // [pointer tokens, memory_dim]: keys and values that are not rotated
  const float* pointer_positions;  // [pointer tokens, memory_dim]: added to the pointers for keys
  const int64_t* first_pointer;    // [objects + 1] offsets in `pointers`
  int64_t images;                  // `objects`, or 1 if all objects share it
  int64_t objects;
  int64_t tokens;  // >= 1
};

// Runs with the instructions of `isa`, which must not be wider than widest_isa(). Every object must
// have one key or more. Its result depends neither on the number of threads nor on the other
// objects. Returns false and writes nothing if scratch memory cannot be allocated.
bool memory_attention_cpu(const MemoryAttentionParams& params, int num_threads, Isa isa);

}  // namespace sam2_fast
