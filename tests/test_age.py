"""Age: heads, read-outs and losses, against formulas written out another way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agr_lightning.messages import UserError
from agr_lightning.models.age import (
    AGE_LOSSES,
    AGES,
    AgeDistribution,
    AgeOrdinal,
    AgeRegression,
    coral_loss,
    dldl_loss,
    mean_variance_loss,
    read_out,
)
from agr_lightning.models.config import AgeLossName, AgeReadout, NetworkConfig
from agr_lightning.models.network import AGRNetwork

YEARS, TARGET = torch.tensor([10.0, 22.0, 35.0]), torch.tensor([12.0, 22.0, 30.0])
DECIMAL = torch.tensor([12.25, 22.0, 30.9])
LOGITS = torch.randn(3, AGES, generator=torch.Generator().manual_seed(0))
BINS = np.arange(AGES)


def _softmax(logits: torch.Tensor) -> np.ndarray:
    e = np.exp(logits.numpy().astype(np.float64))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("l1", (2 + 0 + 5) / 3), ("mse", (4 + 0 + 25) / 3), ("smooth_l1", (4 / 6 + 0 + 3.5) / 3)],
)
def test_losses_of_a_number_follow_their_formula(name: AgeLossName, value: float) -> None:
    assert AGE_LOSSES[name].function(YEARS, TARGET).mean().item() == pytest.approx(value)


@pytest.mark.parametrize("target", [TARGET, DECIMAL])
def test_dldl_is_divergence_from_a_gaussian_and_error_of_the_mean(target: torch.Tensor) -> None:
    p, expected = _softmax(LOGITS), 0.0
    for row, t in zip(p, target.tolist(), strict=True):
        g = np.exp(-((BINS - t) ** 2) / 8)
        g /= g.sum()
        expected += (g * (np.log(g + 1e-300) - np.log(row))).sum() + abs((row * BINS).sum() - t)
    assert dldl_loss(LOGITS, target).mean().item() == pytest.approx(expected / 3, rel=1e-5)


@pytest.mark.parametrize("target", [TARGET, DECIMAL])
def test_mean_variance_has_its_three_terms(target: torch.Tensor) -> None:
    p, expected = _softmax(LOGITS), 0.0
    for row, t in zip(p, target.tolist(), strict=True):
        mean = (row * BINS).sum()
        variance = (row * BINS**2).sum() - mean**2
        entropy = np.interp(t, BINS, -np.log(row))
        expected += entropy + 0.2 * (mean - t) ** 2 / 2 + 0.05 * variance
    assert mean_variance_loss(LOGITS, target).mean().item() == pytest.approx(expected / 3, rel=1e-5)


@pytest.mark.parametrize("target", [TARGET, DECIMAL])
def test_coral_asks_every_threshold(target: torch.Tensor) -> None:
    logits = LOGITS[:, :-1]
    q, expected = 1 / (1 + np.exp(-logits.numpy().astype(np.float64))), 0.0
    for row, t in zip(q, target.tolist(), strict=True):
        passed = np.where(BINS[:-1] == int(t), t % 1, BINS[:-1] < t)
        expected -= (passed * np.log(row) + (1 - passed) * np.log(1 - row)).sum()
    assert coral_loss(logits, target).mean().item() == pytest.approx(expected / 3, rel=1e-5)


@pytest.mark.parametrize("name", AGE_LOSSES)
@pytest.mark.parametrize("age", [29.0, 29.4, 0.6])
def test_a_decimal_age_is_what_is_learnt(name: AgeLossName, age: float) -> None:
    head = AGE_LOSSES[name].head(4, None)
    output = torch.full_like(head(torch.zeros(1, 4)), 20 if isinstance(head, AgeRegression) else 0).requires_grad_()
    optimizer = torch.optim.Adam([output], 0.3)
    for _ in range(1000):
        optimizer.zero_grad()
        AGE_LOSSES[name].function(output, torch.tensor([age])).sum().backward()
        optimizer.step()
    # The Gaussian of dldl is cut off at 0 years, and so its mean is above 0.6.
    assert head.years(output).item() == pytest.approx(age, abs=1.2 if (name, age) == ("dldl", 0.6) else 0.11)


@pytest.mark.parametrize("name", AGE_LOSSES)
def test_every_loss_teaches_its_head(name: AgeLossName) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    target = torch.tensor([5.0, 80.0, 30.0, 50.0])
    network = AGRNetwork(NetworkConfig(tasks=("age",), dropout=0.0, age_loss=name, image_size=64))
    loss, optimizer = AGE_LOSSES[name].function, torch.optim.AdamW(network.parameters(), 2e-3)
    errors = []
    for _ in range(60):
        outputs = network(images)
        optimizer.zero_grad()
        loss(outputs["age"], target).mean().backward()
        optimizer.step()
        years = network.read(outputs).age
        assert years is not None
        errors.append((years - target).abs().mean().item())
    assert errors[0] > 15 and errors[-1] < 4


@pytest.mark.parametrize("name", ["dldl", "mean_variance", "coral"])
@pytest.mark.parametrize("age", [0.0, 116.0])
def test_the_ends_of_the_scale_have_finite_losses(name: AgeLossName, age: float) -> None:
    logits = torch.full((1, AGES - (name == "coral")), 50.0).requires_grad_()
    loss = AGE_LOSSES[name].function(logits, torch.tensor([age]))
    loss.sum().backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


# ---------------------------------------------------------------------- read-outs


def test_the_mean_is_the_expectation_and_the_median_halves_the_mass() -> None:
    p = _softmax(3 * LOGITS)
    head = AgeDistribution(4, "mean")
    assert head.years(3 * LOGITS).tolist() == pytest.approx((p @ BINS).tolist(), rel=1e-4)
    head.readout = "median"
    for median, row in zip(head.years(3 * LOGITS).tolist(), p, strict=True):
        # Each year's mass is spread evenly around it.
        below = sum(mass * min(max(median - (k - 0.5), 0), 1) for k, mass in enumerate(row))
        assert below == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("readout", ["mean", "median"])
@pytest.mark.parametrize("age", [0, 1, 57, 115, 116])
def test_certainty_is_read_as_that_age(readout: AgeReadout, age: int) -> None:
    survival = (torch.arange(AGES - 1) < age).float()[None]
    assert read_out(survival, readout).item() == pytest.approx(age, abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-60, 60, width=32), min_size=AGES - 1, max_size=AGES - 1),
    st.sampled_from(["mean", "median"]),
)
def test_thresholds_in_any_order_give_an_age(logits: list[float], readout: AgeReadout) -> None:
    years = AgeOrdinal(4, readout).years(torch.tensor([logits])).item()
    assert math.isfinite(years) and 0 <= years <= AGES - 1


def test_the_ordinal_head_starts_rank_consistent() -> None:
    head = AgeOrdinal(4, "mean")
    survival = head(torch.zeros(1, 4)).sigmoid()[0]
    assert (survival.diff() < 0).all()
    assert head.years(head(torch.zeros(1, 4))).item() == pytest.approx(33, abs=2)


def test_a_read_out_needs_a_distribution() -> None:
    assert isinstance(AGE_LOSSES["l1"].head(4, None), AgeRegression)
    with pytest.raises(UserError, match=r"age_readout median .*--model.age_loss dldl, mean_variance, coral"):
        AGE_LOSSES["smooth_l1"].head(4, "median")


@pytest.mark.parametrize("name", ["dldl", "mean_variance", "coral"])
def test_the_mean_is_read_where_nothing_is_said(name: AgeLossName) -> None:
    torch.manual_seed(0)
    default, mean, median = (AGE_LOSSES[name].head(4, readout) for readout in (None, "mean", "median"))
    output = LOGITS[:, : AGES - (name == "coral")]
    assert torch.equal(default.years(output), mean.years(output))
    assert not torch.allclose(default.years(output), median.years(output))
