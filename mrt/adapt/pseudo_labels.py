"""Pseudo labels: the teacher's confident detections, from which the student learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from mrt.boxes import cxcywh_to_xyxy
from mrt.host import HostCopy, to_device, wide


class PendingLabels:
    """Pseudo labels whose predictions are being copied to the host.

    A query's best class becomes a label if its score is strictly above that class's threshold and
    class-agnostic NMS keeps it. A query whose scores or box are not finite never does.

    All predictions are copied to the host at once, without waiting, and the labels are copied back at once.
    The host needs to know the number of labels anyway.

    Args:
        logits: (B, Q, C) of the teacher's last layer.
        boxes: (B, Q, 4) cxcywh.
        thresholds: (C,).
        nms_iou: of two boxes that overlap more than this, the one with the lower score is dropped.
        ignore_above: queries below the threshold but above this score are reported as ``ignore_boxes``, which
            are neither object nor background.
        possible: (C,) lower thresholds: what would be a label with them is in ``possible`` afterwards.

    Attributes:
        on_host: the result on the host. possible: (n,) scores and (n,) int64 classes, on the host, of all
            images; None without the argument.
    """

    @torch.no_grad()
    def __init__(
        self,
        logits: Tensor,
        boxes: Tensor,
        thresholds: Tensor,
        nms_iou: float = 0.7,
        ignore_above: float | None = None,
        possible: Tensor | None = None,
    ) -> None:
        self.device, self.nms_iou, self.ignore_above = logits.device, nms_iou, ignore_above
        self.on_host: list[dict[str, Tensor]] | None = None
        self.possible: tuple[Tensor, Tensor] | None = None
        self._counts = possible is not None
        scores, labels = logits.float().sigmoid().max(-1)
        # NaN boxes would pass NMS, whose comparisons with them are all false.
        finite = boxes.isfinite().all(-1) & scores.isfinite()
        scores = torch.where(finite, scores, -1.0)
        passes = scores > thresholds.to(logits.device)[labels]
        facts = torch.stack((scores, labels.float(), passes.float()), dim=-1)
        if possible is not None:
            could = scores > possible.to(logits.device)[labels]
            facts = torch.cat((facts, could[..., None].float()), dim=-1)
        self._rows = HostCopy(torch.cat((boxes.float(), facts), dim=-1))

    @torch.no_grad()
    def result(self) -> list[dict[str, Tensor]]:
        """The labels of each image, highest score first, on the device of the logits, float32.

        They are ``scores`` (n,), ``labels`` (n,) int64, ``boxes`` (n, 4) cxcywh, and with ``ignore_above``
        also ``ignore_boxes`` (m, 4) and ``ignore_labels`` (m,). Afterwards ``on_host`` holds the same on the
        host.
        """
        chosen: list[Tensor] = []
        possible: list[Tensor] = []
        for image in self._rows.result():
            chosen.append(self._best(image[image[:, 6] > 0]))
            if self._counts:
                possible.append(self._best(image[image[:, 7] > 0]))
            if self.ignore_above is not None:
                unsure = image[(image[:, 6] == 0) & (image[:, 4] > self.ignore_above)]
                corners = cxcywh_to_xyxy(unsure[:, :4])
                chosen.append(unsure[batched_nms(corners, unsure[:, 4], unsure[:, 5], self.nms_iou)])
        if possible:
            rows = torch.cat(possible)
            self.possible = rows[:, 4], rows[:, 5].long()
        self.on_host = self._targets(chosen)
        return self._targets(to_device(torch.cat(chosen), self.device).split([len(part) for part in chosen]))

    def _best(self, rows: Tensor) -> Tensor:
        return rows[nms(cxcywh_to_xyxy(rows[:, :4]), rows[:, 4], self.nms_iou)]

    def _targets(self, parts: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        step = 1 if self.ignore_above is None else 2
        result = []
        for part in parts[::step]:
            result.append({"scores": part[:, 4], "labels": part[:, 5].long(), "boxes": part[:, :4]})
        if self.ignore_above is not None:
            for labelled, part in zip(result, parts[1::2], strict=True):
                labelled.update(ignore_boxes=part[:, :4], ignore_labels=part[:, 5].long())
        return result


def pseudo_labels(
    logits: Tensor, boxes: Tensor, thresholds: Tensor, nms_iou: float = 0.7, ignore_above: float | None = None
) -> list[dict[str, Tensor]]:
    """The labels without waiting in between; arguments and result as in :class:`PendingLabels`."""
    return PendingLabels(logits, boxes, thresholds, nms_iou, ignore_above).result()


class LabelCount:
    """The number of pseudo labels of each class in an epoch; kept on the device, read once per epoch.

    Args:
        num_classes: C.
        device: where the labels are.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes + 1, dtype=wide(device), device=device)  # last: images

    @torch.no_grad()
    def add(self, labels: Sequence[dict[str, Tensor]]) -> None:
        """Count the labels of some images, in the form of :func:`pseudo_labels`."""
        found = torch.cat([image["labels"] for image in labels])
        self.counts.index_add_(0, found, self.counts.new_ones(()).expand(len(found)))
        self.counts[-1] += len(labels)

    def read(self, all_reduce: Callable[[Tensor], Tensor] | None = None) -> list[float]:
        """Labels of each class per image (C numbers) over all processes; then counting starts again at 0.

        Args:
            all_reduce: sums a tensor over processes; leave out in a single process.

        Returns:
            C numbers; an empty list if there was no image.
        """
        if all_reduce is not None:
            self.counts = all_reduce(self.counts)
        *labels, images = self.counts.tolist()
        self.counts = torch.zeros_like(self.counts)
        return [count / images for count in labels] if images else []
