"""The deformable transformer: an encoder over the cells of all levels and a decoder over queries.

Tokens are (B, S, d) throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mrt.errors import MrtError
from mrt.models.attention import MSDeformAttn
from mrt.models.fast.lean import feed_forward
from mrt.models.fast.precision import LayerNorm, as_products_take_it
from mrt.models.position import SpatialShapes, cell_centres, encode_boxes

PROPOSAL_CHANNELS = 128  # per number of a proposal's box, as in Deformable DETR


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, normalised after each."""

    def __init__(
        self,
        hidden_dim: int,
        num_levels: int,
        num_heads: int,
        num_points: int,
        feedforward_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(hidden_dim, num_levels, num_heads, num_points)
        self.norm1 = LayerNorm(hidden_dim)
        self.linear1 = nn.Linear(hidden_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, hidden_dim)
        self.norm2 = LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        reference_points: Tensor,
        spatial_shapes: SpatialShapes,
        token_mask: Tensor | None,
    ) -> Tensor:
        """(B, S, d) -> (B, S, d); see :class:`MSDeformAttn` for the other arguments."""
        attended = self.self_attn(tokens, position, reference_points, tokens, spatial_shapes, token_mask)
        return self.finish(tokens, attended)

    def finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """The part after the attention, in which tokens do not interact: (B, S, d) twice -> (B, S, d)."""
        tokens = self.norm1(tokens + self.dropout(attended))
        changed = feed_forward(tokens, self.linear1, self.linear2, self.dropout.p if self.training else 0.0)
        return self.norm2(tokens + self.dropout(changed))


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer`.

    With ``checkpointing`` their activations are recomputed in the backward pass instead of kept.
    """

    def __init__(self, num_layers: int, **layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(**layer) for _ in range(num_layers))
        self.checkpointing = False

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        reference_points: Tensor,
        spatial_shapes: SpatialShapes,
        token_mask: Tensor | None,
    ) -> Tensor:
        """(B, S, d) -> memory (B, S, d)."""
        for layer in self.layers:
            inputs = (tokens, position, reference_points, spatial_shapes, token_mask)
            again = self.checkpointing and torch.is_grad_enabled()
            tokens = checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs)
        return tokens


class DecoderLayer(nn.Module):
    """Self-attention of the queries, deformable cross-attention into the memory, and a feed-forward network.

    Each is followed by a norm.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_levels: int,
        num_heads: int,
        num_points: int,
        feedforward_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.cross_attn = MSDeformAttn(hidden_dim, num_levels, num_heads, num_points)
        self.norm1 = LayerNorm(hidden_dim)
        self.self_attn = nn.MultiheadAttention(hidden_dim, num_heads, dropout=dropout, batch_first=True)
        self.norm2 = LayerNorm(hidden_dim)
        self.linear1 = nn.Linear(hidden_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, hidden_dim)
        self.norm3 = LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        spatial_shapes: SpatialShapes,
        memory_mask: Tensor | None,
    ) -> Tensor:
        """(B, Q, d) -> (B, Q, d); ``reference_points`` (B, Q, L, 2 or 4)."""
        placed = queries + position
        attended = self.self_attn(placed, placed, queries, need_weights=False)[0]
        queries = self.norm2(queries + self.dropout(attended))
        attended = self.cross_attn(queries, position, reference_points, memory, spatial_shapes, memory_mask)
        return self.finish(self.norm1(queries + self.dropout(attended)))

    def finish(self, queries: Tensor) -> Tensor:
        """The feed-forward network: (B, Q, d) -> (B, Q, d)."""
        changed = feed_forward(queries, self.linear1, self.linear2, self.dropout.p if self.training else 0.0)
        return self.norm3(queries + self.dropout(changed))


class Decoder(nn.Module):
    """A stack of :class:`DecoderLayer`, optionally moving its reference points after each layer."""

    def __init__(self, num_layers: int, **layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(**layer) for _ in range(num_layers))

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Tensor,
        spatial_shapes: SpatialShapes,
        valid_ratios: Tensor,
        memory_mask: Tensor | None,
        refine: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            queries, position: (B, Q, d) content and position of the queries.
            references: (B, Q, 2) points or (B, Q, 4) boxes as fractions of the image.
            memory: (B, S, d).
            spatial_shapes: (h, w) per level.
            valid_ratios: (B or 1, L, 2).
            memory_mask: (B, S) bool or None.
            refine: called with a layer's number, queries and references; returns boxes (B, Q, 4), which are
                the references of the next layer.

        Returns:
            Queries after each layer (layers, B, Q, d), and the results of ``refine`` per layer (empty without
            it).
        """
        outputs, boxes = [], []
        queries, position, memory = (as_products_take_it(x) for x in (queries, position, memory))
        for index, layer in enumerate(self.layers):
            ratios = valid_ratios
            if references.shape[-1] == 4:
                ratios = torch.cat((valid_ratios, valid_ratios), -1)
            points = references[:, :, None] * ratios[:, None]
            queries = layer(queries, position, points, memory, spatial_shapes, memory_mask)
            outputs.append(queries)
            if refine is not None:
                boxes.append(refine(index, queries, references))
                references = boxes[-1].detach()
        return torch.stack(outputs), boxes


class GridReferences(nn.Module):
    """Learned reference points that start on a regular grid and do not depend on the query's embedding."""

    def __init__(self, num_queries: int) -> None:
        super().__init__()
        self.points = nn.Parameter(grid_points(num_queries).logit())

    def forward(self, position: Tensor) -> Tensor:
        """(B, Q, d) -> (B, Q, 2) before the sigmoid."""
        return self.points.expand(*position.shape[:2], 2)


def grid_points(count: int) -> Tensor:
    """``count`` points spread evenly over the unit square: (count, 2).

    They have twice as many columns as rows, because most images are wide.
    """
    rows = max(1, round(math.sqrt(count / 2)))
    per_row = [count // rows + (row < count % rows) for row in range(rows)]
    points = []
    for row, columns in enumerate(per_row):
        points += [((column + 0.5) / columns, (row + 0.5) / rows) for column in range(columns)]
    return torch.tensor(points, dtype=torch.float32)


class DeformableTransformer(nn.Module):
    """Encoder, decoder and the initial queries. Parameter names are those of Deformable DETR's checkpoints.

    Args:
        two_stage: queries start from the encoder's best proposals instead of learned embeddings.
        query_init: "learned": a linear layer computes the reference point from the query's position; "grid":
            :class:`GridReferences`.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        feedforward_dim: int,
        num_levels: int,
        num_points: int,
        dropout: float = 0.1,
        *,
        two_stage: bool = False,
        query_init: str = "learned",
        num_queries: int = 300,
    ) -> None:
        super().__init__()
        layer = {
            "hidden_dim": hidden_dim,
            "num_levels": num_levels,
            "num_heads": num_heads,
            "num_points": num_points,
            "feedforward_dim": feedforward_dim,
            "dropout": dropout,
        }
        self.level_embed = nn.Parameter(torch.empty(num_levels, hidden_dim))
        self.encoder = Encoder(num_encoder_layers, **layer)
        self.decoder = Decoder(num_decoder_layers, **layer)
        if two_stage:
            self.enc_output = nn.Linear(hidden_dim, hidden_dim)
            self.enc_output_norm = LayerNorm(hidden_dim)
            self.pos_trans = nn.Linear(4 * PROPOSAL_CHANNELS, 2 * hidden_dim)
            self.pos_trans_norm = LayerNorm(2 * hidden_dim)
        elif query_init == "grid":
            self.reference_points = GridReferences(num_queries)
        elif query_init == "learned":
            self.reference_points = nn.Linear(hidden_dim, 2)
        else:
            raise MrtError(f'query_init is "{query_init}"', 'Choose "learned" or "grid".')
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every matrix with Xavier's method, then the attention modules with their own."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and not name.endswith("points.points"):
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        if isinstance(getattr(self, "reference_points", None), nn.Linear):
            nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def encode(
        self,
        tokens: Tensor,
        positions: Tensor,
        spatial_shapes: SpatialShapes,
        reference_points: Tensor,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """Encode the cells of all levels.

        Args:
            tokens: (B, S, d) projected features, one level after the other.
            positions: (B or 1, S, d) sine encoding; the level embedding is added here.
            spatial_shapes: (h, w) per level.
            reference_points: (B or 1, S, L, 2) from :func:`mrt.models.position.encoder_reference_points`.
            token_mask: (B, S) bool, True = the cell's value is set to zero.

        Returns:
            The memory (B, S, d).
        """
        embeddings = zip(self.level_embed, spatial_shapes, strict=True)
        levels = torch.cat([embedding.expand(h * w, -1) for embedding, (h, w) in embeddings])
        reference_points = reference_points.expand(tokens.shape[0], -1, -1, -1)
        tokens, positions = as_products_take_it(tokens), as_products_take_it(positions + levels)
        return self.encoder(tokens, positions, reference_points, spatial_shapes, token_mask)

    def propose(
        self, memory: Tensor, spatial_shapes: SpatialShapes, valid_ratios: Tensor, memory_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One candidate box per cell, centred on it, with sides of 0.05 * 2**level of the image's sides.

        Returns:
            Features of the candidates (B, S, d), their boxes before the sigmoid (B or 1, S, 4), and which of
            them may be chosen (B or 1, S): those that are not padding and whose four numbers are inside
            (0.01, 0.99). The features of the others are those of an empty cell.
        """
        centres = cell_centres(spatial_shapes, valid_ratios)
        sides = [min(0.05 * 2.0**level, 0.8) for level in range(len(spatial_shapes))]
        sized = zip(sides, spatial_shapes, strict=True)
        sizes = torch.cat([centres.new_full((h * w, 2), side) for side, (h, w) in sized])
        boxes = torch.cat((centres, sizes.expand_as(centres)), -1)
        # A centre can lie exactly on a limit: with 50 cells in a row one does. Runtimes of exported programs
        # round divisions differently, so there such a centre has to be clearly beyond the limit.
        edge = 1e-6 if torch.compiler.is_exporting() else 0.0
        valid = ((boxes > 0.01 + edge) & (boxes < 0.99 - edge)).all(-1)
        if memory_mask is not None:
            valid = valid & ~memory_mask
        boxes = boxes.clamp(0.01, 0.99).logit()
        features = self.enc_output_norm(self.enc_output(memory.masked_fill(~valid[..., None], 0.0)))
        return features, boxes, valid

    def queries_of_proposals(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Position and content, (B, Q, d) each, of chosen proposals (B, Q, 4) in [0, 1]."""
        embedded = self.pos_trans_norm(self.pos_trans(encode_boxes(boxes, PROPOSAL_CHANNELS)))
        position, content = embedded.chunk(2, -1)
        return position, content


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """Per level (B, d, h, w) to (B, S, d)."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
