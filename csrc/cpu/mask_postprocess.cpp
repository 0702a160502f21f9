// Compiled once per instruction set (SAM2_FAST_ISA), without fused multiply-adds, so that all sets
// compute the same bits. docs/kernels/mask_postprocess.md describes the algorithm.
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

// Indices and weights of an interpolated value, as in torch:
// first_weight * values[first] + second_weight * values[second].
struct Source {
  int32_t first, second;
  float second_weight, first_weight;
};

// The source of pixel i when `size` values are interpolated to `pixels` pixels.
Source source_of(int64_t i, int64_t pixels, int64_t size) {
  const double scale = static_cast<double>(size) / static_cast<double>(pixels);
  double position = scale * (static_cast<double>(i) + 0.5) - 0.5;
  position = position < 0 ? 0 : position;
  const int64_t first = smaller(static_cast<int64_t>(std::floor(position)), size - 1);
  float second_weight = static_cast<float>(position - static_cast<double>(first));
  second_weight = second_weight > 1 ? 1 : second_weight;
  return {static_cast<int32_t>(first), static_cast<int32_t>(first + (first < size - 1)),
          second_weight, 1.0f - second_weight};
}

// A growing array of run lengths. After a failed allocation it stays empty.
struct Runs {
  int32_t* counts = nullptr;
  // run_pixels, run_value: the current run, which is not in `counts` yet
  int64_t length = 0, capacity = 0, run_pixels = 0;
  bool run_value = false, failed = false;

  void push() {
    if (length == capacity) {
      capacity = capacity ? 2 * capacity : 64;
      void* const new_counts = std::realloc(counts, sizeof(int32_t) * capacity);
      if (new_counts == nullptr) {
        fail();
        return;
      }
      counts = static_cast<int32_t*>(new_counts);
    }
    counts[length] = static_cast<int32_t>(run_pixels);
    ++length;
  }

  void fail() {
    failed = true;
    length = 0;
    capacity = 0;
    std::free(counts);
    counts = nullptr;
  }

  void add(bool pixel_value, int64_t pixels) {
    if (pixels == 0 || failed) return;
    if (pixel_value != run_value) {
      push();
      run_value = pixel_value;
      run_pixels = 0;
    }
    run_pixels += pixels;
  }
};

struct Scratch {
  float* transposed;                    // [low_width][low_height]: logits of one mask
  float *low_column, *column;           // [low_height], [height]
  uint8_t* in_mask;                     // [height + 8]
  const Source *x_sources, *y_sources;  // [width], [height]

  static Scratch allocate(Arena& arena, const MaskPostprocessParams& p, const Source* x_sources,
                          const Source* y_sources) {
    Scratch s{};
    s.transposed = arena.allocate<float>(p.low_width * p.low_height);
    s.low_column = arena.allocate<float>(p.low_height);
    s.column = arena.allocate<float>(p.height);
    s.in_mask = arena.allocate<uint8_t>(p.height + 8);
    s.x_sources = x_sources;
    s.y_sources = y_sources;
    return s;
  }
};

// Appends the pixels of one column of a mask to the runs.
void add_column(const uint8_t* in_mask, int64_t height, Runs* runs) {
  int64_t begin = 0;
  while (begin < height) {
    int64_t end = begin + 1;
    const uint64_t uniform_word = in_mask[begin] ? 0x0101010101010101u : 0;
    for (uint64_t word; end + 8 <= height; end += 8) {  // compare eight pixels at a time
      std::memcpy(&word, in_mask + end, 8);
      if (word != uniform_word) break;
    }
    while (end < height && in_mask[end] == in_mask[begin]) ++end;
    runs->add(in_mask[begin] != 0, end - begin);
    begin = end;
  }
}

// Interpolates one mask column by column, counts its pixels, and finds its box and run lengths.
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
    const Source x_source = s.x_sources[x];
    const float* const first = s.transposed + x_source.first * p.low_height;
    const float* const second = s.transposed + x_source.second * p.low_height;
    for (int64_t y = 0; y < p.low_height; ++y) {
      s.low_column[y] = x_source.first_weight * first[y] + x_source.second_weight * second[y];
    }
    for (int64_t y = 0; y < p.height; ++y) {
      const Source y_source = s.y_sources[y];
      s.column[y] = y_source.first_weight * s.low_column[y_source.first] +
                    y_source.second_weight * s.low_column[y_source.second];
    }
    int32_t num_inner = 0, num_outer = 0, num_inside = 0;
    for (int64_t y = 0; y < p.height; ++y) {
      num_inner += s.column[y] > p.high_threshold;
      num_outer += s.column[y] > p.low_threshold;
      s.in_mask[y] = s.column[y] > p.threshold;
      num_inside += s.in_mask[y];
    }
    inner += num_inner;
    outer += num_outer;
    runs->add(false, p.top);
    if (num_inside == 0) {
      runs->add(false, p.height);
    } else {
      add_column(s.in_mask, p.height, runs);
      x0 = smaller(x, x0);
      x1 = x;
      const uint8_t* const top = static_cast<const uint8_t*>(std::memchr(s.in_mask, 1, p.height));
      int64_t last = p.height - 1;
      while (!s.in_mask[last]) --last;
      y0 = smaller(top - s.in_mask, y0);
      y1 = larger(last, y1);
    }
    runs->add(false, p.canvas_height - p.top - p.height);
  }
  runs->add(false, (p.canvas_width - p.left - p.width) * p.canvas_height);
  if (!runs->failed) runs->push();
  p.outer[mask] = outer;
  p.inner[mask] = inner;
  const int64_t box[4] = {x0, y0, x1, y1}, empty[4] = {};
  std::memcpy(p.boxes + 4 * mask, x1 < 0 ? empty : box, sizeof(box));
}

}  // namespace

bool mask_postprocess(const MaskPostprocessParams& p, int num_threads) {
  Arena call_size{nullptr}, thread_size{nullptr};
  call_size.allocate<Source>(p.width);
  call_size.allocate<Source>(p.height);
  Scratch::allocate(thread_size, p, nullptr, nullptr);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, call_size.used + thread_size.used * num_threads));
  for (int64_t i = 0; i < p.count; ++i) p.runs[i] = nullptr;
  if (memory == nullptr) return false;
  Arena call_arena{memory};
  Source* const x_sources = call_arena.allocate<Source>(p.width);
  Source* const y_sources = call_arena.allocate<Source>(p.height);
  for (int64_t x = 0; x < p.width; ++x) x_sources[x] = source_of(x, p.width, p.low_width);
  for (int64_t y = 0; y < p.height; ++y) y_sources[y] = source_of(y, p.height, p.low_height);
  bool failed = false;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1) reduction(|| : failed)
  for (int64_t mask = 0; mask < p.count; ++mask) {
    Arena thread_arena{memory + call_size.used + thread_size.used * thread_number()};
    Runs runs;
    measure_mask(p, mask, Scratch::allocate(thread_arena, p, x_sources, y_sources), &runs);
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
