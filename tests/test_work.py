"""A task that was killed and learned again ends with the same bits, and does again only what was not saved."""

from __future__ import annotations

import copy
import errno
import json
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import clnp
import clnp.work
from clnp import seeds, training
from clnp.config import LearnConfig
from clnp.course import pack, unpack
from clnp.methods import METHODS
from clnp.sources import StreamExamples, TensorExamples
from clnp.work import Work, clear, digest, fingerprint
from small import OPTIMIZERS, SHAPE, config, network, sampled, task

CASES = {
    "mlp, adam, one-cycle": ("mlp", {**OPTIMIZERS["adam"]}),
    "mlp, sgd, cosine, single": ("mlp", {**OPTIMIZERS["sgd-momentum"], "schedule": "cosine", "head": "single"}),
    "vgg, adamw, constant": ("vgg", {**OPTIMIZERS["adamw"], "schedule": "constant"}),
    "vgg, sgd, one-cycle, single": ("vgg", {**OPTIMIZERS["sgd-decay"], "head": "single"}),
    "mlp, adam, patience": ("mlp", {"lr": 0.03, "epochs": 9, "patience": 2, "schedule": "constant"}),
}


class Killed(BaseException):
    """What a kill looks like from inside: nothing in the library may catch it."""


class Steps:
    """Counts optimisation steps, and kills before the state after one of them can be saved."""

    def __init__(self, monkeypatch):
        self.n, self.kill_at = 0, None
        make = training.make_optimizer

        def counted(*args):
            optimizer = make(*args)
            optimizer.register_step_post_hook(lambda *_: self.count())
            return optimizer

        monkeypatch.setattr(training, "make_optimizer", counted)

    def count(self):
        if self.n == self.kill_at:
            self.kill_at = None
            raise Killed
        self.n += 1


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


@pytest.fixture
def always(monkeypatch):
    """Save after every step."""
    monkeypatch.setattr(Work, "due", lambda self: self._key is not None)


LEARNERS: dict[str, clnp.Learner] = {}


def learner_of(case):
    """A learner that knows one task."""
    name, settings = CASES[case]
    if case not in LEARNERS:
        learner = clnp.Learner(network(name), torch.zeros(2, *SHAPE))
        x, y = task(0, 60)
        learner.learn("first", (x, y), (x[:30], y[:30]), config=config(epochs=1, head=settings.get("head", "multi")))
        LEARNERS[case] = learner
    wiring = LEARNERS[case].wiring  # immutable, and slow to copy
    return copy.deepcopy(LEARNERS[case], {id(wiring): wiring})


def noisy(number=1):
    """Data whose validation accuracy goes up and down: a third of the labels is wrong."""
    x, y = task(number)
    y = torch.where(torch.rand(len(y), generator=torch.Generator().manual_seed(7)) < 0.3, (y + 1) % 3, y)
    return (x[:180], y[:180]), (x[180:], y[180:])


def teach(learner, case, *, work=None, progress=None, data=None, name="second", **settings):
    train, validation = data or noisy()
    settings = {"epochs": 2, "batch_size": 30, **CASES[case][1], **settings}
    return learner.learn(name, train, validation, config=config(**settings), progress=progress, work=work)


REFERENCES: dict[str, tuple] = {}


def told_of(events):
    """What was told of each epoch, the newest word where it was told twice."""
    return {(e["phase"], e["round"], e["epoch"]): e["loss"] for e in events if e["event"] == "epoch"}


def reference_of(case):
    """What an uninterrupted process ends with, without any directory."""
    if case not in REFERENCES:
        learner, events = learner_of(case), []
        REFERENCES[case] = (learner, teach(learner, case, progress=events.append), told_of(events))
    return REFERENCES[case]


def assert_same(case, learner, result):
    expected, told, _ = reference_of(case)
    assert replace(result, seconds=0.0) == replace(told, seconds=0.0)
    assert learner.allocation.tasks == expected.allocation.tasks
    for group in expected.allocation.n_units:
        assert torch.equal(learner.allocation.owner[group], expected.allocation.owner[group])
    for name in expected.tasks:
        for here, there in zip(learner.head_of(name), expected.head_of(name), strict=True):
            assert torch.equal(here, there)
        mine, theirs = learner.predictor(name).state_dict(), expected.predictor(name).state_dict()
        assert mine.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert torch.equal(mine[key], tensor), key


