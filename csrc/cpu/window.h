// Where a window's tokens lie in the image and in a tile.
#pragma once

#include <cstdint>

namespace sam2_fast {
namespace SAM2_FAST_ISA {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Grid {
  int64_t height, width, window;  // tokens; a window's side
  bool pool;                      // queries will be max-pooled 2 x 2
};

// A window's tokens that exist, in the order of its columns: row by row; where queries are pooled, first all upper left tokens of the
// 2 x 2 cells, then upper right, lower left, lower right, so that pooling is a maximum of four runs of columns.
struct Window {
  int64_t image, top, left, rows, columns;  // tokens
  int64_t padded;                           // tokens of the window outside the image
  int64_t tokens() const { return rows * columns; }
  int64_t place(const Grid& grid, int64_t i) const {  // row of the stored tokens
    int64_t y = i / columns, x = i % columns;
    if (grid.pool) {
      const int64_t quarter = tokens() / 4, corner = i / quarter, cell = i % quarter, across = columns / 2;
      y = cell / across * 2 + corner / 2, x = cell % across * 2 + corner % 2;
    }
    return (image * grid.height + top + y) * grid.width + left + x;
  }
};

inline Window window_of(const Grid& grid, int64_t index) {
  const int64_t across = (grid.width + grid.window - 1) / grid.window, down = (grid.height + grid.window - 1) / grid.window;
  const int64_t top = index / across % down * grid.window, left = index % across * grid.window;
  const int64_t rows = smaller(grid.window, grid.height - top), columns = smaller(grid.window, grid.width - left);
  return {index / across / down, top, left, rows, columns, grid.window * grid.window - rows * columns};
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
