from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import ring

from benchmarks import editing, editing_table, experiments, figures, measure
from benchmarks import rows as tables
from benchmarks.editing import DOMAINS, MODES, Domain
from nnrepair.domains.base import Task
from nnrepair.errors import InvalidInput

DEFAULTS = """
models = ["tiny"]
modes = ["independent", "batch"]
seeds = [0, 1]
edits = 3
[options.MinimalNorm]
layer = "last"
"""


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    """A domain with one experiment, `plain`."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "defaults.toml").write_text(DEFAULTS)
    (tmp_path / "experiments" / "plain.toml").write_text('method = "minimal-norm"\n')
    return Domain("tiny", "tests.editing_task", tmp_path)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Measure in this process; returns the list of what was measured, in order."""
    calls: list[Any] = []
    monkeypatch.setattr(editing, "EDITORS", tmp_path / "editors")

    def direct(work: Callable[..., Any], cases: list[dict[str, Any]], *limits: Any) -> Any:
        for case in cases:
            calls.append((case["mode"], case["seed"]))
            yield case, work(**case)

    monkeypatch.setattr(measure, "each_in_its_process", direct)
    return calls


def rows(domain: Domain, name: str = "plain") -> list[dict[str, Any]]:
    return measure.load(domain.folder / "results" / f"{name}.json")


def write(domain: Domain, text: str, name: str = "plain") -> Path:
    path = domain.folder / "experiments" / f"{name}.toml"
    path.write_text(text)
    return path


def test_an_experiment_holds_only_what_differs(domain: Domain) -> None:
    path = write(domain, 'method = "minimal-norm"\nseeds = [7]\n[options]\nnorm = "l1"\n', "other")
    experiment = experiments.read(path, domain)
    assert experiment.options == {"layer": "last", "norm": "l1"}
    assert list(experiment.cases()) == [{"model": "tiny", "mode": m, "seed": 7} for m in ("independent", "batch")]
    assert (experiment.name, experiment.edits) == ("other", 3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('method = "minimal-nrom"', "Unknown method 'minimal-nrom'. Did you mean 'minimal-norm'"),
        ('method = "minimal-norm"\nseed = [1]', "unknown key 'seed'. Did you mean 'seeds'"),
        ('method = "minimal-norm"\nseeds = 5', "seeds must be a list, given 5"),
        ('method = "minimal-norm"\nmodes = ["succesive"]', "Unknown mode 'succesive'. Did you mean 'successive"),
        (
            'method = "minimal-norm"\n[options]\nlayers = "fc3"',
            "'layers' is no option of minimal-norm. Did you mean 'laye",
        ),
        ('method = "minimal-norm"\n[options]\nnorm = "l3"', "Unknown norm 'l3'"),
        ("seeds = [1]", "needs its method"),
        ('method = "minimal-norm', "no TOML file"),
    ],
)
def test_mistakes_in_a_file_are_named(domain: Domain, text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as caught:
        experiments.read(write(domain, text), domain)
    assert "plain.toml" in str(caught.value)


def test_penalties_are_tables() -> None:
    made = editing.method_of("ft", {"lr": 0.1, "penalties": [{"kind": "KL", "weight": 3.0}]})
    assert [repr(p) for p in made.penalties] == ["KL(weight=3.0)"]  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match="given 'Kl'. Did you mean"):
        editing.method_of("ft", {"penalties": [{"kind": "Kl"}]})
    with pytest.raises(InvalidInput, match="'wieght' is no argument of KL. Did you mean 'weight'"):
        editing.method_of("ft", {"penalties": [{"kind": "KL", "wieght": 3.0}]})


@pytest.mark.parametrize("name", list(DOMAINS))
def test_the_experiments_of_every_domain_can_be_read(name: str) -> None:
    found = {experiment.name for experiment in experiments.read_all(DOMAINS[name])}
    assert {"minimal-norm", "ft"} <= found  # the baselines of every table


