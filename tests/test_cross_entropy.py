"""The head's loss in pieces equals the loss of whole logits, and so do its gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from components import cross_entropy
from components.cross_entropy import linear_cross_entropy


def whole(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, softcap: float) -> torch.Tensor:
    logits = F.linear(hidden, weight).float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("softcap", [0.0, 15.0, 0.5])
@pytest.mark.parametrize("rows_a_piece", [1, 7, 100])
def test_pieces_equal_the_whole(softcap: float, rows_a_piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(cross_entropy, "PIECE_BYTES", 4 * 50 * rows_a_piece)
    hidden, weight = torch.randn(23, 16, dtype=torch.float64), torch.randn(50, 16, dtype=torch.float64)
    targets = torch.randint(50, (23,))
    results = []
    for loss in (whole, linear_cross_entropy):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = loss(h, w, targets, softcap)
        (value / 3).backward()
        results.append((value, h.grad, w.grad))
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(expected.double(), found.double(), rtol=1e-5, atol=1e-6)


def in_pieces(monkeypatch: pytest.MonkeyPatch, loss: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """``loss`` and the leaves that it hangs on; :func:`linear_cross_entropy` goes in pieces."""
    monkeypatch.setattr(cross_entropy, "PIECE_BYTES", 4 * 50 * 7)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator).requires_grad_() for n in (23, 50))
    return loss(hidden, weight, torch.randint(50, (23,), generator=generator), 15.0), hidden, weight


def test_a_second_backward_pass_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for function in (whole, linear_cross_entropy):
        loss, *leaves = in_pieces(monkeypatch, function)
        for factor in (3.0, 0.5):  # as another loss would scale them
            results.append(torch.autograd.grad(factor * loss, leaves, retain_graph=True))
        for _ in range(2):
            (2 * loss).backward(retain_graph=True)
        loss.backward()
        results.append(leaf.grad for leaf in leaves)
    for expected, found in zip(results[:3], results[3:], strict=True):
        for one, other in zip(expected, found, strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_used_twice_has_the_gradient_of_both_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for function in (whole, linear_cross_entropy):
        loss, *leaves = in_pieces(monkeypatch, function)
        (loss.square() + 2 * loss).backward()
        results.append([leaf.grad for leaf in leaves])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(expected, found, rtol=1e-5, atol=1e-4)


def test_a_graph_that_was_not_kept_is_refused_as_autograd_does(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, *_ = in_pieces(monkeypatch, linear_cross_entropy)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_only_the_wanted_gradients_are_made() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4)
    linear_cross_entropy(hidden, weight, torch.randint(9, (5,))).backward()
    assert hidden.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, torch.randint(9, (5,))).requires_grad


def test_under_autocast_the_products_are_in_its_type_and_gradients_in_the_weights() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32, requires_grad=True), torch.randn(100, 32, requires_grad=True)
    targets = torch.randint(100, (64,))
    exact = whole(hidden, weight, targets, 0.0)
    (wanted,) = torch.autograd.grad(exact, weight)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert (weight.grad - wanted).norm() < 0.02 * wanted.norm()


def test_no_rows_are_no_loss() -> None:
    weight = torch.randn(9, 4, requires_grad=True)
    loss = linear_cross_entropy(torch.zeros(0, 4), weight, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(weight.grad, torch.zeros(9, 4))


def test_a_cap_beyond_the_kernels_is_not_its(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the cap for the maximum, and would have nothing left of a sum of exponentials."""

    def kernel(device: str) -> None:
        raise AssertionError("the kernel was asked")

    monkeypatch.setattr(cross_entropy, "PIECE_BYTES", 400)
    monkeypatch.setattr(cross_entropy, "_on", kernel)
    hidden, weight, targets = torch.randn(9, 8), torch.randn(50, 8), torch.randint(50, (9,))
    assert torch.isclose(linear_cross_entropy(hidden, weight, targets, 1e4), whole(hidden, weight, targets, 1e4))
    with pytest.raises(AssertionError):
        linear_cross_entropy(hidden, weight, targets, cross_entropy.LARGEST_CAP)