def total_steps(case, steps):
    """The optimisation steps of an uninterrupted process; the count starts anew."""
    reference_of(case)
    if case not in TOTALS:
        before = steps.n
        teach(learner_of(case), case)
        TOTALS[case] = steps.n - before
    steps.n = 0
    return TOTALS[case]


TOTALS: dict[str, int] = {}
MLP = "mlp, adam, one-cycle"


# ---- killed and learned again


@pytest.mark.parametrize("case", sampled(CASES, 2))
def test_killed_every_few_steps_it_ends_with_the_same_bits_and_repeats_only_the_lost_ones(case, steps, always, tmp_path):
    """Each kill comes after a step and before it is saved: one step is lost each time, none is done twice, and none is left out."""
    total, kills, events = total_steps(case, steps), 0, []
    assert total > 20
    while True:
        before, steps.kill_at = steps.n, steps.n + 10
        try:
            learner = learner_of(case)
            result = teach(learner, case, work=tmp_path, progress=events.append)
            break
        except Killed:
            kills += 1
            assert steps.n - before == 10
    assert kills >= 2
    assert steps.n == total, "a step that was killed is not counted; no other was done twice"
    assert_same(case, learner, result)
    assert told_of(events) == reference_of(case)[2], "the loss of an epoch is that of all its steps"


def test_patience_is_put_to_use_in_these_cases():
    for case, (_, settings) in CASES.items():
        if "patience" in settings:
            events = []
            teach(learner_of(case), case, progress=events.append)
            n = sum(event["event"] == "epoch" and event["phase"] == "train" for event in events)
            assert settings["patience"] < n < settings["epochs"], case


def killing(event, phase=None, count=1):
    seen = []

    def progress(told):
        if told["event"] == event and phase in (None, told.get("phase")):
            seen.append(told)
            if len(seen) == count:
                raise Killed

    return progress


EVENTS = {  # where it is killed: how often, after that, the search is done and the epochs are told
    ("epoch", "train", 1): (2, 3 + 1),
    ("epoch", "train", 2): (2, 2 + 1),  # the epoch's event came, but no later state was saved: it is told again, not trained again
    ("phase", "score", 1): (2, 2),
    ("phase", "select", 1): (2, 2),
    ("epoch", "finetune", 1): (1, 1 + 1),
    ("phase", "score", 2): (1, 1),
    ("epoch", "finetune", 2): (0, 0 + 1),
    ("phase", "commit", 1): (0, 0),
}


@pytest.mark.parametrize(
    ("case", "event"), [*((MLP, event) for event in EVENTS), *(("vgg, adamw, constant", e) for e in list(EVENTS)[1::4])]
)
def test_killed_at_an_event_it_goes_on_from_there(case, event, steps, always, tmp_path):
    total = total_steps(case, steps)
    with pytest.raises(Killed):
        teach(learner_of(case), case, work=tmp_path, progress=killing(*event))
    events, learner = [], learner_of(case)
    result = teach(learner, case, work=tmp_path, progress=events.append)
    assert steps.n == total, "no step was repeated, none left out"
    assert_same(case, learner, result)
    assert events[0]["event"] == "task_resumed"
    epochs = [(e["phase"], e["round"], e["epoch"]) for e in events if e["event"] == "epoch"]
    n_selected = sum(e["event"] == "phase" and e["phase"] == "select" for e in events)
    assert (n_selected, len(epochs)) == EVENTS[event]
    assert len(epochs) == len(set(epochs))


def test_killed_within_the_search_it_searches_again_but_trains_no_more(steps, always, tmp_path, monkeypatch):
    case = "vgg, adamw, constant"
    total, seen = total_steps(case, steps), []

    def check(self):
        seen.append(self)
        if len(seen) == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Work, "check", check)
        with pytest.raises(Killed):
            teach(learner_of(case), case, work=tmp_path)
    learner = learner_of(case)
    assert_same(case, learner, teach(learner, case, work=tmp_path))
    assert steps.n == total


def test_a_search_that_is_finished_is_not_done_again(always, tmp_path, monkeypatch):
    case = MLP
    reference_of(case)  # is trained, too, if no other test has needed it yet
    with pytest.raises(Killed):
        teach(learner_of(case), case, work=tmp_path, progress=killing("phase", "commit"))
    monkeypatch.setattr("clnp.pruning.search", lambda *_, **__: pytest.fail("searched again"))
    monkeypatch.setattr("clnp.training.F.cross_entropy", lambda *_, **__: pytest.fail("trained again"))
    learner = learner_of(case)
    assert_same(case, learner, teach(learner, case, work=tmp_path))


