// Compiled once per instruction set (SAM2_FAST_ISA). The portable object also selects the set at
// run time. docs/kernels/rope_attention.md describes the tiling and its arithmetic.
#include "csrc/rope_attention.h"

#include <cmath>
#include <cstdlib>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/tile.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// Keys of a block: the columns of a tile of scores. Channels of values are padded to a multiple of
// it.
constexpr int64_t kBlock = 64;
// Queries of a task: 16 tiles of 6 rows, which read the same block of keys.
constexpr int64_t kTask = 96;

// Sizes of a call's intermediate data. A `Unit` is one float or a pair of bfloat16.
template <class Dot>
struct Plan {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth;
  const RopeAttentionParams& params;
  int64_t blocks = ceil_div(params.keys, kBlock);
  int64_t steps = params.dim / kDepth;  // steps of the sum of one score
  int64_t width = round_up(params.value_dim, kBlock);
  int64_t key_units = steps * kBlock;             // packed keys of a block: [steps][kBlock]
  int64_t value_units = kBlock / kDepth * width;  // packed values: [kBlock / kDepth][width]
  // scratch of a task: queries [kTask][steps], probabilities [kTask][kBlock / kDepth], then floats
  int64_t task_bytes = 4 * (kTask * (steps + kBlock / kDepth) + kTask * (kBlock + width + 2));
};

// One thread's scratch for a task of queries.
template <class Dot>
struct Task {
  typedef typename Dot::Unit Unit;
  Unit* queries;        // [kTask][steps]
  Unit* probabilities;  // [kTask][kBlock / kDepth]
  float* scores;        // [kTask][kBlock]
  float* accumulator;   // [kTask][width]
  float* running_max;   // [kTask], of scores in base 2
  float* running_sum;   // [kTask]

  Task(const Plan<Dot>& plan, char* memory)
      : queries(reinterpret_cast<Unit*>(memory)),
        probabilities(queries + kTask * plan.steps),
        scores(reinterpret_cast<float*>(probabilities + kTask * (kBlock / Dot::kDepth))),
        accumulator(scores + kTask * kBlock),
        running_max(accumulator + kTask * plan.width),
        running_sum(running_max + kTask) {}
};

template <class Dot>
struct Worker {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth;
  const Plan<Dot>& plan;
  Unit *keys, *values;  // packed keys and values of the current object, shared by all threads
  char* scratch;
  const RopeAttentionParams& params = plan.params;
  Task<Dot> task{plan, scratch};

  // Rotates row [dim] of token `token`.
  void rotate(float* row, int64_t token) const {
    const int64_t half = params.dim / 2;
    const float* const cos = params.cos + token * half;
    const float* const sin = params.sin + token * half;
    for (int64_t i = 0; i < half; ++i) {
      const float c = cos[i], s = sin[i], even = row[2 * i], odd = row[2 * i + 1];
      row[2 * i] = even * c - odd * s;
      row[2 * i + 1] = even * s + odd * c;
    }
  }

  void read_row(const void* data, int64_t row, int64_t columns, float* out) const {
    for (int64_t i = 0; i < columns; ++i) out[i] = read(data, params.storage, row * columns + i);
  }

  // Packs the rotated keys and the values of one block; keys after the last one are zero.
  void pack_block(int64_t object, int64_t block) const {
    float* const row = reinterpret_cast<float*>(scratch);
    const int64_t first = block * kBlock, count = smaller(params.keys - first, kBlock);
    Unit* const packed_keys = keys + block * plan.key_units;
    Unit* const packed_values = values + block * plan.value_units;
    for (int64_t j = 0; j < kBlock; ++j) {
      if (j < count) {
        read_row(params.k, object * params.keys + first + j, params.dim, row);
        if (first + j < params.keys - params.unrotated) rotate(row, (first + j) % params.queries);
      }
      for (int64_t s = 0; s < plan.steps; ++s) {
        packed_keys[s * kBlock + j] = j < count ? Dot::pack(row + s * kDepth, 1) : 0;
      }
    }
    for (int64_t j = 0; j < kBlock / kDepth; ++j) {
      for (int64_t c = 0; c < kDepth; ++c) {
        float* const part = row + c * plan.width;
        const int64_t key = j * kDepth + c;
        for (int64_t i = 0; i < plan.width; ++i) part[i] = 0;
        if (key < count) {
          read_row(params.v, object * params.keys + first + key, params.value_dim, part);
        }
      }
      for (int64_t i = 0; i < plan.width; ++i) {
        packed_values[j * plan.width + i] = Dot::pack(row + i, plan.width);
      }
    }
  }

