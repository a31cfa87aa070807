"""Each method's own mathematics, on a case that is solved by hand."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from clnp import seeds
from clnp.config import LearnConfig
from clnp.errors import ConfigError
from clnp.methods import METHODS
from clnp.methods.ewc import Springs, fisher_diagonal
from clnp.methods.guards import GuardedNetwork
from clnp.methods.hat import SPEED, Attention
from clnp.methods.packnet import Packing
from clnp.methods.si import PathIntegral
from clnp.methods.superposition import Contexts
from clnp.methods.wsn import Subnetworks, TopShare
from clnp.models import MODELS
from clnp.sources import TensorExamples
from clnp.wiring import trace

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def guarded(guard, index=0, trunk=None):
    torch.manual_seed(0)
    trunk = trunk or nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU())
    guard.begin_(trunk, index)
    return GuardedNetwork(trunk, nn.Linear(4, 2), guard, index)


def steps(network, n=20, optimizer=None, x=X, y=Y):
    optimizer = optimizer or torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    network.attach(optimizer)
    network.train()
    for _ in range(n):
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ---- EWC


def test_the_fisher_information_of_a_logistic_model():
    """The gradient of log p(y|x) by row k of the weights is (1[y = k] - p_k) x; the expectation over y of its square is p_k (1 - p_k) x^2."""
    network = nn.Linear(3, 2)
    p = network(X).softmax(1).detach()
    expected = ((p * (1 - p))[:, :, None] * X[:, None, :].square()).mean(0)
    found = fisher_diagonal(network, ["weight", "bias"], X)
    torch.testing.assert_close(found["weight"], expected)
    torch.testing.assert_close(found["bias"], (p * (1 - p)).mean(0))
    mean_of_batch = torch.autograd.grad(nn.functional.cross_entropy(network(X), Y), network.weight)[0].square()
    assert not torch.allclose(found["weight"], mean_of_batch), "the square of the mean gradient is another thing"


class Twice(nn.Module):
    """A layer that is used twice: its gradient is no outer product."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.layer(self.layer(x).tanh()))


class Weight(nn.Module):
    """A linear layer's weights are used beside the layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(nn.functional.linear(self.layer(x).tanh(), self.layer.weight))


class Recurrent(nn.Module):
    """Its operation cannot be vectorised over examples."""

    def __init__(self):
        super().__init__()
        self.recurrent, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class Rows(nn.Module):
    """A layer reads two vectors of each example, as if they were examples."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.layer(x.reshape(-1, 3)).relu().reshape(len(x), 8))


@pytest.mark.parametrize(
    ("network", "x"),
    [
        (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)), X),
        (nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)), torch.randn(9, 1, 3, 4)),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(8, 3)), torch.randn(9, 2, 3)),
        (Twice(), X),
        (Weight(), X),
        (Rows(), torch.randn(9, 2, 3)),
        (Recurrent(), torch.randn(5, 4, 3)),
    ],
    ids=["linear", "convolution", "positions", "twice", "weight", "rows", "recurrent"],
)
def test_the_fisher_information_is_that_of_each_example_and_class(network, x):
    names = [name for name, _ in network.named_parameters()]
    expected = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    for one in x.split(1):
        log_p = nn.functional.log_softmax(network(one), 1)[0]
        for of_class in log_p:
            gradients = torch.autograd.grad(of_class, list(network.parameters()), retain_graph=True)
            for name, gradient in zip(names, gradients, strict=True):
                expected[name] += of_class.exp().detach() * gradient.square() / len(x)
    found = fisher_diagonal(network, names, x)
    assert list(found) == names
    for name in names:
        torch.testing.assert_close(found[name], expected[name])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_springs_pull_with_lambda_times_fisher_times_distance_to_every_task():
    springs, trunk = Springs(2.0, None), nn.Linear(2, 1, bias=False)
    springs.begin_(trunk, 0)
    anchors, fishers = (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])), (torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.25]]))
    for theta, fisher in zip(anchors, fishers, strict=True):
        springs.get_buffer("stiffness.weight").add_(fisher)
        springs.get_buffer("pull.weight").add_(fisher * theta)
    trunk.weight.grad = torch.zeros(1, 2)
    springs.before_step_(trunk)
    expected = sum(2.0 * fisher * (trunk.weight.detach() - theta) for theta, fisher in zip(anchors, fishers, strict=True))
    torch.testing.assert_close(trunk.weight.grad, expected)


