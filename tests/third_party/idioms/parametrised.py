"""Weight normalisation, a parametrisation and pruning of layers of the model."""

from common import image_model, image_predictor, save, segment
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

predictor = image_predictor(image_model())
blocks = predictor.model.image_encoder.trunk.blocks
results = {"plain": segment(predictor)}
parametrizations.weight_norm(blocks[3].attn.qkv)
results["same"] = segment(predictor)
blocks[3].attn.qkv.parametrizations.weight.original0.data.mul_(1.5)
results["changed_norm"] = segment(predictor)
parametrize.remove_parametrizations(blocks[3].attn.qkv, "weight")
results["changed_removed"] = segment(predictor)


class Flipped(nn.Module):
    def forward(self, weight):
        return weight.flip(0)


parametrize.register_parametrization(predictor.model.sam_mask_decoder.conv_s1, "weight", Flipped())
results["changed_flipped"] = segment(predictor)
prune.l1_unstructured(blocks[4].mlp.layers[0], "weight", amount=0.5)
results["changed_pruned"] = segment(predictor)
prune.remove(blocks[4].mlp.layers[0], "weight")
results["zeros"] = int((blocks[4].mlp.layers[0].weight == 0).sum())
save(**results, changed_for_good=segment(predictor))