  // Converts row r of a block of scores to probabilities, updates running_max and running_sum, and
  // rescales the accumulator to the new maximum.
  void update_online_softmax(int64_t r, float scale) const {
    float* const scores = task.scores + r * kBlock;
    float* const accumulator = task.accumulator + r * plan.width;
    Vec largest_scores = load(scores);
    for (int64_t j = kLanes; j < kBlock; j += kLanes) {
      largest_scores = larger(load(scores + j), largest_scores);
    }
    const float old_max = task.running_max[r], new_max = largest(largest_scores) * scale;
    if (!(new_max <= old_max)) {  // also true for NaN
      task.running_max[r] = new_max;
      const float rescale = exp2_of(fill(old_max - new_max))[0];
      task.running_sum[r] *= rescale;
      for (int64_t i = 0; i < plan.width; i += kLanes) {
        store(accumulator + i, load(accumulator + i) * fill(rescale));
      }
    }
    const Vec scales = fill(scale), maximum = fill(task.running_max[r]);
    Vec sums = Vec{};
    for (int64_t j = 0; j < kBlock; j += kLanes) {
      const Vec value = Dot::exp2(load(scores + j) * scales - maximum);
      sums = sums + value;
      store(scores + j, value);
    }
    task.running_sum[r] += sum(sums);
    Unit* const probabilities = task.probabilities + r * (kBlock / kDepth);
    for (int64_t j = 0; j < kBlock / kDepth; ++j) {
      probabilities[j] = Dot::pack(scores + j * kDepth, 1);
    }
  }

  // Rotates and packs the queries of a task.
  void pack_queries(int64_t row, int64_t first, int64_t count) const {
    float* const query = task.accumulator;  // unused so far and large enough for any dim
    for (int64_t r = 0; r < count; ++r) {
      read_row(params.q, row + r, params.dim, query);
      rotate(query, first + r);
      for (int64_t s = 0; s < plan.steps; ++s) {
        task.queries[r * plan.steps + s] = Dot::pack(query + s * kDepth, 1);
      }
    }
  }

  void attend_task(int64_t object, int64_t index) const {
    const int64_t first = index * kTask, count = smaller(params.queries - first, kTask);
    const int64_t row = object * params.queries + first;
    const int64_t width = plan.width, depth = kBlock / kDepth;
    pack_queries(row, first, count);
    for (int64_t i = 0; i < kTask * width; ++i) task.accumulator[i] = 0;
    for (int64_t r = 0; r < kTask; ++r) {
      task.running_max[r] = -INFINITY;
      task.running_sum[r] = 0;
    }
    const float scale = softmax_scale(params.dim);
    for (int64_t block = 0; block < plan.blocks; ++block) {
      // 96 queries x 64 keys. `multiply` loops over partial sums outermost, so that the part of the
      // keys in use stays in the first-level cache for all rows.
      multiply<Dot>({task.queries, plan.steps, 1}, keys + block * plan.key_units, kBlock,
                    task.scores, kBlock, count, kBlock, plan.steps, false);
      const int64_t num_keys = params.keys - block * kBlock;
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t j = num_keys; j < kBlock; ++j) task.scores[r * kBlock + j] = -INFINITY;
        update_online_softmax(r, scale);
      }
      multiply<Dot>({task.probabilities, depth, 1}, values + block * plan.value_units, width,
                    task.accumulator, width, count, width, depth, true);
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < params.value_dim; ++i) {
        write(params.out, params.storage, (row + r) * params.value_dim + i,
              task.accumulator[r * width + i] / task.running_sum[r]);
      }
    }
  }
};

// Called by every thread. The threads share the loops, and each loop ends with a barrier.
template <class Dot>
void run_all(const Worker<Dot>& worker) {
  const int64_t tasks = ceil_div(worker.params.queries, kTask);
  for (int64_t object = 0; object < worker.params.batch; ++object) {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < worker.plan.blocks; ++block) worker.pack_block(object, block);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) worker.attend_task(object, task);
  }
}

template <class Dot>
bool run(const RopeAttentionParams& params, int num_threads) {
  typedef typename Dot::Unit Unit;
  const Plan<Dot> plan{params};
  const int64_t thread_bytes = round_up(plan.task_bytes, 64);
  const int64_t packed_bytes = round_up(4 * plan.blocks * (plan.key_units + plan.value_units), 64);
  // objects are processed one after the other, so scratch memory does not grow with their number
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, packed_bytes + thread_bytes * num_threads));
  if (memory == nullptr) return false;
  Unit* const keys = reinterpret_cast<Unit*>(memory);
  Unit* const values = keys + plan.blocks * plan.key_units;
#pragma omp parallel num_threads(num_threads)
  {
    char* const thread_scratch = memory + packed_bytes + thread_bytes * thread_number();
    run_all(Worker<Dot>{plan, keys, values, thread_scratch});
  }
  std::free(memory);
  return true;
}

}  // namespace

bool rope_attention(const RopeAttentionParams& params, int num_threads) {
#if defined(__AVX512BF16__)
  if (params.storage == Storage::kBfloat16) return run<DotBfloat16>(params, num_threads);
#endif
  return run<DotFloat>(params, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(rope_attention, RopeAttentionParams)

}  // namespace sam2_fast
