"""Adversarial alignment (L_domain; paper, section 3.1): discriminators tell source from target, the detector
learns to prevent it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from mrt.data.loader import Batch
from mrt.domains import DOMAINS
from mrt.losses import Loss, domain_loss
from mrt.models.discriminators import Discriminators
from mrt.models.interface import Detector
from mrt.parts.base import Look, Moment, Needs, Part, Seen, Site

if TYPE_CHECKING:
    from mrt.config import Config


class Align(Part):
    """Three discriminators behind a gradient reversal layer.

    Attributes:
        discriminators: of the backbone's last map, of each level of the encoder's output, of the decoder's
            queries.
    """

    name = "align"

    def is_on(self, config: Config) -> bool:
        """``domain.enabled``."""
        return config.domain.enabled

    def needs(self, config: Config) -> Needs:
        """Images of both domains, through the whole detector."""
        return Needs(detect=frozenset(DOMAINS), target=True)

    def networks(self, site: Site) -> dict[str, nn.Module]:
        """New discriminators."""
        self.discriminators = build_discriminators(site.config, site.detector)
        return {"discriminators": self.discriminators}

    def before_step(self, batches: Sequence[Mapping[str, Batch]], look: Look | None, moment: Moment) -> None:
        """eta grows to ``domain.reversal`` over the share ``domain.ramp`` of the stage."""
        settings = self.site.config.domain
        grown = min(1.0, moment.step / (settings.ramp * moment.total)) if settings.ramp else 1.0
        self.discriminators.eta = settings.reversal * grown

    def losses(self, seen: Seen) -> list[Loss]:
        """Two-way cross entropy of each discriminator, and their weighted sum."""
        settings = self.site.config.domain
        weights = {
            "backbone": settings.backbone_weight,
            "encoder": settings.encoder_weight,
            "decoder": settings.decoder_weight,
        }
        verdicts = [(item.rows, self.discriminators(item.output)) for item in seen.passes]
        losses = []
        for number, domain in enumerate(DOMAINS):
            rows, logits = next((rows[domain], logits) for rows, logits in verdicts if domain in rows)
            found = domain_loss({name: value[rows] for name, value in logits.items()}, number, weights)
            losses += [
                Loss(domain, name, value, 1.0 if name == "domain" else None) for name, value in found.items()
            ]
        return losses


def build_discriminators(config: Config, detector: Detector) -> Discriminators:
    """New discriminators for a detector."""
    return Discriminators(
        detector.hidden_dim, detector.num_levels, detector.backbone.channels[-1], eta=config.domain.reversal
    )
