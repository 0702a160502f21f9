// Positions of a window's tokens in the image and in a tile.
#pragma once

#include <cstdint>

#include "csrc/cpu/arena.h"
#include "csrc/cpu/simd.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

struct Grid {
  int64_t height, width, window;  // tokens; `window`: side of a window
  bool pool;                      // queries are max-pooled 2 x 2
};

// The part of a window that is in the image. Its tokens are columns of a tile, in row-major order.
// With pooling, the upper left tokens of all 2 x 2 cells come first, then the upper right, lower
// left and lower right ones, so that pooling is a maximum of four ranges of columns.
struct Window {
  int64_t image, top, left, rows, columns;  // tokens
  int64_t padded;  // number of tokens of the window that are outside the image
  int64_t tokens() const { return rows * columns; }
  // Row numbers in the stored result of queries first .. first + count - 1, which are tokens, or
  // 2 x 2 cells with pooling.
  void result_rows(const Grid& grid, int64_t first, int64_t count, int64_t* rows_out) const {
    const int64_t cell_side = grid.pool ? 2 : 1, across = columns / cell_side;
    const int64_t origin =
        (image * grid.height + top) / cell_side * (grid.width / cell_side) + left / cell_side;
    int64_t y = first / across, x = first % across;
    for (int64_t i = 0; i < count; ++i) {
      rows_out[i] = origin + y * (grid.width / cell_side) + x;
      if (++x == across) {
        x = 0;
        ++y;
      }
    }
  }
  // Row numbers in the stored input of tokens first .. first + count - 1, in the order of columns.
  void token_rows(const Grid& grid, int64_t first, int64_t count, int64_t* rows_out) const {
    const int64_t cell_side = grid.pool ? 2 : 1, across = columns / cell_side,
                  down = rows / cell_side;
    const int64_t origin = (image * grid.height + top) * grid.width + left;
    int64_t quarter = first / (across * down);
    int64_t y = first % (across * down) / across, x = first % across;
    for (int64_t i = 0; i < count; ++i) {
      rows_out[i] =
          origin + (y * cell_side + quarter / 2) * grid.width + x * cell_side + quarter % 2;
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

// Window number `index`; windows are numbered row by row, image cell_side image.
inline Window window_of(const Grid& grid, int64_t index) {
  const int64_t across = ceil_div(grid.width, grid.window);
  const int64_t down = ceil_div(grid.height, grid.window);
  const int64_t top = index / across % down * grid.window, left = index % across * grid.window;
  const int64_t rows = smaller(grid.window, grid.height - top);
  const int64_t columns = smaller(grid.window, grid.width - left);
  const int64_t padded = grid.window * grid.window - rows * columns;
  return {index / across / down, top, left, rows, columns, padded};
}

// out[rows][cells]: maximum of each 2 x 2 cell of a window, NaN if the cell has a NaN.
// in[rows][4 * cells]: all upper left tokens, then upper right, lower left, lower right.
inline void max_pool_cells(const float* in, int64_t stride, int64_t rows, int64_t cells, float* out,
                           int64_t out_stride) {
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  for (int64_t r = 0; r < rows; ++r) {
    int64_t i = 0;
    for (; i + 4 <= cells; i += 4) {
      Four maximum = *reinterpret_cast<const Four*>(in + i);
      for (int64_t corner = 1; corner < 4; ++corner) {
        const Four value = *reinterpret_cast<const Four*>(in + corner * cells + i);
        maximum = value > maximum || value != value ? value : maximum;
      }
      *reinterpret_cast<Four*>(out + i) = maximum;
    }
    for (; i < cells; ++i) {
      float maximum = in[i];
      for (int64_t corner = 1; corner < 4; ++corner) {
        const float value = in[corner * cells + i];
        maximum = value > maximum || value != value ? value : maximum;
      }
      out[i] = maximum;
    }
    in += stride;
    out += out_stride;
  }
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
