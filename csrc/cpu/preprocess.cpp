// Compiled once per instruction set (SAM2_FAST_ISA); fused products are written out.
// docs/kernels/preprocess.md explains the passes.
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

// What differs between the filters. Cell: a source pixel of kRows rows; sums are in Many.
struct Bilinear {
  static constexpr bool kColumnsFirst = false;  // whether it can be asked for
  typedef float Number;
  typedef Vec Many;
  typedef float Cell;
  static inline Many get(const Cell* cell) { return load(cell); }
  static inline Many weight(Number w) { return fill(w); }
  static inline Many first(Many w, Many x) { return w * x; }
  static inline Many add_rounded(Many sum, Many w, Many x) { return sum + w * x; }
  static inline Many add(Many sum, Many w, Many x) { return fused(w, x, sum); }
  static inline Many done(Many sum) { return sum; }
  static inline Vec scaled(Many value) { return value; }
  static const Cell* cells(const uint8_t* bytes, int64_t width, float* room) {
    for (int64_t x = 0; x < width; ++x) {
      store(room + x * kLanes, over_255(widen(bytes + x * kLanes)));
    }
    return room;
  }
};

struct Bicubic {
  static constexpr bool kColumnsFirst = true;
  typedef int32_t Number;
  typedef VecInt Many;
  typedef uint8_t Cell;
  static inline Many get(const Cell* cell) { return widen(cell); }
  static inline Many weight(Number w) { return VecInt{} + w; }
  static inline Many first(Many w, Many x) { return w * x + (1 << (kWeightBits - 1)); }
  static inline Many add_rounded(Many sum, Many w, Many x) { return sum + w * x; }
  static inline Many add(Many sum, Many w, Many x) { return sum + w * x; }
  static inline Many done(Many sum) {
    sum >>= kWeightBits;
    sum = sum < 0 ? VecInt{} : sum;
    return sum > 255 ? VecInt{} + 255 : sum;
  }
  static inline Vec scaled(Many value) { return over_255(value); }
  static const Cell* cells(const uint8_t* bytes, int64_t, float*) { return bytes; }
};

template <typename Filter>
struct Plan {
  Axis<typename Filter::Number> across, down;
  Axis<typename Filter::Number> before;  // down the source, before rows are resized; without taps
                                         // where they are resized first
  int64_t height;    // rows that are resized across: the source's, or what `before` makes of them
  int64_t line;      // numbers of a resized row's channel, whole vectors
  int64_t capacity;  // resized rows that are kept, in a ring
  int64_t cells;     // of a source row, zeros after its end
};

template <typename Filter>
struct Scratch {
  uint8_t* bytes;                 // [cells][kRows][4]
  float* scaled;                  // [cells][kRows][4]
  typename Filter::Number* ring;  // [capacity][3][line]
  const typename Filter::Number** rows;
  uint8_t* lines;  // [kRows][3 width + kLanes], what `before` makes

  static Scratch take(Arena& arena, const PreprocessParams& p, const Plan<Filter>& plan) {
    Scratch s{};
    s.bytes = arena.take<uint8_t>(plan.cells * kLanes);
    s.scaled = arena.take<float>(plan.cells * kLanes);
    s.ring = arena.take<typename Filter::Number>(plan.capacity * 3 * plan.line);
    s.rows = arena.take<const typename Filter::Number*>(plan.capacity);
    s.lines = arena.take<uint8_t>(kRows * (3 * p.width + kLanes));
    return s;
  }
};

// Row `y` of what becomes of the source when columns are resized first; its pixels are packed.
void resize_columns(const PreprocessParams& p, const Plan<Bicubic>& plan, int64_t picture,
                    int64_t y, uint8_t* line) {
  const Taps taps = plan.before.taps[y];
  const int32_t* const w = plan.before.weights + y * plan.before.room;
  const uint8_t* const source = p.pictures + picture * p.picture_stride + taps.first * p.row_stride;
  const int64_t bytes = 3 * p.width;
  uint8_t tail[kLanes];
  for (int64_t x = 0; x < bytes; x += kLanes) {
    VecInt sum = VecInt{} + (1 << (kWeightBits - 1));
    for (int j = 0; j < taps.count; ++j) {
      const uint8_t* at = source + j * p.row_stride + x;
      if (x + kLanes > bytes) {
        at = static_cast<const uint8_t*>(std::memcpy(tail, at, static_cast<size_t>(bytes - x)));
      }
      sum += widen(at) * w[j];
    }
    const Bytes rounded = __builtin_convertvector(Bicubic::done(sum), Bytes);
    std::memcpy(line + x, &rounded, sizeof(rounded));
  }
}

