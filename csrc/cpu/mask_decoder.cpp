// Compiled once per instruction set (SAM2_FAST_ISA); the portable object also holds the choice
// between them. docs/kernels/mask_decoder.md has the passes and their arithmetic.
#include "csrc/mask_decoder.h"

#include <cstdlib>

#include "csrc/cpu/decoder_tiles.h"
#include "csrc/cpu/decoder_weights.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/gelu.h"
#include "csrc/cpu/prompt_tokens.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

constexpr float kMapEpsilon = 1e-6f;  // of the norm between the upscalings

template <class Dot>
struct Decoder {
  typedef typename Dot::Unit Unit;
  static constexpr int64_t kDepth = Dot::kDepth, kStride = kBlock + 16;
  const MaskDecoderParams& p;
  Matrices<Dot> w;
  const Unit* const* hyper;  // [masks][3]
  int64_t count = p.height * p.width, blocks = (count + kBlock - 1) / kBlock;
  int64_t inner = p.dim / 2, head = inner / p.heads, quarter = p.dim / 4, eighth = p.dim / 8;
  int64_t pitch = p.dim * kBlock, entry = head + 2;
  float scale = PromptTokens<Dot>::scale_of(head);

  static int64_t tile_floats(const MaskDecoderParams& p) {
    return 8 * p.dim * kStride + kBlock * kBlock + Softmax::floats(p.dim);
  }

  Tile<Dot> tile(float* at) const {
    const int64_t step = p.dim * kStride;
    const auto units = [&](int64_t i) { return reinterpret_cast<Unit*>(at + i * step); };
    return {at,       at + step, units(2),
            units(3), units(4),  units(5),
            units(6), units(7),  Softmax(at + 8 * step, at + 8 * step + kBlock * kBlock, p.dim)};
  }

  int64_t count_of(int64_t block) const {
    return count - block * kBlock < kBlock ? count - block * kBlock : kBlock;
  }

  // f[rows][64] = weight in
  void linear(const Unit* weight, int64_t rows, int64_t numbers, const Unit* in, float* f) const {
    multiply<Dot>({weight, numbers / kDepth, 1}, in, kStride, f, kStride, rows, kBlock,
                  numbers / kDepth, false, kFine);
  }

  template <class Row>
  void gather(const void* data, Storage storage, int64_t columns, int64_t block, float* out,
              Row row) const {
    gather_rows(data, storage, columns, count_of(block), kBlock, out, kBlock,
                [&](int64_t i) { return row(block * kBlock + i); });
  }

  void enter_image(int64_t image, int64_t block, const Shared<Dot>& s) const {
    gather(p.image, p.storage, p.dim, block, s.image + block * pitch,
           [&](int64_t t) { return image * count + t; });
    gather(p.position, Storage::kFloat32, p.dim, block, s.position + block * pitch,
           [](int64_t t) { return t; });
  }

  // The finer maps' pixels of one place (dy, dx) in every token's cell of 2 x 2 or 4 x 4.
  void gather_mid(int64_t frame, int64_t block, int64_t cell, float* out) const {
    gather(p.mid, p.storage, quarter, block, out, [&](int64_t t) {
      return (frame * 2 * p.height + t / p.width * 2 + cell / 2) * 2 * p.width + t % p.width * 2 +
             cell % 2;
    });
  }

  void gather_high(int64_t frame, int64_t block, int64_t cell, int64_t fine, float* out) const {
    gather(p.high, p.storage, eighth, block, out, [&](int64_t t) {
      const int64_t dy = cell / 2 * 2 + fine / 2, dx = cell % 2 * 2 + fine % 2;
      return (frame * 4 * p.height + t / p.width * 4 + dy) * 4 * p.width + t % p.width * 4 + dx;
    });
  }

  bool keeps_frame() const {
    return p.frames == 1 && p.objects > 1;
  }  // else each finer map is read once

