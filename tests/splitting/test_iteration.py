"""The iterations of SLR and ADMM: against the formulas written out, and on a problem whose answer is known."""

import math

import pytest
import torch

import espalier as es
from espalier.methods.slr import alpha
from tests.splitting.conftest import Quadratic, Trained

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize(
    ("M", "values", "products"),
    [
        (
            300.0,
            {1: 0.996667, 2: 0.996818, 5: 0.997376, 10: 0.997924, 50: 0.999061, 100: 0.999391, 200: 0.999623},
            {10: 0.974, 50: 0.924, 100: 0.890, 200: 0.849},
        ),
        (
            200.0,
            {1: 0.995, 2: 0.995227, 5: 0.996064, 10: 0.996886, 50: 0.998591, 100: 0.999086, 200: 0.999434},
            {10: 0.961, 50: 0.888, 100: 0.840, 200: 0.783},
        ),
    ],
)
def test_alpha_meets_the_table(M, values, products):
    for k, value in values.items():
        assert alpha(k, M, 0.1) == pytest.approx(value, abs=1e-6)
    for k, product in products.items():
        assert math.prod(alpha(i, M, 0.1) for i in range(1, k + 1)) == pytest.approx(product, abs=1e-3)


class WrittenOut:
    """D.1.2 of the notes with dense tensors in float64, clones of W^{k-1}, and the Lagrangian in full."""

    def __init__(self, problem, keep, first, *, rho, s0, M, r, numerator):
        self.problem, self.keep, self.rho, self.s, self.M, self.r = problem, keep, rho, s0, M, r
        self.numerator = numerator
        self.before = first.double().clone()
        self.z, self.lam, self.k = self.project(self.before), torch.zeros(3, 4).double(), 1
        self.accepted = (self.before.clone(), self.z.clone())

    def project(self, w):
        best = w.abs().flatten().topk(self.keep).indices
        return torch.zeros(12).double().scatter(0, best, w.flatten()[best]).view(3, 4)

    def lagrangian(self, w, z, lam):
        loss = self.problem.loss(w.float()).double()
        return loss + (lam * (w - z)).sum() + self.rho / 2 * (w - z).square().sum()

    def alpha(self):
        return 1 - 1 / (self.M * self.k ** (1 - 1 / self.k**self.r))

    def round(self, w):
        w, held = w.double().clone(), []
        held.append(bool(self.k == 1 or self.lagrangian(w, self.z, self.lam) < self.lagrangian(self.before, self.z, self.lam)))
        last_gap = (self.before - self.z).norm()
        if held[0]:
            accepted = (self.accepted[0] - self.accepted[1]).norm()
            self.s *= self.alpha() * float(accepted / (w - self.z).norm())
            self.lam += self.s * (w - self.z)
            self.accepted = (w, self.z)
            self.k += 1
        z = self.project(w + self.lam / self.rho)
        held.append(bool(self.lagrangian(w, z, self.lam) < self.lagrangian(w, self.z, self.lam)))
        if held[1]:
            accepted = (self.accepted[0] - self.accepted[1]).norm() if self.numerator == "accepted" else last_gap
            self.s *= self.alpha() * float(accepted / (w - z).norm())
            self.lam += self.s * (w - z)
            self.z, self.accepted = z, (w, z)
            self.k += 1
        self.before = w
        return tuple(held)


@pytest.mark.parametrize("numerator", ["accepted", "previous"])
@pytest.mark.parametrize("seed", range(4))
def test_slr_does_what_its_formulas_say(seed, numerator):
    """Weights that jump about at random: conditions fail and hold, supports change."""
    problem, generator = Quadratic.make(seed), torch.Generator().manual_seed(seed)
    constants = {"rho": 0.3, "s0": 0.05, "M": 20.0, "r": 0.2}
    method = es.SLR(0.5, include=["*"], check_every=1, numerator=numerator, **constants)
    trained = Trained(method, 40, problem, lr=0.0)
    oracle = WrittenOut(problem, 6, trained.net.weight.detach(), numerator=numerator, **constants)
    for _ in range(30):
        with torch.no_grad():
            jump = torch.randn(12, generator=generator) * 0.5
            trained.net.weight.copy_((problem.best + jump).view(3, 4))
        if trained.run.coupling.tied is False:
            with torch.no_grad():  # Z^0 is the projection of what the first step finds
                trained.net.weight.copy_(problem.best.view(3, 4))
        trained.step()
        held = oracle.round(trained.net.weight.detach())
        made, pair = trained.run.rounds()[-1], trained.run.coupling
        assert made.held == held
        assert trained.run.iteration.k == oracle.k
        assert made.step_size == pytest.approx(oracle.s, rel=1e-3)
        lam = pair.multipliers["weight"] * method.rho
        torch.testing.assert_close(lam, oracle.lam.float(), rtol=1e-3, atol=1e-4)
        z = pair.centres["weight"] + pair.multipliers["weight"]
        torch.testing.assert_close(z, oracle.z.float(), rtol=1e-3, atol=1e-4)
    assert {made.held[0] for made in trained.run.rounds()} == {True, False}