def fisher_of(network):
    names = [f"trunk.{name}" for name, _ in network.trunk.named_parameters()]
    found = fisher_diagonal(network.eval(), names, X)
    return {name.removeprefix("trunk."): fisher for name, fisher in found.items()}


def test_springs_of_every_task_are_tied_where_it_was_learned():
    network = guarded(Springs(100.0, None))
    steps(network)
    fishers, places = [], []
    for task in range(2):
        fishers.append(fisher_of(network))
        places.append(copy.deepcopy(network.trunk.state_dict()))
        assert all((fisher > 0).any() for fisher in fishers[-1].values())
        network.guard.learned_(network, TensorExamples(X, Y), task, 0)
        if task == 0:
            for parameter in network.trunk.parameters():
                parameter.grad = torch.zeros_like(parameter)
            network.guard.before_step_(network.trunk)
            for parameter in network.trunk.parameters():
                torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), atol=1e-5, rtol=0)
        with torch.no_grad():
            network.trunk[0].weight += 0.3
    for name, _ in network.trunk.named_parameters():
        stiffness, pull = (tensors.get_buffer(name.replace(".", "/")) for tensors in (network.guard.stiffness, network.guard.pull))
        torch.testing.assert_close(stiffness, fishers[0][name] + fishers[1][name])
        torch.testing.assert_close(pull, fishers[0][name] * places[0][name] + fishers[1][name] * places[1][name])


def test_the_online_form_keeps_one_spring_at_the_newest_place():
    network = guarded(Springs(1.0, 0.5))
    first = fisher_of(network)["0.weight"]
    network.guard.learned_(network, TensorExamples(X, Y), 0, 0)
    with torch.no_grad():
        network.trunk[0].weight += 1
    second = fisher_of(network)["0.weight"]
    network.guard.learned_(network, TensorExamples(X, Y), 1, 0)
    stiffness = network.guard.stiffness.get_buffer("0/weight")
    torch.testing.assert_close(stiffness, 0.5 * first + second)
    torch.testing.assert_close(network.guard.pull.get_buffer("0/weight"), stiffness * network.trunk[0].weight.detach())
    method = METHODS["online-ewc"](lambda: nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 3), LearnConfig(), 0)
    assert method.guard.decay == 0.95


# ---- SI


def test_the_path_integral_on_a_quadratic_is_the_fall_of_the_loss():
    """With L = 1/2 sum a (theta - 1)^2 and small steps, each weight's contribution is what its own term fell by."""
    a = torch.tensor([[1.0, 4.0]])
    trunk = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        trunk.weight.zero_()
    path = PathIntegral(0.1)
    path.begin_(trunk, 0)
    optimizer = torch.optim.SGD(trunk.parameters(), lr=1e-3)
    optimizer.register_step_pre_hook(lambda *_: path.before_step_(trunk))
    optimizer.register_step_post_hook(lambda *_: path.after_step_(trunk))
    for _ in range(5000):
        optimizer.zero_grad()
        (0.5 * a * (trunk.weight - 1).square()).sum().backward()
        optimizer.step()
    fall = 0.5 * a - 0.5 * a * (trunk.weight.detach() - 1).square()
    torch.testing.assert_close(path.get_buffer("contribution.weight"), fall, rtol=5e-3, atol=0)
    path.learned_(GuardedNetwork(trunk, nn.Linear(1, 2), path, 0), TensorExamples(X, Y), 0)
    torch.testing.assert_close(path.get_buffer("importance.weight"), fall / (trunk.weight.detach().square() + 1e-3), rtol=5e-3, atol=0)


def test_what_si_holds_is_the_sum_over_tasks_of_what_helped():
    """Two tasks on 1/2 a (theta - goal)^2, both begun away from zero; the last weight is moved against its gradient, and counts for nothing."""
    a, xi = torch.tensor([[1.0, 4.0, 1.0]]), 0.1
    trunk, path = nn.Linear(3, 1, bias=False), PathIntegral(0.0, xi)
    with torch.no_grad():
        trunk.weight.copy_(torch.tensor([[2.0, -1.0, 3.0]]))
    expected = torch.zeros(1, 3)
    for task, goal in enumerate((1.0, 0.5)):
        path.begin_(trunk, task)
        start, sign = trunk.weight.detach().clone(), torch.tensor([[1.0, 1.0, -1.0]])
        for _ in range(2000):
            trunk.weight.grad = a * (trunk.weight.detach() - goal)
            path.before_step_(trunk)
            with torch.no_grad():
                trunk.weight -= 1e-4 * sign * trunk.weight.grad
            path.after_step_(trunk)
        path.learned_(GuardedNetwork(trunk, nn.Linear(1, 2), path, task), TensorExamples(X, Y), task)
        now = trunk.weight.detach()
        fall = 0.5 * a * ((start - goal).square() - (now - goal).square())
        assert fall[0, 2] < 0
        expected += fall.relu() / ((now - start).square() + xi)
    torch.testing.assert_close(path.get_buffer("importance.weight"), expected, rtol=1e-2, atol=1e-6)