  void enter_frame(int64_t block, const Shared<Dot>& s) const {
    for (int64_t cell = 0; cell < 4; ++cell) {
      gather_mid(0, block, cell, s.mid + (block * 4 + cell) * quarter * kBlock);
      for (int64_t fine = 0; fine < 4; ++fine)
        gather_high(0, block, cell, fine,
                    s.high + (block * 16 + cell * 4 + fine) * eighth * kBlock);
    }
  }

  void pack(const float* x, int64_t block, const Tile<Dot>& t, const Shared<Dot>& s) const {
    pack_sum<Dot>(x, nullptr, kBlock, 0, p.dim, kBlock, t.n, kStride);
    pack_sum<Dot>(x, s.position + block * pitch, kBlock, kBlock, p.dim, kBlock, t.placed, kStride);
  }

  void image_queries(const Attention& l, const AttentionMatrices<Dot>& m, const Tile<Dot>& t,
                     Unit* q, int64_t stride) const {
    linear(m.q, inner, p.dim, t.placed, t.f);
    pack_rows<Dot, Identity>(t.f, kStride, l.q.bias, inner, kBlock, q, stride);
  }

  void image_keys(const Attention& l, const AttentionMatrices<Dot>& m, const Tile<Dot>& t, Unit* k,
                  Unit* v, int64_t stride) const {
    linear(m.k, inner, p.dim, t.placed, t.f);
    pack_rows<Dot, Identity>(t.f, kStride, l.k.bias, inner, kBlock, k, stride);
    linear(m.v, inner, p.dim, t.n, t.f);
    pack_along<Dot>(t.f, kStride, l.v.bias, inner, kBlock, v, stride / kDepth);
  }

  // What a block of the image answers to the tokens' queries: weighted values, maximum and sum of
  // each head and token.
  void answer(const PromptTokens<Dot>& tokens, const Unit* k, const Unit* v, int64_t stride,
              int64_t block, float* out, const Tile<Dot>& t) const {
    const Softmax& state = t.softmax;
    for (int64_t h = 0; h < p.heads; ++h) {
      const Keys<Dot> keys{k + h * head / kDepth * stride,
                           v + h * head * (stride / kDepth),
                           stride,
                           0,
                           stride / kDepth,
                           0,
                           count_of(block)};
      for (int64_t first = 0; first < tokens.count; first += kBlock) {
        const int64_t rows = tokens.count - first < kBlock ? tokens.count - first : kBlock;
        const Unit* const q = tokens.q + h * head / kDepth * tokens.stride + first;
        attend<Dot>(q, tokens.stride, round_up(rows, kColumns), head / kDepth, keys, head, scale,
                    true, state);
        for (int64_t r = 0; r < rows; ++r) {
          float* const to = out + (h * tokens.count + first + r) * entry;
          for (int64_t c = 0; c < head; ++c) to[c] = state.out[c * kBlock + r];
          to[head] = state.maxima[r], to[head + 1] = state.totals[r];
        }
      }
    }
  }

