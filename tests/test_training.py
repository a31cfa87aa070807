"""The plain loops: each against a loop one can read, or against a number one can compute by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import clnp
from clnp import training
from clnp.config import LearnConfig
from clnp.errors import DataError, TrainingError
from clnp.sources import StreamExamples, TensorExamples
from clnp.split import Head, split
from clnp.wiring import trace
from small import SHAPE, network
from test_narrow import state_of
from test_work import noisy

CPU = torch.device("cpu")
N = 60


def trunk(dropout=0.2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )


def make(net=None, claimed=(0, 1, 6), pool=(2, 3, 4, 7, 8, 9)):
    if net is None:
        net = trunk()
        net[4].weight.data[0, 1:] = 0  # unit 6 was trained to read unit 0 alone
    wiring = trace(net, torch.zeros(2, 1, 8, 8))
    units = torch.zeros(2, wiring.n_units, dtype=torch.bool)
    units[0][list(claimed)] = units[1][list(pool)] = True
    torch.manual_seed(1)
    head = Head(torch.randn(3, len(wiring.features)) * 0.1, torch.zeros(3))
    return split(wiring, {key: tensor.detach() for key, tensor in state_of(net).items()}, *units, head)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(N) % 3
    return TensorExamples(torch.randn(3, 1, 8, 8, generator=generator)[y] + torch.randn(N, 1, 8, 8, generator=generator) * 0.5, y)


def learn(network, train, kept=None, **settings):
    config = LearnConfig(**{"batch_size": 16, "epochs": 2, **{k: v for k, v in settings.items() if k in LearnConfig.model_fields}})
    other = {
        "place": (0, "here"),
        "lr": config.lr,
        "l1": config.l1,
        **{k: v for k, v in settings.items() if k not in LearnConfig.model_fields},
    }
    training.fit(network, train, kept, config, phase="train", epochs=config.epochs, n_classes=3, task="a", **other)
    return network


def parameters(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


# ---- loss, gradient, optimizer


def test_the_l1_gradient_is_the_sign():
    weights = [nn.Parameter(torch.tensor([[2.0, -3.0, 0.0]])), nn.Parameter(torch.tensor([[1.0]])), nn.Parameter(torch.ones(1, 1))]
    (weights[0].sum() * 5 + weights[1].sum()).backward()  # the third gets no gradient
    training.add_l1_(weights, 0.25)
    assert weights[0].grad.tolist() == [[5.25, 4.75, 5.0]]
    assert weights[1].grad.tolist() == [[1.25]]
    assert weights[2].grad is None
    training.add_l1_([], 0.25)  # a single head on reused units alone


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_step_of_sgd_is_the_loss_and_the_penalty_and_nothing_else(data, smoothing):
    network = make(trunk(0.0))
    network.train()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    x, y = data.x[:16], data.y[:16]
    logs = F.log_softmax(network(x), 1)
    loss = (
        (1 - smoothing) * F.nll_loss(logs, y)
        - smoothing * logs.mean()
        + 0.03 * sum(p.abs().sum() for p in network.parameters() if p.dim() > 1)
    )
    gradients = dict(zip(before, torch.autograd.grad(loss, list(network.parameters())), strict=True))
    step = make(trunk(0.0))
    learn(
        step, TensorExamples(x, y), optimizer="sgd", momentum=0.0, lr=0.1, l1=0.03, schedule="constant", epochs=1, label_smoothing=smoothing
    )
    for name, p in step.named_parameters():
        assert torch.allclose(p, before[name] - 0.1 * gradients[name], atol=1e-5), name


def test_bfloat16_multiplies_in_it_and_keeps_weights_in_float32(data):
    seen = {}

    def trained(precision):
        network = make(trunk(0.0))
        network.pool.register_forward_hook(lambda _module, _inputs, out: seen.setdefault(precision, set()).add(out[1].dtype))
        learn(network, data, precision=precision)
        return network.state_dict()

    full, half = trained("float32"), trained("bfloat16")
    assert seen == {"float32": {torch.float32}, "bfloat16": {torch.bfloat16}}
    assert {tensor.dtype for tensor in half.values()} == {tensor.dtype for tensor in full.values()}
    gaps = [float((full[name] - half[name]).abs().max()) for name in full if full[name].is_floating_point()]
    assert 0 < max(gaps) < 0.05  # bfloat16 has 8 bits: another path, but the same way


def test_images_are_given_channels_last_where_it_is_asked_for(data):
    def trained(**settings):
        network, last = make(trunk(0.0)), []
        network.pool.register_forward_pre_hook(
            lambda _module, inputs: last.append(all(x.dim() != 4 or x.is_contiguous(memory_format=torch.channels_last) for x in inputs))
        )
        learn(network, data, training.kept_values(network, data, 100, CPU), **settings)
        return network.state_dict(), last

    (plain, before), (changed, after) = trained(), trained(channels_last=True)
    assert not any(before)
    assert all(after)
    for name in plain:
        assert torch.allclose(plain[name], changed[name], atol=1e-4), name


def test_selection_sees_images_as_training_does(monkeypatch):
    """What is measured while units are selected, in the memory format of training; what is committed is measured as users predict."""
    asked = {True: [], False: []}  # in training, without gradient
    given = training.batches

    def batches(*arguments, channels_last=False, **named):
        asked[torch.is_grad_enabled()].append(channels_last)
        return given(*arguments, channels_last=channels_last, **named)

    monkeypatch.setattr(training, "batches", batches)
    learner = clnp.Learner(network("vgg"), torch.zeros(2, *SHAPE))
    settings = LearnConfig(epochs=1, rounds=1, finetune_epochs=0, batch_size=30, channels_last=True)
    learner.learn("one", *noisy(), config=settings)
    assert all(asked[True])
    assert len(asked[False]) > 2
    assert all(asked[False][:-1])
    assert not asked[False][-1], "the predictor, at commit"


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_optimizer_is_the_one_that_was_asked_for(optimizer):
    parameter = nn.Parameter(torch.ones(2))
    config = LearnConfig(optimizer=optimizer, momentum=0.7, weight_decay=0.3)
    made = training.make_optimizer([parameter], config, 0.01)
    assert type(made).__name__.lower() == optimizer
    (group,) = made.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.3)
    assert group["momentum"] == 0.7 if optimizer == "sgd" else group["betas"] == (0.7, 0.999)


@pytest.mark.parametrize("n_steps", [1, 2, 40])
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_schedules_peak_at_the_learning_rate(schedule, n_steps):
    config = LearnConfig(schedule=schedule)
    optimizer = training.make_optimizer([nn.Parameter(torch.ones(1))], config, 0.1)
    course = training.make_schedule(optimizer, config, 0.1, n_steps)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        course.step()
    assert max(rates) <= 0.1 + 1e-12
    if schedule == "constant":
        assert rates == [0.1] * n_steps
    elif schedule == "cosine":
        assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / n_steps)) for step in range(n_steps)])
    elif n_steps == 40:
        peak = rates.index(max(rates))
        assert rates[0] == pytest.approx(0.004)
        assert rates[peak] == pytest.approx(0.1, rel=0.01)
        assert 4 <= peak <= 8
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert rates[-1] < 0.003


def test_only_what_is_given_to_the_optimizer_moves(data):
    network = make()
    before = {key: value.clone() for key, value in network.claimed.state_dict().items()}
    start = parameters(network)
    learn(network, data, optimizer="adamw", weight_decay=0.5)
    assert all(torch.equal(before[key], value) for key, value in network.claimed.state_dict().items())
    assert not torch.equal(parameters(network), start)
    assert not network.training


# ---- order and noise


def test_a_run_is_a_pure_function_of_its_place(data):
    found = []
    for seed, place in ((1, (0, "here")), (2, (0, "here")), (3, (1, "here"))):
        network = make()  # it seeds the global generator
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        found.append(parameters(learn(network, data, place=place)))
        assert torch.equal(before, torch.random.get_rng_state()), "nothing is drawn from the global generator"
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_learning_rate_follows_its_schedule_over_all_steps(data, monkeypatch):
    rates, real = [], training.make_optimizer

    def watched(*args):
        optimizer = real(*args)
        optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(training, "make_optimizer", watched)
    learn(make(), data, schedule="cosine", lr=0.1, epochs=3, batch_size=20)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 9)) for step in range(9)])


def test_every_epoch_has_an_order_and_a_noise_of_its_own(data, monkeypatch):
    orders, noises = [], []
    real = F.cross_entropy

    def watched(logits, y, **how):
        orders.append(tuple(y.tolist()))
        noises.append(tuple(logits.flatten().tolist()))
        return real(logits, y, **how)

    monkeypatch.setattr(F, "cross_entropy", watched)
    learn(make(), TensorExamples(data.x, torch.arange(N) % 3), epochs=2, batch_size=20, lr=1e-12)
    assert len(orders) == 6
    assert orders[:3] != orders[3:]
    learn(make(), TensorExamples(data.x[:1].expand(N, 1, 8, 8), data.y * 0), epochs=2, batch_size=20, lr=1e-12)
    assert noises[6] != noises[9], "dropout draws anew, not the same again"


def test_progress_tells_every_epoch(data):
    events = []
    learn(make(trunk(0.0)), data, epochs=3, batch_size=20, lr=1e-9, progress=events.append)
    told = [{key: value for key, value in event.items() if key != "loss"} for event in events]
    assert told == [{"event": "epoch", "task": "a", "phase": "train", "round": "here", "epoch": n, "epochs": 3} for n in (1, 2, 3)]
    network = make(trunk(0.0)).train()
    assert events[0]["loss"] == pytest.approx(F.cross_entropy(network(data.x), data.y).item(), rel=0.2)


# ---- patience


def test_patience_stops_and_puts_the_best_epoch_back(data):
    network, seen, counts = make(), [], iter([3, 7, 5, 6, 99])

    def validation():
        seen.append({key: value.clone() for key, value in network.state_dict().items()})
        return next(counts)

    learn(network, data, epochs=5, patience=2, validation=validation)
    assert len(seen) == 4, "two epochs without a better one are the end"
    assert all(torch.equal(seen[1][key], value) for key, value in network.state_dict().items()), "statistics of norms, too"
    assert any(not torch.equal(seen[3][key], value) for key, value in network.state_dict().items())


def test_a_tie_is_no_improvement_and_zero_correct_is_a_beginning(data):
    for counts, n_epochs in (([4, 4, 9], 2), ([0, 1, 1], 3)):
        calls = iter(counts)
        seen = []
        learn(make(), data, epochs=3, patience=1, validation=lambda calls=calls, seen=seen: seen.append(0) or next(calls))
        assert len(seen) == n_epochs


def test_without_patience_nobody_is_asked(data):
    learn(make(), data, validation=lambda: pytest.fail("asked"))


# ---- what goes wrong


def test_a_loss_that_is_not_finite_ends_the_task(data):
    for x in (data.x * float("nan"), data.x * 1e38 * 1e38):
        with pytest.raises(
            TrainingError, match=r"learning task 'a' was abandoned in epoch 1 of phase 'train': the loss became NaN or infinite"
        ):
            learn(make(), TensorExamples(x, data.y))


def test_a_weight_that_is_not_finite_ends_the_task(data):
    with pytest.raises(TrainingError, match="a weight or a statistic became NaN or infinite"):
        learn(make(), TensorExamples(data.x[:16], data.y[:16]), optimizer="sgd", lr=1e38, weight_decay=1e30, epochs=1, schedule="constant")


def test_labels_of_a_stream_are_checked_batch_by_batch(data):
    loader = DataLoader(TensorDataset(data.x, torch.where(torch.arange(N) == 50, 3, data.y)), batch_size=16)
    with pytest.raises(DataError, match="training data of task 'a': expected labels 0 to 2, found 3"):
        learn(make(), StreamExamples(loader))


def test_a_stream_without_a_length_can_be_learned(data):
    class Endless:
        def __iter__(self):
            return iter([(data.x[:16], data.y[:16])] * 3)

    start = parameters(make())
    assert not torch.equal(parameters(learn(make(), StreamExamples(Endless()))), start)
    assert training.steps_per_epoch(StreamExamples(Endless()), 16) == 1000
    assert training.steps_per_epoch(StreamExamples(DataLoader(TensorDataset(data.x), batch_size=16)), 99) == 4
    assert training.steps_per_epoch(data, 16) == 3
    assert training.steps_per_epoch(data, 100) == 1


# ---- kept values


def test_kept_values_are_those_of_the_claimed_graph(data, monkeypatch):
    monkeypatch.setattr("clnp.training.EVALUATION_BATCH", 7)
    network = make()
    kept = training.kept_values(network, data, 1000, CPU)
    whole = network.claimed_values(data.x)
    assert [value.shape for value in kept] == [value.shape for value in whole]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(kept, whole, strict=True))
    for x, _, meets in training.batches(data, kept, 16, CPU, torch.Generator().manual_seed(0)):
        with torch.no_grad():
            assert torch.allclose(network.eval()(x, meets), network(x), atol=1e-5), "the values of these very examples"


def test_kept_values_keep_within_their_limit(data):
    network = make()
    size = sum(value.numel() * value.element_size() for value in network.claimed_values(data.x))
    assert size < 2**20
    assert training.kept_values(network, data, 1, CPU) is not None
    assert training.kept_values(network, data, 0, CPU) is None
    assert training.kept_values(network, StreamExamples([]), 1000, CPU) is None
    assert training.kept_values(make(claimed=()), data, 0, CPU) == ()
    assert [meets for *_, meets in training.batches(data, None, 30, CPU)] == [None, None]


def test_learning_with_and_without_kept_values_is_the_same(data):
    network = make()
    kept = learn(network, data, kept=training.kept_values(network, data, 1000, CPU))
    anew = learn(make(), data)
    assert torch.allclose(parameters(kept), parameters(anew), atol=1e-4)


def test_kept_values_can_be_cut_to_a_smaller_network(data):
    network = make()
    kept = training.kept_values(network, data, 1000, CPU)
    for claimed, pool in (((0, 6), (3, 4, 9)), ((1,), (2, 7)), ((), (2, 7))):
        smaller = make(claimed=claimed, pool=pool)
        cut = training.narrow_kept(kept, network, smaller)
        assert [value.shape for value in cut] == [value.shape for value in smaller.claimed_values(data.x)]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(cut, smaller.claimed_values(data.x), strict=True))
    assert training.narrow_kept(None, network, network) is None


# ---- measuring


@pytest.mark.parametrize("n", [1, 59, 60])
def test_correct_answers_are_counted(data, n, monkeypatch):
    monkeypatch.setattr("clnp.training.EVALUATION_BATCH", 16)
    part, network = data.first(n), make().eval()
    expected = int((network(part.x).argmax(1) == part.y).sum())
    network.train()
    assert training.n_correct(network, part) == expected
    assert training.n_correct(network, part, training.kept_values(network, part, 1000, CPU)) == expected
    assert not network.training


def test_statistics_are_estimated_in_the_memory_format_of_training(data):
    network, seen = make().eval(), []
    kept = training.kept_values(network, data, 1000, CPU)  # of several channels; the examples have one
    network.register_forward_pre_hook(lambda _network, inputs: seen.append(inputs[1][0].is_contiguous(memory_format=torch.channels_last)))
    for channels_last in (False, True):
        training.estimate_norms_(network, data, kept, channels_last=channels_last)
    assert seen == [False, True]


def test_counting_ends_where_it_is_certain_that_too_few_are_correct(data, monkeypatch):
    monkeypatch.setattr("clnp.training.EVALUATION_BATCH", 10)
    network, seen = make().eval(), []
    network.register_forward_hook(lambda _network, inputs, _out: seen.append(len(inputs[0])))
    right = network(data.x).argmax(1)
    wrong = torch.arange(60) < 20  # the first two batches
    part = TensorExamples(data.x, torch.where(wrong, (right + 1) % 2, right))
    for at_least, counted, n_batches in ((0, 40, 6), (40, 40, 6), (41, 0, 2), (51, 0, 1), (61, 0, 1)):
        seen.clear()
        assert training.n_correct(network, part, at_least=at_least) == counted
        assert seen == [10] * n_batches


def test_the_hardest_come_first(data):
    network = make().eval()
    logits = network(data.x)
    places = training.hardest(network, data, None, 0.3)
    lead = logits.gather(1, data.y[:, None])[:, 0] - logits.scatter(1, data.y[:, None], -torch.inf).amax(1)
    n_wrong = int((lead <= 0).sum())
    assert len(places) == min(n_wrong + 18, 60)
    assert torch.equal(lead[places], lead.sort().values[: len(places)])


@pytest.mark.parametrize(("n", "sizes"), [(60, [16, 16, 16]), (48, [16, 16, 16]), (10, [10])])
def test_statistics_are_estimated_as_the_mean_over_batches(data, n, sizes, monkeypatch):
    monkeypatch.setattr("clnp.training.ESTIMATE_BATCH", 16)
    network = make().eval()
    part = data.first(n)
    with torch.no_grad():
        h = trunk()[0](part.x)[:, [2, 3, 4]]
    expected = [h[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    for kept in (None, training.kept_values(network, part, 1000, CPU)):
        training.estimate_norms_(network, part, kept)
        (norm,) = network.norms
        assert torch.allclose(norm.mean, torch.stack([e.mean((0, 2, 3)) for e in expected]).mean(0), atol=1e-5)
        assert torch.allclose(norm.var, torch.stack([e.var((0, 2, 3)) for e in expected]).mean(0), atol=1e-5)
        assert not norm.estimating
        norm.mean.fill_(9)
