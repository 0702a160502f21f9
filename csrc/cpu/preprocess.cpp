// Compiled once per instruction set (SAM2_FAST_ISA), without implicit fused multiply-adds.
// docs/kernels/preprocess.md describes the passes.
#include "csrc/preprocess.h"

#include <cstdlib>
#include <cstring>

#include "csrc/cpu/arena.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/pixels.h"
#include "csrc/cpu/resample.h"
#include "csrc/cpu/simd.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

// The operations in which the filters differ. Element: of source pixels; Scalar: a weight or a
// result; Vector: kLanes scalars.
struct Bilinear {
  static constexpr bool kSupportsColumnsFirst = false;
  typedef float Scalar;
  typedef Vec Vector;
  typedef float Element;
  static inline Vector get(const Element* element) { return load(element); }
  static inline Vector weight(Scalar w) { return fill(w); }
  static inline Vector first(Vector w, Vector x) { return w * x; }
  static inline Vector add_rounded(Vector sum, Vector w, Vector x) { return sum + w * x; }
  static inline Vector add(Vector sum, Vector w, Vector x) { return fused(w, x, sum); }
  static inline Vector finish(Vector sum) { return sum; }
  static inline Vec scaled(Vector value) { return value; }  // in [0, 1]
  static const Element* elements(const uint8_t* bytes, int64_t width, float* buffer) {
    for (int64_t x = 0; x < width; ++x) {
      store(buffer + x * kLanes, divide_by_255(widen(bytes + x * kLanes)));
    }
    return buffer;
  }
};

struct Bicubic {
  static constexpr bool kSupportsColumnsFirst = true;
  typedef int32_t Scalar;
  typedef VecInt Vector;
  typedef uint8_t Element;
  static inline Vector get(const Element* element) { return widen(element); }
  static inline Vector weight(Scalar w) { return VecInt{} + w; }
  static inline Vector first(Vector w, Vector x) { return w * x + (1 << (kWeightBits - 1)); }
  static inline Vector add_rounded(Vector sum, Vector w, Vector x) { return sum + w * x; }
  static inline Vector add(Vector sum, Vector w, Vector x) { return sum + w * x; }
  static inline Vector finish(Vector sum) {
    sum >>= kWeightBits;
    sum = sum < 0 ? VecInt{} : sum;
    return sum > 255 ? VecInt{} + 255 : sum;
  }
  static inline Vec scaled(Vector value) { return divide_by_255(value); }
  static const Element* elements(const uint8_t* bytes, int64_t, float*) { return bytes; }
};

template <typename Filter>
struct Plan {
  Axis<typename Filter::Scalar> horizontal, vertical;
  // For the pass that resizes columns before rows; its taps are null without such a pass. With it,
  // `vertical` has one tap per pixel.
  Axis<typename Filter::Scalar> vertical_first;
  int64_t height;        // rows that are resized horizontally: of the source or of vertical_first
  int64_t padded_size;   // size, rounded up to whole vectors
  int64_t ring_rows;     // capacity of the ring buffer of resized rows
  int64_t padded_width;  // pixels of a source row and of the zeros after it
};

template <typename Filter>
struct Scratch {
  uint8_t* bytes;                        // [padded_width][kRows][4]
  float* scaled;                         // [padded_width][kRows][4]
  typename Filter::Scalar* ring;         // [ring_rows][3][padded_size]
  const typename Filter::Scalar** rows;  // the ring's rows for the taps of one output row
  uint8_t* row_buffer;                   // [kRows][3 width + kLanes]: results of vertical_first

  static Scratch allocate(Arena& arena, const PreprocessParams& p, const Plan<Filter>& plan) {
    Scratch s{};
    s.bytes = arena.allocate<uint8_t>(plan.padded_width * kLanes);
    s.scaled = arena.allocate<float>(plan.padded_width * kLanes);
    s.ring = arena.allocate<typename Filter::Scalar>(plan.ring_rows * 3 * plan.padded_size);
    s.rows = arena.allocate<const typename Filter::Scalar*>(plan.ring_rows);
    s.row_buffer = arena.allocate<uint8_t>(kRows * (3 * p.width + kLanes));
    return s;
  }
};