def test_the_penalty_of_si_pulls_back_and_is_no_contribution():
    path, trunk = PathIntegral(0.5), nn.Linear(2, 1, bias=False)
    path.begin_(trunk, 0)
    path.get_buffer("importance.weight").fill_(3.0)
    with torch.no_grad():
        trunk.weight += 2
    trunk.weight.grad = torch.ones(1, 2)
    path.before_step_(trunk)
    torch.testing.assert_close(trunk.weight.grad, torch.full((1, 2), 1 + 2 * 0.5 * 3 * 2))
    with torch.no_grad():
        trunk.weight -= 0.1
    path.after_step_(trunk)
    torch.testing.assert_close(path.get_buffer("contribution.weight"), torch.full((1, 2), 0.1))


# ---- superposition


def test_orthogonal_contexts_retrieve_exactly():
    """Where each network reads the sum of its input, what the others stored is their context's product with this one: zero."""
    contexts = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]])  # rows of a Hadamard matrix
    stored = torch.tensor([[2.0], [-3.0], [5.0]])
    layer = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        layer[0].weight.copy_((stored * contexts).sum(0, keepdim=True))
    guard = Contexts("binary", 0)
    guard.begin_(layer, 0)
    for task, value in enumerate(stored):
        x = guard.context(torch.full((1, 4), 0.5), task)
        guard._drawn = {("0", task): contexts[task]}
        torch.testing.assert_close(layer(x), value[None] * 4 * 0.5)


def test_orthogonal_phases_retrieve_exactly():
    """The phases of a Fourier basis: what was stored with another task's sums to zero around the circle."""
    phases = 2 * torch.pi * torch.arange(3.0)[:, None] * torch.arange(4.0) / 4
    stored = torch.tensor([2.0, -3.0, 5.0])
    layer, guard = nn.Sequential(nn.Linear(4, 1, bias=False)), Contexts("complex", 0)
    guard.begin_(layer, 0)
    whole = (stored[:, None] * torch.polar(torch.ones(3, 4), -phases)).sum(0, keepdim=True)
    with torch.no_grad():
        layer[0].weight.copy_(whole.real)
        guard.imaginary["0"].copy_(whole.imag)
    for task, value in enumerate(stored):
        x = guard.context(torch.full((1, 4), 0.5), task)
        guard._drawn = {("0", task): phases[task]}
        torch.testing.assert_close(layer(x), value.view(1, 1) * 4 * 0.5)


def test_rotations_onto_orthogonal_axes_retrieve_exactly():
    """A common rotation, then signs of a Hadamard matrix: between two tasks the signs' product is left, whose sum is zero."""
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]])
    stored = torch.tensor([2.0, -3.0, 5.0])
    common = Contexts("rotation", 1).drawn("any", 4)
    layer, guard = nn.Sequential(nn.Linear(4, 1, bias=False)), Contexts("rotation", 0)
    with torch.no_grad():
        layer[0].weight.copy_((stored[:, None] * signs).sum(0, keepdim=True))
    guard.begin_(layer, 0)
    for task, value in enumerate(stored):
        x = guard.context(0.5 * common.sum(0, keepdim=True), task)
        guard._drawn = {("0", task): signs[task].diag() @ common}
        torch.testing.assert_close(layer(x), value.view(1, 1) * 4 * 0.5)


@pytest.mark.parametrize("kind", ["binary", "complex", "rotation"])
@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3, padding=1)], ids=["linear", "conv"])
def test_contexts_are_drawn_from_the_seed_and_differ_between_tasks(kind, layer):
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 5, 5)

    def outputs():
        trunk = nn.Sequential(copy.deepcopy(layer))
        guard = Contexts(kind, 3)
        guard.begin_(trunk, 0)
        return [trunk(guard.context(x, task)) for task in (0, 1, 0)]

    first, second, again = outputs()
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)
    assert torch.equal(first, outputs()[0])
    assert first.shape == layer(x).shape