  // The blocks' answers as one, to tokens.f [inner][tokens]: in the order of the blocks, whoever
  // computed them.
  void merge(const PromptTokens<Dot>& tokens, const float* partial) const {
    const int64_t size = p.heads * tokens.count * entry;
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t r = 0; r < tokens.columns; ++r) {
        const float* const at = partial + (h * tokens.count + r) * entry;
        float maximum = -INFINITY, total = 0, values[64] = {};
        for (int64_t b = 0; r < tokens.count && b < blocks; ++b) {
          const float other = at[b * size + head];
          maximum = other > maximum || other != other ? other : maximum;
        }
        for (int64_t b = 0; r < tokens.count && b < blocks; ++b) {
          const float weight = exp2_of(fill((at[b * size + head] - maximum) * scale))[0];
          total += weight * at[b * size + head + 1];
          for (int64_t c = 0; c < head; ++c) values[c] += weight * at[b * size + c];
        }
        for (int64_t c = 0; c < head; ++c)
          tokens.f[(h * head + c) * tokens.stride + r] = r < tokens.count ? values[c] / total : 0;
      }
    }
  }

  // s.x = norm(x + the attention of a block's image tokens to the prompt tokens)
  void look_at_tokens(const TwoWayLayer& l, const LayerMatrices<Dot>& m,
                      const PromptTokens<Dot>& tokens, const Unit* q, int64_t stride,
                      const float* x, float* out, const Tile<Dot>& t) const {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t row = h * head / kDepth;
      attend<Dot>(q + row * stride, stride, kBlock, head / kDepth,
                  tokens.keys_of(tokens.offered_k, tokens.offered_v, h, head), head, scale, true,
                  t.softmax);
      finish<Dot>(t.softmax, head, kBlock, t.o + row * kStride, kStride);
    }
    linear(m.to_tokens.out, p.dim, inner, t.o, t.f);
    for (int64_t r = 0; r < p.dim; ++r) {
      for (int64_t i = 0; i < kBlock; i += kLanes) {
        store(out + r * kBlock + i,
              load(x + r * kBlock + i) + (load(t.f + r * kStride + i) + l.to_tokens.out.bias[r]));
      }
    }
    normalise<DotFloat>(out, kBlock, l.norm4.weight, l.norm4.bias, kTokenEpsilon, p.dim, kBlock,
                        out, kBlock);
  }

  // Each token becomes 4 x 4 pixels; a mask's pixel is the product of its weights with the pixel's
  // channels.
  void draw(int64_t object, int64_t block, const float* weights, const Tile<Dot>& t,
            const Shared<Dot>& s) const {
    pack_sum<Dot>(s.x + block * pitch, nullptr, kBlock, 0, p.dim, kBlock, t.n, kStride);
    float *const drawn = reinterpret_cast<float*>(t.k), *const gathered =
                                                            reinterpret_cast<float*>(t.q);
    linear(w.up1, 4 * quarter, p.dim, t.n, t.f);
    for (int64_t cell = 0; cell < 4; ++cell) {
      float* const part = t.f + cell * quarter * kStride;
      float* const mid = keeps_frame() ? s.mid + (block * 4 + cell) * quarter * kBlock : gathered;
      if (!keeps_frame()) gather_mid(p.frames > 1 ? object : 0, block, cell, mid);
      add_bias_and(part, kStride, p.up1.bias, mid, quarter);
      normalise<DotFloat>(part, kStride, p.up_norm.weight, p.up_norm.bias, kMapEpsilon, quarter,
                          kBlock, part, kStride);
      pack_rows<Dot, GeluOf<Dot>>(part, kStride, zeros, quarter, kBlock, t.placed, kStride);
      linear(w.up2, 4 * eighth, quarter, t.placed, t.g);
      for (int64_t fine = 0; fine < 4; ++fine) {
        float* const pixels = t.g + fine * eighth * kStride;
        float* const high =
            keeps_frame() ? s.high + (block * 16 + cell * 4 + fine) * eighth * kBlock : gathered;
        if (!keeps_frame()) gather_high(p.frames > 1 ? object : 0, block, cell, fine, high);
        add_bias_and(pixels, kStride, p.up2.bias, high, eighth);
        pack_rows<DotFloat, Gelu>(pixels, kStride, zeros, eighth, kBlock, pixels, kStride);
        multiply<DotFloat>({weights, eighth, 1}, pixels, kStride, drawn, kStride, drawn_masks(),
                           kBlock, eighth, false);
        scatter(object, block, cell / 2 * 2 + fine / 2, cell % 2 * 2 + fine % 2, drawn);
      }
    }
  }

  int64_t drawn_masks() const { return p.best ? 1 : p.masks; }

  void scatter(int64_t object, int64_t block, int64_t dy, int64_t dx, const float* pixels) const {
    for (int64_t m = 0; m < drawn_masks(); ++m) {
      float* const to = p.logits + (object * drawn_masks() + m) * 16 * count;
      int64_t y = block * kBlock / p.width, x = block * kBlock % p.width;
      for (int64_t i = 0; i < count_of(block); ++i) {
        to[(y * 4 + dy) * 4 * p.width + x * 4 + dx] = pixels[m * kStride + i];
        if (++x == p.width) x = 0, ++y;
      }
    }
  }

  // How good the masks are, to quality[iou_values]; returns the best one.
  int64_t judge(const PromptTokens<Dot>& tokens, float* quality) const {
    tokens.ask_token(p.iou, w.iou, p.iou_token, p.iou_hidden, p.iou_values, quality);
    for (int64_t i = 0; i < p.iou_values; ++i) quality[i] = 1.0f / (1.0f + expf(-quality[i]));
    const float* const mine = quality + p.first_mask_token - p.iou_token - 1;
    int64_t best = 0;
    for (int64_t m = 1; m < p.masks; ++m) {
      if (mine[m] > mine[best] || (mine[m] != mine[m] && mine[best] == mine[best])) best = m;
    }
    return best;
  }

  // Every thread calls the following with the same arguments: loops are shared out, and end
  // together.

  void first_layer(const Tile<Dot>& t, const Shared<Dot>& s) const {
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) {
      pack(s.image + b * pitch, b, t, s);
      image_queries(p.layers[0].to_tokens, w.layers[0].to_tokens, t,
                    s.q + b * inner / kDepth * kBlock, kBlock);
      image_keys(p.layers[0].to_image, w.layers[0].to_image, t, s.k + b * inner / kDepth * kBlock,
                 s.v + b * inner / kDepth * kBlock, kBlock);
    }
  }

  void decode(int64_t object, PromptTokens<Dot>& tokens, float* weights, const Tile<Dot>& t,
              const Shared<Dot>& s) const {
    // a thread may still merge one pass's answers while another writes the next one's
    float* const answers[3] = {s.partial[object % 2], s.partial[(object + 1) % 2],
                               s.partial[object % 2]};
    tokens.enter(object);
    tokens.attend_self(p.layers[0], w.layers[0], true);
    tokens.ask(p.layers[0].to_image, w.layers[0].to_image);
    const int64_t step = p.heads * tokens.count * entry;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) {
      answer(tokens, s.k + b * inner / kDepth * kBlock, s.v + b * inner / kDepth * kBlock, kBlock,
             b, answers[0] + b * step, t);
    }
    for (int layer = 0; layer < 2; ++layer) {
      const TwoWayLayer& l = p.layers[layer];
      const LayerMatrices<Dot>& m = w.layers[layer];
      merge(tokens, answers[layer]);
      tokens.hear(l.to_image, m.to_image, l.norm2);
      tokens.mlp(l, m);
      tokens.offer(l.to_tokens, m.to_tokens);
      if (layer == 0) tokens.attend_self(p.layers[1], w.layers[1], false);
      const Attention& next = layer == 0 ? p.layers[1].to_image : p.last;
      const AttentionMatrices<Dot>& next_matrices = layer == 0 ? w.layers[1].to_image : w.last;
      tokens.ask(next, next_matrices);
#pragma omp for schedule(static)
      for (int64_t b = 0; b < blocks; ++b) {
        float* const x = s.x + b * pitch;
        if (layer == 0) {
          look_at_tokens(l, m, tokens, s.q + b * inner / kDepth * kBlock, kBlock,
                         s.image + b * pitch, x, t);
        } else {
          pack(x, b, t, s);
          image_queries(l.to_tokens, m.to_tokens, t, t.q, kStride);
          look_at_tokens(l, m, tokens, t.q, kStride, x, x, t);
        }
        pack(x, b, t, s);
        image_keys(next, next_matrices, t, t.k, t.v, kStride);
        answer(tokens, t.k, t.v, kStride, b, answers[layer + 1] + b * step, t);
      }
    }
    merge(tokens, answers[2]);
    tokens.hear(p.last, w.last, p.last_norm);
    tokens.pack();
    float* const quality = weights + p.masks * eighth;
    const int64_t first = judge(tokens, quality) * p.best;
    for (int64_t m = 0; m < drawn_masks(); ++m) {
      const int64_t from = 3 * (first + m);
      tokens.ask_token(p.hyper + from, hyper + from, p.first_mask_token + first + m, p.dim, eighth,
                       weights + m * eighth);
    }
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) draw(object, b, weights, t, s);
#pragma omp master
    {
      tokens.leave(object);
      for (int64_t i = 0; i < p.iou_values; ++i) p.quality[object * p.iou_values + i] = quality[i];
    }
  }

  void run_all(PromptTokens<Dot> tokens, float* weights, const Tile<Dot>& t,
               const Shared<Dot>& s) const {
    for (int64_t object = 0; object < p.objects; ++object) {
      if (object == 0 || p.images > 1) {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; ++b) enter_image(object, b, s);
        first_layer(t, s);
      }
      if (object == 0 && keeps_frame()) {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; ++b) enter_frame(b, s);
      }
      decode(object, tokens, weights, t, s);
    }
  }

  const float* zeros = nullptr;  // [dim]
};

