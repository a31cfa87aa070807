"""From a trained pool to a few units: the margin holds on every way out, and what is told is what was measured."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import clnp
import clnp.candidates
import clnp.commit
import clnp.pruning
import small
from clnp.selection import Selection
from test_wiring import Net

N_TRAIN = 180


def data(number):
    x, y = small.task(number)
    return (x[:N_TRAIN], y[:N_TRAIN]), (x[N_TRAIN:], y[N_TRAIN:])


def correct_of(logits, y):
    return int((logits.argmax(1) == y).sum())


class Watch:
    """Remembers the unpruned network's correct answers, counted when training ends, and may spoil later rounds."""

    def __init__(self, monkeypatch, number=0, spoil=(), validation=None):
        self.train, self.validation = data(number)
        self.validation = validation or self.validation
        self.n_finetuned, self.spoil, self.calls = 0, spoil, []
        self.correct, self.correct_train, self.unpruned = None, None, None
        self.real = clnp.pruning.fit
        monkeypatch.setattr(clnp.pruning, "fit", self.fit)

    def fit(self, network, *args, phase, **kwargs):
        self.real(network, *args, phase=phase, **kwargs)
        self.calls.append({"phase": phase, **kwargs})
        if phase == "train":
            with torch.no_grad():
                self.correct = correct_of(network(self.validation[0]), self.validation[1])
                self.correct_train = correct_of(network(self.train[0]), self.train[1])
            self.unpruned = {key: value.clone() for key, value in network.state_dict().items()}
        else:
            self.n_finetuned += 1
            if self.n_finetuned in self.spoil:
                with torch.no_grad():
                    for weight in (network.head_given, network.head_pool):
                        if weight is not None:
                            weight.mul_(-1)

    def check(self, learner, result, margin, *, told=True):
        n = len(self.validation[1])
        found = correct_of(learner.predict(self.validation[0], task=result.task), self.validation[1])
        assert result.accuracy == pytest.approx(found / n), "what is told is what the committed predictor answers"
        assert result.margin == margin
        if told:
            assert result.accuracy_unpruned == pytest.approx(self.correct / n), "and what the unpruned network answered"
            assert result.margin_paid == pytest.approx((self.correct - found) / n)
        assert self.correct - found <= margin * n + 1e-9, "the margin holds"


def learn(learner, watch, name="a", **settings):
    settings = {"epochs": 5, "finetune_epochs": 1, "margin": 0.02, "pool": 0.5, **settings}
    return learner.learn(name, watch.train, watch.validation, config=clnp.LearnConfig(**settings))


@functools.cache
def empty(name):
    return clnp.Learner(small.network(name), torch.zeros(2, *small.SHAPE))


def new(name="mlp"):
    return copy.deepcopy(empty(name))  # captured once


@pytest.mark.parametrize("kept", [True, False])
def test_the_screen_looks_at_few_examples_and_answers_no_less_than_all_of_them(monkeypatch, kept):
    monkeypatch.setattr(clnp.pruning, "EVIDENCE", 0)
    asked, looked_at = [], []
    counted = clnp.pruning.n_correct
    monkeypatch.setattr(
        clnp.pruning,
        "n_correct",
        lambda network, data, *rest, **named: looked_at.append(len(data)) or counted(network, data, *rest, **named),
    )

    def select(scores, visible, measure, *, correct, screen, **settings):
        generator = torch.Generator().manual_seed(0)
        for share in (1.0, 0.8, 0.6, 0.4, 0.2):
            keep = {group: units & (torch.rand(len(units), generator=generator) <= share) for group, units in visible.items()}
            looked_at.clear()
            asked.append((measure(keep), screen(keep), correct, tuple(looked_at)))
        return nothing_released(scores, visible, measure, correct=correct, **settings)

    learner = new()
    for number in (0, 1):  # the second reads values of the first that are kept, where they may be
        learn(learner, Watch(monkeypatch, number), f"task {number}", margin=0.1, epochs=1, memory_limit=4096 if kept else 0)
    monkeypatch.setattr(clnp.pruning, "select", select)
    watch = Watch(monkeypatch, 2)
    learn(learner, watch, "last", margin=0.1, epochs=2, pool="all", rounds=1, memory_limit=4096 if kept else 0)
    assert len(asked) == 5
    n = len(watch.validation[1])
    for measured, screened, _, (n_all, n_hard) in asked:
        assert measured <= screened
        assert n_all == n
        assert n_hard < n
    assert asked[0][:2] == (asked[0][2], asked[0][2]), "of the whole network both are right"
    assert any(measured < screened for measured, screened, *_ in asked), "what was easy may be lost, too"