def test_a_rotation_keeps_lengths_and_a_complex_layer_is_the_real_part():
    guard = Contexts("rotation", 0)
    rotation = guard.drawn("layer", 50)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(50), atol=1e-5, rtol=0)
    trunk, guard = nn.Sequential(nn.Linear(3, 2, bias=False)), Contexts("complex", 0)
    guard.begin_(trunk, 0)
    found = trunk(guard.context(X, 0))
    phase = guard.drawn("0", 3)
    weight = torch.complex(trunk[0].weight, guard.imaginary["0"])
    expected = (torch.polar(torch.ones(3), phase) * X) @ weight.T
    torch.testing.assert_close(found, expected.real)


def test_a_complex_convolution_pads_both_of_its_parts_alike():
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False)
    trunk, guard = nn.Sequential(layer), Contexts("complex", 0)
    guard.begin_(trunk, 0)
    x = torch.randn(2, 2, 5, 5)
    found = trunk(guard.context(x, 0))
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    turned = torch.polar(torch.ones(2), guard.drawn("0", 2))[:, None, None] * padded
    expected = nn.functional.conv2d(turned.real, layer.weight) - nn.functional.conv2d(turned.imag, guard.imaginary["0"])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["binary", "complex", "rotation"])
def test_a_head_that_all_tasks_share_has_a_context_before_it(kind, tmp_path):
    def trunk():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU())

    def make():
        return METHODS["superposition"](trunk, torch.zeros(2, 3), LearnConfig(epochs=1, contexts=kind, head="single"), 0)

    method = make()
    for task in ("one", "two"):
        method.learn(task, (X, Y), (X, Y), 2, lambda _: None)
    guard, (head,) = method.guard, method.heads
    x = torch.rand(5, 8)
    guard.context(X, 0)
    first, context = head(guard.features(x)), guard.drawn("head", 8)
    guard.context(X, 1)
    assert not torch.allclose(first, head(guard.features(x)))
    weight, bias = head.weight, head.bias
    expected = {
        "binary": lambda: (x * context) @ weight.T,
        "rotation": lambda: x @ context.T @ weight.T,
        "complex": lambda: ((x * torch.exp(1j * context)) @ (weight[:, :8] - 1j * weight[:, 8:]).T).real,
    }[kind]()
    torch.testing.assert_close(first, expected + bias)
    method.save(tmp_path)
    loaded = make()
    loaded.load(tmp_path)
    assert torch.equal(loaded.predict(X, "one"), method.predict(X, "one"))


def test_biases_which_no_context_reaches_are_each_task_s_own():
    def trunk():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU())

    method = METHODS["superposition"](trunk, torch.zeros(2, 3), LearnConfig(epochs=3, rounds=1, finetune_epochs=0, batch_size=16), 0)
    method.learn("one", (X, Y), (X, Y), 2, lambda _: None)
    bias = method.trunk[0].bias.detach().clone()
    method.learn("two", (X, 1 - Y), (X, 1 - Y), 2, lambda _: None)
    parameters = dict(method.trunk.named_parameters())
    assert not torch.equal(method.trunk[0].bias, bias)
    assert torch.equal(method.guard.view(parameters, 0)["0.bias"], bias)
    assert torch.equal(method.guard.view(parameters, 1)["0.bias"], method.trunk[0].bias)
    assert method.guard.view(parameters, 0)["0.weight"] is parameters["0.weight"]


def test_hat_lets_go_of_what_costs_too_much_in_the_steps_that_there_are():
    """Nothing but the penalty at work: after ten epochs hardly a unit is used, as the paper means it."""
    trunk = nn.Sequential(nn.Linear(3, 200), nn.ReLU())
    guard = Attention(trace(trunk, X[:2]), 0.75, 0)
    guard.begin_(trunk, 0)
    guard.steps_per_epoch = 100
    optimizer = torch.optim.Adam(guard.embeddings, lr=1e-3)
    for _ in range(1000):
        guard.effective(dict(trunk.named_parameters()))
        guard.embeddings[0].grad = torch.zeros(200)
        guard.before_step_(trunk)
        optimizer.step()
        guard.after_step_(trunk)
    assert float((guard.attention(0, 400.0)[:-1] > 0.5).float().mean()) < 0.05


# ---- PackNet, WSN, HAT: what an earlier task reads is frozen


