"""What callers give that cannot be used, in every form that is taken: each is told, and nothing else is raised."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import randn, seeded
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset, default_collate

import nnrepair
from nnrepair import Above, Argmax, Between, Edits, EditScope, Inputs, Linear, LocalitySet, Near, Threshold, TopK
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.methods import FineTune
from nnrepair.spec.pyg import Graphs
from nnrepair.verify import Box

X, NAN = randn(6, 4, seed=1), float("nan")
Y = torch.tensor([0, 1, 2, 0, 1, 2])
SHORT = FineTune(steps=1)


def classifier() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))).eval()


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        h = self.embed(input_ids).mean(1)
        return {"logits": self.head(h), "hidden": h}


class Items(Dataset[Any]):
    def __init__(self, item: Callable[[int], Any], count: Any = 6) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count() if callable(self.count) else self.count

    def __getitem__(self, k: int) -> Any:
        return self.item(k)


class Batch(UserDict[str, Any]):
    """As a tokenizer returns it."""


class Mine(Inputs):
    """Inputs of a user's own class, in which one method does something else."""

    def __init__(self, x: Any, **other: Callable[..., Any]) -> None:
        self.x, self.other = x, other

    def __len__(self) -> int:
        return self.other["len"](self) if "len" in self.other else len(self.x)

    def __getitem__(self, index: Tensor) -> Any:
        return self.other["item"](self, index) if "item" in self.other else Mine(self.x[index], **self.other)

    def to(self, like: Tensor) -> Any:
        return self.other["to"](self, like) if "to" in self.other else self

    def call(self, model: nn.Module) -> Any:
        return self.other["call"](self, model) if "call" in self.other else model(self.x)


def fails(*_: Any) -> Any:
    raise KeyError("boom")


def drawn() -> Iterator[Tensor]:
    yield from X


def loader(collate: Callable[[Any], Any]) -> DataLoader[Any]:
    return DataLoader(Items(lambda k: (X[k], 1)), batch_size=3, collate_fn=collate)


def stacked(batch: list[Any]) -> Tensor:
    return torch.stack([x for x, _ in batch])