@pytest.mark.parametrize("name", ["mlp", "vgg"])
def test_the_screen_is_quick_and_the_measure_exact(name, monkeypatch):
    """The screen multiplies as training does, with norms of one batch, and looks at few witnesses; all of it is counted anew in float32 and with all norms' examples."""
    monkeypatch.setattr(clnp.pruning, "EVIDENCE", 100)
    monkeypatch.setattr(clnp.candidates, "ESTIMATE_BATCH", 50)
    seen = []
    counted, estimated = clnp.pruning.n_correct, clnp.candidates.estimate_norms_

    def count(network, examples, *rest, **named):
        seen.append(("count", len(examples), torch.is_autocast_enabled("cpu")))
        return counted(network, examples, *rest, **named)

    def estimate(network, examples, *rest, n_examples, **named):
        seen.append(("norms", min(n_examples, len(examples)), torch.is_autocast_enabled("cpu")))
        return estimated(network, examples, *rest, n_examples=n_examples, **named)

    monkeypatch.setattr(clnp.pruning, "n_correct", count)
    monkeypatch.setattr(clnp.candidates, "estimate_norms_", estimate)
    asked = []

    def select(scores, visible, measure, *, correct, screen, sparing, **settings):
        assert sparing == (name == "vgg"), "norms make networks dear to ask about"
        screen(visible)  # which examples are the hardest is found once
        for ask in (screen, measure):
            seen.clear()
            assert ask(visible) > 0
            asked.append(list(seen))
        return nothing_released(scores, visible, measure, correct=correct, **settings)

    monkeypatch.setattr(clnp.pruning, "select", select)
    watch = Watch(monkeypatch)
    learn(new(name), watch, rounds=1, margin=0.1, precision="bfloat16")
    (screened, measured), n = asked, len(watch.validation[1])
    assert n < 100, "witnesses are asked, too"
    norms = [("norms", 50, True)] if name == "vgg" else []
    assert screened[: len(norms)] == norms
    assert [(kind, autocast) for kind, _, autocast in screened[len(norms) :]] == [("count", True)] * 2
    assert screened[-2][1] < n
    assert screened[-1][1] < 100 - n
    assert measured == [*([("norms", N_TRAIN, False)] if norms else []), ("count", n, False), ("count", 100 - n, False)]


@pytest.mark.parametrize("lost", ["validation", "sample"])
def test_the_screen_refuses_what_the_margin_does_not_cover_in_either_kind_of_examples(lost, monkeypatch):
    monkeypatch.setattr(clnp.pruning, "EVIDENCE", 100)
    counted, answers = clnp.pruning.n_correct, []

    def select(scores, visible, measure, *, correct, screen, **settings):
        before = screen(visible)
        n_lost = {"validation": 0, "sample": 1}[lost]
        calls = iter(range(2))
        monkeypatch.setattr(
            clnp.pruning, "n_correct", lambda *args, **named: counted(*args, **named) - (20 if next(calls) == n_lost else 0)
        )
        answers.append((before, screen(visible)))
        monkeypatch.setattr(clnp.pruning, "n_correct", counted)
        return nothing_released(scores, visible, measure, correct=correct, **settings)

    monkeypatch.setattr(clnp.pruning, "select", select)
    learn(new(), Watch(monkeypatch), rounds=1, margin=0.1)
    ((before, after),) = answers
    assert before > 0 > after


@pytest.mark.parametrize(("evidence", "screened"), [(100, True), (10_000, False)])
def test_few_examples_are_asked_without_a_screen(evidence, screened, monkeypatch):
    monkeypatch.setattr(clnp.pruning, "EVIDENCE", evidence)
    given = []

    def select(scores, visible, measure, *, screen, **settings):
        given.append(screen is not None)
        return nothing_released(scores, visible, measure, **settings)

    monkeypatch.setattr(clnp.pruning, "select", select)
    learn(new(), Watch(monkeypatch), rounds=1)
    assert given == [screened]


