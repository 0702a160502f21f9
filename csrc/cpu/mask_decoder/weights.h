// The mask decoder's weights as Dot reads them: torch's own, or copies.
#pragma once

#include "csrc/cpu/tile.h"
#include "csrc/mask_decoder.h"

namespace sam2_fast {
namespace SAM2_FAST_ISA {
namespace {

template <class Dot>
struct AttentionMatrices {
  const typename Dot::Unit *q, *k, *v, *out;

  static AttentionMatrices of(const AttentionWeights& weights, int64_t numbers,
                              Copies<Dot>& copies) {
    AttentionMatrices matrices{};
    matrices.q = copies.of(weights.q.weight, numbers);
    matrices.k = copies.of(weights.k.weight, numbers);
    matrices.v = copies.of(weights.v.weight, numbers);
    matrices.out = copies.of(weights.out.weight, numbers);
    return matrices;
  }
};

// The matrices of an attention beside its biases.
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
                          Copies<Dot>& copies) {
    const int64_t narrow = dim * (dim / 2);
    LayerMatrices matrices{};
    matrices.self_attention = AttentionMatrices<Dot>::of(weights.self_attention, dim * dim, copies);
    matrices.token_to_image = AttentionMatrices<Dot>::of(weights.token_to_image, narrow, copies);
    matrices.image_to_token = AttentionMatrices<Dot>::of(weights.image_to_token, narrow, copies);
    matrices.fc1 = copies.of(weights.fc1.weight, dim * hidden);
    matrices.fc2 = copies.of(weights.fc2.weight, dim * hidden);
    return matrices;
  }
};

template <class Dot>
struct MlpMatrices {
  const typename Dot::Unit *linear1, *linear2, *linear3;

  static MlpMatrices of(const MlpWeights& weights, int64_t dim, int64_t hidden, int64_t out,
                        Copies<Dot>& copies) {
    MlpMatrices matrices{};
    matrices.linear1 = copies.of(weights.linear1.weight, hidden * dim);
    matrices.linear2 = copies.of(weights.linear2.weight, hidden * hidden);
    matrices.linear3 = copies.of(weights.linear3.weight, out * hidden);
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

  // masks: [num_masks], or null where the caller only counts.
  static Matrices of(const MaskDecoderWeights& weights, Copies<Dot>& copies,
                     MlpMatrices<Dot>* masks) {
    const int64_t dim = weights.dim;
    Matrices matrices{};
    matrices.masks = masks;
    for (int i = 0; i < 2; ++i) {
      matrices.layers[i] = LayerMatrices<Dot>::of(weights.layers[i], dim, weights.hidden, copies);
    }
    matrices.final_attention =
        AttentionMatrices<Dot>::of(weights.final_attention, dim * (dim / 2), copies);
    matrices.up1 = copies.of(weights.up1.weight, dim * dim);
    matrices.up2 = copies.of(weights.up2.weight, dim / 4 * dim / 2);
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
