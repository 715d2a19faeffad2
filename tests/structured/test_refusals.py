"""Bad input ends in one clear sentence, before training starts; what times out says so."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import espalier as es
from espalier.pruner import checks
from tests.structured.nets import STEPS, Residual, Training, at, batch, early, net, quiet

SETTINGS = {
    "no budget": (lambda: es.OCSP(), "ocsp needs a budget: give one of keep_macs"),
    "percent": (lambda: es.OCSP(keep_macs=50), "share above 0 and at most 1, such as 0.5"),
    "nothing": (lambda: es.EPI(prune_channels=0), "share above 0"),
    "no MACs": (lambda: es.EPI(max_macs=-1), "max_macs is a number above 0"),
    "words": (lambda: es.OCSP(keep_macs="half"), "share above 0"),
    "criterion": (lambda: es.OCSP(keep_macs=0.5, criterion="best"), "criterion must be one of group-saliency"),
    "include": (lambda: es.OCSP(keep_macs=0.5, include="layer1.*"), r"include=\['layer1"),
    "check_every": (lambda: es.OCSP(keep_macs=0.5, check_every=0), "check_every is a whole number of at least 1"),
    "round_to": (lambda: es.OCSP(keep_macs=0.5, round_to=0), "round_to is a whole number"),
    "max_ratio": (lambda: es.OCSP(keep_macs=0.5, max_ratio=75), "max_ratio is a share"),
    "latest": (lambda: es.EPI(keep_macs=0.5, latest=30), "latest is a share above 0"),
    "start": (lambda: es.OCSP(keep_macs=0.5, start=0.5, latest=0.4), "0 <= start < latest"),
    "exposure": (lambda: es.OCSP(keep_macs=0.5, exposure=-1), "exposure is a number of at least 0"),
    "exposure word": (lambda: es.OCSP(keep_macs=0.5, exposure="strong"), "exposure is a number of at least 0"),
    "penalty": (lambda: es.OCSP(keep_macs=0.5, penalty="l1"), "penalty is 'shrink' or 'gradient'"),
    "progressive": (lambda: es.OCSP(keep_macs=0.5, progressive=-1), "progressive is a number of cuts"),
    "at": (lambda: es.PruneAt(keep_macs=0.5, at=5), "at is a share of the training"),
    "tau twice": (lambda: es.EPI(keep_macs=0.5, tau=0.9, indicator=es.indicators.JaccardStability()), "tau and r belong"),
    "tau": (lambda: es.EPI(keep_macs=0.5, tau=94.4), r"lies in \[0, 1\]"),
    "r": (lambda: es.EPI(keep_macs=0.5, r=0), "r counts checks"),
    "indicator": (lambda: es.OCSP(keep_macs=0.5, indicator="jaccard"), "indicator"),
    "lambda": (lambda: es.OCSP(keep_macs=0.5, exposure=None, lambda_start=-1.0), "lambda_start"),
    "latest word": (lambda: es.OCSP(keep_macs=0.5, latest="late"), "latest, start and faded are shares"),
    "latest of EPI": (lambda: es.EPI(keep_macs=0.5, latest="late"), "latest is a share above 0"),
    "tau word": (lambda: es.EPI(keep_macs=0.5, tau="high"), r"lies in \[0, 1\]"),
    "window": (lambda: es.EarlyBird(keep_macs=0.5, window=1), "at least 2; got 1"),
    "at of slimming": (lambda: es.NetworkSlimming(keep_macs=0.5, at="x"), "at is a share above 0"),
    "ceiling": (lambda: es.GReg(keep_macs=0.5, ceiling="x"), "pick_ceiling and ceiling are strengths"),
    "unknown": (lambda: es.OCSP(keep_mac=0.5), "OCSP has no argument 'keep_mac': did you mean 'keep_macs'"),
    "of the Pruner": (
        lambda: es.Force(keep_macs=0.5, batches=3),
        r"Force has no argument 'batches': give it to es.Pruner\(\.\.\.",
    ),
    "alpha": (lambda: es.TrainPruneFinetune(keep_macs=0.5, alpha="x"), "alpha is a number"),
}


@pytest.mark.parametrize("key", list(SETTINGS))
def test_settings_that_mean_nothing(key):
    make, words = SETTINGS[key]
    with pytest.raises(es.EspalierError, match=words):
        make()


class Fixed(nn.Module):
    """Ends in what it is given: no channel can go."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.layer(x)