def nothing_released(scores, visible, measure, *, correct, **settings):
    del scores, measure, settings
    return Selection(dict(visible), correct, 0)


def test_free_units_are_released_before_claimed_ones_that_matter_a_little_more(monkeypatch):
    """Both networks are trained alike; what differs is how much a free unit counts when the two kinds are put in one order."""
    seen = {}

    def select(scores, visible, measure, **settings):
        seen.update({group: values.clone() for group, values in scores.items()})
        return nothing_released(scores, visible, measure, **settings)

    monkeypatch.setattr(clnp.pruning, "select", select)
    scores = {}
    for weight in (1.0, 0.3):
        learner = new()
        learn(learner, Watch(monkeypatch, 0), "first", pool=0.5)
        free = {group: owner < 0 for group, owner in learner.allocation.owner.items()}
        learn(learner, Watch(monkeypatch, 1), "second", pool=0.5, rounds=1, claim_weight=weight)
        scores[weight] = dict(seen)
    assert any(bool(is_free.any() and (~is_free).any()) for is_free in free.values())
    for group, is_free in free.items():
        assert torch.equal(scores[0.3][group], torch.where(is_free, 0.3, 1.0) * scores[1.0][group])
        assert (scores[1.0][group] > 0).any()


@pytest.mark.parametrize("network", small.RESNET_IN_CI)
@pytest.mark.parametrize("settings", [{"rounds": 1, "finetune_epochs": 0}, {"rounds": 2, "finetune_epochs": 0}, {"rounds": 2}], ids=str)
def test_the_margin_holds_and_is_told(network, settings, monkeypatch):
    learner = new(network)
    for number, margin in enumerate((0.0, 0.05)):
        watch = Watch(monkeypatch, number)
        result = learn(learner, watch, f"t{number}", margin=margin, epochs=3, batch_size=60, **settings)
        watch.check(learner, result, margin, told="finetune_epochs" in settings)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("rounds", "spoil"), small.sampled([(2, (2,)), (1, (1,)), (2, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (3, (2,)), (4, (2, 3))], 2)
)
def test_the_margin_holds_whatever_fine_tuning_does(rounds, spoil, monkeypatch):
    learner = new()
    learn(learner, Watch(monkeypatch, 5), "before")
    monkeypatch.undo()
    watch = Watch(monkeypatch, spoil=spoil)
    result = learn(learner, watch, rounds=rounds)
    watch.check(learner, result, 0.02)
    assert watch.n_finetuned == rounds
    assert sum(result.claimed.values()) < 18, "what was pruned before stays pruned: not the whole pool is kept"


def test_survivors_train_on_gently(monkeypatch):
    watch = Watch(monkeypatch)
    learn(new(), watch, rounds=2, epochs=4, finetune_epochs=3, lr=0.01, l1=1e-3)
    told = [(call["phase"], call["epochs"], call["lr"], call["l1"]) for call in watch.calls]
    assert told == [("train", 4, 0.01, 1e-3)] + 2 * [("finetune", 3, 0.005, 0.0)]
    assert len({call["place"] for call in watch.calls}) == 3, "each with random numbers of its own"


def test_a_predictor_that_rounding_tips_out_of_the_margin_is_not_committed(monkeypatch):
    real, calls = clnp.commit.n_correct, []
    monkeypatch.setattr(clnp.commit, "n_correct", lambda *args: calls.append(0) or (real(*args) if len(calls) > 1 else 0))
    learner, watch = new(), Watch(monkeypatch)
    result = learn(learner, watch, pool=7)
    watch.check(learner, result, 0.02)
    assert result.claimed == {"2": 7, "5": 7}, "the unpruned network is"


def test_a_shared_head_is_committed_as_it_was_trained(monkeypatch):
    learner = new()
    for number, head in enumerate(("multi", "single", "single", "single")):
        watch = Watch(monkeypatch, number)
        result = learn(learner, watch, f"t{number}", head=head, finetune_epochs=0, epochs=8, pool=4)
        watch.check(learner, result, 0.02)
        monkeypatch.undo()