template <class Dot>
bool run(const MaskDecoderParams& p, int num_threads) {
  typedef typename Dot::Unit Unit;
  Copies<Dot> copies{p.weights, nullptr};
  const auto hyper_of = [&](int64_t i) {
    return copies.of(p.hyper[i].weight, p.dim * (i % 3 == 2 ? p.dim / 8 : p.dim));
  };
  copied(copies, p);
  for (int64_t i = 0; i < 3 * p.masks; ++i) hyper_of(i);
  char* memory = nullptr;
  for (int pass = 0; pass < 2; ++pass) {  // count, then compute
    Arena arena{memory};
    Unit* const room = arena.take<Unit>(copies.units);
    const Unit** const hyper = arena.take<const Unit*>(3 * p.masks);
    float* const zeros = arena.take<float>(p.dim);
    const int64_t wide = (p.height * p.width + kBlock - 1) / kBlock * kBlock * p.dim;
    const int64_t answers = wide / p.dim / kBlock * p.prompt_tokens * (p.dim / 2 + 2 * p.heads);
    float *const image = arena.take<float>(wide), *const position = arena.take<float>(wide),
                 *const x = arena.take<float>(wide);
    const int64_t kept = p.frames == 1 && p.objects > 1 ? wide : 0;
    float *const mid = arena.take<float>(kept), *const high = arena.take<float>(2 * kept);
    Unit *const q = arena.take<Unit>(wide / 2), *const k = arena.take<Unit>(wide / 2),
                *const v = arena.take<Unit>(wide / 2);
    float *const first = arena.take<float>(answers), *const second = arena.take<float>(answers);
    const int64_t token_floats = round_up(PromptTokens<Dot>::floats(p), 16),
                  tile_floats = round_up(Decoder<Dot>::tile_floats(p), 16);
    const int64_t thread_floats =
        token_floats + tile_floats + round_up(p.masks * p.dim / 8 + p.iou_values, 16);
    float* const threads = arena.take<float>(thread_floats * num_threads);
    if (pass == 0) {
      memory = static_cast<char*>(std::aligned_alloc(64, arena.used));
      if (memory == nullptr) return false;
      continue;
    }
    copies.next = room, copies.units = 0;
    Decoder<Dot> decoder{p, copied(copies, p), hyper};
    for (int64_t i = 0; i < 3 * p.masks; ++i) hyper[i] = hyper_of(i);
    for (int64_t i = 0; i < p.dim; ++i) zeros[i] = 0;
    decoder.zeros = zeros;
    const Shared<Dot> shared{image, position, x, mid, high, q, k, v, {first, second}};
#pragma omp parallel num_threads(num_threads)
    {
      float* const mine = threads + thread_floats * thread_number();
      decoder.run_all(PromptTokens<Dot>::make(p, mine), mine + token_floats + tile_floats,
                      decoder.tile(mine + token_floats), shared);
    }
  }
  std::free(memory);
  return true;
}

}  // namespace

bool mask_decoder(const MaskDecoderParams& p, int num_threads) {
#if defined(__AVX512BF16__)
  if (p.weights == Storage::kBfloat16) return run<DotBfloat16>(p, num_threads);
#endif
  return run<DotFloat>(p, num_threads);
}

}  // namespace SAM2_FAST_ISA

SAM2_FAST_CHOOSE(mask_decoder, MaskDecoderParams)

}  // namespace sam2_fast