MODELS = {
    "caps": (lambda: es.OCSP(keep_macs=0.01), "caps, floors and rounding leave at least .* of the present ones"),
    "caps of params": (lambda: at(at=0.5, keep_params=0.2, keep_macs=1.0, max_ratio=0.3), "keep_params|max_params"),
    "two budgets": (lambda: at(at=0.5, keep_macs=0.5, max_params=10), "max_params=10 asks for at most 10"),
    "include": (lambda: early(include=["layer9.*"]), r"'layer9\.\*' matches no group that can be cut; there are "),
    "exclude": (lambda: early(exclude=["*"]), "include and exclude leave none"),
    "scope": (lambda: early(scope="local"), "scope is 'global' or 'group'"),
    "normalise": (lambda: early(normalise="median"), "normalise is 'none'"),
    "force without data": (lambda: at(es.Force), r"batches=loader, loss_fn=f"),
    "recalibrate without data": (lambda: early(recalibrate=3), "recalibrate needs data"),
}


@pytest.mark.parametrize("key", list(MODELS))
def test_methods_that_do_not_fit_the_model(key):
    make, words = MODELS[key]
    with pytest.raises(es.EspalierError, match=words):
        Training(make(), batches=None, loss_fn=None)


def test_the_least_that_is_reachable_is_named():
    with pytest.raises(es.EspalierError) as caught:
        Training(es.PruneAt(at=0, keep_macs=0.001, min_channels=4))
    least = float(str(caught.value).split("(")[1].split()[0])
    Training(es.PruneAt(at=0, keep_macs=least + 1e-4, min_channels=4))


def test_a_share_out_of_reach_is_refused_in_the_users_words():
    with pytest.raises(es.EspalierError, match=r"keep_macs=0.001 asks for at most .* give keep_macs of at least ") as caught:
        Training(es.PruneAt(at=0, keep_macs=0.001, min_channels=4))
    Training(
        es.PruneAt(at=0, keep_macs=float(str(caught.value).split("keep_macs of at least ")[1].split(",")[0]), min_channels=4)
    )
    with pytest.raises(es.EspalierError, match=r"keep_params=0.001 asks for at most .* parameters"):
        Training(es.OCSP(keep_params=0.001, keep_macs=0.9))
    with pytest.raises(es.EspalierError, match="max_params=10 asks for at most 10 parameters"):
        Training(es.OCSP(keep_params=0.9, max_params=10))


def test_batches_that_are_a_number():
    with pytest.raises(es.EspalierError, match=r"batches must be data that can be read anew.*; got 3"):
        Training(at(es.Force), batches=3)


def prune(model, method, **kwargs):
    return es.Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), method, total_steps=STEPS, **kwargs)


def test_models_without_channels_to_cut():
    with pytest.raises(es.EspalierError, match="no group of channels that may be cut: all are frozen"):
        prune(Fixed(), early(), example_inputs=torch.zeros(2, 4))


def test_a_criterion_that_sees_nothing():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(es.EspalierError, match="None of the parameters that the scores are made of"):
        prune(model, at(at=0.5, criterion="bn-scale"), example_inputs=torch.zeros(2, 4))


def test_example_inputs():
    with pytest.raises(es.EspalierError, match=r"give es.Pruner\(..., example_inputs=x\)"):
        prune(net(), early())
    with pytest.raises(es.EspalierError, match="example_inputs are on meta and the model is on cpu"):
        prune(net(), early(), example_inputs=torch.zeros(2, 3, 8, 8, device="meta"))
    with pytest.raises(es.EspalierError, match="hold a tensor"):
        prune(net(), early(), example_inputs=())
    with pytest.raises(es.EspalierError, match=r"Example inputs must be a tensor.*; got a ndarray"):
        prune(net(), early(), example_inputs=torch.zeros(2, 3, 8, 8).numpy())
    with pytest.raises(es.EspalierError, match="move it to a real one"):
        prune(net().to("meta"), early(), example_inputs=torch.zeros(2, 3, 8, 8, device="meta"))


def test_a_training_resumes_with_inputs_of_the_same_shape():
    model = net()
    saved = prune(model, early(), example_inputs=torch.zeros(2, 3, 8, 8)).state_dict()
    with pytest.raises(es.EspalierError, match="example_inputs of the same shape"):
        prune(net(), early(), example_inputs=torch.zeros(4, 3, 8, 8)).load_state_dict(saved)


