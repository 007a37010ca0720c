"""Pseudo labels: what the teacher is sure enough of to teach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from mrt.boxes import cxcywh_to_xyxy
from mrt.host import HostCopy, to_device


class PendingLabels:
    """Pseudo labels whose predictions are on their way to the host: the best class of each query where its score is strictly above
    that class's threshold, after class-agnostic NMS.

    The predictions cross to the host in one copy, without waiting, and the labels go back in one: the host must learn their number anyway.

    Args:
        logits: (B, Q, C) of the teacher's last layer.
        boxes: (B, Q, 4) cxcywh.
        thresholds: (C,).
        nms_iou: of two boxes that overlap more than this, the lower score goes.
        ignore_above: queries below the threshold but above this score are reported as ``ignore_boxes``, neither object nor background.
    """

    @torch.no_grad()
    def __init__(
        self, logits: Tensor, boxes: Tensor, thresholds: Tensor, nms_iou: float = 0.7, ignore_above: float | None = None
    ) -> None:
        self.device, self.nms_iou, self.ignore_above = logits.device, nms_iou, ignore_above
        scores, labels = logits.float().sigmoid().max(-1)
        passes = scores > thresholds.to(logits.device)[labels]
        self._rows = HostCopy(torch.cat((boxes.float(), torch.stack((scores, labels.float(), passes.float()), dim=-1)), dim=-1))

    @torch.no_grad()
    def result(self) -> list[dict[str, Tensor]]:
        """Per image, in order of falling score: ``scores`` (n,), ``labels`` (n,) int64, ``boxes`` (n, 4) cxcywh, and with
        ``ignore_above`` also ``ignore_boxes`` (m, 4) and ``ignore_labels`` (m,). Same device as the logits, float32."""
        chosen: list[Tensor] = []
        for image in self._rows.result():
            good = image[image[:, 6] > 0]
            chosen.append(good[nms(cxcywh_to_xyxy(good[:, :4]), good[:, 4], self.nms_iou)])
            if self.ignore_above is not None:
                unsure = image[(image[:, 6] == 0) & (image[:, 4] > self.ignore_above)]
                chosen.append(unsure[batched_nms(cxcywh_to_xyxy(unsure[:, :4]), unsure[:, 4], unsure[:, 5], self.nms_iou)])
        parts = to_device(torch.cat(chosen), self.device).split([len(part) for part in chosen])
        step = 1 if self.ignore_above is None else 2
        result = [{"scores": part[:, 4], "labels": part[:, 5].long(), "boxes": part[:, :4]} for part in parts[::step]]
        if self.ignore_above is not None:
            for labelled, part in zip(result, parts[1::2], strict=True):
                labelled.update(ignore_boxes=part[:, :4], ignore_labels=part[:, 5].long())
        return result


def pseudo_labels(
    logits: Tensor, boxes: Tensor, thresholds: Tensor, nms_iou: float = 0.7, ignore_above: float | None = None
) -> list[dict[str, Tensor]]:
    """The labels at once; arguments and result as :class:`PendingLabels`'s."""
    return PendingLabels(logits, boxes, thresholds, nms_iou, ignore_above).result()


class LabelCount:
    """How many pseudo labels of each class the images of an epoch got; kept on the device, read once per epoch.

    Args:
        num_classes: C.
        device: where the labels are.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes + 1, dtype=torch.float64, device=device)  # last: images

    @torch.no_grad()
    def add(self, labels: Sequence[dict[str, Tensor]]) -> None:
        """Count the labels of some images, as :func:`pseudo_labels` gives them."""
        found = torch.cat([image["labels"] for image in labels])
        self.counts.index_add_(0, found, self.counts.new_ones(()).expand(len(found)))
        self.counts[-1] += len(labels)

    def read(self, all_reduce: Callable[[Tensor], Tensor] | None = None) -> list[float]:
        """Labels of each class per image (C numbers), over all processes; counting begins anew. Empty where no image was seen."""
        if all_reduce is not None:
            self.counts = all_reduce(self.counts)
        *labels, images = self.counts.tolist()
        self.counts = torch.zeros_like(self.counts)
        return [count / images for count in labels] if images else []
