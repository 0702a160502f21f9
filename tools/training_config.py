"""The official training configuration (fine-tuning on MOSE), as nested dictionaries.

Its values are those of the defaults of `training.recipe`, as far as that has them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sam2_fast.config import preset
from sam2_fast.io.transforms import PIXEL_MEAN, PIXEL_STD
from sam2_fast.training.recipe import Recipe, Stage
from sam2_fast.weights.config_tree import model_tree

TRANSFORMS = "training.dataset.transforms"
DATASET = "training.dataset"
SCHEDULERS = "fvcore.common.param_scheduler"
LOGS = "${launcher.experiment_log_dir}"
STAGE = Stage()
RECIPE = Recipe(model="base_plus")


def training_tree() -> dict[str, Any]:
    """The whole configuration."""
    scratch = {
        "resolution": STAGE.image_size,
        "train_batch_size": 1,
        "num_train_workers": 10,
        "num_frames": 8,
        "max_num_objects": 3,
        "base_lr": STAGE.lr,
        "vision_lr": 3e-6,
        "phases_per_epoch": 1,
        "num_epochs": 40,
    }
    dataset = {
        "img_folder": None,
        "gt_folder": None,
        "file_list_txt": "training/assets/MOSE_sample_train_list.txt",
        "multiplier": 2,
    }
    launcher = {"num_nodes": 1, "gpus_per_node": 8, "experiment_log_dir": None}
    cluster = {
        "partition": None,
        "account": None,
        "qos": None,
        "cpus_per_task": 10,
        "use_cluster": False,
        "timeout_hour": 24,
        "name": None,
        "port_range": [10000, 65000],
    }
    return {
        "scratch": scratch,
        "dataset": dataset,
        "vos": {"train_transforms": [transforms()]},
        "trainer": trainer(),
        "launcher": launcher,
        "submitit": cluster,
    }


def transform(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{TRANSFORMS}.{name}", **arguments}


def colours(consistent: bool, brightness: float, contrast: float) -> dict[str, Any]:
    return transform(
        "ColorJitter",
        consistent_transform=consistent,
        brightness=brightness,
        contrast=contrast,
        saturation=contrast,
        hue=None,
    )


def transforms() -> dict[str, Any]:
    return transform(
        "ComposeAPI",
        transforms=[
            transform("RandomHorizontalFlip", consistent_transform=True),
            transform(
                "RandomAffine",
                degrees=25,
                shear=20,
                image_interpolation="bilinear",
                consistent_transform=True,
            ),
            transform(
                "RandomResizeAPI",
                sizes="${scratch.resolution}",
                square=True,
                consistent_transform=True,
            ),
            colours(True, 0.1, 0.03),
            transform("RandomGrayscale", p=0.05, consistent_transform=True),
            colours(False, 0.1, 0.05),
            transform("ToTensorAPI"),
            transform("NormalizeAPI", mean=list(PIXEL_MEAN), std=list(PIXEL_STD)),
        ],
    )


def training_model() -> dict[str, Any]:
    """The model: that of the released configuration, and how prompts are simulated."""
    config = replace(preset("base_plus"), drop_path_rate=RECIPE.drop_path, dropout=RECIPE.dropout)
    tree = model_tree(config)
    del tree["compile_image_encoder"]
    return {
        **tree,
        "_target_": "training.model.sam2.SAM2Train",
        "image_size": "${scratch.resolution}",
        "prob_to_use_pt_input_for_train": 0.5,
        "prob_to_use_pt_input_for_eval": 0.0,
        "prob_to_use_box_input_for_train": 0.5,
        "prob_to_use_box_input_for_eval": 0.0,
        "prob_to_sample_from_gt_for_train": 0.1,
        "num_frames_to_correct_for_train": 2,
        "num_frames_to_correct_for_eval": 1,
        "rand_frames_to_correct_for_train": True,
        "add_all_frames_to_correct_as_cond": True,
        "num_init_cond_frames_for_train": 2,
        "rand_init_cond_frames_for_train": True,
        "num_correction_pt_per_frame": 7,
        "use_act_ckpt_iterative_pt_sampling": False,
        "num_init_cond_frames_for_eval": 1,
        "forward_backbone_per_frame_for_eval": True,
    }


def data() -> dict[str, Any]:
    videos = {
        "_target_": f"{DATASET}.vos_dataset.VOSDataset",
        "transforms": "${vos.train_transforms}",
        "training": True,
        "video_dataset": {
            "_target_": f"{DATASET}.vos_raw_dataset.PNGRawDataset",
            "img_folder": "${dataset.img_folder}",
            "gt_folder": "${dataset.gt_folder}",
            "file_list_txt": "${dataset.file_list_txt}",
        },
        "sampler": {
            "_target_": f"{DATASET}.vos_sampler.RandomUniformSampler",
            "num_frames": "${scratch.num_frames}",
            "max_num_objects": "${scratch.max_num_objects}",
        },
        "multiplier": "${dataset.multiplier}",
    }
    joined = {"_target_": f"{DATASET}.utils.ConcatDataset", "datasets": [videos]}
    repeated = {"_target_": f"{DATASET}.utils.RepeatFactorWrapper", "dataset": joined}
    return {
        "train": {
            "_target_": f"{DATASET}.sam2_datasets.TorchTrainMixedDataset",
            "phases_per_epoch": "${scratch.phases_per_epoch}",
            "batch_sizes": ["${scratch.train_batch_size}"],
            "datasets": [repeated],
            "shuffle": True,
            "num_workers": "${scratch.num_train_workers}",
            "pin_memory": True,
            "drop_last": True,
            "collate_fn": {
                "_target_": "training.utils.data_utils.collate_fn",
                "_partial_": True,
                "dict_key": "all",
            },
        }
    }


def cosine(rate: str) -> dict[str, Any]:
    return {
        "_target_": f"{SCHEDULERS}.CosineParamScheduler",
        "start_value": f"${{scratch.{rate}}}",
        "end_value": f"${{divide:${{scratch.{rate}}},{round(1 / STAGE.final_lr)}}}",
    }


def constant(value: float) -> dict[str, Any]:
    return {"_target_": f"{SCHEDULERS}.ConstantParamScheduler", "value": value}


def optimizer() -> dict[str, Any]:
    return {
        "amp": {"enabled": RECIPE.bfloat16, "amp_dtype": "bfloat16"},
        "optimizer": {"_target_": "torch.optim.AdamW"},
        "gradient_clip": {
            "_target_": "training.optimizer.GradientClipper",
            "max_norm": RECIPE.clip_norm,
            "norm_type": 2,
        },
        "param_group_modifiers": [
            {
                "_target_": "training.optimizer.layer_decay_param_modifier",
                "_partial_": True,
                "layer_decay_value": RECIPE.layer_decay,
                "apply_to": "image_encoder.trunk",
                "overrides": [{"pattern": "*pos_embed*", "value": 1.0}],
            }
        ],
        "options": {
            "lr": [
                {"scheduler": cosine("base_lr")},
                {"scheduler": cosine("vision_lr"), "param_names": ["image_encoder.*"]},
            ],
            "weight_decay": [
                {"scheduler": constant(RECIPE.weight_decay)},
                {
                    "scheduler": constant(0.0),
                    "param_names": ["*bias*"],
                    "module_cls_names": ["torch.nn.LayerNorm"],
                },
            ],
        },
    }


def trainer() -> dict[str, Any]:
    weights = STAGE.losses
    loss = {
        "_target_": "training.loss_fns.MultiStepMultiMasksAndIous",
        "weight_dict": {
            "loss_mask": int(weights.mask),
            "loss_dice": int(weights.dice),
            "loss_iou": int(weights.iou),
            "loss_class": int(weights.presence),
        },
        "supervise_all_iou": True,
        "iou_use_l1_loss": True,
        "pred_obj_scores": True,
        "focal_gamma_obj_score": 0.0,
        "focal_alpha_obj_score": -1.0,
    }
    state = {
        "_target_": "training.utils.checkpoint_utils.load_checkpoint_and_apply_kernels",
        "checkpoint_path": "./checkpoints/sam2.1_hiera_base_plus.pt",
        "ckpt_state_dict_keys": ["model"],
    }
    return {
        "_target_": "training.trainer.Trainer",
        "mode": "train_only",
        "max_epochs": "${times:${scratch.num_epochs},${scratch.phases_per_epoch}}",
        "accelerator": "cuda",
        "seed_value": RECIPE.seed,
        "model": training_model(),
        "data": data(),
        "optim": optimizer(),
        "loss": {"all": loss},
        "distributed": {"backend": "nccl", "find_unused_parameters": True},
        "logging": {
            "tensorboard_writer": {
                "_target_": "training.utils.logger.make_tensorboard_logger",
                "log_dir": f"{LOGS}/tensorboard",
                "flush_secs": 120,
                "should_log": True,
            },
            "log_dir": f"{LOGS}/logs",
            "log_freq": 10,
        },
        "checkpoint": {
            "save_dir": f"{LOGS}/checkpoints",
            "save_freq": 0,
            "model_weight_initializer": {
                "_partial_": True,
                "_target_": "training.utils.checkpoint_utils.load_state_dict_into_model",
                "strict": True,
                "ignore_unexpected_keys": None,
                "ignore_missing_keys": None,
                "state_dict": state,
            },
        },
    }
