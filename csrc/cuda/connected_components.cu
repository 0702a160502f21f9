// Union-find by tiles: the components of each tile are linked in shared memory, then linked across
// tile borders in global memory, then every pixel gets the index and area of its root. Any number
// of masks needs four launches; small_components_cuda needs one. Parents only decrease (atomicMin).
// So the root of a component is its first pixel in row-major order, and a thread that follows a
// chain of parents while other threads modify it still reaches an ancestor of the pixel.
#include <cuda_runtime.h>

#include "csrc/connected_components.h"

namespace sam2_fast {
namespace {

constexpr int kTileWidth = 32;  // a warp reads one row of a tile: 32 bytes of mask, 128 of labels
constexpr int kTileHeight = 32;
constexpr int kThreads = 256;                                // 8 rows of a tile at a time
constexpr int kBorder = kTileWidth + 2 * (kTileHeight - 1);  // top row, left column, right column
constexpr int32_t kBackground = -1;

struct Grid {
  int64_t pixels;  // of one mask
  int64_t tiles;   // of all masks
  int32_t tiles_x, tiles_y;
};

struct Tile {
  int64_t base;    // offset of the mask, elements
  int32_t y0, x0;  // first pixel
};

__host__ Grid make_grid(int64_t count, int32_t height, int32_t width) {
  Grid g;
  g.pixels = static_cast<int64_t>(height) * width;
  // not (width + 31) / 32, which would overflow for a width near 2^31
  g.tiles_x = (width - 1) / kTileWidth + 1;
  g.tiles_y = (height - 1) / kTileHeight + 1;
  g.tiles = count * g.tiles_x * g.tiles_y;
  return g;
}

__device__ Tile locate(const Grid& g, int64_t index) {
  const int64_t per_mask = static_cast<int64_t>(g.tiles_x) * g.tiles_y;
  const int64_t mask = index / per_mask;
  const int32_t tile_in_mask = static_cast<int32_t>(index - mask * per_mask);
  return {mask * g.pixels, tile_in_mask / g.tiles_x * kTileHeight,
          tile_in_mask % g.tiles_x * kTileWidth};
}

// The read bypasses the L1 cache, because another block may have changed the parent.
__device__ int32_t read_parent(const int32_t* parent, int32_t i) {
  return *reinterpret_cast<const volatile int32_t*>(parent + i);
}

__device__ int32_t find_root(const int32_t* parent, int32_t i) {
  for (int32_t up = read_parent(parent, i); up != i; up = read_parent(parent, i)) i = up;
  return i;
}

__device__ void unite(int32_t* parent, int32_t a, int32_t b) {
  while (true) {
    a = find_root(parent, a);
    b = find_root(parent, b);
    if (a == b) return;
    const int32_t larger = max(a, b), smaller = min(a, b);
    const int32_t old_parent = atomicMin(parent + larger, smaller);
    if (old_parent == larger) return;  // `larger` was a root and is now linked to `smaller`
    // another thread linked `larger` to `old_parent` first: unite `old_parent` and `smaller`, too
    a = old_parent;
    b = smaller;
  }
}

// Each block processes one tile at a time. It links the tile's pixels in shared memory, then stores
// the parent of each pixel as an index in the mask.
__global__ void label_tiles_kernel(ConnectedComponentsParams p, Grid g) {
  __shared__ int32_t parent[kTileHeight * kTileWidth];
  const int column = threadIdx.x % kTileWidth, first_row = threadIdx.x / kTileWidth;
  for (int64_t index = blockIdx.x; index < g.tiles; index += gridDim.x) {
    const Tile tile = locate(g, index);
    const int32_t x = tile.x0 + column;
    for (int r = first_row; r < kTileHeight; r += kThreads / kTileWidth) {
      const int32_t y = tile.y0 + r, local = r * kTileWidth + column;
      const bool on = y < p.height && x < p.width &&
                      p.masks[tile.base + static_cast<int64_t>(y) * p.width + x] != 0;
      parent[local] = on ? local : kBackground;
    }
    __syncthreads();
    for (int r = first_row; r < kTileHeight; r += kThreads / kTileWidth) {
      const int32_t local = r * kTileWidth + column;
      if (read_parent(parent, local) == kBackground) continue;
      if (column > 0 && read_parent(parent, local - 1) != kBackground) {
        unite(parent, local, local - 1);
      }
      if (r == 0) continue;
      const int32_t up = local - kTileWidth;
      if (read_parent(parent, up) != kBackground) {
        unite(parent, local, up);  // the pixels beside `up` are linked to it already
        continue;
      }
      if (column > 0 && read_parent(parent, up - 1) != kBackground) unite(parent, local, up - 1);
      if (column < kTileWidth - 1 && read_parent(parent, up + 1) != kBackground) {
        unite(parent, local, up + 1);
      }
    }
    __syncthreads();
    for (int r = first_row; r < kTileHeight; r += kThreads / kTileWidth) {
      const int32_t y = tile.y0 + r, local = r * kTileWidth + column;
      if (y >= p.height || x >= p.width) continue;
      int32_t out = kBackground;
      if (parent[local] != kBackground) {
        const int32_t root = find_root(parent, local);
        out = (tile.y0 + root / kTileWidth) * p.width + tile.x0 + root % kTileWidth;
      }
      p.labels[tile.base + static_cast<int64_t>(y) * p.width + x] = out;
    }
    __syncthreads();  // the next tile reuses `parent`
  }
}

// Each thread processes one pixel of the top row, left column or right column of a tile and links
// it to its neighbours in other tiles.
__global__ void merge_borders_kernel(ConnectedComponentsParams p, Grid g) {
  const int64_t num_border_pixels = g.tiles * kBorder,
                stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       index < num_border_pixels; index += stride) {
    const Tile tile = locate(g, index / kBorder);
    const int k = static_cast<int>(index % kBorder);
    const int side = k - kTileWidth;  // < 0: top row; else left (even) or right column
    const int32_t ly = side < 0 ? 0 : 1 + side / 2;
    const int32_t column = side % 2 ? kTileWidth - 1 : 0;
    const int32_t lx = side < 0 ? k : column;
    const int32_t y = tile.y0 + ly, x = tile.x0 + lx;
    if (y >= p.height || x >= p.width) continue;
    int32_t* parent = p.labels + tile.base;
    const int32_t self = y * p.width + x;
    if (read_parent(parent, self) == kBackground) continue;
    const bool left_out = lx == 0, right_out = lx == kTileWidth - 1, up_out = ly == 0;
    if (left_out && x > 0 && read_parent(parent, self - 1) != kBackground) {
      unite(parent, self, self - 1);
    }
    if (y == 0) continue;
    const int32_t up = self - p.width;
    if (up_out && read_parent(parent, up) != kBackground) unite(parent, self, up);
    if ((up_out || left_out) && x > 0 && read_parent(parent, up - 1) != kBackground) {
      unite(parent, self, up - 1);
    }
    if ((up_out || right_out) && x + 1 < p.width && read_parent(parent, up + 1) != kBackground) {
      unite(parent, self, up + 1);
    }
  }
}

// Each thread replaces the parents of its pixels by their roots. Pixels of a warp with the same
// root are added to the root's area by one atomic operation.
__global__ void count_areas_kernel(ConnectedComponentsParams p, Grid g, int64_t num_pixels) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  // rounded up to whole warps, because all threads of a warp must execute the match
  const int64_t rounded_pixels = (num_pixels + 31) / 32 * 32;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rounded_pixels;
       i += stride) {
    int64_t root_offset = -1;  // in `areas`; -1 on background
    if (i < num_pixels) {
      const int64_t base = i / g.pixels * g.pixels;
      const int32_t self = static_cast<int32_t>(i - base);
      if (read_parent(p.labels + base, self) != kBackground) {
        const int32_t root = find_root(p.labels + base, self);
        p.labels[i] = root;
        root_offset = base + root;
      }
    }
    const unsigned same_root =
        __match_any_sync(0xffffffffu, static_cast<unsigned long long>(root_offset));
    if (root_offset >= 0 && static_cast<int>(threadIdx.x % 32) == __ffs(same_root) - 1) {
      atomicAdd(p.areas + root_offset, __popc(same_root));
    }
  }
}

