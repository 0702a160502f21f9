// The mask decoder's weights as Dot reads them: torch's own, or copies.
#pragma once

#include "csrc/cpu/tile.h"
#include "csrc/mask_decoder.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {

template <class Dot>
struct AttentionMatrices {
  const typename Dot::Unit *q, *k, *v, *out;
};

template <class Dot>
struct LayerMatrices {
  AttentionMatrices<Dot> self, to_image, to_tokens;
  const typename Dot::Unit *fc1, *fc2;
};

template <class Dot>
struct Matrices {
  typedef typename Dot::Unit Unit;
  LayerMatrices<Dot> layers[2];
  AttentionMatrices<Dot> last;
  const Unit *up1, *up2;
  const Unit* iou[3];
};

template <class Dot>
AttentionMatrices<Dot> copied(Copies<Dot>& copies, const Attention& l, int64_t dim, int64_t inner) {
  const auto* const q = copies.of(l.q.weight, dim * inner);
  const auto* const k = copies.of(l.k.weight, dim * inner);
  const auto* const v = copies.of(l.v.weight, dim * inner);
  return {q, k, v, copies.of(l.out.weight, dim * inner)};
}

template <class Dot>
Matrices<Dot> copied(Copies<Dot>& copies, const MaskDecoderParams& p) {
  Matrices<Dot> w;
  for (int i = 0; i < 2; ++i) {
    const TwoWayLayer& l = p.layers[i];
    w.layers[i].self = copied(copies, l.self, p.dim, p.dim);
    w.layers[i].to_image = copied(copies, l.to_image, p.dim, p.dim / 2);
    w.layers[i].to_tokens = copied(copies, l.to_tokens, p.dim, p.dim / 2);
    w.layers[i].fc1 = copies.of(l.fc1.weight, p.dim * p.hidden);
    w.layers[i].fc2 = copies.of(l.fc2.weight, p.dim * p.hidden);
  }
  w.last = copied(copies, p.last, p.dim, p.dim / 2);
  w.up1 = copies.of(p.up1.weight, p.dim * p.dim);
  w.up2 = copies.of(p.up2.weight, p.dim / 4 * p.dim / 2);
  w.iou[0] = copies.of(p.iou[0].weight, p.iou_hidden * p.dim);
  w.iou[1] = copies.of(p.iou[1].weight, p.iou_hidden * p.iou_hidden);
  w.iou[2] = copies.of(p.iou[2].weight, p.iou_values * p.iou_hidden);
  return w;
}

}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