def test_rows_have_every_figure(domain: Domain, here: list[Any]) -> None:
    write(domain, f'method = "minimal-norm"\nmodes = {json.dumps(list(MODES))}')
    experiments.run(domain)
    found = {(row["mode"], row["seed"]): row for row in rows(domain)}
    assert list(found) == [(mode, seed) for mode in MODES for seed in (0, 1)]
    for (mode, _), row in found.items():
        assert (row["domain"], row["experiment"], row["method"], row["edits"]) == ("tiny", "plain", "minimal-norm", 3)
        assert row["status"] in ("repaired", "partly repaired")
        assert 0 <= row["success_rate"] <= 1 and 0 <= row["generalization_rate"] <= 1 and 0 <= row["locality"] <= 1
        assert row["drawdown_points_max"] >= row["drawdown_points"]
        assert row["tests"]["other"]["points"] == 10
        assert {"edit_seconds", "cpu_seconds", "peak_mib", "drawdown", "accuracy_before"} <= row.keys()
        if mode.startswith("successive"):
            assert all(len(values) == 3 for values in row["curve"].values())
            assert row["curve"]["retained"][-1] == pytest.approx(row["success_retain_rate"], abs=1e-3)
        else:
            assert "curve" not in row


def test_an_interrupted_run_goes_on(domain: Domain, here: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    direct = measure.each_in_its_process

    def killed(*arguments: Any) -> Any:
        for answer in direct(*arguments):
            yield answer
            if len(here) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(measure, "each_in_its_process", killed)
    with pytest.raises(KeyboardInterrupt):
        experiments.run(domain)
    before = rows(domain)
    assert 1 <= len(before) <= 2  # the second may be measured and not yet stored
    monkeypatch.setattr(measure, "each_in_its_process", direct)
    here.clear()
    experiments.run(domain)
    assert len(here) == 4 - len(before)
    assert [(row["mode"], row["seed"]) for row in rows(domain)] == [
        ("independent", 0),
        ("independent", 1),
        ("batch", 0),
        ("batch", 1),
    ]
    assert all(row in rows(domain) for row in before)
    here.clear()
    experiments.run(domain)
    assert here == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b"{}", b'{"rows": 5}', b'{"rows": [5]}', b"\xff\xfe", b"[" * 10**5, b'{"rows": [{}]'],
)
def test_damaged_results_are_not_overwritten(domain: Domain, here: list[Any], content: bytes) -> None:
    path = domain.folder / "results" / "plain.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"plain\.json is damaged"):
        experiments.run(domain)
    assert path.read_bytes() == content and here == []


