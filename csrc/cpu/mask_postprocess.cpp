// Compiled once per instruction set (SAM2_FAST_ISA), without fused multiply-adds, so that all sets
// give the same bits. docs/kernels/mask_postprocess.md says what is read and written.
#include "csrc/mask_postprocess.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "csrc/cpu/arena.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/simd.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// Where an interpolated value comes from, as torch has it: weight * [first] + rest * [second].
struct Source {
  int32_t first, second;
  float rest, weight;
};

Source source_of(int64_t i, int64_t pixels, int64_t size) {
  const double scale = static_cast<double>(size) / static_cast<double>(pixels);
  double at = scale * (static_cast<double>(i) + 0.5) - 0.5;
  at = at < 0 ? 0 : at;
  const int64_t first = smaller(static_cast<int64_t>(std::floor(at)), size - 1);
  float rest = static_cast<float>(at - static_cast<double>(first));
  rest = rest > 1 ? 1 : rest;
  return {static_cast<int32_t>(first), static_cast<int32_t>(first + (first < size - 1)), rest,
          1.0f - rest};
}

// Run lengths as they grow.
struct Runs {
  int32_t* counts = nullptr;
  int64_t length = 0, room = 0, current = 0;
  bool value = false, failed = false;

  void push() {
    if (length == room) {
      room = room ? 2 * room : 64;
      void* const grown = std::realloc(counts, sizeof(int32_t) * room);
      if (grown == nullptr) {
        fail();
        return;
      }
      counts = static_cast<int32_t*>(grown);
    }
    counts[length] = static_cast<int32_t>(current);
    ++length;
  }

  void fail() {
    failed = true;
    length = 0;
    room = 0;
    std::free(counts);
    counts = nullptr;
  }

  void add(bool what, int64_t pixels) {
    if (pixels == 0 || failed) return;
    if (what != value) {
      push();
      value = what;
      current = 0;
    }
    current += pixels;
  }
};

struct Scratch {
  float* transposed;            // [low_width][low_height]
  float *column, *line;         // [low_height], [height]
  uint8_t* on;                  // [height + 8]
  const Source *across, *down;  // [width], [height]

  static Scratch take(Arena& arena, const MaskPostprocessParams& p, const Source* across,
                      const Source* down) {
    Scratch s{};
    s.transposed = arena.take<float>(p.low_width * p.low_height);
    s.column = arena.take<float>(p.low_height);
    s.line = arena.take<float>(p.height);
    s.on = arena.take<uint8_t>(p.height + 8);
    s.across = across;
    s.down = down;
    return s;
  }
};

// The pixels of one column of a mask as runs.
void add_column(const uint8_t* on, int64_t height, Runs* runs) {
  int64_t from = 0;
  while (from < height) {
    int64_t to = from + 1;
    const uint64_t same = on[from] ? 0x0101010101010101u : 0;
    for (uint64_t eight; to + 8 <= height; to += 8) {  // eight pixels at once while nothing changes
      std::memcpy(&eight, on + to, 8);
      if (eight != same) break;
    }
    while (to < height && on[to] == on[from]) ++to;
    runs->add(on[from] != 0, to - from);
    from = to;
  }
}

void measure_mask(const MaskPostprocessParams& p, int64_t mask, const Scratch& s, Runs* runs) {
  const float* const logits = p.logits + mask * p.low_height * p.low_width;
  for (int64_t y = 0; y < p.low_height; ++y) {
    for (int64_t x = 0; x < p.low_width; ++x) {
      s.transposed[x * p.low_height + y] = logits[y * p.low_width + x];
    }
  }
  int64_t outer = 0, inner = 0, x0 = p.width, x1 = -1, y0 = p.height, y1 = -1;
  runs->add(false, p.left * p.canvas_height);
  for (int64_t x = 0; x < p.width; ++x) {
    const Source across = s.across[x];
    const float* const first = s.transposed + across.first * p.low_height;
    const float* const second = s.transposed + across.second * p.low_height;
    for (int64_t y = 0; y < p.low_height; ++y) {
      s.column[y] = across.weight * first[y] + across.rest * second[y];
    }
    for (int64_t y = 0; y < p.height; ++y) {
      const Source down = s.down[y];
      s.line[y] = down.weight * s.column[down.first] + down.rest * s.column[down.second];
    }
    int32_t above = 0, below = 0, inside = 0;
    for (int64_t y = 0; y < p.height; ++y) {
      above += s.line[y] > p.high;
      below += s.line[y] > p.low;
      s.on[y] = s.line[y] > p.middle;
      inside += s.on[y];
    }
    inner += above;
    outer += below;
    runs->add(false, p.top);
    if (inside == 0) {
      runs->add(false, p.height);
    } else {
      add_column(s.on, p.height, runs);
      x0 = smaller(x, x0);
      x1 = x;
      const uint8_t* const top = static_cast<const uint8_t*>(std::memchr(s.on, 1, p.height));
      int64_t last = p.height - 1;
      while (!s.on[last]) --last;
      y0 = smaller(top - s.on, y0);
      y1 = larger(last, y1);
    }
    runs->add(false, p.canvas_height - p.top - p.height);
  }
  runs->add(false, (p.canvas_width - p.left - p.width) * p.canvas_height);
  if (!runs->failed) runs->push();
  p.outer[mask] = outer;
  p.inner[mask] = inner;
  const int64_t found[4] = {x0, y0, x1, y1}, empty[4] = {};
  std::memcpy(p.boxes + 4 * mask, x1 < 0 ? empty : found, sizeof(found));
}

}  // namespace

bool mask_postprocess(const MaskPostprocessParams& p, int num_threads) {
  Arena call_size{nullptr}, thread_size{nullptr};
  call_size.take<Source>(p.width);
  call_size.take<Source>(p.height);
  Scratch::take(thread_size, p, nullptr, nullptr);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, call_size.used + thread_size.used * num_threads));
  for (int64_t i = 0; i < p.count; ++i) p.runs[i] = nullptr;
  if (memory == nullptr) return false;
  Arena call{memory};
  Source* const across = call.take<Source>(p.width);
  Source* const down = call.take<Source>(p.height);
  for (int64_t x = 0; x < p.width; ++x) across[x] = source_of(x, p.width, p.low_width);
  for (int64_t y = 0; y < p.height; ++y) down[y] = source_of(y, p.height, p.low_height);
  bool failed = false;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1) reduction(|| : failed)
  for (int64_t mask = 0; mask < p.count; ++mask) {
    Arena own{memory + call_size.used + thread_size.used * thread_number()};
    Runs runs;
    measure_mask(p, mask, Scratch::take(own, p, across, down), &runs);
    failed = failed || runs.failed;
    p.runs[mask] = runs.counts;
    p.lengths[mask] = runs.length;
  }
  std::free(memory);
  for (int64_t i = 0; failed && i < p.count; ++i) {
    std::free(p.runs[i]);
    p.runs[i] = nullptr;
  }
  return !failed;
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(mask_postprocess, MaskPostprocessParams)

}  // namespace sam2_fast
