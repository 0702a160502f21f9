"""LoRA by the package peft, on all layers of the model that are named qkv."""

from common import image_model, image_predictor, save, segment
from peft import LoraConfig, get_peft_model, inject_adapter_in_model

config = LoraConfig(r=4, target_modules=["qkv"], init_lora_weights=False)
predictor = image_predictor(image_model())
plain = segment(predictor)
predictor.model = inject_adapter_in_model(config, predictor.model)
changed = segment(predictor)
names = [name for name in predictor.model.state_dict() if "lora" in name]

wrapped = get_peft_model(image_model(), config)
trainable = [name for name, p in wrapped.named_parameters() if p.requires_grad]
predictor = image_predictor(wrapped)
save(
    plain=plain,
    changed=changed,
    changed_wrapped=segment(predictor),
    names=names,
    trainable=trainable,
    same=segment(image_predictor(wrapped.unload())),
)