ragged = torch.nested.nested_tensor([X[:2], X[:1]], layout=torch.jagged)
#: Name: what is given as points with labels, and what the error says.
POINTS: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing at all": (lambda: (None, Y), "must be a tensor or an Inputs object, got NoneType"),
    "a set": (lambda: ({1, 2}, Y), "got set"),
    "a class": (lambda: (Dataset, Y), "got type"),
    "a number": (lambda: (torch.tensor(1.0), Y), "one point per row, got a single number"),
    "NaN": (lambda: (X * NAN, Y), r"NaN or infinity at \[0, 1, 2, 3, 4, 5\]"),
    "sparse": (lambda: (X.to_sparse(), Y), r"sparse; give a dense tensor"),
    "without numbers": (lambda: (X.to("meta"), Y), "on the meta device"),
    "nested": (lambda: (ragged, Y), "nested"),
    "complex": (lambda: (X.to(torch.complex64), Y), "does not accept .*complex64"),
    "another width": (lambda: (X[:, :3], Y), r"does not accept .*\(6, 3\)"),
    "objects": (lambda: (np.array([object()] * 6), Y), "got ndarray of object"),
    "masked": (lambda: (np.ma.masked_array(X.numpy(), X.numpy() > 0), Y), "masked: leave their rows out"),
    "what raises": (lambda: (type("Odd", (), {"__array__": fails})(), Y), "got Odd"),
    "a generator": (lambda: (drawn(), Y), r"got generator. Stack the items"),
    "pairs drawn": (lambda: zip(X, Y, strict=True), "got zip. Stack the items"),
    "a loader's iterator": (lambda: iter(DataLoader(TensorDataset(X, Y))), "Stack the items"),
    "rows of two lengths": (lambda: ([[1, 2], [3]], [0, 1]), "different lengths: pad them"),
    "unequal arguments": (lambda: ({"x": X, "z": X[:3]}, Y), "'x': 6, 'z': 3"),
    "an argument without numbers": (lambda: ({"x": None}, Y), r"inputs\['x'\] must be a tensor, got NoneType"),
    "no arguments": (lambda: {"labels": Y}, "arguments by name"),
    "numbered arguments": (lambda: ({1: X}, Y), r"arguments by name.*\[1\]"),
    "an argument's other name": (lambda: ({"foo": X}, Y), "unexpected keyword argument 'foo'"),
    "a batch's labels": (lambda: Batch(input=X, labels=Y[:3]), "6 inputs but 3 labels"),
    "a batch's names": (lambda: Batch(input=X, labels=["cat"] * 6), "labels are names"),
    "a batch's nonsense": (lambda: Batch(input=X, labels=object()), "got object"),
    "items that differ": (lambda: [{"x": X[0], "label": 1}, {"z": X[0], "label": 1}], "make no batch: KeyError"),
    "text": (lambda: [{"text": "a"}] * 3, "'text' is text, and models take numbers"),
    "a text each": (lambda: Items(lambda k: "a"), "are text, and models take numbers"),
    "pairs of two widths": (lambda: [(X[0], 0), (X[1, :2], 1)], r"make no batch: RuntimeError: stack expects"),
    "pairs' labels": (lambda: [(X[0], 7), (X[1], 1)], "label 7 at index 0 does not"),
    "names": (lambda: Items(lambda k: (X[k], "cat")), "labels are names"),
    "boxes": (lambda: Items(lambda k: (X[k], {"boxes": X[k]})), "Labels of the data set must be numbers.*got dict"),
    "two labels": (lambda: Items(lambda k: (X[k], [1, 2])), r"labels of shape \(2, \d\) of \d items"),
    "a label that is none": (lambda: Items(lambda k: (X[k], NAN)), "labels are floating-point numbers"),
    "labels of two shapes": (lambda: Items(lambda k: (X[k], torch.zeros(k + 1))), "stack expects each tensor"),
    "an item without a label": (lambda: Items(lambda k: X[k] if k else (X[k], 1)), "make no batch"),
    "a late failure": (lambda: Items(lambda k: (X[k], 1) if k < 4 else fails()), "Item 4 .*: KeyError: 'boom'"),
    "a late NaN": (lambda: Items(lambda k: (X[k] * (NAN if k == 4 else 1), 1)), r"NaN or infinity at \[4\]"),
    "more items than there are": (lambda: Items(lambda k: (X[k], 1), 9), "Item 6 .* cannot be read: IndexError"),
    "no count": (lambda: Items(lambda k: X[k], fails), r"how many items it has: len\(\) raised KeyError"),
    "a count below 0": (lambda: Items(lambda k: X[k], -1), r"how many items it has: len\(\) raised ValueError"),
    "sparse items": (lambda: Items(lambda k: (X[k].to_sparse(), 1)), "make no batch: RuntimeError"),
    "a subset beyond the end": (lambda: Subset(Items(lambda k: (X[k], 1)), [0, 99]), "Item 1 .*IndexError"),
    "a subset of nothing": (lambda: Subset(Items(lambda k: (X[k], 1)), []), "Subset has no items"),
    "sampled by names": (lambda: DataLoader(Items(fails), sampler=SubsetRandomSampler(["a"])), "indices must be integ"),
    "a loader that drops items": (lambda: loader(lambda b: default_collate(b[:1])), "made 1 points of"),
    "a loader that drops labels": (lambda: loader(lambda b: (stacked(b), Y[:1])), r"shape \(1,\) of [36] items"),
    "a loader with one label": (lambda: loader(lambda b: (stacked(b), 1)), r"labels of shape \(\) of"),
    "a loader with names": (lambda: loader(lambda b: (stacked(b), ["cat" for _ in b])), "labels are names"),
    "a loader of nothing": (lambda: loader(lambda b: (None, Y)), "got NoneType"),
    "no length": (lambda: (Mine(X, len=fails), Y), r"how many points it has: len\(\) raised KeyError"),
    "another length": (lambda: (Mine(X, len=lambda _: 9), torch.zeros(9).long()), "indexing .* raised IndexError"),
    "no points of points": (lambda: (Mine(X, item=lambda *_: None), Y), "must return such inputs, got NoneType"),
    "other points of points": (lambda: (Mine(X, item=lambda *_: Mine(X[:1])), Y), r"by \d numbers gave 1 points"),
    "nowhere": (lambda: (Mine(X, to=lambda *_: None), Y), r"to\(\) must return such inputs, got NoneType"),
    "what cannot move": (lambda: (Mine(X, to=fails), Y), r"to\(\) raised KeyError: 'boom'"),
    "a call that fails": (lambda: (Mine(X, call=fails), Y), "does not accept .*boom"),
    "a call with other rows": (lambda: (Mine(X, call=lambda me, m: m(me.x)[:1]), Y), r"\(1, 3\) for \d points"),
    "labels without numbers": (lambda: (X, Y.to("meta")), "on the meta device"),
    "labels that are too large": (lambda: (X, [10**30] * 6), "labels must be a tensor of labels"),
    "labels drawn": (lambda: (X, drawn()), "got generator"),
    "a criterion's class": (lambda: (X, Argmax), "got ABCMeta"),
}  # fmt: skip