def test_packnet_keeps_the_largest_share_and_freezes_it():
    network = guarded(Packing(0.4))
    guard, trunk = network.guard, network.trunk
    steps(network)
    sizes = trunk[0].weight.detach().abs().flatten().sort(descending=True).values
    guard.trained_(trunk, 0)
    owner = guard.owner.get_buffer("0/weight")
    assert int((owner == 0).sum()) == 6  # 0.4 of 15
    assert (trunk[0].weight[owner == 0].abs() >= sizes[5]).all()
    assert (trunk[0].weight[owner != 0] == 0).all()
    steps(network)
    assert (trunk[0].weight[owner != 0] == 0).all(), "what was released is not trained on"
    kept, biases = trunk[0].weight.detach()[owner == 0].clone(), trunk[0].bias.detach().clone()
    answers = nn.functional.linear(X, guard.view(dict(trunk.named_parameters()), 0)["0.weight"])
    second = guarded(guard, 1, trunk)
    steps(second)
    assert torch.equal(trunk[0].weight[owner == 0], kept), "bit for bit, under Adam with weight decay"
    assert torch.equal(trunk[0].bias, biases)
    assert (trunk[0].weight[owner == -1] != 0).any(), "free weights were trained"
    guard.trained_(trunk, 0)
    assert torch.equal(nn.functional.linear(X, guard.view(dict(trunk.named_parameters()), 0)["0.weight"]), answers)
    assert int((owner == 1).sum()) == 4  # 0.4 of 9


def test_wsn_reads_the_top_share_and_trains_only_what_no_earlier_task_reads():
    scores = torch.tensor([3.0, 1, 2, 0], requires_grad=True)
    mask = TopShare.apply(scores, 0.5)
    assert mask.tolist() == [1, 0, 1, 0]
    (mask * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert scores.grad.tolist() == [1, 2, 3, 4], "straight through"
    network = guarded(Subnetworks(0.4, 0))
    steps(network)
    network.guard.learned_(network, TensorExamples(X, Y), 0)
    mask = network.guard.masks[0].get_buffer("0/weight")
    assert int(mask.sum()) == 6
    kept, other = network.trunk[0].weight.detach()[mask].clone(), network.trunk[0].weight.detach()[~mask].clone()
    steps(guarded(network.guard, 1, network.trunk))
    assert torch.equal(network.trunk[0].weight[mask], kept)
    assert not torch.equal(network.trunk[0].weight[~mask], other)


def test_hat_freezes_what_is_used_fully_and_trains_what_is_not_used():
    trunk = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU())
    guard = Attention(trace(trunk, X[:2]), 0.75, 0)
    guarded(guard, 0, trunk)
    guard.used.copy_(torch.tensor([1.0, 1, 0, 0, 0, 1, 0, 0, 0, 1]))  # units 0, 1 of the first layer, 0 of the second; raw input
    before = copy.deepcopy(trunk.state_dict())
    network = guarded(guard, 1, trunk)
    guard.steps_per_epoch = 20
    steps(network)
    now = trunk.state_dict()
    assert torch.equal(now["0.weight"][:2], before["0.weight"][:2])
    assert torch.equal(now["0.bias"][:2], before["0.bias"][:2])
    assert torch.equal(now["2.weight"][0, :2], before["2.weight"][0, :2])
    assert not (now["0.weight"][2:] == before["0.weight"][2:]).any()
    assert not (now["2.weight"][0, 2:] == before["2.weight"][0, 2:]).any(), "a row that is used, from columns that are not"


def test_hat_shields_what_any_earlier_task_uses():
    trunk = nn.Sequential(nn.Linear(3, 50), nn.ReLU())
    guard = Attention(trace(trunk, X[:2]), 0.75, 0)
    used = []
    for task in range(3):
        network = GuardedNetwork(trunk, nn.Linear(50, 2), guard, task)
        guard.begin_(trunk, task)
        shielded = guard.used[:-1] > 0.999
        before = trunk[0].weight.detach().clone()
        if task:
            assert shielded.any()
            steps(network, 5)
            assert torch.equal(trunk[0].weight[shielded], before[shielded])
            assert not torch.equal(trunk[0].weight, before)
        guard.learned_(network, TensorExamples(X, Y), task)
        used.append(guard.attention(task, 400.0).detach())
        assert torch.equal(guard.used, torch.stack(used).amax(0))


