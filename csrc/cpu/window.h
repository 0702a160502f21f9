// Where a window's tokens lie in the image and in a tile.
#pragma once

#include <cstdint>

#include "csrc/cpu/arena.h"
#include "csrc/cpu/simd.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

struct Grid {
  int64_t height, width, window;  // tokens; a window's side
  bool pool;                      // queries will be max-pooled 2 x 2
};

// A window's tokens that exist, in the order of its columns: row by row; where queries are pooled,
// first all upper left tokens of the 2 x 2 cells, then upper right, lower left, lower right, so
// that pooling is a maximum of four runs of columns.
struct Window {
  int64_t image, top, left, rows, columns;  // tokens
  int64_t padded;                           // tokens of the window outside the image
  int64_t tokens() const { return rows * columns; }
  // Rows of the stored results of queries first .. first + count - 1: tokens, or cells where
  // queries are pooled.
  void result_rows(const Grid& grid, int64_t first, int64_t count, int64_t* rows_out) const {
    const int64_t by = grid.pool ? 2 : 1, across = columns / by;
    const int64_t corner = (image * grid.height + top) / by * (grid.width / by) + left / by;
    int64_t y = first / across, x = first % across;
    for (int64_t i = 0; i < count; ++i) {
      rows_out[i] = corner + y * (grid.width / by) + x;
      if (++x == across) {
        x = 0;
        ++y;
      }
    }
  }
  // Rows of the stored tokens first .. first + count - 1, in the order of columns.
  void token_rows(const Grid& grid, int64_t first, int64_t count, int64_t* rows_out) const {
    const int64_t by = grid.pool ? 2 : 1, across = columns / by, down = rows / by;
    const int64_t corner = (image * grid.height + top) * grid.width + left;
    int64_t quarter = first / (across * down);
    int64_t y = first % (across * down) / across, x = first % across;
    for (int64_t i = 0; i < count; ++i) {
      rows_out[i] = corner + (y * by + quarter / 2) * grid.width + x * by + quarter % 2;
      if (++x == across) {
        x = 0;
        ++y;
      }
      if (y == down) {
        y = 0;
        ++quarter;
      }
    }
  }
};

inline Window window_of(const Grid& grid, int64_t index) {
  const int64_t across = ceil_div(grid.width, grid.window);
  const int64_t down = ceil_div(grid.height, grid.window);
  const int64_t top = index / across % down * grid.window, left = index % across * grid.window;
  const int64_t rows = smaller(grid.window, grid.height - top);
  const int64_t columns = smaller(grid.window, grid.width - left);
  const int64_t padded = grid.window * grid.window - rows * columns;
  return {index / across / down, top, left, rows, columns, padded};
}

// out[rows][cells]: the largest of each 2 x 2 cell of a window, or NaN; in[rows]: all upper left
// tokens, upper right, lower left, lower right
inline void largest_of_cells(const float* in, int64_t stride, int64_t rows, int64_t cells,
                             float* out, int64_t out_stride) {
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  for (int64_t r = 0; r < rows; ++r) {
    int64_t i = 0;
    for (; i + 4 <= cells; i += 4) {
      Four most = *reinterpret_cast<const Four*>(in + i);
      for (int64_t corner = 1; corner < 4; ++corner) {
        const Four value = *reinterpret_cast<const Four*>(in + corner * cells + i);
        most = value > most || value != value ? value : most;
      }
      *reinterpret_cast<Four*>(out + i) = most;
    }
    for (; i < cells; ++i) {
      float most = in[i];
      for (int64_t corner = 1; corner < 4; ++corner) {
        const float value = in[corner * cells + i];
        most = value > most || value != value ? value : most;
      }
      out[i] = most;
    }
    in += stride;
    out += out_stride;
  }
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