def test_rows_say_what_they_were_made_with(domain: Domain, here: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file is continued with other versions, its head stays that of its first rows."""
    now = measure.machine()
    earlier = now | {"versions": now["versions"] | {"torch": "1.0"}, "date": "2020-01-01"}
    path = domain.folder / "results" / "plain.json"
    with monkeypatch.context() as patched:
        patched.setattr(measure, "machine", lambda: earlier)
        experiments.run(domain, modes=["batch"])
    for modes in (["independent"], []):
        experiments.run(domain, modes=modes)
        stored = json.loads(path.read_text())
        assert {key: stored[key] for key in now} == earlier
        made = [(row["mode"], row.get("made_with")) for row in stored["rows"]]
        assert made == [("independent", now)] * 2 + [("batch", None)] * 2
    measure.save(domain.folder / "other.json", [{"a": 1}], "about")
    measure.save(domain.folder / "other.json", [{"a": 1}, {"a": 2}], "about")
    assert measure.load(domain.folder / "other.json") == [{"a": 1}, {"a": 2}]


def test_stored_networks_are_those_of_this_graph_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_geometric", reason="PyTorch Geometric's networks need the extra [graph]")
    from benchmarks.graph import task

    path, calls, real = tmp_path / "network.npz", [], task.graph.train
    monkeypatch.setattr(task.graph, "train", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    data = ring(nodes=12)
    data = replace(data, train_mask=torch.arange(12) < 8)

    def again(data: Any = data, **options: Any) -> int:
        calls.clear()
        task.trained("gcn", 0, data, path, **({"epochs": 1} | options))
        return len(calls)

    assert again() == 1 and again() == 0
    assert again(replace(data, x=data.x.flip(0))) == 1  # the same sum
    assert again(replace(data, y=data.y.flip(0))) == 1
    assert again(replace(data, train_mask=data.train_mask.flip(0))) == 1
    assert again(replace(data, edge_index=data.edge_index.flip(1))) == 1
    assert again(lr=0.5) == 1 and again() == 1 and again() == 0
    content = path.read_bytes()
    for nonsense in (b"", b"nothing", content[:-30], content[:30] + bytes(9) + content[39:]):
        path.write_bytes(nonsense)
        assert again() == 1 and again() == 0
    monkeypatch.setattr(task, "source", lambda *parts: f"another {parts}")
    assert again() == 1 and again() == 0
    path.unlink()
    path.mkdir()  # no file can be written there: the network is trained, and that is all
    (path / "mine").touch()
    assert again() == 1


def test_what_is_stored_depends_on_the_code_that_makes_it_and_on_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.cifar import task as cifar
    from benchmarks.graph import task as graphs
    from nnrepair import provenance

    real = Path(provenance.__file__).parent
    shutil.copytree(real, tmp_path / "nnrepair", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "nnrepair"
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    fresh = provenance.source.__wrapped__
    everything = fresh()
    assert everything == provenance.source.__wrapped__(".")
    for parts, decides in ((cifar.SOURCE, "domains/images/cifar.py"), (graphs.SOURCE, "training/loop.py")):
        before = fresh(*parts)
        with (package / "methods" / "grace.py").open("a") as file:
            file.write("# another line\n")
        assert fresh(*parts) == before and fresh() != everything
        with (package / decides).open("a") as file:
            file.write("# another line\n")
        assert fresh(*parts) != before
    with pytest.raises(InvalidInput, match="no source code at 'domains/nowhere'"):
        fresh("domains/files.py", "domains/nowhere")


def test_failed_rows_stay_until_they_are_asked_for_again(
    domain: Domain, here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = measure.each_in_its_process
    failing = lambda work, cases, *_: ((case, {"status": "failed: no memory"}) for case in cases)  # noqa: E731
    monkeypatch.setattr(measure, "each_in_its_process", failing)
    experiments.run(domain, modes=["batch"])
    monkeypatch.setattr(measure, "each_in_its_process", direct)
    experiments.run(domain)
    assert [row["status"] for row in rows(domain)][2:] == ["failed: no memory"] * 2
    assert here == [("independent", 0), ("independent", 1)]
    here.clear()
    experiments.run(domain, again=True)
    assert here == [("batch", 0), ("batch", 1)]
    assert not any(map(experiments.failed, rows(domain)))


def test_measured_experiments_are_not_changed(domain: Domain, here: list[Any]) -> None:
    experiments.run(domain, modes=["batch"])
    write(domain, 'method = "minimal-norm"\nedits = 2')
    with pytest.raises(InvalidInput, match=r"plain.toml was changed after its rows were measured"):
        experiments.run(domain)


def test_methods_and_experiments_are_chosen_by_name(domain: Domain, here: list[Any]) -> None:
    write(domain, 'method = "minimal-norm"\n[options]\nnorm = "l1"', "other")
    experiments.run(domain, ["other"], ["batch"])
    assert len(rows(domain, "other")) == 2 and rows(domain) == []
    experiments.run(domain, models=["another"])
    assert rows(domain) == []
    with pytest.raises(InvalidInput, match="no experiment 'othr'. Did you mean 'other'"):
        experiments.run(domain, ["othr"])


def test_a_trial_is_small_and_stored_elsewhere(
    domain: Domain, here: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "TRIALS", tmp_path / "trials")
    write(domain, 'method = "minimal-norm"\nseeds = [4, 5, 6]\nedits = 9')
    experiments.run(domain, modes=["batch"], trial=True)
    assert rows(domain) == []
    stored = measure.load(tmp_path / "trials" / "tiny" / "plain.json")
    assert [(row["seed"], row["edits"]) for row in stored] == [(4, 5), (5, 5)]


@pytest.mark.slow
def test_a_row_in_a_process_of_its_own(domain: Domain) -> None:
    write(domain, 'method = "minimal-norm"\nseeds = [0]')
    write(domain, 'method = "minimal-norm"\nseeds = [0]\nedits = 11', "much")
    experiments.run(domain, modes=["batch"], jobs=2)
    (row,) = rows(domain)
    assert row["success_rate"] == 1 and row["peak_mib"] >= 0
    (refused,) = rows(domain, "much")
    assert refused["status"].startswith("failed: InvalidInput: 11 edits were asked for, but there are only 10 points")


def test_tables_and_figures_say_what_the_rows_say(
    domain: Domain, here: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(domain, f'method = "minimal-norm"\nmodes = {json.dumps(list(MODES))}')
    experiments.run(domain)
    for module in (editing_table, tables):
        monkeypatch.setattr(module, "DOMAINS", {"mnist": domain})
    page = editing_table.page()
    mean = sum(row["success_rate"] for row in rows(domain) if row["mode"] == "batch") / 2
    assert f"| minimal-norm | {100 * mean:.1f} ± " not in page  # the experiment is called plain
    assert f"| plain | {100 * mean:.1f} ± " in page
    assert all(f"### tiny, {mode}: " in page for mode in MODES)
    assert "layer = last" in page
    pytest.importorskip("matplotlib", reason="figures need the extra [plot]")
    editing_table.write(tmp_path)
    assert (tmp_path / "results-editing.md").read_text() == page
    assert (tmp_path / "editing-mnist.png").stat().st_size > 1000
    assert (tmp_path / "editing-mnist-curves.png").stat().st_size > 1000


def test_an_experiment_looks_the_same_in_every_picture(
    domain: Domain, here: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra [plot]")
    for name, modes in (("before", ["batch"]), ("plain", ["batch", "successive"])):
        write(domain, f'method = "minimal-norm"\nseeds = [0]\nmodes = {json.dumps(modes)}', name)
    experiments.run(domain)
    monkeypatch.setattr(tables, "DOMAINS", {"mnist": domain})
    legends: list[dict[str, Any]] = []
    monkeypatch.setattr(figures, "finish", lambda _, styles, path, line: legends.append(styles))
    figures.pareto("mnist", tmp_path)
    figures.curves("mnist", tmp_path)
    assert list(legends[0]) == ["before", "plain"] and legends[1] == {"plain": legends[0]["plain"]}


def check(task: Task, edits: int) -> None:
    """What every task promises."""
    inputs = task.edits.inputs
    with torch.no_grad():
        y = task.model(inputs) if isinstance(inputs, torch.Tensor) else inputs.call(task.model)
    assert len(task.edits) == edits and not task.edits.criterion.holds(y.double()).any()
    assert task.edit_scope.of is not None and set(task.edit_scope.of.tolist()) <= set(range(edits))
    assert task.locality_set.criterion is not None and len(task.locality_set) >= 100
    assert all(len(inputs) == len(labels) for inputs, labels in task.test_set.values())


@pytest.mark.data
def test_the_task_of_mnist(data_dir: Callable[..., Path]) -> None:
    data_dir("mnist/mnist.npz", "mnist/mnist_fog_test.npz", "mnist/mnist_relu_3x100.npz")
    task = DOMAINS["mnist"].task("3x100", 0, 5)
    check(task, 5)
    again, other = DOMAINS["mnist"].task("3x100", 0, 5), DOMAINS["mnist"].task("3x100", 1, 5)
    assert torch.equal(task.edits.inputs, again.edits.inputs)
    assert not torch.equal(task.edits.inputs, other.edits.inputs)
    with pytest.raises(InvalidInput, match="20000 edits were asked for, but there are only 8"):
        DOMAINS["mnist"].task("3x100", 0, 20_000)


@pytest.mark.data
def test_the_head_of_the_photographs_network_is_the_network(data_dir: Callable[..., Path]) -> None:
    from benchmarks.cifar.task import head, shifted
    from nnrepair.domains.images.cifar import cifar10_lossless, resnet20

    data_dir("cifar10/cifar10_lossless.npz", "cifar10/resnet20-12fca82f.th")
    images, network = cifar10_lossless("test")[:8], resnet20()
    with torch.no_grad():
        assert torch.equal(head(network)(network.features(images.inputs)), network(images.inputs))
    moved = shifted(images.inputs)
    assert moved.shape == (8, 5, 3, 32, 32)
    assert torch.equal(moved[:, 0], images.inputs.flip(3))
    assert torch.equal(moved[:, 1, :, 1:], images.inputs[:, :, :-1])  # down
    assert torch.equal(moved[:, 4, :, :, :-1], images.inputs[:, :, :, 1:])  # to the left


@pytest.mark.data
def test_the_task_of_cifar(data_dir: Callable[..., Path]) -> None:
    from benchmarks.cifar import task as cifar

    data_dir("cifar10/cifar10_jpeg_test.npz", "cifar10/cifar10_jpeg_train.npz", "cifar10/cifar10_lossless.npz")
    if not cifar.CACHE.exists():
        pytest.skip(f"{cifar.CACHE.name} is not in build/: `python -m benchmarks run --domain cifar` makes it")
    task = DOMAINS["cifar"].task("resnet20", 0, 5)
    check(task, 5)
    assert len(task.test_set["jpeg"][1]) == 9995
    with pytest.raises(InvalidInput, match="one model"):
        DOMAINS["cifar"].task("resnet18", 0, 5)


@pytest.mark.data
def test_the_task_of_cora(data_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.cora import task as cora

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch_geometric", reason="graph networks come with the extra [graph]")
    data_dir("graphs/cora_safe.npz")
    monkeypatch.setattr(cora, "ROOT", tmp_path)
    first = DOMAINS["cora"].task("gcn", 0, 5)
    check(first, 5)
    stored = DOMAINS["cora"].task("gcn", 0, 5)  # from the file that the first call wrote
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), stored.model.parameters(), strict=True))
    edited, scope = first.edits.inputs, first.edit_scope
    assert not torch.isin(scope.inputs.index, edited.index).any()
    assert torch.equal(first.edits.criterion.labels[scope.of], scope.criterion.labels)
    with pytest.raises(InvalidInput, match="Unknown network 'gnc'. Did you mean 'gcn'"):
        DOMAINS["cora"].task("gnc", 0, 5)


@pytest.mark.data
def test_the_task_of_other_graphs(
    data_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.graph import task as graphs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch_geometric", reason="graph networks come with the extra [graph]")
    data_dir("graphs/citeseer_safe.npz")
    monkeypatch.setattr(graphs, "STORE", tmp_path)
    frozen = DOMAINS["graph"].task("citeseer-gcn", 0, 5)
    check(frozen, 5)
    whole = DOMAINS["graph"].task("citeseer-gcn", 0, 5, whole=True)  # the same task, with all layers to change
    check(whole, 5)
    for a, b in ((frozen.edits, whole.edits), (frozen.locality_set, whole.locality_set)):
        assert torch.equal(a.inputs.index, b.inputs.index)
        with torch.no_grad():
            torch.testing.assert_close(a.inputs.call(frozen.model), b.inputs.call(whole.model))
    assert len(frozen.locality_set) == graphs.KEPT and len(frozen.test_set["test"][1]) == 500
    with pytest.raises(InvalidInput, match="Unknown network 'citeser-gcn'. Did you mean 'citeseer-gcn'"):
        DOMAINS["graph"].task("citeser-gcn", 0, 5)


def test_an_experiment_says_how_its_task_is_posed(domain: Domain, here: list[Any], tmp_path: Path) -> None:
    write(domain, 'method = "minimal-norm"\nmodes = ["batch"]\nseeds = [0]\n[task]\nkept = 7')
    experiments.run(domain)
    (row,) = rows(domain)
    assert row["task"] == {"kept": 7}
    write(domain, 'method = "minimal-norm"\nmodes = ["batch"]\nseeds = [0]\n[task]\nkept = 8')
    with pytest.raises(InvalidInput, match="was changed after"):
        experiments.run(domain)
    write(domain, 'method = "minimal-norm"\nmodes = ["batch"]\nseeds = [0]')
    with pytest.raises(InvalidInput, match="was changed after"):
        experiments.run(domain)


def test_methods_that_are_trained_first_are_trained_on_the_episodes_of_the_task(domain: Domain, here: Any) -> None:
    text = 'method = "editable-training"\n[options]\nlayers = "last"\n[training]\nsteps = 3\nedits = 2\nlocality = 5\n'
    write(domain, text)
    experiments.run(domain, modes=["batch"])
    assert len(rows(domain)) == len(here) > 0
    for row in rows(domain):
        assert row["training"] == {"steps": 3, "edits": 2, "locality": 5} and row["commit"] == measure.commit()
        assert row["trained"]["steps"] == 3 and row["trained"]["stopped"] == "" and row["trained"]["cpu_seconds"] > 0
        assert 0 <= row["success_rate"] <= 1 and row["steps"] >= 0 and row["change"] > 0
    write(domain, text.replace("steps = 3", "steps = 4"))
    with pytest.raises(InvalidInput, match="changed after its rows were measured"):
        experiments.run(domain, modes=["batch"])


def test_rows_that_need_the_same_editor_share_it(domain: Domain, here: Any) -> None:
    write(domain, 'method = "cnp"\nseeds = [0]\n[training]\nsteps = 3\nany_labels = true\n')
    experiments.run(domain, modes=["independent", "batch"])
    first, second = rows(domain)
    assert first["trained"]["steps"] == second["trained"]["steps"] == 3
    assert "stored" not in first["trained"] and second["trained"]["stored"]
    assert len(list(editing.EDITORS.iterdir())) == 1


def test_every_experiment_looks_different() -> None:
    names = [f"experiment {k}" for k in range(60)]
    looks = [(style["color"], style["marker"]) for style in figures.styles_of(names).values()]
    assert len(set(looks)) == len(names)
