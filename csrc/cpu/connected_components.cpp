// Union-find on runs. A run is a maximal sequence of foreground pixels in one row. A mask of a
// million pixels has a few thousand runs, so components are merged on runs, and each pixel is read
// and written only once.
#include "csrc/connected_components.h"

#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace sam2_fast {
namespace {

struct Run {
  int32_t row;
  int32_t begin;  // first column
  int32_t end;    // one past the last column
};

struct Scratch {
  std::vector<Run> runs;
  // for each run the index of its parent; a root is the first run of its component in row-major
  // order
  std::vector<int32_t> parent;
  std::vector<int32_t> area;  // pixels of the component; only valid for roots
};

// First column >= x with a foreground pixel (or, if `foreground` is false, a background pixel), or
// `width`. Other pixels are skipped eight at a time.
inline int32_t next_column(const uint8_t* row, int32_t x, int32_t width, bool foreground) {
  if (foreground) {
    for (; x + 8 <= width; x += 8) {
      uint64_t word;
      std::memcpy(&word, row + x, 8);
      if (word != 0) break;
    }
    while (x < width && row[x] == 0) ++x;
    return x;
  }
  constexpr uint64_t kLow = 0x0101010101010101ull, kHigh = 0x8080808080808080ull;
  for (; x + 8 <= width; x += 8) {
    uint64_t word;
    std::memcpy(&word, row + x, 8);
    if ((word - kLow) & ~word & kHigh) break;  // some byte is zero
  }
  while (x < width && row[x] != 0) ++x;
  return x;
}

inline int32_t find_root(int32_t* parent, int32_t i) {
  while (parent[i] != i) {
    parent[i] = parent[parent[i]];
    i = parent[i];
  }
  return i;
}

inline void unite(int32_t* parent, int32_t a, int32_t b) {
  a = find_root(parent, a);
  b = find_root(parent, b);
  if (a < b) parent[b] = a;
  if (b < a) parent[a] = b;
}

// Finds the runs of one mask, links each to the runs in the row above that touch it (also at
// corners), and sums areas at the roots.
void link_runs(const uint8_t* mask, int32_t height, int32_t width, Scratch& s) {
  s.runs.clear();
  s.parent.clear();
  size_t above = 0, above_end = 0;  // range of the runs in the row above
  for (int32_t y = 0; y < height; ++y) {
    const uint8_t* row = mask + static_cast<int64_t>(y) * width;
    const size_t first = s.runs.size();
    size_t first_touching = above;
    for (int32_t x = next_column(row, 0, width, true); x < width;
         x = next_column(row, x, width, true)) {
      const int32_t begin = x;
      x = next_column(row, x, width, false);
      const int32_t run_index = static_cast<int32_t>(s.runs.size());
      s.runs.push_back({y, begin, x});
      s.parent.push_back(run_index);
      while (first_touching < above_end && s.runs[first_touching].end < begin) ++first_touching;
      for (size_t above_index = first_touching;
           above_index < above_end && s.runs[above_index].begin <= x; ++above_index) {
        unite(s.parent.data(), run_index, static_cast<int32_t>(above_index));
      }
    }
    above = first;
    above_end = s.runs.size();
  }
  s.area.assign(s.runs.size(), 0);
  for (size_t i = 0; i < s.runs.size(); ++i) {
    const int32_t root = find_root(s.parent.data(), static_cast<int32_t>(i));
    s.parent[i] = root;
    s.area[root] += s.runs[i].end - s.runs[i].begin;
  }
}

void fill(int32_t* out, int32_t begin, int32_t end, int32_t value) {
  for (int32_t x = begin; x < end; ++x) out[x] = value;
}

// Writes rows [y0, y1) of one mask: the component's label and area on runs, zeros between them.
void write_rows(const Scratch& s, int32_t width, int32_t y0, int32_t y1, int32_t* labels,
                int32_t* areas) {
  size_t i = 0, n = s.runs.size();
  for (size_t lo = 0, hi = n; lo < hi;) {  // binary search for the first run of row y0
    const size_t mid = (lo + hi) / 2;
    if (s.runs[mid].row < y0) lo = mid + 1;
    else hi = mid;
    i = lo;
  }
  for (int32_t y = y0; y < y1; ++y) {
    int32_t* label_row = labels + static_cast<int64_t>(y) * width;
    int32_t* area_row = areas + static_cast<int64_t>(y) * width;
    int32_t x = 0;
    for (; i < n && s.runs[i].row == y; ++i) {
      const Run& run = s.runs[i];
      const Run& root = s.runs[s.parent[i]];
      fill(label_row, x, run.begin, 0);
      fill(area_row, x, run.begin, 0);
      fill(label_row, run.begin, run.end, 1 + root.row * width + root.begin);
      fill(area_row, run.begin, run.end, s.area[s.parent[i]]);
      x = run.end;
    }
    fill(label_row, x, width, 0);
    fill(area_row, x, width, 0);
  }
}

}  // namespace

void connected_components_cpu(const ConnectedComponentsParams& p, int num_threads) {
  const int64_t pixels = static_cast<int64_t>(p.height) * p.width;
  if (p.count == 0 || pixels == 0) return;
  if (p.count >= num_threads) {
#pragma omp parallel num_threads(num_threads)
    {
      Scratch s;
#pragma omp for schedule(dynamic, 1)
      for (int64_t n = 0; n < p.count; ++n) {
        link_runs(p.masks + n * pixels, p.height, p.width, s);
        write_rows(s, p.width, 0, p.height, p.labels + n * pixels, p.areas + n * pixels);
      }
    }
    return;
  }
  Scratch s;
  // Fewer masks than threads: the threads share the rows when writing, which is most of the work.
  for (int64_t n = 0; n < p.count; ++n) {
    link_runs(p.masks + n * pixels, p.height, p.width, s);
#pragma omp parallel for num_threads(num_threads)
    for (int part = 0; part < num_threads; ++part) {
      const int32_t y0 = static_cast<int32_t>(static_cast<int64_t>(p.height) * part / num_threads);
      const int32_t y1 =
          static_cast<int32_t>(static_cast<int64_t>(p.height) * (part + 1) / num_threads);
      write_rows(s, p.width, y0, y1, p.labels + n * pixels, p.areas + n * pixels);
    }
  }
}

void small_components_cpu(const SmallComponentsParams& p, int num_threads) {
  const int64_t pixels = static_cast<int64_t>(p.height) * p.width;
  if (p.count == 0 || pixels == 0) return;
#pragma omp parallel num_threads(num_threads)
  {
    Scratch s;
#pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < p.count; ++n) {
      uint8_t* small = p.small + n * pixels;
      link_runs(p.masks + n * pixels, p.height, p.width, s);
      std::memset(small, 0, static_cast<size_t>(pixels));
      for (size_t i = 0; i < s.runs.size(); ++i) {
        if (s.area[s.parent[i]] > p.max_area) continue;
        const Run& run = s.runs[i];
        std::memset(small + static_cast<int64_t>(run.row) * p.width + run.begin, 1,
                    static_cast<size_t>(run.end - run.begin));
      }
    }
  }
}

}  // namespace sam2_fast
