"""Matching predictions with targets, and the losses of the pairs (Carion et al. 2020; Misra et al. 2021).

Shapes: `B` scenes, `Q` queries, `T` rows of targets, of which the first `counts` are real, `A` bins of angles; lists of outputs begin with
the last layer.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detection.boxes import box_corners, generalized_iou
from models.losses import at_least_float
from utils.dist import all_reduce_sum, world_size

Outputs = Mapping[str, Tensor]
HOPELESS = 1e9  # cost of a pair that is not finite: the loss of such outputs stops the run, not the matching


class SetCriterion(nn.Module):
    """Match each layer's predictions with the targets and add up the losses of all layers, all with weight 1.

    Args:
        config: keys `matcher_*_cost`, `loss_*_weight`, `num_classes`, `num_angle_bins`.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        weights = torch.ones(config.num_classes + 1)
        weights[-1] = config.loss_no_object_weight
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, layers: Sequence[Outputs], targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss and the weighted losses by name.

        Args:
            layers: outputs of each decoder layer, the last one first, the others in their order.
            targets: what `datasets.scenes.targets` makes of boxes, batched.

        Losses of the last layer have plain names, those of layer k end with `_<k>`. With several processes sums are divided by the counts
        of all of them, so that the mean over the processes is what one process would compute.
        """
        counts = targets["gt_box_present"].sum(1).long()  # (B,)
        stacked = {key: torch.stack([outputs[key] for outputs in layers]) for key in layers[0]}
        gious = self.gious(stacked["box_corners"], targets, counts)
        matches = self.match(stacked, gious, targets, counts)
        total, values = 0, {}
        for number, outputs in enumerate(layers):
            losses = self._losses(outputs, gious[number], matches[number], targets, counts)
            total = total + sum(loss for name, loss in losses.items() if name != "loss_cardinality")
            values |= {name + (f"_{number - 1}" if number else ""): loss for name, loss in losses.items()}
        return total, values

    @staticmethod
    def gious(corners: Tensor, targets: Mapping[str, Tensor], counts: Tensor) -> Tensor:
        """Return the generalised IoU (layers, B, Q, T) of all predictions with all targets."""
        with torch.autocast(corners.device.type, enabled=False):
            corners = at_least_float(corners)
            keys = ("gt_box_centers", "gt_box_sizes", "gt_box_angles")
            target = box_corners(*(targets[key].to(corners.dtype) for key in keys))
            return generalized_iou(corners, target.expand(len(corners), -1, -1, -1, -1), counts)

    def costs(self, outputs: Outputs, gious: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return what it costs to match each query with each target, (layers, B, Q, T), without gradient."""
        config = self.config
        labels = targets["gt_box_sem_cls_label"][None, :, None].expand(*gious.shape)  # (layers, B, Q, T)
        probabilities = outputs["sem_cls_prob"].detach().gather(-1, labels)
        cost = -config.matcher_cls_cost * probabilities - config.matcher_giou_cost * gious.detach()
        if config.matcher_objectness_cost:
            cost = cost - config.matcher_objectness_cost * outputs["objectness_prob"].detach().unsqueeze(-1)
        if config.matcher_center_cost:
            theirs = targets["gt_box_centers_normalized"].expand(len(gious), -1, -1, -1)
            cost = cost + config.matcher_center_cost * torch.cdist(outputs["center_normalized"].detach(), theirs, p=1)
        return cost

    @torch.no_grad()
    def match(self, outputs: Outputs, gious: Tensor, targets: Mapping[str, Tensor], counts: Tensor) -> Tensor:
        """Return the target of each query of each layer, or -1: (layers, B, Q) int64; of least total cost in each scene and layer."""
        from scipy.optimize import linear_sum_assignment  # here, because other models start without it

        cost = self.costs(outputs, gious, targets).float().cpu().numpy()
        cost = np.nan_to_num(cost, nan=HOPELESS, posinf=HOPELESS, neginf=-HOPELESS)
        matched = np.full(cost.shape[:3], -1, np.int64)
        for layer, scene in np.ndindex(*cost.shape[:2]):
            count = int(counts[scene])
            if count:
                queries, found = linear_sum_assignment(cost[layer, scene, :, :count])
                matched[layer, scene, queries] = found
        return torch.from_numpy(matched).to(gious.device)

    def _losses(
        self, outputs: Outputs, gious: Tensor, matched: Tensor, targets: Mapping[str, Tensor], counts: Tensor
    ) -> dict[str, Tensor]:
        config, pair = self.config, matched.clamp(min=0)  # (B, Q)
        real = (matched >= 0).to(gious.dtype)
        number = all_reduce_sum(counts.sum().to(gious.dtype)) / world_size()
        number = number.clamp(min=1.0 / world_size())

        def mean(values: Tensor) -> Tensor:
            """Add up values (B, Q) of the pairs, and divide by the number of targets."""
            return torch.where(real > 0, values, 0.0).sum() / number

        def theirs(key: str) -> Tensor:
            rows = targets[key]
            return rows.gather(1, pair.view(*pair.shape, *[1] * (rows.dim() - 2)).expand(-1, -1, *rows.shape[2:]))

        labels = torch.where(matched >= 0, theirs("gt_box_sem_cls_label"), config.num_classes)
        bins = theirs("gt_angle_class_label")
        angles = at_least_float(outputs["angle_logits"])
        wrong_bin = F.cross_entropy(angles.flatten(0, 1), bins.flatten(), reduction="none").view(pair.shape)
        residual = outputs["angle_residual_normalized"].gather(-1, bins.unsqueeze(-1)).squeeze(-1)
        aim = theirs("gt_angle_residual_label") / (torch.pi / config.num_angle_bins)
        center = (outputs["center_normalized"] - theirs("gt_box_centers_normalized")).abs().sum(-1)
        size = (outputs["size_normalized"] - theirs("gt_box_sizes_normalized")).abs().sum(-1)
        return {
            "loss_giou": config.loss_giou_weight * mean(1 - gious.gather(-1, pair.unsqueeze(-1)).squeeze(-1)),
            "loss_sem_cls": config.loss_sem_cls_weight * self._classification(outputs["sem_cls_logits"], labels),
            "loss_angle_cls": config.loss_angle_cls_weight * mean(wrong_bin),
            "loss_angle_reg": config.loss_angle_reg_weight
            * mean(F.huber_loss(residual, aim.to(residual.dtype), reduction="none")),
            "loss_center": config.loss_center_weight * mean(center),
            "loss_size": config.loss_size_weight * mean(size),
            "loss_cardinality": self._cardinality(outputs["sem_cls_logits"], counts),
        }

    def _classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted mean of the cross entropies of all queries, (B, Q, classes + 1) against (B, Q)."""
        logits, weights = at_least_float(logits), self.class_weights
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights.to(logits.dtype), reduction="none")
        total = weights[labels].to(logits.dtype).sum()
        return losses.sum() / (all_reduce_sum(total) / world_size())

    @staticmethod
    @torch.no_grad()
    def _cardinality(logits: Tensor, counts: Tensor) -> Tensor:
        """Return by how much the number of objects is wrong, mean over the scenes; for the log."""
        objects = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
        return (objects - counts).abs().to(at_least_float(logits).dtype).mean()
