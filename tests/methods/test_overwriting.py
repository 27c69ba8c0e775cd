"""Nets that write an activation over its input and read only that: explained as the same net written out of place."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from salviz import engine
from salviz.targets import ClassTarget
from tests.models import classifier_of, images

# What writes over its input, and the same out of place.
FORMS = {
    "relu": (lambda t: F.relu(t, inplace=True), F.relu),
    "relu_": (lambda t: t.relu_(), F.relu),
    "torch.relu_": (torch.relu_, F.relu),
    "relu6": (lambda t: F.relu6(t, inplace=True), F.relu6),
    "leaky_relu": (lambda t: F.leaky_relu(t, 0.2, True), lambda t: F.leaky_relu(t, 0.2)),
    "silu": (lambda t: F.silu(t, inplace=True), F.silu),
    "hardswish": (lambda t: F.hardswish(t, inplace=True), F.hardswish),
    "mish": (lambda t: F.mish(t, inplace=True), F.mish),
    "elu_": (F.elu_, F.elu),
    "tanh_": (lambda t: t.tanh_(), torch.tanh),
    "hardtanh": (lambda t: F.hardtanh(t, -0.5, 0.5, inplace=True), lambda t: F.hardtanh(t, -0.5, 0.5)),
    "relu_ of a view": (lambda t: t[:, :].relu_(), F.relu),
    "relu6 of a view": (lambda t: F.relu6(t[:, :], inplace=True), F.relu6),
    "hardtanh of a view": (lambda t: F.hardtanh(t[:, :], 0.0, 0.5, inplace=True), lambda t: F.hardtanh(t, 0.0, 0.5)),
    "silu of a view": (lambda t: F.silu(t[:, 2:], inplace=True), lambda t: torch.cat([t[:, :2], F.silu(t[:, 2:])], 1)),
}


class Net(nn.Module):
    """The activation's own answer is thrown away; the features after it were read before it, too."""

    def __init__(self, form: str, *, is_inplace: bool, is_read: bool) -> None:
        super().__init__()
        self.act, self.is_inplace, self.is_read = FORMS[form][0 if is_inplace else 1], is_inplace, is_read
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second):
            x = layer(x)
            before = F.relu(x) if self.is_read else 0.0
            if self.is_inplace:
                self.act(x)
            else:
                x = self.act(x)
            x = x * 1.0 + before
        return self.head(x.mean(dim=(2, 3)))


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["gradient", "deeplift", "full_grad", "lrp"])
def test_an_activation_whose_answer_is_not_read_counts_as_any(method: str, form: str, is_read: bool) -> None:
    x = 3 * images(2, 12)
    found, expected = (
        engine.explain(
            classifier_of(Net(form, is_inplace=is_inplace, is_read=is_read), size=12, classes=4), x, method=method,
            digests=["a", "b"], target=ClassTarget(torch.tensor([1, 3])),
        )
        for is_inplace in (True, False)
    )  # fmt: skip
    torch.testing.assert_close(found.logits, expected.logits)
    scale = expected.maps.abs().max()
    torch.testing.assert_close(found.maps / scale, expected.maps / scale, atol=1e-5, rtol=1e-4)
    if method in ("deeplift", "full_grad"):
        assert found.completeness.abs().max() < 1e-4 * max(1.0, float(expected.logits.abs().max()))
