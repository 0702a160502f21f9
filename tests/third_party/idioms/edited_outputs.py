"""Outputs in the state are changed: maps, masks, pointers, kinds, positions and further entries."""

from common import click, save, torch, track, video_predictor

predictor = video_predictor()
plain = track(predictor)


def tracked_after(edit):
    state = click(predictor)
    frames = predictor.propagate_in_video(state, 0, 2)
    list(frames)
    outputs = state["output_dict_per_obj"][0]
    edit(outputs["non_cond_frame_outputs"], outputs["cond_frame_outputs"], state)
    rest = predictor.propagate_in_video(state, 3)
    return torch.cat([plain[:3], *[logits.clone() for _, _, logits in rest]])


def scale_maps(tracked, *_):
    for output in tracked.values():
        output["maskmem_features"] = output["maskmem_features"] * 0.2
        output["note"] = "scaled"


def move(tracked, prompted, _):
    prompted[2] = tracked.pop(2)


def change_positions(tracked, *_):
    tracked[2]["maskmem_pos_enc"] = [x + 1 for x in tracked[2]["maskmem_pos_enc"]]


def replace_by_dictionaries(tracked, prompted, _):
    for outputs in (tracked, prompted):
        outputs.update({f: dict(output) for f, output in outputs.items()})


edits = {"changed_maps": scale_maps, "kind": move, "changed_positions": change_positions}
changed = {name: tracked_after(edit) for name, edit in edits.items()}
save(plain=plain, same=tracked_after(replace_by_dictionaries), **changed)
