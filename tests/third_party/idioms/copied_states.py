"""States are copied, pickled and made by hand from plain dictionaries, and tracked on."""

import copy
import pickle

from common import click, save, torch, track, video_predictor

predictor = video_predictor()
plain = track(predictor)
state = click(predictor)
list(predictor.propagate_in_video(state, 0, 1))


def rest(state):
    outputs = predictor.propagate_in_video(state, 2)
    return torch.cat([plain[:2], *[logits.clone() for _, _, logits in outputs]])


copied = copy.deepcopy(state)
restored = pickle.loads(pickle.dumps(state))
dictionary = {**state}
shared = {key: value for key, value in state.items() if key != "images"}
shared["images"] = state["images"][:]
results = {"copied": rest(copied), "restored": rest(restored), "plain": rest(shared)}
predictor.add_new_points_or_box(dictionary, 2, "new", points=[[20.0, 20.0]], labels=[1])
ids = [list(dictionary["obj_ids"]), dict(dictionary["obj_id_to_idx"]), len(dictionary)]
predictor.reset_state(dictionary)
save(
    plain=plain,
    ids=ids,
    after=[list(state["obj_id_to_idx"]), "images" in state, sorted(set(map(type, state)))[0:0]],
    keys=sorted(state),
    **{f"same_{name}": value for name, value in results.items()},
)