// Resizes the columns of a picture before its rows: computes row `y`, with packed pixels.
void resize_columns(const PreprocessParams& p, const Plan<Bicubic>& plan, int64_t picture,
                    int64_t y, uint8_t* row_bytes) {
  const Taps taps = plan.vertical_first.taps[y];
  const int32_t* const weights =
      plan.vertical_first.weights + y * plan.vertical_first.weights_per_pixel;
  const uint8_t* const source = p.pictures + picture * p.picture_stride + taps.first * p.row_stride;
  const int64_t bytes = 3 * p.width;
  uint8_t tail[kLanes];
  for (int64_t x = 0; x < bytes; x += kLanes) {
    VecInt sum = VecInt{} + (1 << (kWeightBits - 1));
    for (int j = 0; j < taps.count; ++j) {
      const uint8_t* pixels = source + j * p.row_stride + x;
      if (x + kLanes > bytes) {
        pixels =
            static_cast<const uint8_t*>(std::memcpy(tail, pixels, static_cast<size_t>(bytes - x)));
      }
      sum += widen(pixels) * weights[j];
    }
    const Bytes rounded = __builtin_convertvector(Bicubic::finish(sum), Bytes);
    std::memcpy(row_bytes + x, &rounded, sizeof(rounded));
  }
}

// Interleaves the pixels of kRows rows from `y` on in s.bytes. The last row is repeated beyond the
// end of the picture.
template <typename Filter>
void gather(const PreprocessParams& p, const Plan<Filter>& plan, int64_t picture, int64_t y,
            const Scratch<Filter>& s) {
  const bool packed = p.column_stride == 3 && p.channel_stride == 1;
  // copying four bytes of the last pixel could read past the end of the picture
  const int64_t safe_width = packed ? p.width - 1 : 0;
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = smaller(y + r, plan.height - 1);
    const uint8_t* from = p.pictures + picture * p.picture_stride + row * p.row_stride;
    if constexpr (Filter::kSupportsColumnsFirst) {
      if (plan.vertical_first.taps != nullptr) {
        uint8_t* const row_bytes = s.row_buffer + r * (3 * p.width + kLanes);
        resize_columns(p, plan, picture, row, row_bytes);
        from = row_bytes;
      }
    }
    uint8_t* to = s.bytes + r * kPixel;
    for (int64_t x = 0; x < safe_width; ++x) {
      std::memcpy(to, from, kPixel);
      from += 3;
      to += kLanes;
    }
    for (int64_t x = safe_width; x < p.width; ++x) {
      for (int c = 0; c < 3; ++c) to[c] = from[c * p.channel_stride];
      from += p.column_stride;
      to += kLanes;
    }
  }
}

// Resizes kRows rows from `y` on horizontally and stores them in the ring.
template <typename Filter>
void resize_horizontally(const PreprocessParams& p, const Plan<Filter>& plan, int64_t picture,
                         int64_t y, const Scratch<Filter>& s) {
  typedef typename Filter::Scalar Scalar;
  typedef typename Filter::Vector Vector;
  gather(p, plan, picture, y, s);
  const typename Filter::Element* const elements = Filter::elements(s.bytes, p.width, s.scaled);
  const int fused = plan.horizontal.max_fused;
  for (int64_t x = 0; x < plan.padded_size; x += 4) {
    Vector pixels[4], channels[3];
    for (int i = 0; i < 4; ++i) {
      const Taps taps = plan.horizontal.taps[x + i];
      const Scalar* weights = plan.horizontal.weights + (x + i) * plan.horizontal.weights_per_pixel;
      const typename Filter::Element* element = elements + taps.first * int64_t{kLanes};
      Vector sum = Filter::first(Filter::weight(weights[0]), Filter::get(element));
      ++weights;
      element += kLanes;
      for (int j = 0; j < taps.rounded; ++j) {
        sum = Filter::add_rounded(sum, Filter::weight(*weights), Filter::get(element));
        ++weights;
        element += kLanes;
      }
      for (int j = 0; j < fused; ++j) {
        sum = Filter::add(sum, Filter::weight(*weights), Filter::get(element));
        ++weights;
        element += kLanes;
      }
      pixels[i] = Filter::finish(sum);
    }
    split_channels(pixels, channels);
    for (int r = 0; r < kRows; ++r) {
      Scalar* const row = s.ring + (y + r) % plan.ring_rows * 3 * plan.padded_size + x;
      for (int c = 0; c < 3; ++c) {
        std::memcpy(row + c * plan.padded_size,
                    reinterpret_cast<const Scalar*>(&channels[c]) + 4 * r, 16);
      }
    }
  }
}

