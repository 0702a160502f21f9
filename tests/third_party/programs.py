"""Classes of programs that are written for the official package, and what each of them does.

Every script of `idioms` belongs to one class. What this package refuses, it refuses with an error
that a test requires. `python -m tools.program_table --write` shows both in docs/migration.md.
"""

from __future__ import annotations

from typing import NamedTuple

PROGRAMS: dict[str, tuple[str, ...]] = {
    "Predictors as they are": ("second_predictor", "train_mode"),
    "Fine-tuning loops": ("finetune", "finetune_encoder"),
    "The official trainer and its configuration": ("training_model", "training_compose"),
    "LoRA": ("lora_qkv", "peft_lora"),
    "Adapters": ("adapters",),
    "Feature extractors": ("hooks", "feature_hooks"),
    "Replaced and wrapped modules": ("replaced_qkv", "wrapped_parts"),
    "Quantisation": ("quantise",),
    "Pruning and parametrisations": ("parametrised",),
    "Compilation of parts": ("compiled_part",),
    "Export and tracing": ("exporter", "exporter_decoder", "jit_trace"),
    "Copied and stored models": ("deep_copies",),
    "Preprocessing and prompts of their own": ("replaced_transforms", "prepared_prompts"),
    "Encoders and positions of their own": ("overridden_encoders", "position_encodings"),
    "Settings changed on a model": ("part_settings", "memory_settings", "attributes"),
    "Memory policies": ("memory_policy", "sam_heads", "memory_parts"),
    "Trackers by `track_step`": ("track_step",),
    "Wrappers by private steps": ("private_steps", "overridden_predictor"),
    "Long videos with pruned memory": ("pruned_outputs",),
    "Streams that append frames": ("appended_frames",),
    "Edited states": ("edited_outputs",),
    "Copied, stored and hand-made states": ("copied_states", "own_state"),
    "Features computed in advance": ("warm_features",),
    "Hydra: compose and instantiate": ("compose_instantiate", "target_override"),
    "Edited configuration files": ("yaml_on_disk",),
    "Models built by hand": ("build_model", "build_parts", "build_encoders"),
    "Functions replaced in modules": ("patched_names", "patched_functions", "own_loader"),
    "Imported functions and classes": ("imported_names",),
    "Files of the package": ("package_data",),
    "Processes": ("spawned_workers",),
}
"""Class of programs -> its scripts in the folder `idioms`."""


class Refusal(NamedTuple):
    """A use that is refused.

    program: one of `PROGRAMS`. reason: what the error says. test: the file and the name of the test
    that requires the error.
    """

    program: str
    use: str
    reason: str
    test: str


REFUSALS = (
    Refusal(
        "Settings changed on a model",
        "A setting that no released model has, such as `pred_obj_scores = False`.",
        "The weights are those of another architecture; override the method that reads it.",
        "tests/video/test_overridden_steps.py::"
        "test_settings_that_no_released_model_has_are_refused",
    ),
    Refusal(
        "Streams that append frames",
        "Assigned frames of another size than the input of the model.",
        "Frames are [3, S, S], or pictures.",
        "tests/video/state/test_inference_state.py::"
        "test_an_assigned_image_of_another_size_is_refused",
    ),
    Refusal(
        "Edited states",
        "Ids and indices of objects that do not match.",
        "Masks would have wrong ids.",
        "tests/video/state/test_copied_states.py::"
        "test_ids_and_indices_that_do_not_match_are_refused",
    ),
    Refusal(
        "Copied, stored and hand-made states",
        "`pickle` of a state whose frames come from an iterator.",
        "Its frames can be read only once; pass a list, a folder or a video file.",
        "tests/video/state/test_copied_states.py::"
        "test_a_state_of_an_iterator_is_copied_but_not_pickled",
    ),
    Refusal(
        "Features computed in advance",
        "Features with positions that are not those of the model.",
        "Override `_get_image_feature` instead.",
        "tests/video/state/test_inference_state.py::"
        "test_cached_features_of_other_positions_are_refused",
    ),
    Refusal(
        "Hydra: compose and instantiate",
        "An override of a key that a model does not have, or of a target that is no module.",
        "It would have no effect.",
        "tests/test_overrides.py::test_other_overrides_are_refused_with_the_reason",
    ),
    Refusal(
        "Edited configuration files",
        "A file of another architecture, or of no model.",
        "The error names the key, what is expected, and what the file has.",
        "tests/test_config_files.py::test_another_file_is_refused_with_the_reason",
    ),
    Refusal(
        "Models built by hand",
        "A whole model of another architecture, such as a trunk that is no `Hiera`.",
        "Assign the module to the model after it is built.",
        "tests/compat/test_construction.py::test_other_arguments_are_refused_with_the_reason",
    ),
    Refusal(
        "Functions replaced in modules",
        "A function that this package has no step for, such as `get_clones`.",
        "A replacement would have no effect; replace the part, or override the method.",
        "tests/compat/test_patches.py::test_what_has_no_effect_is_refused",
    ),
    Refusal(
        "Files of the package",
        "A modified copy of `sam2` beside the program.",
        "The program may need its changes; `--replace-modified` ignores them.",
        "tests/compat/test_copies.py::test_a_modified_copy_is_refused_with_the_names_of_its_files",
    ),
)