// Each thread copies the area of the root to its pixels and converts root indices to labels. The
// area at the root itself does not change.
__global__ void spread_kernel(ConnectedComponentsParams p, Grid g, int64_t num_pixels) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_pixels;
       i += stride) {
    const int32_t root = p.labels[i];
    if (root != kBackground) p.areas[i] = p.areas[i / g.pixels * g.pixels + root];
    p.labels[i] = root + 1;
  }
}

// Each block loads one tile with a halo of max_area pixels on every side. A component that touches
// the tile and extends beyond the halo has more than max_area pixels in tile and halo. So counting
// pixels in tile and halo is sufficient to decide whether the component is small.
__global__ void small_components_kernel(SmallComponentsParams p, Grid g) {
  constexpr int kSide = kTileWidth + 2 * kMaxLocalArea;
  static_assert(2 * kSide * kSide * sizeof(int32_t) <= 48 * 1024,
                "parents and areas fit static shared memory");
  __shared__ int32_t parent[kSide * kSide];
  __shared__ int32_t area[kSide * kSide];
  const int halo = p.max_area, side = kTileWidth + 2 * halo, cells = side * side;
  for (int64_t index = blockIdx.x; index < g.tiles; index += gridDim.x) {
    const Tile tile = locate(g, index);
    for (int c = threadIdx.x; c < cells; c += blockDim.x) {
      const int32_t y = tile.y0 - halo + c / side, x = tile.x0 - halo + c % side;
      const bool in_image = y >= 0 && y < p.height && x >= 0 && x < p.width;
      parent[c] = in_image && p.masks[tile.base + static_cast<int64_t>(y) * p.width + x] != 0
                      ? c
                      : kBackground;
      area[c] = 0;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < cells; c += blockDim.x) {
      if (read_parent(parent, c) == kBackground) continue;
      const int lx = c % side;
      if (lx > 0 && read_parent(parent, c - 1) != kBackground) unite(parent, c, c - 1);
      if (c < side) continue;
      if (read_parent(parent, c - side) != kBackground) unite(parent, c, c - side);
      if (lx > 0 && read_parent(parent, c - side - 1) != kBackground) {
        unite(parent, c, c - side - 1);
      }
      if (lx < side - 1 && read_parent(parent, c - side + 1) != kBackground) {
        unite(parent, c, c - side + 1);
      }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < cells; c += blockDim.x) {
      if (parent[c] != kBackground) atomicAdd(area + find_root(parent, c), 1);
    }
    __syncthreads();
    for (int t = threadIdx.x; t < kTileWidth * kTileHeight; t += blockDim.x) {
      const int32_t ly = t / kTileWidth, lx = t % kTileWidth, y = tile.y0 + ly, x = tile.x0 + lx;
      if (y >= p.height || x >= p.width) continue;
      const int c = (ly + halo) * side + lx + halo;
      const bool small = parent[c] != kBackground && area[find_root(parent, c)] <= p.max_area;
      p.small[tile.base + static_cast<int64_t>(y) * p.width + x] = small ? 1 : 0;
    }
    __syncthreads();
  }
}

