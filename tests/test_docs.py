"""What the documentation shows is so: its code runs, its links lead somewhere, its tables are up to date."""

from __future__ import annotations

import ast
import json
import re
import runpy
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import pytest
from chats import PLAIN, save_chat_model
from typer.main import get_command

from easydel import AutoEasyDeLModelForCausalLM
from easydel.cli.app import app
from easydel.cli.families import LEFT_OUT
from easydel.families import all_families, all_wrappers

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


# options of other programs
OTHERS = {"--help", "--all-cases", "--no-deps", "--editable"}


def code_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    save_chat_model(folder, template=PLAIN)
    return folder


def run(code: str, model: Path) -> dict[str, Any]:
    """The names that the code leaves behind, run with a tiny model in place of the real one."""
    assert NAME in code
    found: dict[str, Any] = {}
    exec(compile(code.replace(NAME, str(model)), "docs", "exec"), found)
    return found


def test_the_first_code_of_readme_and_generation_runs_as_it_stands(model: Path, capsys: pytest.CaptureFixture[str]):
    for page in ("README.md", "docs/generation.md"):
        found = run(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[0], model)
        tokenizer, rows = found["tokenizer"], found["out"].sequences
        said = (
            tokenizer.decode(rows[0, len(found["ids"]) :].tolist()) if "ids" in found else tokenizer.batch_decode(rows)
        )
        assert str(said) in capsys.readouterr().out


def test_the_notebook_runs_from_top_to_bottom(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
    found = run("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"), model)
    assert found["losses"][-1] < found["losses"][0]
    assert "model.safetensors" in [file.name for file in (tmp_path / "quickstart-model").iterdir()]


def test_files_that_are_shown_whole_are_as_shown():
    files = {
        file.read_text() for folder in ("easydel/families", "tests/cases") for file in (ROOT / folder).glob("*.py")
    }
    shown = [
        dedent(code)
        for page in PAGES
        for code in re.findall(r'```python\n( *""".*?) *```', page.read_text(), re.DOTALL)
    ]
    assert len(shown) == 4
    assert [code for code in shown if code not in files] == []


@EACH
def test_links_lead_to_files_and_headings(page: Path):
    links = re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", page.read_text())
    targets = [((page.parent / link) if link else page, heading) for link, heading in links]
    assert [(file, heading) for file, heading in targets if heading.lstrip("#") not in anchors(file)] == []


def anchors(file: Path) -> set[str]:
    """What a link to the file may name behind #, as GitHub makes it of headings; with "" if the file exists."""
    titles = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE) if file.suffix == ".md" else []
    return ({""} if file.exists() else set()) | {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
    }


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)], ids=lambda page: page.name)
def test_code_is_python_and_imports_what_is_there(page: Path):
    for code in code_of(page):
        for node in ast.walk(ast.parse(dedent(code))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("easydel"):
                module = import_module(str(node.module))
                names = [name.name for name in node.names if not hasattr(module, name.name)]
                assert [name for name in names if find_spec(f"{node.module}.{name}") is None] == []


@EACH
def test_options_that_are_named_exist(page: Path):
    group = cast(Any, get_command(app))
    given = [one for command in (group, *group.commands.values()) for one in command.params]
    known = {option for one in given for option in (*one.opts, *one.secondary_opts)}
    named = {*re.findall(r"(?:`|easydel[^`\n]* )(--[a-z0-9-]+)", page.read_text())}
    assert named - known - OTHERS == set()


def test_every_argument_of_from_pretrained_is_in_its_table():
    table = (ROOT / "docs" / "loading.md").read_text()
    names = [
        str(one).partition(":")[0] for one in signature(AutoEasyDeLModelForCausalLM.from_pretrained).parameters.values()
    ]
    assert [name for name in names if f"\n| `{name}` |" not in table] == []


def test_the_readme_counts_the_model_types():
    (told,) = re.findall(r"\*\*Models\*\*: (\d+) model types", PAGES[0].read_text())
    assert int(told) == len({row.model_type for row in (*all_families(), *all_wrappers().values())})


def test_nothing_is_installed_by_a_name_that_belongs_to_another_project():
    """PyPI's easydel is not this one."""
    files = [*PAGES, ROOT / "CHANGELOG.md", *(ROOT / "easydel").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    asked = re.compile(r"easydel\[[a-z]|pip install [^\n`]*\beasydel\b")
    assert [file for file in files if asked.search(file.read_text())] == []


def test_the_table_of_models_is_up_to_date():
    script = runpy.run_path(str(ROOT / "scripts" / "make_models.py"))
    assert script["left_out"]() == LEFT_OUT.read_text(), "run `make models`"
    assert script["text"]() == (ROOT / "docs" / "models.md").read_text(), "run `make models`"