@pytest.mark.parametrize("name", POINTS)
def test_points_that_cannot_be_used(name: str) -> None:
    make, said = POINTS[name]
    model = classifier()
    right = Edits(X[:2], (model(X[:2]).argmax(1) + 1) % 3)
    for edits, locality in ((make, None), (lambda: right, make)):
        with pytest.raises(NNRepairError, match=said):
            nnrepair.fix(model, edits(), locality and locality(), method=SHORT, throw=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input_ids": Y[:, None] + 50}, "does not accept"),
        ({"input_ids": X}, "does not accept"),
        ({"input_ids": Y[:, None], "token_type_ids": Y[:, None]}, "unexpected keyword"),
        (Batch(input_ids=["a"] * 6), r"inputs\['input_ids'\] must be a tensor, got list"),
    ],
)
def test_arguments_that_a_model_does_not_take(given: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        nnrepair.fix(seeded(Words).eval(), (given, Y), method=SHORT)


OUTPUTS: dict[str, tuple[Any, str]] = {
    "no such part": ("logit", "Did you mean 'logits'"),
    "no such place": (5, "returns no such part"),
    "no name": (1.5, "output must be the name"),
    "what fails": (fails, "your function .* raised KeyError"),
    "nothing": (lambda y: None, "NoneType"),
    "one number": (lambda y: y["logits"].sum(), r"outputs of shape \(\)"),
    "other rows": (lambda y: y["logits"][:1], "first axis must be the points"),
    "decisions": (lambda y: y["logits"].argmax(1), "returns int64 outputs"),
    "an array": (lambda y: y["logits"].detach().numpy(), "ndarray"),
    "sparse": (lambda y: y["logits"].to_sparse(), "returns sparse_coo outputs"),
    "NaN": (lambda y: y["logits"] * NAN, "not finite"),
    "chance": (lambda y: torch.rand_like(y["logits"]), "model is random"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_are_no_scores(name: str) -> None:
    output, said = OUTPUTS[name]
    with pytest.raises(NNRepairError, match=said):
        nnrepair.fix(seeded(Words).eval(), ({"input_ids": Y[:, None]}, Y), method=SHORT, output=output)


@pytest.mark.parametrize("of", ["a", [0], [-1] * 6, [0.0] * 6, object(), [None] * 6, [[1], [1, 2]] * 3], ids=range(7))
def test_whose_points_are(of: Any) -> None:
    for ask in (lambda: Edits(X, Y, of=of), lambda: nnrepair.fix(classifier(), (X, Y), edit_scope=EditScope(X, Y, of))):
        with pytest.raises(InvalidInput, match="`of`"):
            ask()


@pytest.mark.parametrize("given", ["a", object(), [None], [[1.0], [1.0, 2.0]], X.to("meta"), drawn()], ids=range(6))
@pytest.mark.parametrize(
    "criterion",
    [
        Argmax,
        Threshold,
        lambda given: Threshold([1], threshold=given),
        lambda given: Near(given, tol=1.0),
        lambda given: Near(X, tol=given),
        lambda given: Between(given, 1.0),
        lambda given: Linear(given, [0.0], points=2),
        lambda given: Linear(X, given, points=2),
        lambda given: TopK(given, k=1),
        lambda given: Above(given, [0]),
    ],
)
def test_numbers_of_criteria(criterion: Callable[[Any], Any], given: Any) -> None:
    with pytest.raises(InvalidInput):
        criterion(given)


def test_some_graphs_without_labels_or_numbers() -> None:
    pyg = pytest.importorskip("torch_geometric.data", reason="it comes with the extra [graph]")
    edges = torch.tensor([[0, 1], [1, 2]])

    def graph(**other: Any) -> Any:
        return pyg.Data(**{"x": X[:3], "edge_index": edges, "y": torch.tensor([1])} | other)

    by_hand = pyg.Batch(x=X[:4], edge_index=edges, batch=torch.tensor([0, 0, 1, 1]), y=torch.tensor([0, 1]))
    for given, said in {
        "not all": ([graph(), graph(y=None)], r"graphs \[1\] have no label y, but others have"),
        "a name": ([graph(y="cat")], "labels are names"),
        "of nodes": ([graph(y=Y[:3])], r"graph 0 has y of shape \(3,\)"),
        "NaN": ([graph(x=X[:3] * NAN)], "NaN or infinity in 'x'"),
        "meta": ([graph(x=X[:3].to("meta"))], "'x' on the meta device"),
        "arrays": ([graph(), graph(x=X[:3].numpy())], "graph 1 has 'x' as ndarray"),
        "by hand": (by_hand, "cannot be taken apart"),
        "kinds": ([graph(), pyg.HeteroData()], "of one kind, got Data and HeteroData"),
        "a plain loader": (DataLoader([graph(), graph()], batch_size=2), "they are graphs. Give a list"),
    }.values():
        for door in (Edits, LocalitySet):
            with pytest.raises(InvalidInput, match=said):
                door(given)
    for given in ([graph(y=[1])], [graph(y=np.array([1]))], [graph(y=1)], [(graph(y=None), 1)]):
        assert Edits(given).criterion.labels.tolist() == [1]
    adjacency = [graph(edge_index=None, adj_t=torch.eye(3).to_sparse() * k) for k in (1, 1, 2)]
    same = Graphs.of(adjacency, "Edits")[0].same()
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])


def test_nodes_of_what_is_no_graph() -> None:
    from nnrepair.domains.graphs import NodeEdits, NodeLocality

    class Plain:
        x, edge_index, y = X, torch.tensor([[0], [1]]), Y

    for data, nodes, labels, said in (
        (X, [0], None, "must have x and edge_index, .* got Tensor"),
        (None, [0], None, "got NoneType"),
        (Plain, [9], None, r"Nodes \[9\] are outside"),
        (Plain, ["a"], None, "as numbers or as a mask"),
        (Plain, [0], ["cat"], "Labels must be integers"),
        (Plain, [0], [0, 1], "Got 2 labels for 1 nodes"),
    ):
        for door in (NodeEdits, NodeLocality):
            with pytest.raises(InvalidInput, match=said):
                door(data, nodes, True if labels is None and door is NodeLocality else labels)


# Other doors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda net, patch: patch.apply("model.onnx"), r"torch.nn.Module, got str. .*onnx.load"),
        (lambda net, patch: patch.revert(net.state_dict()), "torch.nn.Module, got OrderedDict"),
        (lambda net, patch: nnrepair.Patch.load(3), "patch: expected a path, .* got int"),
        (lambda net, patch: nnrepair.onnx.load(torch.ones(2)), "onnx.load: expected a path, .* got Tensor"),
        (lambda net, patch: nnrepair.onnx.in_place(None), "onnx.in_place: expected a path, .* got NoneType"),
        (lambda net, patch: nnrepair.onnx.save(net, X, None), "onnx.save: expected a path, .* got NoneType"),
        (lambda net, patch: nnrepair.onnx.load("."), r"\. is a folder. Expected an ONNX file"),
        (lambda net, patch: nnrepair.fix(net, (X[0], Y[0])), r"For a single point give a batch of one: x\[None\]"),
        (
            lambda net, patch: nnrepair.verify.check(net, "p.vnnlib", timeout="10"),
            "timeout must be a positive .* got '10'",
        ),
        (
            lambda net, patch: nnrepair.verify.compare(net, net, Box([0], [1]), timeout=True),
            "timeout must be .* got True",
        ),
    ],
)
def test_things_of_another_kind_are_named(call: Callable[[nn.Module, nnrepair.Patch], Any], said: str) -> None:
    net = classifier()
    patch = nnrepair.fix(net, (X[:1], net(X[:1]).argmin(1))).patch
    assert patch is not None
    with pytest.raises(InvalidInput, match=said):
        call(net, patch)