def test_hat_pays_for_new_units_alone():
    trunk = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    guard = Attention(trace(trunk, X[:2]), 3.0, 0, 1.0)
    guard.begin_(trunk, 0)
    guard.used.copy_(torch.tensor([1.0, 0.5, 0.0, 0.0, 1.0]))
    guard._s = 1.0
    trained = guard.embeddings[0]
    trained.grad = torch.zeros(4)
    guard.before_step_(trunk)
    a = torch.sigmoid(trained.detach())
    torch.testing.assert_close(trained.grad, 400 * 3.0 * a * (1 - a) * torch.tensor([0.0, 0.5, 1.0, 1.0]) / 2.5)


def test_hat_multiplies_by_nothing_that_slows_a_processor_down_and_keeps_the_gradient():
    trunk = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    guard = Attention(trace(trunk, X[:2]), 0.75, 0, 1.0)
    guard.begin_(trunk, 0)
    with torch.no_grad():
        guard.embeddings[0].copy_(torch.tensor([-0.2, -0.1, 0.0, 0.1]))
    a = guard.attention(0, 400.0)
    assert a.tolist() == pytest.approx([1e-10, 1e-10, 0.5, 1.0, 1.0])
    (gradient,) = torch.autograd.grad(a[1], guard.embeddings[0])
    plain = torch.sigmoid(torch.tensor(-40.0, dtype=torch.float64))
    assert float(gradient[1]) == pytest.approx(float(400 * plain * (1 - plain)), rel=1e-3, abs=0)


@pytest.mark.parametrize("speed", [SPEED, 1.0])
def test_hats_attention_is_annealed_within_an_epoch_and_sparse_by_its_penalty(speed):
    trunk = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    guard = Attention(trace(trunk, X[:2]), 0.0, 0, speed)
    guard.begin_(trunk, 0)
    guard.steps_per_epoch = 11
    seen = []
    for step in (0, 5, 10, 11):
        guard.step.fill_(step)
        guard.effective(dict(trunk.named_parameters()))
        seen.append(guard._s)
    assert seen == pytest.approx([1 / 400, 200, 400, 1 / 400], rel=0.01)
    guard._s = 1.0
    guard.strength = 2.0
    trained = guard.embeddings[0]
    trained.grad = torch.zeros(5)
    guard.before_step_(trunk)
    a = torch.sigmoid(speed * trained.detach())
    unscaled = 2.0 * a * (1 - a) / 5
    torch.testing.assert_close(trained.grad, speed * 400 * unscaled)  # cosh(s e) over cosh(e) is 1 where s is


@pytest.mark.parametrize("speed", [SPEED, 1.0])
def test_hats_embedding_moves_by_the_gradient_that_equation_6_gives(speed):
    """cosh(ln 2) is 5/4, and cosh(ln 4) is 17/8: at s = 2 the gradient grows by 400/2 times (25/8) over (9/4)."""
    trunk = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    guard = Attention(trace(trunk, X[:2]), 0.0, 0, speed)
    guard.begin_(trunk, 0)
    guard._s = 2.0
    (trained,) = guard.embeddings
    with torch.no_grad():
        trained.copy_(torch.tensor([2.0, 1.0, 0.5]).log() / speed)
    trained.grad = torch.tensor([1.0, 1.0, -3.0])
    guard.before_step_(trunk)
    torch.testing.assert_close(trained.grad, 200 * torch.tensor([25 / 18, 1.0, -3 * 25 / 18]))
    guard._s = 400.0
    trained.grad = torch.ones(3)
    guard.before_step_(trunk)
    limit = torch.cosh(torch.tensor(50.0)) + 1  # of s e: 277 would be too much for a float
    torch.testing.assert_close(trained.grad, torch.stack([limit / 2.25, torch.tensor(1.0), limit / 2.25]))


@pytest.mark.parametrize(("optimizer", "speed"), [("sgd", 1.0), ("adam", SPEED), ("adamw", SPEED)])
def test_hat_trains_embeddings_faster_where_the_optimizer_takes_no_account_of_gradients_size(optimizer, speed):
    def trunk():
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU())

    method = METHODS["hat"](trunk, torch.zeros(2, 3), LearnConfig(optimizer=optimizer), 3)
    method.guard.begin_(method.trunk, 0)
    assert method.guard.speed == speed
    drawn = torch.randn(4, generator=seeds.generator(3, "task", 0, "embedding"))
    torch.testing.assert_close(speed * method.guard.embeddings[0].detach(), drawn)