def test_it_goes_on_in_a_learner_that_was_loaded(steps, always, tmp_path):
    """The first process learned the first task itself, the second one loads it."""
    case = "mlp, sgd, cosine, single"
    total = total_steps(case, steps)
    steps.kill_at = steps.n + 7
    first = learner_of(case)
    first.save(tmp_path / "model")
    with pytest.raises(Killed):
        teach(first, case, work=tmp_path / "work")
    learner = clnp.Learner.load(tmp_path / "model", network("mlp", seed=5))
    assert_same(case, learner, teach(learner, case, work=tmp_path / "work"))
    assert steps.n == total


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("count", [1, 9])
def test_killed_while_the_state_is_written(steps, always, tmp_path, monkeypatch, count, moment):
    case, seen = MLP, []
    write = clnp.work.write_atomic

    def cut_short(path, data, **how):
        seen.append(path)
        if len(seen) == count and moment == "before":
            path.with_name(path.name + ".new").write_bytes(data[: len(data) // 2])
            raise Killed
        write(path, data, **how)
        if len(seen) == count:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(clnp.work, "write_atomic", cut_short)
        with pytest.raises(Killed):
            teach(learner_of(case), case, work=tmp_path)
    learner = learner_of(case)
    assert_same(case, learner, teach(learner, case, work=tmp_path))
    assert not list(tmp_path.glob("*.new"))


# ---- saving changes nothing, and its failure neither


@pytest.mark.parametrize("case", list(CASES)[2:5])
def test_saving_after_every_step_changes_no_bit(case, always, tmp_path):
    noise = torch.get_rng_state()
    learner = learner_of(case)
    assert_same(case, learner, teach(learner, case, work=tmp_path / "made" / "work"))
    assert torch.equal(torch.get_rng_state(), noise)
    assert {path.name for path in (tmp_path / "made" / "work").iterdir()} >= {
        f"work-{phase}.safetensors" for phase in ("train-0", "select-1", "finetune-1", "select-2", "finetune-2")
    }


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only file system")])
def test_a_disk_that_is_full_stops_nothing_and_is_told_once(always, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(clnp.work, "write_atomic", fail)
    case, events = MLP, []
    learner = learner_of(case)
    assert_same(case, learner, teach(learner, case, work=tmp_path, progress=events.append))
    notices = [event["message"] for event in events if event["event"] == "notice"]
    assert len(notices) == 1
    assert error.strerror in notices[0]
    assert "Training goes on" in notices[0]


def test_a_directory_that_is_a_file_stops_nothing(always, tmp_path):
    (tmp_path / "file").write_text("mine")
    case, events = MLP, []
    learner = learner_of(case)
    assert_same(case, learner, teach(learner, case, work=tmp_path / "file", progress=events.append))
    assert sum(event["event"] == "notice" for event in events) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_it_is_saved_now_and_then_and_at_the_end_of_a_phase(tmp_path, monkeypatch):
    learner, clock, writes = learner_of(MLP), [0.0], []
    monkeypatch.setattr(clnp.work.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Work, "keep", lambda self, phase, facts, tensors, *, finished: self._keep_for_test(phase, finished))

    def keep(self, phase, finished):
        writes.append((phase, finished, clock[0]))
        self._next = clock[0] + clnp.work.SAVE_SECONDS

    monkeypatch.setattr(Work, "_keep_for_test", keep, raising=False)
    step = training.F.cross_entropy

    def slow(*args, **how):
        clock[0] += 3.0
        return step(*args, **how)

    monkeypatch.setattr(training.F, "cross_entropy", slow)
    teach(learner, MLP, work=tmp_path, epochs=2, rounds=1, finetune_epochs=0)
    assert writes == [
        ("train-0", False, 12.0),
        ("train-0", False, 24.0),
        ("train-0", False, 36.0),
        ("train-0", True, 36.0),
        ("select-1", True, 36.0),
    ]


def test_a_large_network_does_not_spend_its_time_saving(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(clnp.work.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(clnp.work, "write_atomic", lambda *_, **__: clock.__setitem__(0, clock[0] + 4.0))
    work = Work(tmp_path)
    work.open("a", {}, {})
    work.keep("train-0", {}, {}, finished=False)
    assert not work.due()
    clock[0] = 4.0 + 79
    assert not work.due()
    clock[0] = 4.0 + 80
    assert work.due()


# ---- what cannot be used is thrown away


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The files of a process that was killed three steps before the end of training: name -> content."""
    directory = tmp_path_factory.mktemp("left")
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        steps.kill_at = total_steps(MLP, steps) - 3
        patch.setattr(Work, "due", lambda self: self._key is not None)
        with pytest.raises(Killed):
            teach(learner_of(MLP), MLP, work=directory)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert len(files) == 6, "five phases and the time"
    return files


@pytest.fixture
def late(left, tmp_path):
    """A directory of those files."""
    for name, data in left.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def flip(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


DAMAGES = {
    "torn": lambda data: data[:-9],
    "short": lambda data: data[:5],
    "empty": lambda data: b"",
    "flipped": flip,
    "longer": lambda data: data + b"0",
    "rubbish": lambda data: b"\xff" * 300,
}


@pytest.mark.parametrize(
    ("which", "damage"), [*(("finetune-1", damage) for damage in DAMAGES), *((w, "flipped") for w in ("train-0", "select-1", "finetune-2"))]
)
def test_damaged_files_are_thrown_away_with_a_notice(steps, late, which, damage):
    total = total_steps(MLP, steps)
    path = late / f"work-{which}.safetensors"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    events, learner = [], learner_of(MLP)
    assert_same(MLP, learner, teach(learner, MLP, work=late, progress=events.append))
    (notice,) = [event["message"] for event in events if event["event"] == "notice"]
    assert path.name in notice
    # What comes after the damaged phase rests on it, and is done again, too.
    assert steps.n == {"train-0": total, "select-1": 12, "finetune-1": 12, "finetune-2": 6}[which]


def test_files_that_are_whole_leave_only_the_last_steps(steps, late):
    total_steps(MLP, steps)
    learner = learner_of(MLP)
    assert_same(MLP, learner, teach(learner, MLP, work=late))
    assert steps.n == 3


def test_every_flipped_bit_of_what_is_read_is_noticed(tmp_path):
    work = Work(tmp_path)
    work.open("a", {}, {})
    work.keep("train-0", {"epoch": 3}, {"w": torch.arange(3.0)}, finished=False)
    path = tmp_path / "work-train-0.safetensors"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        again = Work(tmp_path)
        again.open("a", {}, {})
        state = again.recall("train-0")
        if state is not None:  # a bit that nobody reads: a space at the end of the header
            assert (state.facts, state.tensors["w"].tolist()) == ({"epoch": 3}, [0.0, 1.0, 2.0])
            assert whole[place : place + 1] == b" "


def test_the_state_of_another_number_of_threads_or_version_is_not_used(tmp_path, monkeypatch):
    work = Work(tmp_path)
    work.open("a", {}, {})
    for what, other in (("torch.get_num_threads", lambda: 77), ("torch.__version__", "1.0"), ("__version__", "0.0")):
        work.keep("train-0", {}, {}, finished=True)
        with monkeypatch.context() as patch:
            patch.setattr(f"clnp.work.{what}", other)
            again = Work(tmp_path)
            again.open("a", {}, {})
        assert again.recall("train-0") is None, what
        assert not list(tmp_path.iterdir())


def test_the_file_of_another_phase_is_not_taken_for_this_one(tmp_path):
    work = Work(tmp_path)
    work.open("a", {}, {})
    work.keep("finetune-1", {}, {}, finished=True)
    (tmp_path / "work-finetune-1.safetensors").rename(tmp_path / "work-train-0.safetensors")
    again = Work(tmp_path)
    again.open("a", {}, {})
    assert again.recall("train-0") is None
    assert not list(tmp_path.iterdir())


def test_the_key_holds_who_owns_and_needs_which_units(tmp_path, monkeypatch):
    """Two learners may have the same weights and other owners: what is closed over and severed is not the same then."""
    opened = []
    monkeypatch.setattr(Work, "open", lambda self, task, situation, tensors: opened.append((situation, tensors)))
    teach(learner_of(MLP), MLP, work=tmp_path)
    ((situation, tensors),) = opened
    assert {"place", "config", "graph", "data"} == set(situation)
    assert {"owner", "needed", "pool", "visible", "train.y", "validation.y", "sample.y"} <= set(tensors)


def changed(part, place):
    """The data with one number changed."""
    data = [[tensor.clone() for tensor in pair] for pair in noisy()]
    tensor = data[part[0]][part[1]]
    tensor[place] = (tensor[place] + 1) % 3
    return tuple(tuple(pair) for pair in data)


@pytest.mark.parametrize(
    "other",
    [
        {"lr": 1e-3},
        {"margin": 0.03},
        {"rounds": 1},
        {"name": "third"},
        {"data": changed((0, 0), 3)},
        {"data": changed((0, 0), 170)},
        {"data": changed((0, 1), 170)},
        {"data": changed((1, 0), 3)},
        {"data": changed((1, 0), 50)},
        {"data": changed((1, 1), 50)},
    ],
    ids=", ".join,
)
def test_the_state_of_another_task_setting_or_data_is_not_used(late, other):
    events = []
    teach(learner_of(MLP), MLP, work=late, progress=events.append, **other)
    assert [event["event"] for event in events].count("task_resumed") == 0
    assert "another task, setting" in events[0]["message"]


@pytest.mark.parametrize("what", ["seed", "weights", "allocation"])
def test_the_state_of_another_learner_is_not_used(late, what):
    case, tmp_path = MLP, late
    learner, events = learner_of(case), []
    if what == "seed":
        learner.seed = 1
    elif what == "weights":
        rows = learner.wiring.parameters["2.weight"].rows
        row = int((learner.wiring.join(learner.allocation.owner)[rows] == 0).nonzero()[0])
        learner._state["2.weight"][row, 0] += 1e-6
    else:
        x, y = task(0, 60)
        learner.learn("between", (x, y), (x[:30], y[:30]), config=config(epochs=1))
    teach(learner, case, work=tmp_path, progress=events.append)
    assert [event["event"] for event in events].count("task_resumed") == 0


def test_files_that_are_not_ours_stay(tmp_path):
    (tmp_path / "thesis.safetensors").write_text("mine")
    work = Work(tmp_path)
    work.open("a", {}, {})
    work.keep("train-0", {}, {}, finished=False)
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.safetensors"]
    (tmp_path / "thesis.safetensors").unlink()
    clear(tmp_path)
    assert not tmp_path.exists()
    clear(tmp_path)


def test_without_a_directory_nothing_is_kept(always, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clnp.work, "write_atomic", lambda *_, **__: pytest.fail("written"))
    teach(learner_of(MLP), MLP)
    assert not list(tmp_path.iterdir())


# ---- streams


def stream(n=180):
    (x, y), validation = noisy()
    return DataLoader(TensorDataset(x[:n], y[:n]), batch_size=30, shuffle=True, drop_last=True), validation


@pytest.mark.parametrize("patience", [None, 3])
def test_a_stream_goes_on_at_the_start_of_an_epoch(steps, always, tmp_path, patience):
    case = MLP
    learner = learner_of(case)
    expected = teach(learner, case, data=stream(), patience=patience)
    total, steps.n = steps.n, 0
    steps.kill_at = 6 + 4
    with pytest.raises(Killed):
        teach(learner_of(case), case, data=stream(), work=tmp_path, patience=patience)
    again = learner_of(case)
    result = teach(again, case, data=stream(), work=tmp_path, patience=patience)
    assert replace(result, seconds=0.0) == replace(expected, seconds=0.0)
    assert steps.n == total + 4, "the four steps of the epoch that was cut short, and no more"
    mine, theirs = again.predictor("second").state_dict(), learner.predictor("second").state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_stream_of_other_data_is_another_task():
    (x, y), _ = noisy()
    facts, tensors = fingerprint(train=StreamExamples([(x, y)]), sample=TensorExamples(x, y))
    assert facts["train"] == "list"
    others = fingerprint(train=StreamExamples([(x, y)]), sample=TensorExamples(x + 1, y))
    assert digest(json.dumps(facts), tensors) != digest(json.dumps(others[0]), others[1])


# ---- the other methods


DENSE = {
    f"{name}{suffix}": (name, settings, 0.5)
    for name in ("finetune", "single")
    for suffix, settings in (("", {}), ("-patience", {"patience": 1, "epochs": 5}), ("-sgd", {"optimizer": "sgd", "head": "single"}))
} | {
    f"{name}-{part}": (name, {}, part)  # PackNet's second task is pruned at 0.67 of its steps
    for name in ("ewc", "online-ewc", "si", "superposition", "packnet", "hat", "wsn")
    for part in (0.4, 0.9)
}


@pytest.mark.parametrize(("name", "settings", "part"), sampled(DENSE.values()), ids=DENSE)
def test_methods_with_a_dense_network_go_on_too(steps, always, tmp_path, name, settings, part):
    settings = LearnConfig(**{"epochs": 2, "rounds": 1, "finetune_epochs": 1, "batch_size": 30, "lr": 0.01, **settings})

    def learned(n_tasks, work=None):
        trunk = network("vgg")[:-2] if name == "hat" else network("vgg")  # HAT refuses the last norm, which has no weights
        method = METHODS[name](lambda: copy.deepcopy(trunk), torch.zeros(2, *SHAPE), settings, 0)
        told = [method.learn(f"t{k}", *noisy(k), 3, lambda _: None, None if k < n_tasks - 1 else work) for k in range(n_tasks)]
        return told, method.predict(task(1)[0], f"t{n_tasks - 1}")

    told, logits = learned(2)
    total, steps.n = steps.n, 0
    learned(1)
    kill_at = steps.n + round((total - steps.n) * part)
    steps.n, steps.kill_at = 0, kill_at
    with pytest.raises(Killed):
        learned(2, tmp_path)
    n = steps.n
    again, same = learned(2, tmp_path)
    assert again == told
    assert torch.equal(same, logits)
    first = n + total - kill_at  # steps of the second process, without those that were kept
    assert steps.n - n < total
    assert first == total


# ---- times


def test_seconds_are_those_of_all_processes(steps, always, tmp_path, monkeypatch):
    case = MLP
    with monkeypatch.context() as patch:
        patch.setattr(Work, "spent", lambda self: (1000.0, 500.0))
        with pytest.raises(Killed):
            teach(learner_of(case), case, work=tmp_path, progress=killing("phase", "score"))
    events = []
    with pytest.raises(Killed):
        teach(learner_of(case), case, work=tmp_path, progress=lambda e: (events.append(e), killing("phase", "commit")(e)))
    assert (events[0]["seconds"], events[0]["cpu_seconds"]) == (1000.0, 500.0)
    events = []
    result = teach(learner_of(case), case, work=tmp_path, progress=events.append)
    assert 1000.0 < events[0]["seconds"] < result.seconds < 1060.0
    assert 500.0 < events[0]["cpu_seconds"] < 560.0


def test_time_is_kept_of_what_leaves_no_state(tmp_path, monkeypatch):
    """A search that a signal stops has nothing to save, but took its time."""
    case = MLP
    with monkeypatch.context() as patch:
        patch.setattr(Work, "spent", lambda self: (1000.0, 500.0) if "search" in told else (10.0, 5.0))
        told = []

        def search(*_):
            told.append("search")
            raise Killed

        patch.setattr("clnp.pruning.search", search)
        with pytest.raises(Killed):
            teach(learner_of(case), case, work=tmp_path)
    assert teach(learner_of(case), case, work=tmp_path).seconds > 1000.0


# ---- small parts


def test_what_is_packed_comes_back_to_the_last_bit():
    tree = {0: {"step": torch.tensor(3.0), "x": [1, 0.1 + 0.2, None, True, "a", (1e-310, float("inf"))]}, "lr": 0.04615178, "e": {}}
    tensors = {}
    text = json.dumps(pack(tree, tensors))
    back = unpack(json.loads(text), tensors)
    assert torch.equal(back[0].pop("step"), tree[0].pop("step"))
    assert back == tree
    assert isinstance(back[0]["x"][5], tuple)
    with pytest.raises(TypeError, match="cannot keep a set"):
        pack({1, 2}, {})


def test_a_digest_tells_names_dtypes_shapes_and_bits_apart():
    a = torch.tensor([0.0, 1.0])
    all_ = [{"a": a}, {"b": a}, {"a": a.double()}, {"a": a[None]}, {"a": torch.tensor([-0.0, 1.0])}, {}, {"a": a, "b": torch.zeros(0)}]
    assert len({digest("", tensors) for tensors in all_} | {digest("x", all_[0])}) == len(all_) + 1
    assert digest("", {"a": torch.stack([a, a]).t()}) == digest("", {"a": torch.stack([a, a]).t().contiguous()})


def test_noise_goes_on_where_it_stood():
    device = torch.device("cpu")
    with seeds.seeded(0, "a"):
        torch.rand(3)
        state = seeds.noise(device)
        expected = torch.rand(5)
    seeds.set_noise_(state, device)
    assert torch.equal(torch.rand(5), expected)