def test_batches_that_the_model_does_not_take():
    batches = [{"image": torch.zeros(2, 3, 8, 8), "label": torch.zeros(2)}]
    with pytest.raises(es.EspalierError, match="give batches of inputs, or pairs"):
        prune(net(), es.PruneAt(at=0, keep_macs=0.5, recalibrate=1), example_inputs=torch.zeros(2, 3, 8, 8), batches=batches)


def test_a_loss_of_many_numbers():
    with pytest.raises(es.EspalierError, match="a tensor of one number"):
        prune(
            net(),
            es.Force(keep_macs=0.5),
            example_inputs=torch.zeros(2, 3, 8, 8),
            batches=[torch.zeros(2, 3, 8, 8)],
            loss_fn=lambda model, batch: model(batch),
        )


def test_torchs_own_ddp_is_refused_by_name(monkeypatch):
    class Stranger(DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

        def __getattr__(self, name):
            return nn.Module.__getattr__(self, name)

    with pytest.raises(es.EspalierError, match=r"wrap the model in es\.DistributedDataParallel instead"):
        checks.check_wrappers(Stranger(net()), early())


class Never(es.indicators.JaccardStability):
    """Does not fire."""

    def fires(self, scores):
        return False


@pytest.mark.parametrize("kind", [es.OCSP, es.EPI])
def test_an_indicator_that_never_fires_falls_back_and_says_so(kind):
    training = Training(early(kind, latest=0.5, indicator=Never()))
    training.train(0, STEPS // 2 - 1)
    with pytest.warns(UserWarning, match=r"had not settled after 8 of 16 steps \(the last score of the jaccard indicator is"):
        step(training, STEPS // 2 - 1)
    report = training.train(STEPS // 2).finish()
    assert [(cut.step, cut.reason) for cut in report.shrinkage.cuts] == [(8, "latest")]
    assert "cut after step 8 (latest)" in report.summary()


def test_a_time_out_before_sparsity_learning_says_that_nothing_was_shrunk():
    training = Training(early(latest=0.5, check_every=100)).train(0, STEPS // 2 - 1)
    with pytest.warns(UserWarning, match="Sparsity learning had not begun, so nothing was shrunk: check more often, or"):
        step(training, STEPS // 2 - 1)
    assert training.run.exposed == 0


def step(training, number):
    nn.functional.cross_entropy(training.net(batch(number)[0]), batch(number)[1]).backward()
    training.optimizer.step()
    training.optimizer.zero_grad()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("method", [early(), early(es.EPI), early(check_every=1000, latest=0.1), at(at=0.5)])
def test_trainings_too_short_for_checks_are_cut_all_the_same(method, steps):
    training = Training(method, steps=steps)
    with quiet():
        for number in range(steps):
            step(training, number)
    report = training.finish()
    assert report.shrinkage.keep_macs <= 0.5
    assert len(report.shrinkage.cuts) == 1


def test_scores_that_are_not_finite_are_refused_in_the_midst_of_training():
    training = Training(early(start=0.1)).train(0, 2)
    training.net.conv1.weight.data.fill_(float("nan"))
    with pytest.raises(es.EspalierError, match="not all finite"):
        step(training, 2)


def test_a_state_of_another_method_is_refused():
    file = Training(early(start=0.1)).train(0, 1).saved()
    with pytest.raises(es.EspalierError, match="The state belongs to OCSP, but this Pruner has EPI: "):
        Training(early(es.EPI)).load(file)
    with pytest.raises(es.EspalierError, match=r"belongs to OCSP\(start=0.1\), but this Pruner has OCSP\(start=0.2\): "):
        Training(early(start=0.2)).load(file)
    other = early(start=0.1, include=["conv*", "wide"], indicator=es.indicators.JaccardStability(lag=1))
    words = (
        r"OCSP\(include=None, indicator=JaccardStability\(lag=2, .*\)\), but this Pruner has "
        r"OCSP\(include=\['conv\*', 'wide'\], indicator=JaccardStability\(lag=1, .*\)\): "
    )
    with pytest.raises(es.EspalierError, match=words):
        Training(other).load(file)


def test_a_checkpoint_of_another_width_is_refused():
    file = Training(early(start=0.1)).train(0, 15).saved()
    with pytest.raises(es.EspalierError, match="belongs to another model"):
        Training(early(start=0.1), model=Residual(width=24)).load(file)