@pytest.mark.parametrize("name", ["hat", "packnet", "wsn", "superposition"])
def test_each_task_has_its_own_statistics_of_norms(name):
    def trunk():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 32), nn.BatchNorm1d(32), nn.ReLU())

    method = METHODS[name](trunk, torch.zeros(2, 3), LearnConfig(epochs=3, rounds=1, finetune_epochs=0, batch_size=16), 0)
    method.learn("one", (X, Y), (X, Y), 2, lambda _: None)
    mean = method.trunk[1].running_mean.clone()
    method.learn("two", (3 * X + 5, Y), (3 * X + 5, Y), 2, lambda _: None)
    parameters = dict(method.trunk.named_parameters())
    assert not torch.allclose(method.trunk[1].running_mean, mean)
    assert torch.equal(method.guard.view(parameters, 0)["1.running_mean"], mean)
    assert torch.equal(method.guard.view(parameters, 1)["1.running_mean"], method.trunk[1].running_mean)
    with torch.no_grad():
        answers = method.predict(X, "one")
        method.trunk[1].running_mean.add_(1.0)
    method._view = None
    assert torch.equal(method.predict(X, "one"), answers), "the trunk's own are not those of the task"


@pytest.mark.parametrize("name", ["packnet", "wsn"])
def test_masks_keep_old_answers_bit_for_bit(name):
    def trunk():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())

    config = LearnConfig(epochs=3, rounds=1, finetune_epochs=1, batch_size=16, weight_decay=0.01)
    method = METHODS[name](trunk, torch.zeros(2, 3), config, 0)
    method.learn("one", (X, Y), (X, Y), 2, lambda _: None)
    before = method.predict(X, "one")
    method.learn("two", (X, 1 - Y), (X, 1 - Y), 2, lambda _: None)
    assert torch.equal(before, method.predict(X, "one"))


@pytest.mark.parametrize(
    ("name", "layers", "said"),
    [
        ("packnet", lambda: [nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))], "PackNet.*layer '0'.*weight norm"),
        ("wsn", lambda: [nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))], "WSN.*layer '0'.*weight norm"),
        ("hat", lambda: [nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))], "HAT.*layer '0'.*weight norm"),
        ("hat", lambda: [nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False)], "HAT.*norm at '1' .* has no weights"),
        ("superposition", lambda: [nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 3), nn.Flatten()], "layer '1' is Conv1d"),
        ("hat", lambda: [nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 4)], "HAT: units of '0' put out something"),
        (
            "hat",
            lambda: [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 4)],
            "HAT: units of '2' put out something",
        ),
        *((name, lambda: [_older(nn.utils.weight_norm)], "layer '0'.*weight norm") for name in ("packnet", "wsn", "hat")),
        ("packnet", lambda: [_older(nn.utils.spectral_norm)], "layer '0'.*weight norm"),
    ],
)
def test_networks_that_a_method_would_get_wrong_are_refused(name, layers, said):
    with pytest.raises(ConfigError, match=said):
        METHODS[name](lambda: nn.Sequential(*layers(), nn.ReLU()), torch.zeros(2, 3), LearnConfig(epochs=1), 0)