// Rows from `y` side by side; rows after the last repeat it.
template <typename Filter>
void gather(const PreprocessParams& p, const Plan<Filter>& plan, int64_t picture, int64_t y,
            const Scratch<Filter>& s) {
  const bool packed = p.column_stride == 3 && p.channel_stride == 1;
  // four bytes of the last pixel may be one too many
  const int64_t whole = packed ? p.width - 1 : 0;
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = smaller(y + r, plan.height - 1);
    const uint8_t* at = p.pictures + picture * p.picture_stride + row * p.row_stride;
    if constexpr (Filter::kColumnsFirst) {
      if (plan.before.taps != nullptr) {
        uint8_t* const line = s.lines + r * (3 * p.width + kLanes);
        resize_columns(p, plan, picture, row, line);
        at = line;
      }
    }
    uint8_t* to = s.bytes + r * kPixel;
    for (int64_t x = 0; x < whole; ++x) {
      std::memcpy(to, at, kPixel);
      at += 3;
      to += kLanes;
    }
    for (int64_t x = whole; x < p.width; ++x) {
      for (int c = 0; c < 3; ++c) to[c] = at[c * p.channel_stride];
      at += p.column_stride;
      to += kLanes;
    }
  }
}

// kRows source rows from `y` into the ring.
template <typename Filter>
void resize_across(const PreprocessParams& p, const Plan<Filter>& plan, int64_t picture, int64_t y,
                   const Scratch<Filter>& s) {
  typedef typename Filter::Number Number;
  typedef typename Filter::Many Many;
  gather(p, plan, picture, y, s);
  const typename Filter::Cell* const cells = Filter::cells(s.bytes, p.width, s.scaled);
  const int fused = plan.across.fused;
  for (int64_t x = 0; x < plan.line; x += 4) {
    Many pixels[4], channels[3];
    for (int i = 0; i < 4; ++i) {
      const Taps taps = plan.across.taps[x + i];
      const Number* w = plan.across.weights + (x + i) * plan.across.room;
      const typename Filter::Cell* cell = cells + taps.first * int64_t{kLanes};
      Many sum = Filter::first(Filter::weight(w[0]), Filter::get(cell));
      ++w;
      cell += kLanes;
      for (int j = 0; j < taps.rounded; ++j) {
        sum = Filter::add_rounded(sum, Filter::weight(*w), Filter::get(cell));
        ++w;
        cell += kLanes;
      }
      for (int j = 0; j < fused; ++j) {
        sum = Filter::add(sum, Filter::weight(*w), Filter::get(cell));
        ++w;
        cell += kLanes;
      }
      pixels[i] = Filter::done(sum);
    }
    by_channel(pixels, channels);
    for (int r = 0; r < kRows; ++r) {
      Number* const row = s.ring + (y + r) % plan.capacity * 3 * plan.line + x;
      for (int c = 0; c < 3; ++c) {
        std::memcpy(row + c * plan.line, reinterpret_cast<const Number*>(&channels[c]) + 4 * r, 16);
      }
    }
  }
}

// kLanes numbers of resized rows, `x` numbers into them.
template <typename Filter>
inline typename Filter::Many resize_down(const Plan<Filter>& plan, const Scratch<Filter>& s,
                                         int64_t y, int64_t x) {
  typedef typename Filter::Many Many;
  const Taps taps = plan.down.taps[y];
  const typename Filter::Number* const w = plan.down.weights + y * plan.down.room;
  const auto at = [&](int j) {
    Many many;
    std::memcpy(&many, s.rows[j] + x, sizeof(many));
    return many;
  };
  Many sum = Filter::first(Filter::weight(w[0]), at(0));
  int j = 1;
  for (; j <= taps.rounded; ++j) sum = Filter::add_rounded(sum, Filter::weight(w[j]), at(j));
  for (; j < taps.count; ++j) sum = Filter::add(sum, Filter::weight(w[j]), at(j));
  return Filter::done(sum);
}