// Output row y before normalisation: kLanes values from offset `x` in the rows of the ring.
template <typename Filter>
inline typename Filter::Vector resize_vertically(const Plan<Filter>& plan, const Scratch<Filter>& s,
                                                 int64_t y, int64_t x) {
  typedef typename Filter::Vector Vector;
  const Taps taps = plan.vertical.taps[y];
  const typename Filter::Scalar* const weights =
      plan.vertical.weights + y * plan.vertical.weights_per_pixel;
  const auto row = [&](int j) {
    Vector vector;
    std::memcpy(&vector, s.rows[j] + x, sizeof(vector));
    return vector;
  };
  Vector sum = Filter::first(Filter::weight(weights[0]), row(0));
  int j = 1;
  for (; j <= taps.rounded; ++j) sum = Filter::add_rounded(sum, Filter::weight(weights[j]), row(j));
  for (; j < taps.count; ++j) sum = Filter::add(sum, Filter::weight(weights[j]), row(j));
  return Filter::finish(sum);
}

template <typename Filter>
void write_planes(const PreprocessParams& p, const Plan<Filter>& plan, const Scratch<Filter>& s,
                  int64_t picture, int64_t y) {
  for (int c = 0; c < 3; ++c) {
    float* const out = p.planes + ((picture * 3 + c) * p.size + y) * p.size;
    const Vec mean = fill(p.mean[c]), std = fill(p.std[c]);
    for (int64_t x = 0; x < p.size; x += kLanes) {
      const Vec value =
          (Filter::scaled(resize_vertically(plan, s, y, c * plan.padded_size + x)) - mean) / std;
      if (x + kLanes <= p.size) {
        store(out + x, value);
      } else {
        std::memcpy(out + x, &value, sizeof(float) * static_cast<size_t>(p.size - x));
      }
    }
  }
}

void write_bytes(const PreprocessParams& p, const Plan<Bicubic>& plan, const Scratch<Bicubic>& s,
                 int64_t picture, int64_t y) {
  uint8_t* const out = p.bytes + (picture * p.size + y) * p.size * 3;
  for (int64_t x = 0; x < p.size; x += kLanes) {
    int32_t channels[3][kLanes];
    for (int c = 0; c < 3; ++c) {
      const VecInt channel = resize_vertically(plan, s, y, c * plan.padded_size + x);
      std::memcpy(channels[c], &channel, sizeof(channel));
    }
    const int pixels = static_cast<int>(smaller(kLanes, p.size - x));
    for (int i = 0; i < pixels; ++i) {
      for (int c = 0; c < 3; ++c) out[3 * (x + i) + c] = static_cast<uint8_t>(channels[c][i]);
    }
  }
}

void write(const PreprocessParams& p, const Plan<Bilinear>& plan, const Scratch<Bilinear>& s,
           int64_t picture, int64_t y) {
  write_planes(p, plan, s, picture, y);
}

void write(const PreprocessParams& p, const Plan<Bicubic>& plan, const Scratch<Bicubic>& s,
           int64_t picture, int64_t y) {
  if (p.planes != nullptr) {
    write_planes(p, plan, s, picture, y);
  } else {
    write_bytes(p, plan, s, picture, y);
  }
}