// Grid size for `count` blocks of work; kernels loop over work beyond the maximum.
unsigned block_count(int64_t count) {
  constexpr int64_t kMaxBlocks = 1 << 20;
  return static_cast<unsigned>(count < kMaxBlocks ? count : kMaxBlocks);
}

// Null for success, or CUDA's error text.
const char* error_text(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* connected_components_cuda(const ConnectedComponentsParams& p, void* stream_handle) {
  const Grid g = make_grid(p.count, p.height, p.width);
  const int64_t num_pixels = p.count * g.pixels;
  if (num_pixels == 0) return nullptr;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const cudaError_t error =
      cudaMemsetAsync(p.areas, 0, static_cast<size_t>(num_pixels) * sizeof(int32_t), stream);
  if (error != cudaSuccess) return error_text(error);
  label_tiles_kernel<<<block_count(g.tiles), kThreads, 0, stream>>>(p, g);
  merge_borders_kernel<<<block_count((g.tiles * kBorder + kThreads - 1) / kThreads), kThreads, 0,
                         stream>>>(p, g);
  count_areas_kernel<<<block_count((num_pixels + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      p, g, num_pixels);
  spread_kernel<<<block_count((num_pixels + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      p, g, num_pixels);
  return error_text(cudaGetLastError());
}

const char* small_components_cuda(const SmallComponentsParams& p, void* stream_handle) {
  const Grid g = make_grid(p.count, p.height, p.width);
  if (p.count * g.pixels == 0) return nullptr;
  small_components_kernel<<<block_count(g.tiles), kThreads, 0,
                            static_cast<cudaStream_t>(stream_handle)>>>(p, g);
  return error_text(cudaGetLastError());
}

}  // namespace sam2_fast
