"""The paper's light Mask2Former on the patch tokens of a frozen encoder (paper IV-D2, [51]).

The parts are those of transformers: pixel decoder, masked-attention decoder, matching and loss. The
three levels of the pixel decoder are the same grid of tokens; there is no pyramid. Every class of a
crop, background too, is one mask to find.
Legend: B = batch, h x w = grid of tokens, D = width, C = classes, Q = queries, S = side in pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pathfm_cli import errors
from pathfm_cli.model import shim
from pathfm_cli.tasks import decoder, masks

# transformers imports torchvision.
shim.apply()

try:
    from transformers.models.mask2former import configuration_mask2former, modeling_mask2former
except ImportError as error:
    raise errors.MissingExtra("The decoder mask2former", "transformers", "segment") from error

configuration: Any = configuration_mask2former
modeling: Any = modeling_mask2former

LEVELS = 3
"""What transformers' pixel decoder takes."""
QUERIES = 32
ENCODER_LAYERS = 4
HEADS = 4
WIDTH = 32
"""Feature size and hidden dimension; all five: paper IV-D2."""
DECODER_LAYERS = 4
"""The paper names none; as many as the encoder has. Each gives a prediction that is trained."""
POINTS = 3136
"""Places at which masks are compared, 56 x 56; the original takes 112 x 112 for larger crops."""


def config(classes: int) -> Any:
    """The paper's numbers; what it does not name is the default of transformers."""
    return configuration.Mask2FormerConfig(
        num_labels=classes,
        num_queries=QUERIES,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        num_attention_heads=HEADS,
        feature_size=WIDTH,
        mask_feature_size=WIDTH,
        hidden_dim=WIDTH,
        train_num_points=POINTS,
        # One stride for all levels and for the masks: no pyramid.
        feature_strides=[4] * LEVELS,
        common_stride=4,
    )


class Mask2Former(modeling.Mask2FormerPreTrainedModel):  # type: ignore[misc]
    """Q queries, each with a class and a mask; a pixel's class is the one with most of both.

    `Mask2FormerPixelDecoder` leaves its level embedding as it finds it in memory; `post_init` of
    the parent class is what gives it, and every other part, their first values.
    """

    def __init__(self, width: int, classes: int) -> None:
        chosen = config(classes)
        super().__init__(chosen)
        self.pixels = modeling.Mask2FormerPixelDecoder(chosen, [width] * LEVELS)
        self.queries = modeling.Mask2FormerTransformerModule(WIDTH, chosen)
        self.classify = nn.Linear(WIDTH, classes + 1)
        self.weights = {
            "loss_cross_entropy": chosen.class_weight,
            "loss_mask": chosen.mask_weight,
            "loss_dice": chosen.dice_weight,
        }
        self.criterion = modeling.Mask2FormerLoss(chosen, self.weights)
        self.post_init()

    def loss(self, tokens_BhwD: torch.Tensor, labels_BSS: torch.Tensor) -> torch.Tensor:
        """As `decoder.Decoder.loss`: the sum over the predictions of all layers.

        A pixel that is not known lies in no mask.
        """
        predictions = self._predict(tokens_BhwD)
        present = [labels.unique() for labels in labels_BSS]
        present = [found[found != masks.IGNORE].long() for found in present]
        wanted = [
            (labels == found[:, None, None]).float()
            for labels, found in zip(labels_BSS, present, strict=True)
        ]
        auxiliary = [
            {"class_queries_logits": classes, "masks_queries_logits": shapes}
            for classes, shapes in predictions[:-1]
        ]
        classes_BQC, shapes_BQhw = predictions[-1]
        parts = self.criterion(shapes_BQhw, classes_BQC, wanted, present, auxiliary)
        total: torch.Tensor = sum(
            (self.weights[name.rstrip("_0123456789")] * part for name, part in parts.items()),
            start=tokens_BhwD.new_zeros(()),
        )
        return total

    def shares(self, tokens_BhwD: torch.Tensor, size_px: int) -> torch.Tensor:
        """As `decoder.Decoder.shares`: class times mask probability, summed over the queries."""
        classes_BQC, shapes_BQhw = self._predict(tokens_BhwD)[-1]
        shapes_BQSS = decoder.enlarge(shapes_BQhw, size_px).sigmoid()
        chances_BQC = classes_BQC.softmax(-1)[..., :-1]
        shares = torch.einsum("bqc,bqst->bcst", chances_BQC, shapes_BQSS)
        return shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)

    def _predict(self, tokens_BhwD: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each layer, class logits (B, Q, C + 1), the last no class, and masks (B, Q, h, w)."""
        grid_BDhw = tokens_BhwD.permute(0, 3, 1, 2).contiguous()
        levels = self.pixels([grid_BDhw] * LEVELS)
        found = self.queries(
            multi_scale_features=levels.multi_scale_features,
            mask_features=levels.mask_features,
        )
        return [
            (self.classify(hidden_QBD.transpose(0, 1)), shapes_BQhw)
            for hidden_QBD, shapes_BQhw in zip(
                found.intermediate_hidden_states, found.masks_queries_logits, strict=True
            )
        ]
