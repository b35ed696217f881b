"""The contrastive losses of CLIP and SigLIP, for one process or many. Pure functions."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def info_nce(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP, arXiv:2103.00020, fig. 3), summed over this rank's rows.

    Negatives come from all ranks.

    Args:
        images: (B, D) unit rows of this rank; row i belongs to row i of `texts`.
        texts: (B, D) unit rows of this rank.
        scale: scalar, the inverse temperature.

    Returns:
        Scalar sum over rows of the mean of both directions' cross-entropies, in nats.
    """
    all_images, all_texts = gather_rows(images), gather_rows(texts)  # (W B, D)
    own = torch.arange(len(images), device=images.device) + _rank() * len(images)
    image_to_text = F.cross_entropy(scale * images @ all_texts.T, own, reduction="sum")
    text_to_image = F.cross_entropy(scale * texts @ all_images.T, own, reduction="sum")
    return (image_to_text + text_to_image) / 2


def sigmoid_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, arXiv:2303.15343, sec. 3.2), summed over this rank's images.

    Args:
        images: (B, D) unit rows of this rank; row i belongs to row i of `texts`.
        texts: (B, D) unit rows of this rank; those of all other ranks are negatives.
        scale: scalar, the inverse temperature.
        bias: scalar, added to the logits as in the paper's algorithm 1; its eq. 1 has the other sign.

    Returns:
        Scalar sum over rows and over all ranks' texts, in nats.
    """
    chunks = gather_rows(texts).split(len(images))
    return chunked_sigmoid_loss(images, chunks, _rank(), scale, bias)


def chunked_sigmoid_loss(
    images: Tensor, chunks: Sequence[Tensor], own: int, scale: Tensor, bias: Tensor
) -> Tensor:
    """The sigmoid loss, a chunk of texts at a time: no logits beyond one chunk's are alive (sec. 3.3).

    Args:
        images: (B, D) unit rows.
        chunks: of texts, each (B, D).
        own: the chunk whose row i belongs to image i; all else are negatives.

    Returns:
        Scalar, in nats.
    """
    if len(chunks) == 1:
        return _sigmoid_chunk(images, chunks[0], True, scale, bias)
    terms = [  # recomputed in backward, which would otherwise need the logits of all chunks
        checkpoint(_sigmoid_chunk, images, texts, i == own, scale, bias, use_reentrant=False)
        for i, texts in enumerate(chunks)
    ]
    return torch.stack(terms).sum()


def _sigmoid_chunk(images: Tensor, texts: Tensor, paired: bool, scale: Tensor, bias: Tensor) -> Tensor:
    """One chunk's sum over all pairs; `paired`: row i of the texts belongs to row i of the images."""
    logits = scale * images @ texts.T + bias  # (B, B)
    partners = torch.eye(len(images), dtype=images.dtype, device=images.device) * paired
    return -F.logsigmoid((2 * partners - 1) * logits).sum()


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient to every rank: (B, D) -> (W B, D)."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    return torch.cat(dist_nn.all_gather(rows.contiguous()))


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