def test_slr_reaches_the_constrained_optimum_and_its_multipliers_the_negative_gradient():
    method = es.SLR(0.5, include=["*"], rho=1.0, s0=0.3, M=10.0, check_every=20)
    trained = Trained(method, 3000).train(2999)
    weight, problem = trained.net.weight.detach(), trained.problem
    lam = trained.run.coupling.multipliers["weight"].flatten() * method.rho
    assert (weight.flatten() - problem.constrained()).norm() < 5e-3
    assert problem.gradient(weight).norm() > 1  # it is a constrained optimum
    assert (lam + problem.gradient(weight)).norm() < 5e-3
    gaps = [made.gap for made in trained.run.rounds()]
    assert gaps[-1] < 0.01 * gaps[0]
    parts = [sum(gaps[i : i + 30]) for i in range(0, 120, 30)]
    assert parts == sorted(parts, reverse=True)
    before = problem.loss(weight)
    trained.step()
    trained.pruner.finish()
    assert torch.equal(trained.net.weight.flatten() != 0, problem.support)
    assert problem.loss(trained.net.weight.detach()) == pytest.approx(float(before), rel=0.01)  # hard pruning costs nothing


def test_admm_does_what_its_formulas_say():
    problem, generator = Quadratic.make(1), torch.Generator().manual_seed(1)
    trained = Trained(es.ADMM(0.5, include=["*"], rho=0.3, check_every=1), 20, problem, lr=0.0)
    u = torch.zeros(3, 4)
    for _ in range(10):
        trained.step()
        weight = trained.net.weight.detach().clone()
        point = (weight + u).flatten()
        best = point.abs().topk(6).indices
        z = torch.zeros(12).scatter(0, best, point[best]).view(3, 4)
        u = u + weight - z
        pair = trained.run.coupling
        torch.testing.assert_close(pair.multipliers["weight"], u)
        torch.testing.assert_close(pair.centres["weight"], z - u)
        assert trained.run.rounds()[-1].gap == pytest.approx(float((weight - z).norm()), rel=1e-4)
        with torch.no_grad():
            trained.net.weight.add_(torch.randn(3, 4, generator=generator) * 0.3)


def test_admm_reaches_the_constrained_optimum_and_its_multipliers_the_negative_gradient():
    method = es.ADMM(0.5, include=["*"], rho=0.5, check_every=20)
    trained = Trained(method, 1500).train(1499)
    weight, problem = trained.net.weight.detach(), trained.problem
    assert (weight.flatten() - problem.constrained()).norm() < 1e-4
    lam = trained.run.coupling.multipliers["weight"].flatten() * method.rho
    assert (lam + problem.gradient(weight)).norm() < 1e-4


def test_a_gap_of_zero_leaves_the_step_size():
    """W that lies in the allowed set already: no ratio is formed."""
    problem = Quadratic.make()
    inside = Quadratic(torch.eye(12), torch.where(problem.support, problem.best, torch.zeros(12)))
    trained = Trained(es.SLR(0.5, include=["*"], check_every=1), 20, inside).train(15)
    for made in trained.run.rounds():
        assert made.gap == 0
        assert made.step_size == 0.01
    assert not trained.run.coupling.multipliers["weight"].any()


@pytest.mark.parametrize("norm", ["global", "layers"])
def test_the_norm_over_layers(norm):
    iteration = Trained(es.SLR(0.5, include=["*"], norm=norm), 20).run.iteration
    assert iteration.total([3.0, 4.0]) == pytest.approx(5.0 if norm == "global" else 7.0)


def test_conditions_that_keep_failing_are_told_once_and_training_goes_on():
    rising = iter(range(1000))
    trained = Trained(es.SLR(0.5, include=["*"], check_every=1), 60, loss_fn=lambda net, _: torch.tensor(float(next(rising))))
    with pytest.warns(UserWarning, match="first optimality condition of slr has failed in 10 rounds") as told:
        trained.train(40)
    assert len([one for one in told if "optimality" in str(one.message)]) == 1
    made = trained.run.rounds()
    assert made[0].held[0]  # the first is always taken as true
    assert not any(one.held[0] for one in made[1:])
    assert any(one.held[1] for one in made[1:])  # where W stands still it fails too: Z is best as it is
    trained.train(20)
    assert trained.pruner.finish().sparsity == 0.5


def test_a_loss_that_is_not_finite_leaves_the_multipliers_and_is_told_once():
    values = iter([1.0, 1.0, 2.0, 1.0, *[float("nan")] * 5, *[0.5] * 100])  # the first when the Pruner is built
    trained = Trained(es.SLR(0.5, include=["*"], check_every=1), 60, loss_fn=lambda net, _: torch.tensor(next(values)))
    trained.train(1)
    before = trained.run.coupling.multipliers["weight"].clone()
    with pytest.warns(UserWarning, match="loss is nan.*multipliers stay") as told:
        trained.train(5)
    assert len(told) == 1
    assert torch.equal(trained.run.coupling.multipliers["weight"], before)
    assert len(trained.run.rounds()) == 1
    trained.train(10)
    assert len(trained.run.rounds()) == 11


def test_the_mean_of_reported_losses():
    trained = Trained(es.SLR(0.5, include=["*"], check_every=4, conditions="mean"), 40, batches=None, loss_fn=None)
    for step in range(8):
        trained.pruner.observe(torch.tensor(float(step)))
        trained.step()
    first, second = trained.run.rounds()
    assert (first.loss, second.loss) == (1.5, 5.5)
    trained.pruner.observe(torch.tensor(1.0))
    state = trained.pruner.state_dict()
    other = Trained(es.SLR(0.5, include=["*"], check_every=4, conditions="mean"), 40, batches=None, loss_fn=None)
    other.pruner.load_state_dict(state)
    assert float(other.run.iteration.loss.read()) == 1.0


def test_the_mean_needs_to_be_told():
    trained = Trained(es.SLR(0.5, include=["*"], check_every=2, conditions="mean"), 40, batches=None, loss_fn=None)
    with pytest.raises(es.EspalierError, match=r"pruner\.observe\(loss\)"):
        trained.train(2)