def test_the_margin_holds_where_no_new_unit_is_needed(monkeypatch):
    """The way out on which the reference implementation forgets its margin."""
    learner = new()
    learn(learner, Watch(monkeypatch), "first", margin=0.0, epochs=8)
    monkeypatch.undo()
    watch = Watch(monkeypatch)
    result = learn(learner, watch, "the same again", epochs=8)
    watch.check(learner, result, 0.02)
    assert sum(result.reused.values()) > 0
    watch = Watch(monkeypatch)
    result = learn(learner, watch, "reused units alone", epochs=8, pool=0)
    watch.check(learner, result, 0.02)
    assert sum(result.claimed.values()) == 0


def test_when_even_the_mildest_pruning_breaks_the_margin_the_whole_pool_is_kept(monkeypatch):
    real = clnp.pruning.select
    monkeypatch.setattr(clnp.pruning, "select", lambda scores, visible, _, **settings: real(scores, visible, lambda _: 0, **settings))
    learner, watch = new(), Watch(monkeypatch)
    result = learn(learner, watch, finetune_epochs=0, rounds=1, pool=7)
    watch.check(learner, result, 0.02)
    assert result.claimed == {"2": 7, "5": 7}
    assert result.margin_paid == 0


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("mlp", {"2": 1, "5": 1}),
        ("vgg", {"0": 1, "5": 1, "10": 1}),
        ("resnet", {"stem": 1, "block1.conv1": 0, "block2.conv1": 0, "block2.conv2": 1}),
    ],
)
def test_a_wide_margin_leaves_one_unit_on_the_only_way_and_none_in_a_branch(name, left, monkeypatch):
    result = learn(new(name), Watch(monkeypatch), margin=0.99, epochs=1, finetune_epochs=0, rounds=1)
    assert result.claimed == left


def test_a_wider_margin_leaves_more_room(monkeypatch):
    claimed = []
    for margin in (0.0, 0.3):
        watch = Watch(monkeypatch)
        claimed.append(sum(learn(new(), watch, margin=margin, finetune_epochs=0, epochs=8).claimed.values()))
        monkeypatch.undo()
    assert claimed[1] < claimed[0]


def test_pruning_alone_leaves_every_surviving_weight_as_it_was_trained(monkeypatch):
    learner, watch = new(), Watch(monkeypatch)
    result = learn(learner, watch, finetune_epochs=0, rounds=2, epochs=8)
    assert 0 < sum(result.claimed.values()) < 18
    kept = {group: units.nonzero()[:, 0] for group, units in learner.allocation.needed["a"].items()}  # of a pool of the first 10 and 8
    found = learner.predictor("a").state_dict()
    trained = watch.unpruned
    assert torch.equal(found["2.weight"], trained["pool.given.2.weight"][kept["2"]])
    assert torch.equal(found["2.bias"], trained["pool.own.2.bias"][kept["2"]])
    assert torch.equal(found["5.weight"], trained["pool.pool.5.weight"][kept["5"]][:, kept["2"]])
    assert torch.equal(found["5.bias"], trained["pool.own.5.bias"][kept["5"]])
    assert torch.equal(found["head.weight"], trained["head_pool"][:, kept["5"]])


@pytest.mark.parametrize("finetune_epochs", [0, 1])
def test_statistics_of_norms_are_those_of_the_network_that_is_committed(finetune_epochs):
    learner, ((x, y), validation) = new("vgg"), data(0)
    settings = {"epochs": 8, "margin": 0.2, "pool": 0.5, "finetune_epochs": finetune_epochs}
    assert len(x) <= clnp.training.ESTIMATE_BATCH, "one batch holds them all"
    result = learner.learn("a", (x, y), validation, config=clnp.LearnConfig(**settings))
    assert sum(result.claimed.values()) < 14, "something was pruned"
    network = learner.predictor("a")
    state = network.state_dict()
    with torch.no_grad():
        h = torch.conv2d(x, state["0.weight"], state["0.bias"], padding=1)
        assert torch.allclose(state["1.running_mean"], h.mean((0, 2, 3)), atol=1e-4)
        assert torch.allclose(state["1.running_var"], h.transpose(0, 1).flatten(1).var(1), rtol=1e-3)
        h = torch.nn.functional.batch_norm(h, state["1.running_mean"], state["1.running_var"], state["1.weight"], state["1.bias"])
        h = torch.conv2d(torch.nn.functional.max_pool2d(torch.relu(h), 2), state["5.weight"], padding=1)
        assert torch.allclose(state["6.running_mean"], h.mean((0, 2, 3)), atol=1e-4), "the second one reads the pruned first one"


