// Compiled once per instruction set (SAM2_FAST_ISA); the portable object also holds the choice
// between them. docs/kernels/rope_attention.md has the tiling and its arithmetic.
#include "csrc/rope_attention.h"

#include <cmath>
#include <cstdlib>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/tile.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

constexpr int64_t kBlock =
    64;  // keys of a block; also the columns of a tile row, in scores and in values
constexpr int64_t kTask = 96;  // queries of a task: 16 tiles of 6 rows read a key block

// Where a call's intermediate data lies; `Unit`s hold one float, or a pair of bfloat16.
template <class Dot>
struct Plan {
  typedef typename Dot::Unit Unit;
  const RopeAttentionParams& p;
  int64_t blocks = round_up(p.keys, kBlock) / kBlock;
  int64_t steps = p.dim / Dot::kDepth;  // of a score's sum
  int64_t width = round_up(p.value_dim, kBlock);
  int64_t key_units = steps * kBlock;  // packed keys of a block: [steps][kBlock]
  int64_t value_units =
      kBlock / Dot::kDepth * width;  // packed values of a block: [kBlock / kDepth][width]
  // a task's scratch: queries [kTask][steps], probabilities [kTask][kBlock / kDepth], then floats
  int64_t task_bytes = 4 * (kTask * (steps + kBlock / Dot::kDepth) + kTask * (kBlock + width + 2));
};

// row: [dim] floats of token `place`, turned (place < 0: left as they are)
void turn(const RopeAttentionParams& p, float* row, int64_t place) {
  const int64_t half = p.dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float c = p.cos[place * half + i], s = p.sin[place * half + i], even = row[2 * i],
                odd = row[2 * i + 1];
    row[2 * i] = even * c - odd * s;
    row[2 * i + 1] = even * s + odd * c;
  }
}

void read_row(const RopeAttentionParams& p, const void* data, int64_t row, int64_t columns,
              float* out) {
  for (int64_t i = 0; i < columns; ++i) out[i] = read(data, p.storage, row * columns + i);
}

template <class Dot>
void pack_block(const Plan<Dot>& plan, int64_t object, int64_t block, float* row,
                typename Dot::Unit* keys, typename Dot::Unit* values) {
  const RopeAttentionParams& p = plan.p;
  const int64_t first = block * kBlock, count = p.keys - first < kBlock ? p.keys - first : kBlock;
  for (int64_t j = 0; j < kBlock; ++j) {
    if (j < count) {
      read_row(p, p.k, object * p.keys + first + j, p.dim, row);
      if (first + j < p.keys - p.unrotated) turn(p, row, (first + j) % p.queries);
    }
    for (int64_t s = 0; s < plan.steps; ++s)
      keys[s * kBlock + j] = j < count ? Dot::pack(row + s * Dot::kDepth, 1) : 0;
  }
  for (int64_t j = 0; j < kBlock / Dot::kDepth; ++j) {
    for (int64_t c = 0; c < Dot::kDepth; ++c) {
      float* part = row + c * plan.width;
      const int64_t key = j * Dot::kDepth + c;
      for (int64_t i = 0; i < plan.width; ++i) part[i] = 0;
      if (key < count) read_row(p, p.v, object * p.keys + first + key, p.value_dim, part);
    }
    for (int64_t i = 0; i < plan.width; ++i)
      values[j * plan.width + i] = Dot::pack(row + i, plan.width);
  }
}

// One row of a block: scores to probabilities, the running maximum (of scores in base 2) and sum
// brought up to date.
template <class Dot>
void soften(float* scores, typename Dot::Unit* probabilities, float* out, int64_t width,
            float scale, float* maximum, float* total) {
  Vec top = load(scores);
  for (int64_t j = kLanes; j < kBlock; j += kLanes) top = larger(load(scores + j), top);
  const float before = *maximum, now = largest(top) * scale;
  if (!(now <= before)) {  // a NaN, too, is taken over
    *maximum = now;
    const float shrink = exp2_of(fill(before - now))[0];
    *total *= shrink;
    for (int64_t i = 0; i < width; i += kLanes) store(out + i, load(out + i) * fill(shrink));
  }
  const Vec by = fill(scale), minus = fill(*maximum);
  Vec added = Vec{};
  for (int64_t j = 0; j < kBlock; j += kLanes) {
    const Vec value = Dot::exp2(load(scores + j) * by - minus);
    added = added + value;
    store(scores + j, value);
  }
  *total += sum(added);
  for (int64_t j = 0; j < kBlock / Dot::kDepth; ++j)
    probabilities[j] = Dot::pack(scores + j * Dot::kDepth, 1);
}

