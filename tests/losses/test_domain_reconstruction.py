from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden import assert_close, load_golden

from mrt.losses import SOURCE, TARGET, domain_loss, explained_variance, reconstruction_loss


@pytest.mark.parametrize("domain", [SOURCE, TARGET])
def test_recorded_discriminator_losses(domain: int) -> None:
    data = load_golden("discriminators")
    names = {"backbone": "bac", "encoder": "enc", "decoder": "dec"}
    predictions = {name: torch.from_numpy(data[f"out/domain_{short}_all"]) for name, short in names.items()}
    losses = domain_loss(predictions, domain)
    assert_close(losses["domain"], data[f"label{domain}/loss_total"])
    for name, short in names.items():
        assert_close(losses[f"domain_{name}"], data[f"label{domain}/loss_domain_{short}"])


def test_weights_and_subsets() -> None:
    predictions = {"backbone": torch.randn(1, 2, 3, 2), "decoder": torch.randn(1, 4, 2)}
    losses = domain_loss(predictions, SOURCE, weights={"backbone": 0.5, "decoder": 2.0})
    expected = 0.5 * losses["domain_backbone"] + 2 * losses["domain_decoder"]
    torch.testing.assert_close(losses["domain"], expected)


def test_reconstruction_over_masked_cells() -> None:
    reconstruction, target = (torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2))
    mask, padding = torch.rand(2, 4, 5) < 0.5, torch.zeros(2, 4, 5, dtype=torch.bool)
    padding[1, :, 3:] = True
    loss = reconstruction_loss(reconstruction, target, mask, padding, over="masked")
    cells = (mask & ~padding)[:, None].expand_as(target)
    torch.testing.assert_close(loss, F.mse_loss(reconstruction[cells], target[cells]))
    loss.backward()
    assert target.grad is None and not reconstruction.grad[~cells].any()
    everywhere = reconstruction_loss(reconstruction, target)
    torch.testing.assert_close(everywhere, F.mse_loss(reconstruction, target))
    assert reconstruction_loss(reconstruction, target, torch.zeros_like(mask), over="masked") == 0


def test_reconstruction_arguments() -> None:
    maps = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match="needs the mask"):
        reconstruction_loss(maps, maps, over="masked")
    with pytest.raises(ValueError, match="visible"):
        reconstruction_loss(maps, maps, over="visible")


def test_explained_variance() -> None:
    target, mask = torch.randn(2, 3, 4, 5), torch.rand(2, 4, 5) < 0.7
    padding = torch.zeros(2, 4, 5, dtype=torch.bool)
    padding[1, :, 3:] = True
    cells = (mask & ~padding)[:, None].expand_as(target)
    nothing = target[:, :, 0, 0].new_zeros(3)
    for channel in range(3):
        nothing[channel] = target[:, channel][cells[:, channel]].mean()
    mean = nothing[None, :, None, None].expand_as(target)
    guesses = {1.0: target, 0.0: mean, 0.75: (target + mean) / 2, -3.0: mean + 3 * (target - mean)}
    for share, guess in guesses.items():
        found = explained_variance(torch.where(cells, guess, 99.0), target, mask, padding)
        torch.testing.assert_close(found, torch.tensor(share), atol=1e-5, rtol=0)
    assert explained_variance(target, target, torch.zeros_like(mask)) == 0
