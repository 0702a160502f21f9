"""Images segmented and data loaded in processes that are started by `spawn`."""

import multiprocessing
import subprocess
import sys

import torch
from sam2.utils.amg import build_point_grid

CODE = "from sam2.utils.amg import build_point_grid as b; print(b(3).sum())"


class Grids(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.from_numpy(build_point_grid(index + 1))


def predict(index):
    from common import image_model, image_predictor, segment

    return [x.numpy() for x in segment(image_predictor(image_model()), index)]


if __name__ == "__main__":
    from common import save

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        results = pool.map(predict, [0, 1])
    loader = torch.utils.data.DataLoader(Grids(), 1, num_workers=1, multiprocessing_context="spawn")
    output = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    results = [torch.from_numpy(x) for row in results for x in row]
    save(masks=results, grids=[*loader], subprocess=output.stdout)
