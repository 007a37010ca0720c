"""The best (query, class) pairs against the recorded numbers."""

from __future__ import annotations

import torch
from golden import assert_close

from mrt.models.postprocess import top_detections


def test_top_detections_reproduce_golden(golden):
    data = golden("post_process")
    sizes = [tuple(size) for size in data["in/image_sizes_hw"].tolist()]
    found = top_detections(torch.from_numpy(data["in/logits"]), torch.from_numpy(data["in/boxes"]), sizes)
    for index, image in enumerate(found):
        assert torch.equal(image["labels"], torch.from_numpy(data[f"out/img{index}.labels"]))
        assert_close(image["scores"], data[f"out/img{index}.scores"])
        assert_close(image["boxes"], data[f"out/img{index}.boxes"])


def test_fewer_pairs_than_wanted():
    found = top_detections(torch.zeros(1, 3, 2), torch.full((1, 3, 4), 0.5), [(10, 20)], k=100)
    assert found[0]["scores"].shape == (6,)
    assert torch.equal(found[0]["boxes"][0], torch.tensor([5.0, 2.5, 15.0, 7.5]))
