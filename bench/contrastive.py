"""The contrastive loss of CLIP (arXiv:2103.00020, fig. 3), for one process or many. Pure functions."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor


def info_nce(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE, summed over this rank's rows; negatives come from all ranks.

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


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient to every rank: (B, D) -> (W B, D)."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    return torch.cat(dist_nn.all_gather(rows.contiguous()))


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