def test_edits_that_are_points_to_keep_are_the_reason_that_is_given() -> None:
    net = classifier()
    result = nnrepair.fix(net, (X[:2], net(X[:2]).argmin(1)), X, throw=False)
    assert result.outcome.status == "partly repaired"
    assert "Edits 0, 1 are points of the locality set too" in str(result.outcome) and "layer" not in str(result.outcome)


def test_an_edit_that_is_a_point_to_keep_is_the_reason_in_a_layer_that_cannot_do_both() -> None:
    net = classifier()
    last = [name for name, part in net.named_modules() if isinstance(part, nn.Linear)][-1]
    method = nnrepair.methods.MinimalNorm(layer=last)
    result = nnrepair.fix(net, (X[:1], net(X[:1]).argmin(1)), X, method=method, throw=False)
    assert result.outcome.status == "infeasible"
    assert str(result.outcome).endswith(
        "edit 0 contradicts the locality set (hard) there. Edit 0 is a point of the locality set too, which keeps the "
        "very decision that it changes; leave it out of it."
    )


def test_a_patch_says_why_an_exported_twin_is_another_model() -> None:
    """Exports fold BatchNorm into what comes before it: other tensors, though the changed layer is the same."""
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))).eval()
    patch = nnrepair.fix(net, (X[:1], net(X[:1]).argmin(1)), method=nnrepair.methods.MinimalNorm(layer="3")).patch
    folded = nn.Sequential(nn.Linear(4, 8), nn.Identity(), nn.ReLU(), nn.Linear(8, 3)).eval()
    folded[3].load_state_dict(net[3].state_dict())
    assert patch is not None
    with pytest.raises(nnrepair.PatchError, match="apply the patch to the model in torch, and export that"):
        patch.apply(folded)
    with pytest.raises(nnrepair.PatchError, match="Give the model it was made for"):
        patch.apply(classifier())
