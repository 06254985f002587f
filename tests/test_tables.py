"""Figures in the docs come from the committed result files, and from nowhere else."""

from pathlib import Path

from benchmarks import comparison_table as editors
from benchmarks import editing_table as editing
from benchmarks import table as mnist
from benchmarks.acas import table as acas
from benchmarks.checkers import table as checkers
from benchmarks.cifar import editable_table as editable
from benchmarks.conditioning import table as conditioning
from benchmarks.engine import table as engine
from benchmarks.graph import table as graphs
from benchmarks.inpainting import table as inpainting
from benchmarks.language import table as language
from benchmarks.readers import table as readers
from benchmarks.regions import table as regions
from benchmarks.shipped import table as shipped
from benchmarks.verify import table

ROOT = Path(__file__).parent.parent


def test_the_page_about_mnist_is_what_the_results_say():
    assert (ROOT / "docs" / "results-mnist.md").read_text() == mnist.page()


def test_the_page_about_properties_is_what_the_results_say():
    assert (ROOT / "docs" / "results-properties.md").read_text() == table.page()


def test_the_page_about_reading_files_is_what_the_results_say():
    assert (ROOT / "docs" / "results-readers.md").read_text() == readers.page()


def test_the_page_about_shipped_networks_is_what_the_results_say():
    assert (ROOT / "docs" / "results-shipped.md").read_text() == shipped.page()


def test_the_page_about_the_engine_is_what_the_results_say():
    assert (ROOT / "docs" / "results-engine.md").read_text() == engine.page()


def test_the_page_about_attacks_on_checkers_is_what_the_results_say():
    assert (ROOT / "docs" / "results-checkers.md").read_text() == checkers.page()


def test_the_page_about_regions_is_what_the_results_say():
    assert (ROOT / "docs" / "results-regions.md").read_text() == regions.page()


def test_the_page_about_acas_is_what_the_results_say():
    assert (ROOT / "docs" / "results-acas.md").read_text() == acas.page()


def test_the_page_about_editing_is_what_the_results_say():
    assert (ROOT / "docs" / "results-editing.md").read_text() == editing.page()


def test_the_page_about_every_editor_is_what_the_results_say():
    assert (ROOT / "docs" / "results-editors.md").read_text() == editors.page()


def test_the_page_about_editable_training_is_what_the_results_say():
    assert (ROOT / "docs" / "results-editable-training.md").read_text() == editable.page()


def test_the_page_about_conditioning_is_what_the_results_say():
    assert (ROOT / "docs" / "results-conditioning.md").read_text() == conditioning.page()


def test_the_page_about_graphs_is_what_the_results_say():
    assert (ROOT / "docs" / "results-graphs.md").read_text() == graphs.page()


def test_the_page_about_language_is_what_the_results_say():
    assert (ROOT / "docs" / "results-language.md").read_text() == language.page()


def test_the_page_about_inpainting_is_what_the_results_say():
    assert (ROOT / "docs" / "results-inpainting.md").read_text() == inpainting.page()


def test_the_page_about_choosing_is_what_the_results_say():
    text = (ROOT / "docs" / "how-to-choose.md").read_text()
    assert text == editing.filled(text)


def test_the_readme_and_the_page_of_results_say_what_the_results_say():
    for path, lines in (("README.md", mnist.figures()), ("docs/results.md", mnist.everything())):
        text = (ROOT / path).read_text()
        assert len(lines) >= 3 and text == mnist.between(text, "results", lines)
