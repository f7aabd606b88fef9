"""Checks of torch's own, under impersonation."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from kernbench.triton import impersonate  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def gpu():
    with impersonate("cuda:90") as ctx:
        yield ctx


@pytest.mark.parametrize("device", ["cuda", "cpu", None])
def test_checkpointing_computes_again_what_it_did_not_keep(device):
    x = torch.randn(4, 5, device=device, requires_grad=True)
    for reentrant in (False, True):
        x.grad = None
        checkpoint(lambda t: (t.exp() * torch.arange(5.0, device=device)).sum(), x, use_reentrant=reentrant).backward()
        torch.testing.assert_close(x.grad, x.detach().exp() * torch.arange(5.0, device=device))


def test_checkpointing_still_sees_what_has_changed():
    sizes = iter((3, 4))
    x = torch.randn(3, device="cuda", requires_grad=True)
    y = checkpoint(lambda t: t.sum() * torch.ones(next(sizes), device="cuda").exp() * t.sum(), x, use_reentrant=False)
    with pytest.raises(torch.utils.checkpoint.CheckpointError, match="different metadata"):
        y.sum().backward()


def test_a_tensor_of_no_stated_device_compares_with_both():
    there, plain = torch.arange(3, device="cuda"), torch.tensor([0, 1, 2])
    for one, other in ((there.cpu(), plain), (plain, there.cpu()), (there, plain), (plain, plain + 0)):
        torch.testing.assert_close(one, other)
    with pytest.raises(AssertionError, match="'device' do not match"):
        torch.testing.assert_close(there, there.cpu())
    with pytest.raises(AssertionError, match="not equal"):
        torch.testing.assert_close(there.cpu(), plain + 1)
