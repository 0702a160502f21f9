"""The official training configuration: composed, and its model instantiated with a stand-in."""

import torch
from common import SIZE, pixels, save
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.modeling.sam2_base import SAM2Base

NAME = "configs/sam2.1_training/sam2.1_hiera_b+_MOSE_finetune.yaml"
OWN = "prob_", "num_frames_", "rand_", "add_all", "num_init", "num_corr", "use_act", "forward_back"


class StandIn(SAM2Base):
    def __init__(self, image_encoder, memory_attention=None, memory_encoder=None, **settings):
        own = {name: settings.pop(name) for name in list(settings) if name.startswith(OWN)}
        super().__init__(image_encoder, memory_attention, memory_encoder, **settings)
        self.own = own


OmegaConf.register_new_resolver("times", lambda a, b: a * b)
OmegaConf.register_new_resolver("divide", lambda a, b: a / b)
target = "++trainer.model._target_=__main__.StandIn"
config = compose(config_name=NAME, overrides=[f"scratch.resolution={SIZE}", target])
OmegaConf.resolve(config)
model = instantiate(config.trainer.model, _convert_="all").eval()
names = sorted(model.state_dict())
torch.manual_seed(0)
state = {name: 0.05 * torch.randn(model.state_dict()[name].shape) for name in names}
model.load_state_dict(state)
with torch.no_grad():
    features = model.forward_image(pixels(0))
save(config=OmegaConf.to_container(config), own=model.own, names=names, **features)
