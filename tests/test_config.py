import pytest
import yaml

from centrobind.errors import ConfigError
from centrobind.objectives.table import OBJECTIVES
from centrobind.training.config import check_config, dump_config, load_config, make_objective

GOOD = """\
data: store
out: runs/x
objective:
  name: fabind
  anchor: image
modalities:
  image:
    encoder: cnn
    channels: 16
  name:
train:
  steps: 50
  lr: 1e-3
"""


def write(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    return tmp_path / "run.yaml"


def test_a_good_file_is_read_and_defaults_are_filled_in(tmp_path):
    config = load_config(write(tmp_path, GOOD.replace("  name:\n", "  name: {}\n")))
    assert config.objective.anchor == "image" and config.objective.temperature == 0.07
    assert config.train.lr == 1e-3 and config.train.steps == 50 and config.dim is None
    assert config.modalities["image"].encoder_spec() == {"encoder": "cnn", "channels": 16}
    assert config.modalities["name"].encoder_spec() is None


def test_what_is_dumped_reads_back_as_the_same(tmp_path):
    config = load_config(write(tmp_path, GOOD.replace("  name:\n", "  name: {}\n")))
    assert load_config(write(tmp_path, dump_config(config))) == config
    assert set(yaml.safe_load(dump_config(config))["train"]) == set(type(config.train).model_fields)


def test_overrides_come_last_and_make_groups(tmp_path):
    path = write(tmp_path, "data: s\nout: o\nobjective: {name: centrobind}\n")
    config = load_config(path, ["train.lr=1e-4", "objective.temperature=0.3", "dim=16", "train.batch_size=null"])
    assert config.train.lr == 1e-4 and config.objective.temperature == 0.3 and config.dim == 16


def test_every_mistake_is_listed_with_its_line_and_the_nearest_key(tmp_path):
    path = write(
        tmp_path,
        "data: store\nout: runs/x\nobjctive: 3\nobjective:\n  name: fabind\n  anchr: image\n  temperature: 40\n"
        "train:\n  bath_size: 64\n  lr: -1\n  precision: fp8\nmodalities:\n  image:\n    encoder: cnn\n    chanels: 3\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["train.stps=3", "nonsense"])
    lines = str(caught.value).splitlines()
    for where, what in {
        f"{path}:3": "objctive: unknown key (did you mean 'objective'?), got 3",
        f"{path}:6": "objective.anchr: unknown key (did you mean 'anchor'?)",
        f"{path}:4": "objective.anchor: missing",
        f"{path}:7": "objective.temperature: input should be less than or equal to 10",
        f"{path}:9": "train.bath_size: unknown key (did you mean 'batch_size'?), got 64",
        f"{path}:10": "train.lr: input should be greater than 0, got -1",
        f"{path}:11": "train.precision: input should be 'auto', 'fp32' or 'bf16'",
        f"{path}:13": "modalities.image: encoder cnn has no option 'chanels' (did you mean 'channels'?)",
        "--set train.stps=3": "train.stps: unknown key (did you mean 'steps'?)",
        "--set nonsense": "expected key=value",
    }.items():
        assert any(line.startswith(f"{where}:") and what in line for line in lines), (where, what, lines)
    assert len(lines) == 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", r"run\.yaml:\d+: not YAML"),
        ("just words", "expected keys such as data"),
        ("", "expected keys"),
        ("data: a\ndata: b\nout: c\nobjective: {name: unimodal}", r"run\.yaml:2: data: already set in line 1"),
        ("data: s\ndim: 4", "out: missing"),
        ("data: s\nout: o\nobjective: {name: centerbind}", r"expected one of .*did you mean 'centrobind'"),
        ("data: s\nout: o\nobjective: {}", "objective.name"),
        ("data: s\nout: o\nobjective: 3", "objective"),
        ("data: [1]\nout: o\nobjective: {name: unimodal}", "data: .*string"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("data: s\nout: o\nobjective: {name: unimodal}\nmodalities: {a: {channels: 3}}", "need encoder: to be named"),
        ("&a [*a]", "expected keys|not YAML"),
        ("data: &a {b: *a}\nout: o\nobjective: {name: unimodal}", "data"),
    ],
)
def test_broken_files_are_said(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        load_config(write(tmp_path, text))


def test_unreadable_files_are_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "b.yaml")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_can_be_configured_and_made(name):
    options = {"anchor": "a"} if name == "fabind" else {}
    config = check_config({"data": "s", "out": "o", "objective": {"name": name, "temperature": 0.5} | options})
    assert make_objective(config.objective, ("a", "b")).temperature().item() == pytest.approx(0.5)


def test_an_anchor_that_is_not_in_the_data_is_said():
    config = check_config({"data": "s", "out": "o", "objective": {"name": "fabind", "anchor": "z"}})
    with pytest.raises(ConfigError, match=r"no modality \['z'\]"):
        make_objective(config.objective, ("a", "b"))
    config = check_config({"data": "s", "out": "o", "objective": {"name": "weighted", "weights": {"z": 1}}})
    with pytest.raises(ConfigError, match=r"\['z'\]"):
        make_objective(config.objective, ("a", "b"))


def test_aliases_that_stand_for_millions_are_refused(tmp_path):
    """Each line is ten times the one before: written out, a billion values from 300 bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    merged = ["b0: &b0 {x: 1}"] + [f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    for text in ("\n".join(lines), "\n".join(merged)):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"aliases .* stand for more than 100,000 values"):
            load_config(tmp_path / "run.yaml")


def test_configurations_that_are_none(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "huge.yaml").write_text("# " + "x" * 2**20)
    (tmp_path / "folder.yaml").mkdir()
    for name, says in {
        "binary": "not YAML",
        "huge": "no configuration",
        "folder": "cannot be read",
        "gone": "cannot be",
    }.items():
        with pytest.raises(ConfigError, match=says):
            load_config(tmp_path / f"{name}.yaml")