template <typename Filter>
void write_planes(const PreprocessParams& p, const Plan<Filter>& plan, const Scratch<Filter>& s,
                  int64_t picture, int64_t y) {
  for (int c = 0; c < 3; ++c) {
    float* const out = p.planes + ((picture * 3 + c) * p.size + y) * p.size;
    const Vec mean = fill(p.mean[c]), std = fill(p.std[c]);
    for (int64_t x = 0; x < p.size; x += kLanes) {
      const Vec value = (Filter::scaled(resize_down(plan, s, y, c * plan.line + x)) - mean) / std;
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
      const VecInt channel = resize_down(plan, s, y, c * plan.line + x);
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

// Rows `from` to `to` of one resized picture.
template <typename Filter>
void resize_band(const PreprocessParams& p, const Plan<Filter>& plan, int64_t picture, int64_t from,
                 int64_t to, const Scratch<Filter>& s) {
  // source rows before this one are resized across, or not needed
  int64_t ready = plan.down.taps[from].first;
  for (int64_t y = from; y < to; ++y) {
    const Taps taps = plan.down.taps[y];
    for (; ready < taps.first + taps.count; ready += kRows) {
      resize_across(p, plan, picture, ready, s);
    }
    for (int j = 0; j < taps.count; ++j) {
      s.rows[j] = s.ring + (taps.first + j) % plan.capacity * 3 * plan.line;
    }
    write(p, plan, s, picture, y);
  }
}

// Room for the taps and weights of `places` pixels.
template <typename Number>
void take_axis(Arena& arena, int64_t places, Axis<Number>* axis) {
  axis->taps = arena.take<Taps>(places);
  axis->weights = arena.take<Number>(places * axis->room);
}

template <typename Filter>
bool resize(const PreprocessParams& p, int num_threads, int radius) {
  const bool columns_first = Filter::kColumnsFirst && p.columns_first;
  Plan<Filter> plan;
  plan.height = columns_first ? p.size : p.height;
  plan.line = round_up(p.size, kLanes);
  plan.across.room = taps_room(p.width, p.size, radius);
  plan.down.room = taps_room(plan.height, p.size, radius);
  plan.before.room = columns_first ? taps_room(p.height, p.size, radius) : 0;
  plan.capacity = plan.down.room / 2 + kRows;
  plan.cells = p.width + plan.across.room;
  const auto take_axes = [&](Arena& arena) {
    take_axis(arena, plan.line, &plan.across);
    take_axis(arena, p.size, &plan.down);
    if (columns_first) take_axis(arena, p.size, &plan.before);
  };
  Arena call_size{nullptr}, thread_size{nullptr};
  take_axes(call_size);
  Scratch<Filter>::take(thread_size, p, plan);
  char* const memory =
      static_cast<char*>(std::aligned_alloc(64, call_size.used + thread_size.used * num_threads));
  if (memory == nullptr) return false;
  Arena call{memory};
  take_axes(call);
  fill_axis(p.width, p.size, plan.line, &plan.across);
  fill_axis(plan.height, p.size, p.size, &plan.down);
  if (columns_first) fill_axis(p.height, p.size, p.size, &plan.before);
  const int64_t bands = smaller(ceil_div(num_threads, p.count), p.size);
  const int64_t high = ceil_div(p.size, bands);
#pragma omp parallel num_threads(num_threads)
  {
    Arena own{memory + call_size.used + thread_size.used * thread_number()};
    const Scratch<Filter> s = Scratch<Filter>::take(own, p, plan);
    std::memset(s.bytes, 0, static_cast<size_t>(plan.cells * kLanes));
    std::memset(s.scaled, 0, static_cast<size_t>(4 * plan.cells * kLanes));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.count * bands; ++i) {
      const int64_t from = i % bands * high;
      if (from < p.size) resize_band(p, plan, i / bands, from, smaller(from + high, p.size), s);
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