@pytest.mark.parametrize("name", ["single", "vgg", "attention", "gates"])
def test_hat_takes_what_is_silent_without_attention(name):
    """A sigmoid at the end is read by heads alone, which no later task moves; a gate's 0.5 is multiplied by a unit's 0."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.layer = nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)

        def forward(self, x):
            return self.layer(self.read(x)).mean(1)

    class Gates(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.gate, self.b = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.a(x).relu()
            return self.b(x * self.gate(x).sigmoid()).relu()

    trunks = {
        "single": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4), nn.Sigmoid()), X[:2]),
        "vgg": (lambda: MODELS["vgg-small"]((1, 8, 8)), torch.zeros(2, 1, 8, 8)),
        "attention": (Encoder, torch.zeros(2, 4, 8)),
        "gates": (Gates, X[:2]),
    }
    METHODS["hat"](*trunks[name], LearnConfig(epochs=1), 0)


@pytest.mark.parametrize(("n_steps", "n_epochs"), [(1, 20), (2, 9), (3, 7), (8, 3), (40, 2)])
def test_hat_anneals_over_at_least_eight_steps_and_ends_at_the_highest(n_steps, n_epochs):
    trunk = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    guard = Attention(trace(trunk, X[:2]), 0.0, 0)
    guard.begin_(trunk, 0)
    guard.steps_per_epoch, guard.n_epochs = n_steps, n_epochs
    seen = []
    for step in range(n_steps * n_epochs):
        guard.step.fill_(step)
        guard.effective(dict(trunk.named_parameters()))
        seen.append(guard._s)
    assert seen[-1] == 400.0
    assert len({round(s, 3) for s in seen}) == max(n_steps, 8)


@pytest.mark.parametrize("name", ["packnet", "wsn"])
def test_norms_biases_and_what_is_frozen_are_no_weights_that_tasks_share_out(name):
    class Trunk(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm, self.bias_map = nn.Conv2d(1, 8, 3), nn.LayerNorm((8, 3, 3)), nn.Parameter(torch.ones(8, 1, 1))
            self.frozen = nn.Linear(72, 16)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen((self.norm(self.conv(x)) + self.bias_map).relu().flatten(1)).relu()

    x = torch.randn(64, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    config = LearnConfig(epochs=2, rounds=1, finetune_epochs=1, batch_size=16)
    method = METHODS[name](Trunk, torch.zeros(2, 1, 5, 5), config, 0)
    method.learn("one", (x, Y), (x, Y), 2, lambda _: None)
    seen = method.guard.view(dict(method.trunk.named_parameters()), 0)
    assert (seen["conv.weight"] == 0).any()
    for whole in ("norm.weight", "norm.bias", "bias_map", "frozen.weight"):
        assert not (seen[whole] == 0).any(), whole
    assert torch.equal(seen["frozen.weight"], Trunk().frozen.weight)
    before = method.predict(x, "one")
    method.learn("two", (x, 1 - Y), (x, 1 - Y), 2, lambda _: None)
    assert torch.equal(method.predict(x, "one"), before)


@pytest.mark.parametrize("name", ["finetune", "joint", "packnet", "wsn", "hat", "superposition", "si", "ewc"])
def test_an_average_over_all_batches_is_one_over_those_of_the_task(name, monkeypatch):
    """With momentum=None a norm averages over every batch that it has seen: a later task's statistics would be those of all tasks."""

    def trunk():
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm1d(3, momentum=None), nn.Linear(3, 8), nn.ReLU())

    method = METHODS[name](trunk, torch.zeros(2, 3), LearnConfig(epochs=2, rounds=1, finetune_epochs=1, batch_size=16), 0)
    for task, shift in (("one", 0.0), ("two", 10.0)):
        method.learn(task, (X + shift, Y), (X + shift, Y), 2, lambda _: None)
    expected = X.mean(0) + (5.0 if name == "joint" else 10.0)
    torch.testing.assert_close(method.trunk[0].running_mean, expected, atol=0.2, rtol=0)
    assert int(method.trunk[0].num_batches_tracked) == {"joint": 24, "packnet": 4}.get(name, 12)


def _older(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(nn.Linear(3, 4))


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    "norm",
    [
        lambda weights: nn.BatchNorm2d(8, affine=weights),
        lambda weights: nn.InstanceNorm2d(8, affine=weights),
        lambda weights: nn.GroupNorm(4, 8, affine=weights),
        lambda weights: nn.GroupNorm(1, 8, affine=weights),
        lambda weights: nn.LayerNorm((8, 3, 3), elementwise_affine=weights),
        lambda weights: nn.RMSNorm((8, 3, 3), elementwise_affine=weights),
    ],
    ids=["batch", "instance", "groups", "one-group", "layer", "rms"],
)
def test_hat_takes_a_norm_that_attention_reaches_and_refuses_one_that_undoes_it(norm, weights):
    def trunk():
        return nn.Sequential(nn.Conv2d(1, 8, 3), norm(weights), nn.ReLU(), nn.Flatten())

    if weights:
        METHODS["hat"](trunk, torch.zeros(2, 1, 5, 5), LearnConfig(epochs=1), 0)
    else:
        with pytest.raises(ConfigError, match=r"norm at '1' .* has no weights for each unit"):
            METHODS["hat"](trunk, torch.zeros(2, 1, 5, 5), LearnConfig(epochs=1), 0)


def test_hat_refuses_a_norm_over_positions_whose_weights_belong_to_no_unit_and_takes_norms_of_raw_input():
    layers = [nn.Conv2d(1, 8, 3), nn.LayerNorm((3,)), nn.ReLU(), nn.Flatten()]
    with pytest.raises(ConfigError, match=r"norm at '1' .* has no weights for each unit"):
        METHODS["hat"](lambda: nn.Sequential(*layers), torch.zeros(2, 1, 5, 5), LearnConfig(epochs=1), 0)
    METHODS["hat"](
        lambda: nn.Sequential(nn.InstanceNorm2d(1), layers[0], nn.ReLU(), nn.Flatten()), torch.zeros(2, 1, 5, 5), LearnConfig(epochs=1), 0
    )