// Computes output rows [begin, end) of one picture.
template <typename Filter>
void resize_band(const PreprocessParams& p, const Plan<Filter>& plan, int64_t picture,
                 int64_t begin, int64_t end, const Scratch<Filter>& s) {
  // all required rows before this one are in the ring
  int64_t ready = plan.vertical.taps[begin].first;
  for (int64_t y = begin; y < end; ++y) {
    const Taps taps = plan.vertical.taps[y];
    for (; ready < taps.first + taps.count; ready += kRows) {
      resize_horizontally(p, plan, picture, ready, s);
    }
    for (int j = 0; j < taps.count; ++j) {
      s.rows[j] = s.ring + (taps.first + j) % plan.ring_rows * 3 * plan.padded_size;
    }
    write(p, plan, s, picture, y);
  }
}

// Allocates the taps and weights of `pixels` pixels.
template <typename Scalar>
void allocate_axis(Arena& arena, int64_t pixels, Axis<Scalar>* axis) {
  axis->taps = arena.allocate<Taps>(pixels);
  axis->weights = arena.allocate<Scalar>(pixels * axis->weights_per_pixel);
}

template <typename Filter>
bool resize(const PreprocessParams& p, int num_threads, int radius) {
  const bool columns_first = Filter::kSupportsColumnsFirst && p.columns_first;
  Plan<Filter> plan;
  plan.height = columns_first ? p.size : p.height;
  plan.padded_size = round_up(p.size, kLanes);
  plan.horizontal.weights_per_pixel = weight_capacity(p.width, p.size, radius);
  plan.vertical.weights_per_pixel = weight_capacity(plan.height, p.size, radius);
  plan.vertical_first.weights_per_pixel =
      columns_first ? weight_capacity(p.height, p.size, radius) : 0;
  plan.ring_rows = plan.vertical.weights_per_pixel / 2 + kRows;
  plan.padded_width = p.width + plan.horizontal.weights_per_pixel;
  const auto allocate_axes = [&](Arena& arena) {
    allocate_axis(arena, plan.padded_size, &plan.horizontal);
    allocate_axis(arena, p.size, &plan.vertical);
    if (columns_first) allocate_axis(arena, p.size, &plan.vertical_first);
  };
  Arena call_size{nullptr}, thread_size{nullptr};
  allocate_axes(call_size);
  Scratch<Filter>::allocate(thread_size, p, plan);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, call_size.used + thread_size.used * num_threads));
  if (memory == nullptr) return false;
  Arena call_arena{memory};
  allocate_axes(call_arena);
  fill_axis(p.width, p.size, plan.padded_size, &plan.horizontal);
  fill_axis(plan.height, p.size, p.size, &plan.vertical);
  if (columns_first) fill_axis(p.height, p.size, p.size, &plan.vertical_first);
  const int64_t bands = smaller(ceil_div(num_threads, p.count), p.size);
  const int64_t band_height = ceil_div(p.size, bands);
#pragma omp parallel num_threads(num_threads)
  {
    Arena thread_arena{memory + call_size.used + thread_size.used * thread_number()};
    const Scratch<Filter> s = Scratch<Filter>::allocate(thread_arena, p, plan);
    std::memset(s.bytes, 0, static_cast<size_t>(plan.padded_width * kLanes));
    std::memset(s.scaled, 0, static_cast<size_t>(4 * plan.padded_width * kLanes));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.count * bands; ++i) {
      const int64_t begin = i % bands * band_height;
      if (begin < p.size) {
        resize_band(p, plan, i / bands, begin, smaller(begin + band_height, p.size), s);
      }
    }
  }
  std::free(memory);
  return true;
}

}  // namespace

bool preprocess(const PreprocessParams& p, int num_threads) {
  return p.filter == ResampleFilter::kBilinear ? resize<Bilinear>(p, num_threads, 1)
                                               : resize<Bicubic>(p, num_threads, 2);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(preprocess, PreprocessParams)

}  // namespace sam2_fast