def test_what_is_kept_is_closed_over_tasks(monkeypatch):
    learner = new()
    for number in range(3):
        learn(learner, Watch(monkeypatch, number), f"t{number}", pool=4)
        monkeypatch.undo()
    allocation = learner.allocation
    n_read = 0
    for task in allocation.tasks:
        for unit in allocation.needed[task]["5"].nonzero()[:, 0].tolist():
            owner = allocation.tasks[int(allocation.owner["5"][unit])]
            inputs = allocation.needed[owner]["2"]
            assert (allocation.needed[task]["2"] | ~inputs).all(), f"{task} reads unit {unit} of {owner} without its inputs"
            n_read += owner != task
    assert n_read > 0, "something is reused, or nothing is tested"


def test_a_small_validation_set_is_not_the_only_witness(monkeypatch):
    """Six examples notice little: the margin holds on training examples, too."""
    (x, y), held_out = data(0)
    watch = Watch(monkeypatch, validation=(held_out[0][:6], held_out[1][:6]))
    learner = new()
    result = learn(learner, watch, epochs=10, finetune_epochs=0, margin=0.02)
    watch.check(learner, result, 0.02)
    assert watch.correct_train - correct_of(learner.predict(x, task="a"), y) <= 0.02 * N_TRAIN
    assert any("finer than one of 6 validation examples" in notice for notice in result.notices)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("criterion", "moment"), [("activity-weight", "mean_abs"), ("std", "std")])
def test_scoring_measures_what_the_criterion_reads_in_the_memory_format_of_training(criterion, moment, channels_last, monkeypatch):
    asked, activities = [], clnp.pruning.activities

    def noted(*args, moments, channels_last, **named):
        asked.append((list(moments), channels_last))
        return activities(*args, moments=moments, channels_last=channels_last, **named)

    monkeypatch.setattr(clnp.pruning, "activities", noted)
    learn(new("vgg"), Watch(monkeypatch), rounds=1, epochs=1, criterion=criterion, channels_last=channels_last)
    assert asked == [([moment], channels_last)]


def test_the_order_of_events():
    events = []
    learner, (train, validation) = new(), data(0)
    learner.learn("a", train, validation, config=small.config(epochs=2, rounds=2, finetune_epochs=1), progress=events.append)
    told = [(e["event"], e["phase"], e.get("epoch", e.get("round"))) for e in events]
    assert told == [
        ("epoch", "train", 1),
        ("epoch", "train", 2),
        ("phase", "score", 1),
        ("phase", "select", 1),
        ("phase", "finetune", 1),
        ("epoch", "finetune", 1),
        ("phase", "score", 2),
        ("phase", "select", 2),
        ("phase", "finetune", 2),
        ("epoch", "finetune", 1),
        ("phase", "commit", told[-1][2]),
    ]
    assert {e["task"] for e in events} == {"a"}


@pytest.mark.parametrize("criterion", small.sampled(clnp.CRITERIA, 3))
def test_every_criterion_keeps_the_margin_and_frees_something(criterion, monkeypatch):
    learner, watch = new("vgg"), Watch(monkeypatch)
    result = learn(learner, watch, criterion=criterion, margin=0.1, epochs=8)
    watch.check(learner, result, 0.1)
    assert sum(result.claimed.values()) < 15


# ---- what was once broken


@pytest.mark.parametrize(("rounds", "spoil"), [(2, (1,)), (2, (1, 2)), (3, (1, 2))])
def test_the_margin_holds_when_nothing_is_released_and_fine_tuning_fails(rounds, spoil, monkeypatch):
    monkeypatch.setattr(clnp.pruning, "select", nothing_released)
    learner, watch = new(), Watch(monkeypatch, spoil=spoil)
    watch.check(learner, learn(learner, watch, rounds=rounds), 0.02)


def test_what_the_unpruned_network_answered_is_told_when_nothing_is_released(monkeypatch):
    monkeypatch.setattr(clnp.pruning, "select", nothing_released)
    learner, watch = new(), Watch(monkeypatch)
    watch.check(learner, learn(learner, watch, rounds=1, epochs=1, finetune_epochs=8, margin=0.02), 0.02)


