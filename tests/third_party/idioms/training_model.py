"""A subclass of the model, in the form of the official training model, is trained for two steps."""

import torch
from common import SIZE, image_model, pixels, save
from sam2.modeling.sam2_base import SAM2Base
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy


class Train(SAM2Base):
    def __init__(self, image_encoder, memory_attention=None, memory_encoder=None, n=2, **further):
        super().__init__(image_encoder, memory_attention, memory_encoder, **further)
        self.n, self.add_all_frames_to_correct_as_cond = n, True

    def forward(self, images):
        _, features, positions, sizes = self._prepare_backbone_features(self.forward_image(images))
        outputs = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        points = {"point_coords": torch.tensor([[[60.0, 50.0]]]), "point_labels": torch.ones(1, 1)}
        for t, frames in enumerate(outputs.values()):
            x, pos = [f[:, t : t + 1] for f in features], [p[:, t : t + 1] for p in positions]
            inputs = x, pos, sizes, None if t else points, None, outputs, self.n
            frames[t] = self.track_step(t, t == 0, *inputs)
        return [frames[t]["pred_masks_high_res"] for t, frames in enumerate(outputs.values())]


parts = "dropout", "self_attention.dropout", "cross_attention.dropout"
off = [f"model.memory_attention.layer.{part}=0.0" for part in parts]
model = image_model("++model._target_=__main__.Train", "++model.n=2", *off).train()
optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-5), []
images, target = torch.cat([pixels(0), pixels(1)]), torch.zeros(1, 1, SIZE, SIZE)
target[..., 30:70, 40:90] = 1
for _ in range(2):
    optimizer.zero_grad()
    losses.append(sum(cross_entropy(masks, target) for masks in model(images)))
    losses[-1].backward()
    optimizer.step()
gradients = model.maskmem_tpos_enc.grad, model.sam_mask_decoder.iou_token.weight.grad
save(losses=[loss.item() for loss in losses], gradients=gradients)
