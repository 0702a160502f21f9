// The mask decoder's matrices as units of Dot: torch's own memory or converted copies.
#pragma once

#include "csrc/cpu/tile.h"
#include "csrc/mask_decoder.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

template <class Dot>
struct AttentionMatrices {
  const typename Dot::Unit *q, *k, *v, *out;

  static AttentionMatrices of(const AttentionWeights& weights, int64_t elements,
                              WeightCopies<Dot>& copies) {
    AttentionMatrices matrices{};
    matrices.q = copies.prepare(weights.q.weight, elements);
    matrices.k = copies.prepare(weights.k.weight, elements);
    matrices.v = copies.prepare(weights.v.weight, elements);
    matrices.out = copies.prepare(weights.out.weight, elements);
    return matrices;
  }
};

// An attention layer: its matrices as units and, in `weights`, its biases.
template <class Dot>
struct AttentionLayer {
  const AttentionWeights& weights;
  const AttentionMatrices<Dot>& matrices;
};

template <class Dot>
struct LayerMatrices {
  AttentionMatrices<Dot> self_attention, token_to_image, image_to_token;
  const typename Dot::Unit *fc1, *fc2;

  static LayerMatrices of(const TwoWayLayerWeights& weights, int64_t dim, int64_t hidden,
                          WeightCopies<Dot>& copies) {
    const int64_t inner_size = dim * (dim / 2);
    LayerMatrices matrices{};
    matrices.self_attention = AttentionMatrices<Dot>::of(weights.self_attention, dim * dim, copies);
    matrices.token_to_image =
        AttentionMatrices<Dot>::of(weights.token_to_image, inner_size, copies);
    matrices.image_to_token =
        AttentionMatrices<Dot>::of(weights.image_to_token, inner_size, copies);
    matrices.fc1 = copies.prepare(weights.fc1.weight, dim * hidden);
    matrices.fc2 = copies.prepare(weights.fc2.weight, dim * hidden);
    return matrices;
  }
};

template <class Dot>
struct MlpMatrices {
  const typename Dot::Unit *linear1, *linear2, *linear3;

  static MlpMatrices of(const MlpWeights& weights, int64_t dim, int64_t hidden, int64_t out,
                        WeightCopies<Dot>& copies) {
    MlpMatrices matrices{};
    matrices.linear1 = copies.prepare(weights.linear1.weight, hidden * dim);
    matrices.linear2 = copies.prepare(weights.linear2.weight, hidden * hidden);
    matrices.linear3 = copies.prepare(weights.linear3.weight, out * hidden);
    return matrices;
  }
};

template <class Dot>
struct Matrices {
  typedef typename Dot::Unit Unit;
  LayerMatrices<Dot> layers[2];
  AttentionMatrices<Dot> final_attention;
  const Unit *up1, *up2;
  MlpMatrices<Dot> iou;
  MlpMatrices<Dot>* masks;

  // masks: memory for [num_masks], or null to compute only the size of the copies.
  static Matrices of(const MaskDecoderWeights& weights, WeightCopies<Dot>& copies,
                     MlpMatrices<Dot>* masks) {
    const int64_t dim = weights.dim;
    Matrices matrices{};
    matrices.masks = masks;
    for (int i = 0; i < 2; ++i) {
      matrices.layers[i] = LayerMatrices<Dot>::of(weights.layers[i], dim, weights.hidden, copies);
    }
    matrices.final_attention =
        AttentionMatrices<Dot>::of(weights.final_attention, dim * (dim / 2), copies);
    matrices.up1 = copies.prepare(weights.up1.weight, dim * dim);
    matrices.up2 = copies.prepare(weights.up2.weight, dim / 4 * dim / 2);
    matrices.iou =
        MlpMatrices<Dot>::of(weights.iou, dim, weights.iou_hidden, weights.iou_values, copies);
    for (int64_t m = 0; m < weights.num_masks; ++m) {
      const auto mask = MlpMatrices<Dot>::of(weights.masks[m], dim, dim, dim / 8, copies);
      if (masks != nullptr) masks[m] = mask;
    }
    return matrices;
  }
};

}  // namespace
}  // namespace SAM2_FAST_ISA
}  // namespace sam2_fast
