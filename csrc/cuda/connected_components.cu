// Block union-find on the GPU: tiles are resolved in shared memory, their borders merged in global
// memory, then every pixel takes its root's index and area. Four launches for any number of masks;
// small components in one. Parents only ever decrease (atomicMin), so a root is the first pixel of
// its component in row-major order, and a chain that is read while others write still ends at an
// ancestor.
#include <cuda_runtime.h>

#include "csrc/connected_components.h"

namespace sam2_fast {
namespace {

constexpr int kTileWidth = 32;  // one warp reads one row of a tile: 32 bytes of mask, 128 of labels
constexpr int kTileHeight = 32;
constexpr int kThreads = 256;                                // 8 rows at a time; a tile is 4 steps
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
  g.tiles_x =
      (width - 1) / kTileWidth + 1;  // not (width + 31) / 32: a width near 2^31 would overflow
  g.tiles_y = (height - 1) / kTileHeight + 1;
  g.tiles = count * g.tiles_x * g.tiles_y;
  return g;
}

__device__ Tile locate(const Grid& g, int64_t index) {
  const int64_t per_mask = static_cast<int64_t>(g.tiles_x) * g.tiles_y;
  const int64_t mask = index / per_mask;
  const int32_t rest = static_cast<int32_t>(index - mask * per_mask);
  return {mask * g.pixels, rest / g.tiles_x * kTileHeight, rest % g.tiles_x * kTileWidth};
}

// Parents are read past the L1 cache: another block may have lowered them.
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
    const int32_t high = max(a, b), low = min(a, b);
    const int32_t before = atomicMin(parent + high, low);
    if (before == high) return;  // it was a root, and now hangs under `low`
    // another thread linked `high` to `before` first: `before` and `low` must be united, too
    a = before;
    b = low;
  }
}

// A block owns one tile at a time: links its pixels in shared memory, then writes each pixel's
// parent as an index in its mask.
__global__ void label_tiles_kernel(ConnectedComponentsParams p, Grid g) {
  __shared__ int32_t parent[kTileHeight * kTileWidth];
  const int lane = threadIdx.x % kTileWidth, first_row = threadIdx.x / kTileWidth;
  for (int64_t index = blockIdx.x; index < g.tiles; index += gridDim.x) {
    const Tile tile = locate(g, index);
    const int32_t x = tile.x0 + lane;
    for (int r = first_row; r < kTileHeight; r += kThreads / kTileWidth) {
      const int32_t y = tile.y0 + r, local = r * kTileWidth + lane;
      const bool on = y < p.height && x < p.width &&
                      p.masks[tile.base + static_cast<int64_t>(y) * p.width + x] != 0;
      parent[local] = on ? local : kBackground;
    }
    __syncthreads();
    for (int r = first_row; r < kTileHeight; r += kThreads / kTileWidth) {
      const int32_t local = r * kTileWidth + lane;
      if (read_parent(parent, local) == kBackground) continue;
      if (lane > 0 && read_parent(parent, local - 1) != kBackground) {
        unite(parent, local, local - 1);
      }
      if (r == 0) continue;
      const int32_t up = local - kTileWidth;
      if (read_parent(parent, up) != kBackground) {
        unite(parent, local, up);  // the corners above are then linked to `up` already
        continue;
      }
      if (lane > 0 && read_parent(parent, up - 1) != kBackground) unite(parent, local, up - 1);
      if (lane < kTileWidth - 1 && read_parent(parent, up + 1) != kBackground) {
        unite(parent, local, up + 1);
      }
    }
    __syncthreads();
    for (int r = first_row; r < kTileHeight; r += kThreads / kTileWidth) {
      const int32_t y = tile.y0 + r, local = r * kTileWidth + lane;
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

// A thread owns one pixel on the top row, left or right column of a tile and links it to its
// neighbours in earlier tiles.
__global__ void merge_borders_kernel(ConnectedComponentsParams p, Grid g) {
  const int64_t total = g.tiles * kBorder, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < total;
       index += stride) {
    const Tile tile = locate(g, index / kBorder);
    const int k = static_cast<int>(index % kBorder);
    const int side = k - kTileWidth;  // < 0: top row; then left and right columns, alternating
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

// A thread owns pixels; it replaces the parent by the root and adds to the root's area, one atomic
// per root and warp.
__global__ void count_areas_kernel(ConnectedComponentsParams p, Grid g, int64_t total) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t rounded = (total + 31) / 32 * 32;  // whole warps stay together for the vote
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rounded;
       i += stride) {
    int64_t at = -1;  // offset of the root in `areas`
    if (i < total) {
      const int64_t base = i / g.pixels * g.pixels;
      const int32_t self = static_cast<int32_t>(i - base);
      if (read_parent(p.labels + base, self) != kBackground) {
        const int32_t root = find_root(p.labels + base, self);
        p.labels[i] = root;
        at = base + root;
      }
    }
    const unsigned same = __match_any_sync(0xffffffffu, static_cast<unsigned long long>(at));
    if (at >= 0 && static_cast<int>(threadIdx.x % 32) == __ffs(same) - 1) {
      atomicAdd(p.areas + at, __popc(same));
    }
  }
}

// A thread owns pixels; it takes the area from the root (whose own value does not change) and turns
// the root into a label.
__global__ void spread_kernel(ConnectedComponentsParams p, Grid g, int64_t total) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += stride) {
    const int32_t root = p.labels[i];
    if (root != kBackground) p.areas[i] = p.areas[i / g.pixels * g.pixels + root];
    p.labels[i] = root + 1;
  }
}

// A block owns one tile and sees max_area pixels beyond it on every side. A component that reaches
// past what it sees has more than max_area pixels in sight, so counting what is in sight decides
// exactly.
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
      const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
      parent[c] = inside && p.masks[tile.base + static_cast<int64_t>(y) * p.width + x] != 0
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

unsigned blocks(int64_t wanted) {
  constexpr int64_t kMost = 1 << 20;  // kernels stride over the rest
  return static_cast<unsigned>(wanted < kMost ? wanted : kMost);
}

const char* result(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* connected_components_cuda(const ConnectedComponentsParams& p, void* stream_handle) {
  const Grid g = make_grid(p.count, p.height, p.width);
  const int64_t total = p.count * g.pixels;
  if (total == 0) return nullptr;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const cudaError_t cleared =
      cudaMemsetAsync(p.areas, 0, static_cast<size_t>(total) * sizeof(int32_t), stream);
  if (cleared != cudaSuccess) return result(cleared);
  label_tiles_kernel<<<blocks(g.tiles), kThreads, 0, stream>>>(p, g);
  merge_borders_kernel<<<blocks((g.tiles * kBorder + kThreads - 1) / kThreads), kThreads, 0,
                         stream>>>(p, g);
  count_areas_kernel<<<blocks((total + kThreads - 1) / kThreads), kThreads, 0, stream>>>(p, g,
                                                                                         total);
  spread_kernel<<<blocks((total + kThreads - 1) / kThreads), kThreads, 0, stream>>>(p, g, total);
  return result(cudaGetLastError());
}

const char* small_components_cuda(const SmallComponentsParams& p, void* stream_handle) {
  const Grid g = make_grid(p.count, p.height, p.width);
  if (p.count * g.pixels == 0) return nullptr;
  small_components_kernel<<<blocks(g.tiles), kThreads, 0,
                            static_cast<cudaStream_t>(stream_handle)>>>(p, g);
  return result(cudaGetLastError());
}

}  // namespace sam2_fast