template <class Dot>
void attend(const Plan<Dot>& plan, int64_t object, int64_t task, const typename Dot::Unit* keys,
            const typename Dot::Unit* values, char* scratch) {
  typedef typename Dot::Unit Unit;
  const RopeAttentionParams& p = plan.p;
  const int64_t first = task * kTask, count = p.queries - first < kTask ? p.queries - first : kTask,
                width = plan.width;
  const int64_t rows = count;
  const int64_t depth = kBlock / Dot::kDepth;
  Unit* queries = reinterpret_cast<Unit*>(scratch);                         // [kTask][steps]
  Unit* probabilities = queries + kTask * plan.steps;                       // [kTask][depth]
  float* scores = reinterpret_cast<float*>(probabilities + kTask * depth);  // [kTask][kBlock]
  float* out = scores + kTask * kBlock;                                     // [kTask][width]
  float* maxima = out + kTask * width;                                      // [kTask]
  float* totals = maxima + kTask;                                           // [kTask]
  // 1. the task's queries, turned; rows past the end are zeros
  for (int64_t r = 0; r < rows; ++r) {
    float* row = out;  // not yet in use, and larger than any dim
    for (int64_t i = 0; i < p.dim; ++i) row[i] = 0;
    if (r < count) {
      read_row(p, p.q, object * p.queries + first + r, p.dim, row);
      turn(p, row, first + r);
    }
    for (int64_t s = 0; s < plan.steps; ++s)
      queries[r * plan.steps + s] = Dot::pack(row + s * Dot::kDepth, 1);
  }
  for (int64_t i = 0; i < kTask * width; ++i) out[i] = 0;
  for (int64_t r = 0; r < kTask; ++r) maxima[r] = -INFINITY, totals[r] = 0;
  const float scale = kLog2E / std::sqrt(static_cast<float>(p.dim));
  for (int64_t block = 0; block < plan.blocks; ++block) {
    const Unit* key = keys + block * plan.key_units;
    const Unit* value = values + block * plan.value_units;
    // 2. scores of 96 queries x 64 keys, in parts of the sum outside: 16 KB of keys stay in the
    // first-level cache for all rows
    multiply<Dot>({queries, plan.steps, 1}, key, kBlock, scores, kBlock, rows, kBlock, plan.steps,
                  false);
    const int64_t real = p.keys - block * kBlock;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = real; j < kBlock; ++j) scores[r * kBlock + j] = -INFINITY;
      // 3. the online softmax
      soften<Dot>(scores + r * kBlock, probabilities + r * depth, out + r * width, width, scale,
                  maxima + r, totals + r);
    }
    // 4. out += probabilities x values
    multiply<Dot>({probabilities, depth, 1}, value, width, out, width, rows, width, depth, true);
  }
  // 5. divide by the sums and store
  for (int64_t r = 0; r < count; ++r) {
    const int64_t at = (object * p.queries + first + r) * p.value_dim;
    for (int64_t i = 0; i < p.value_dim; ++i) {
      write(p.out, p.storage, at + i, out[r * width + i] / totals[r]);
    }
  }
}

template <class Dot>
bool run(const RopeAttentionParams& p, int num_threads) {
  typedef typename Dot::Unit Unit;
  const Plan<Dot> plan{p};
  const int64_t tasks = round_up(p.queries, kTask) / kTask;
  const int64_t thread_bytes = round_up(plan.task_bytes, 64);
  const int64_t packed = round_up(4 * plan.blocks * (plan.key_units + plan.value_units), 64);
  // one object at a time: scratch does not grow with their number
  char* memory = static_cast<char*>(std::aligned_alloc(64, packed + thread_bytes * num_threads));
  if (memory == nullptr) return false;
  Unit* keys = reinterpret_cast<Unit*>(memory);
  Unit* values = keys + plan.blocks * plan.key_units;
  char* const scratch = memory + packed;
#pragma omp parallel num_threads(num_threads)
  for (int64_t object = 0; object < p.batch; ++object) {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < plan.blocks; ++block) {
      float* row = reinterpret_cast<float*>(scratch + thread_bytes * thread_number());
      pack_block(plan, object, block, row, keys + block * plan.key_units,
                 values + block * plan.value_units);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) {
      attend(plan, object, task, keys, values, scratch + thread_bytes * thread_number());
    }
  }
  std::free(memory);
  return true;
}

}  // namespace

bool rope_attention(const RopeAttentionParams& p, int num_threads) {
#if defined(__AVX512BF16__)
  if (p.storage == Storage::kBfloat16) return run<DotBfloat16>(p, num_threads);
#endif
  return run<DotFloat>(p, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(rope_attention, RopeAttentionParams)

}  // namespace sam2_fast
