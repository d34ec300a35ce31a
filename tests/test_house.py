"""The house rules, as tests: what is public, what imports what, how long files are, what the command line takes."""

import ast
import re
import tomllib
from pathlib import Path

import typer.main

import centrobind
from centrobind.cli.main import app

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "centrobind"

# Imports point up only: data flows from the first line to the last, and within a folder from its first file on.
ORDER = {
    "errors": "",
    "columns": "",
    "files": "",
    "progress": "",
    "seeds": "",
    "extras": "",
    "unit": "",
    "types": "",
    "distributed": "",
    "devices": "",
    "data": "strings arrays spread categories samples repeats identity store opening media "
    "sound decoding paths cells npz tables importing intake batches builtin inspecting",
    "closed_form": "moments gcca components grams features sequences pictures texts kinds choose stream bind",
    "objectives": "anchors dense_infonce comparison batched_infonce tiles tiled_infonce infonce tiled_tuples base anchored joint table",
    "binder": "inputs drift augment encoders linear pretrained binder checkpoint embedding features",
    "evaluation": "ranks relevance scores summary metrics evaluate realignment bounds findings diagnose",
    "report": "tables plots page atlas",
    "index": "engine topk segments exact lance opening asking",
    "training": "config run_folder shard gradcache step optimizer finite state replay validation journal loop recipe fit memory",
    "arena": "contenders plan trials schedule standings pages demo",
    "serve": "values drawing gallery opening access guard connection models description api app",
    "cli": "terminal show search serve main",
    "__main__": "",
}
PLACES = [f"{top}.{name}".rstrip(".") for top, names in ORDER.items() for name in names.split() or [""]]


def place(path):
    """Where a file stands in the order: "data.store"; a folder itself stands before its files."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """The places that a file imports, anywhere in it: "data.store", or "data" for what its __init__ passes on."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "centrobind":
            module = node.module.partition(".")[2]
            for alias in node.names:
                inner = f"{module}.{alias.name}".strip(".")
                yield inner if inner in PLACES or inner in ORDER else module
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("centrobind."))


def test_imports_point_up():
    assert {place(path) for path in SOURCE.rglob("*.py")} == {
        "",
        *PLACES,
        *(top for top, names in ORDER.items() if names),
    }
    tops = list(ORDER)
    for path in SOURCE.rglob("*.py"):
        source = place(path)
        for target in imports(path):
            if not source or not target:
                continue  # the package itself: its names are imported when they are first used
            above, here = target.split(".")[0], source.split(".")[0]
            if above != here:
                assert tops.index(above) < tops.index(here), (path, target)
            elif "." in source:
                assert PLACES.index(target) < PLACES.index(source), (path, target)


def test_no_file_is_longer_than_400_lines():
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_public_names():
    assert sorted(centrobind.__all__) == sorted(
        """
        AllPairs AnchorInfoNCE Binder CentroBind CentrobindError CentrobindWarning Embeddings FABind LearnedCentroid LeaveOneOut
        OBJECTIVES Objective RandomAnchor Samples TrainConfig Unimodal WeightedCentroid __version__ anchors build_index diagnose
        evaluate fit from_mudata glyphs load open_index open_store query retrieval save synthetic write_store
        """.split()
    )


def test_a_type_checker_sees_the_public_names():
    (block,) = (node for node in ast.parse((SOURCE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    typed = {
        alias.asname: f"{node.module.partition('.')[2]}.{alias.name}" for node in block.body for alias in node.names
    }
    public = {name: f"{module}.{name}" for name, module in centrobind._PUBLIC.items()}
    assert typed == public | {name: f".{name}" for name in centrobind._MODULES}


def test_every_public_name_is_there_documented_and_not_also_a_module():
    modules = {path.stem for path in SOURCE.iterdir()}
    for name in centrobind.__all__:
        value = getattr(centrobind, name)
        assert name not in modules, "importing the module would hide the name"
        if callable(value):
            assert value.__doc__ and len(value.__doc__) > 20, name
    assert set(centrobind.__all__) <= set(dir(centrobind))


def test_every_module_and_public_function_says_what_it_is():
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), (path, node.name)


def test_command_line():
    commands = typer.main.get_command(app).commands
    found = {name: sorted(o for p in command.params for o in p.opts) for name, command in commands.items()}
    assert found == {
        "demo": ["--force", "--out", "--quick", "--seed", "--serve"],
        "import": "--columns --encoding --force --kind --limit --modalities --nan-as-missing --read --skip-bad source store".split(),
        "featurize": ["--batch-size", "--force", "--modality", "out", "store"],
        "inspect": ["--json", "--plan", "--verify", "store"],
        "train": ["--force", "--resume", "--set", "config"],
        "replay": ["run"],
        "evaluate": ["--out", "--split", "run", "store"],
        "diagnose": ["--json", "--split", "run", "store"],
        "embed": ["--force", "--split", "out", "run", "store"],
        "serve": [
            "--allow-host",
            "--cache",
            "--host",
            "--index",
            "--open",
            "--port",
            "--split",
            "--token",
            "run",
            "store",
        ],
        "index": ["--engine", "--force", "--out", "--split", "run", "store"],
        "search": ["--file", "--id", "--index", "--json", "--not", "--text", "--want", "--where", "-k", "run"],
        "compare": ["--budget", "--jobs", "--objectives", "--ours", "--out", "--seeds", "--steps", "--tables", "data"],
    }


def test_pip_always_gets_the_constraints():
    for name in ("Makefile", ".ci/run"):
        for line in (ROOT / name).read_text().splitlines():
            if re.search(r"\bpip install\b", line):
                assert "constraints.txt" in line, (name, line)
    assert (ROOT / "constraints.txt").read_text().split() == ["torch==2.13.0"]


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    declared = {re.match(r"[\w-]+", name)[0].lower() for name in [*project["dependencies"], *extras]}
    known_as = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow"}
    local = {"centrobind", *__import__("sys").stdlib_module_names}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = (name or "centrobind").split(".")[0]
                assert top in local or known_as.get(top, top).lower() in declared, (path, top)
    assert not declared & {"torchvision", "torchaudio", "timm", "open_clip_torch", "torchcodec", "litdata"}


def test_what_an_extra_brings_is_imported_only_when_it_is_needed():
    extras = {"soundfile", "transformers", "pyarrow", "tensorboard", "huggingface_hub", "tokenizers", "torchvision"}
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not extras & {name.split(".")[0] for name in names}, path