def test_when_nothing_is_released_and_the_only_fine_tuning_fails_the_network_is_put_back(monkeypatch):
    monkeypatch.setattr(clnp.pruning, "select", nothing_released)
    learner, watch = new(), Watch(monkeypatch, spoil=(1,))
    watch.check(learner, learn(learner, watch, rounds=1), 0.02)


# ---- what else was once broken in learning a task


def linear_task(n=100, dtype=torch.float32):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x, (x[:, 0] > 0).long()


def learn_linear(net, examples=None, *, train=None, **settings):
    examples = examples or linear_task()
    learner = clnp.Learner(net, examples[0][:2] * 0)
    config = clnp.LearnConfig(**{"epochs": 1, "finetune_epochs": 0, "batch_size": 32, "pool": 0.5, **settings})
    return learner, learner.learn("a", train or examples, examples, config=config)


def test_a_network_with_an_unused_layer_can_learn():
    learn_linear(Net(lambda n, x: n.a(x), a=nn.Linear(8, 6), auxiliary=nn.Linear(8, 6)))


def test_a_trunk_without_units_is_refused():
    with pytest.raises(clnp.ClnpError):
        learn_linear(nn.Flatten())


def test_a_network_in_double_precision_is_learned_or_refused():
    try:
        learn_linear(nn.Linear(8, 6).double(), linear_task(dtype=torch.float64))
    except clnp.ClnpError:
        return


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(clnp.ConfigError):
        learn_linear(nn.Linear(8, 6), device=device)


def test_a_name_that_is_not_text_is_refused():
    with pytest.raises(clnp.TaskError):
        new().learn(5, *data(0))


def test_a_predictor_that_answers_nan_is_never_committed():
    x, y = linear_task()
    with pytest.raises((clnp.TrainingError, clnp.DataError)):
        learn_linear(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()), (x * 1e25, y))


def test_what_answers_infinity_on_validation_data_is_never_committed():
    x, y = linear_task()
    learner = clnp.Learner(Net(lambda n, x: n.a(x) ** 4, a=nn.Linear(8, 6)), x[:2])
    with pytest.raises(clnp.TrainingError, match="task 'a' was abandoned: the trained network answers NaN or infinity on validation data"):
        learner.learn("a", (x, y), (x * 1e12, y), config=clnp.LearnConfig(epochs=1))
    assert learner.tasks == ()


class Examples(torch.utils.data.Dataset):
    def __len__(self):
        return 97

    def __getitem__(self, place):
        x, y = linear_task()
        return x[place], int(y[place])


def test_a_dataset_whose_last_batch_is_one_example_can_be_learned():
    learn_linear(nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)), train=Examples())


def test_a_single_head_on_reused_units_alone():
    learner, _ = learn_linear(nn.Linear(8, 6), head="single")
    learner.learn("b", linear_task(), linear_task(), config=clnp.LearnConfig(head="single", pool=0, epochs=1, finetune_epochs=0))


def test_the_seed_decides_with_a_users_loader_too():
    logits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        learner, ((x, y), validation) = new("vgg"), data(0)
        loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
        learner.learn("a", loader, validation, config=small.config())
        logits.append(learner.predict(x, task="a"))
    assert logits[0].shape == logits[1].shape
    assert torch.equal(*logits)


def test_a_head_after_which_something_follows_is_refused_at_zeros_too():
    net = Net(lambda n, x: n.fc(torch.relu(n.a(x))) + x.mean(1, keepdim=True), a=nn.Linear(8, 6), fc=nn.Linear(6, 2))
    with pytest.raises(clnp.WiringError):
        clnp.Learner(net, torch.zeros(2, 8), head="fc")


@pytest.mark.parametrize(
    ("net", "example", "head"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), torch.zeros(2, 9), "1"),
        (lambda: Net(lambda n, x: {"logits": n.a(x).unflatten(1, (2, 3))}, a=nn.Linear(8, 6)), torch.zeros(2, 8), None),
        (lambda: Net(lambda n, x: {"number": 1.0}, a=nn.Linear(8, 6)), torch.zeros(2, 8), None),
        (lambda: nn.Linear(8, 6), [0.0] * 8, None),
    ],
    ids=["another shape and a head", "a dictionary of images", "a dictionary of numbers", "no tensor"],
)
def test_what_cannot_be_a_learner_is_refused(net, example, head):
    with pytest.raises(clnp.ClnpError):
        clnp.Learner(net(), example, head=head)
