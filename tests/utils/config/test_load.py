"""Recipes from file to `RunConfig`: YAML, bases, overrides, strictness, and what published files look like."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from datasets import DATASETS
from models import MODELS
from tools.launch import load_recipe
from tools.published.keys import OLD_NAMES
from tools.published.paths import NO_RECIPES, find_recipe
from utils import ROOT
from utils.config.load import load_config, saved_config
from utils.config.merge import to_dict
from utils.config.schema import RUNNER_LEGACY
from utils.config.yaml import read_yaml, save_config
from utils.errors import UserError
from utils.registry import Registry

RECIPES = [path for path in sorted((ROOT / "cfgs").rglob("*.yaml")) if path.parent.name not in NO_RECIPES]

# As the published files are written: flow style, old data-set paths, keys that nothing reads.
PUBLISHED = """
optimizer : {
  type: AdamW,
  kwargs: {
  lr : 1e-3,
  weight_decay : 0.05
}}

scheduler: {
  type: CosLR,
  kwargs: {
    epochs: 400,
    initial_epochs : 10,
    t_mul: 1
}}

dataset : {
  train : { _base_: ./cfgs/dataset_configs/ShapeNet-55.yaml,
            others: {subset: 'train', npoints: 2048, bs: 128}},
  val : { _base_: cfgs/dataset_configs/ShapeNet-55.yaml,
            others: {subset: 'test', npoints: 2048}},
  svm: {
    train : { _base_: ./cfgs/dataset_configs/ModelNet40_SVM.yaml,
              others: {subset: 'train', num_points: 1024}},
    test : { _base_: ./cfgs/dataset_configs/ModelNet40_SVM.yaml,
             others: {subset: 'test', num_points: 1024}}}}

model : {
  NAME: Point_M2AE,
  mask_ratio: 0.8,
  group_sizes: [16, 8, 8],
  num_groups: [512, 256, 64],
  encoder_depths: [5, 5, 5],
  encoder_dims: [96, 192, 384],
  local_radius: [0.32, 0.64, 1.28],
  decoder_depths: [1, 1],
  decoder_dims: [384, 192],
  decoder_up_blocks: [1, 1],
  drop_path_rate: 0.1,
  num_heads: 6}

npoints: 2048
consider_metric: CDL1
total_bs : 128
step_per_update : 1
max_epoch : 300
"""


@dataclass
class NetConfig:
    NAME: str = "Net"
    num_groups: list[int] = field(default_factory=lambda: [32, 16])
    rate: float = 0.5


@dataclass
class CloudsConfig:
    NAME: str = "Clouds"
    DATA_PATH: str = "data/clouds"
    subset: str = "train"
    npoints: int = 64
    note: str = "data/unchanged"


NETS, CLOUDS = Registry("model"), Registry("data set")
NETS.register("Net", config=NetConfig)(object)
CLOUDS.register("Clouds", config=CloudsConfig)(object)
SMALL = {
    "optimizer": {"type": "AdamW", "kwargs": {"lr": 0.001}},
    "scheduler": {"type": "CosLR", "kwargs": {"epochs": 3, "initial_epochs": 1}},
    "dataset": {"train": {"_base_": "clouds.yaml", "others": {"npoints": 128}}},
    "model": {"NAME": "Net"},
    "total_bs": 4,
    "max_epoch": 2,
}


@pytest.fixture
def load(tmp_path):
    """Return a function that writes a tree (or text) as YAML and loads it."""
    (tmp_path / "clouds.yaml").write_text("NAME: Clouds\nnpoints: 32\n")

    def write_and_load(tree=SMALL, *overrides, **options):
        path = tmp_path / "recipe.yaml"
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
        return load_config(
            path, overrides=overrides, **{"models": NETS, "datasets": CLOUDS, "old": OLD_NAMES, **options}
        )

    return write_and_load


def test_published_file_loads_unmodified(load, caplog):
    config = load(PUBLISHED, models=MODELS, datasets=DATASETS)
    assert config.optimizer.kwargs.lr == 0.001 and config.scheduler.kwargs.epochs == 400
    assert config.dataset.train.NAME == "ShapeNet" and config.dataset.train.npoints == 2048
    assert config.dataset.svm.train.NAME == "ModelNet40_SVM" and config.dataset.svm.test.num_points == 1024
    assert config.model.mask_ratio == 0.8 and config.model.num_groups == [512, 256, 64]
    assert (config.total_bs, config.max_epoch, config.grad_norm_clip) == (128, 300, None)
    assert sorted(config.ignored) == ["consider_metric", "scheduler.kwargs.t_mul"]
    [record] = [record for record in caplog.records if "without effect" in record.getMessage()]
    assert "consider_metric" in record.getMessage()
    ours = load_recipe("cfgs/pre-training/point-m2ae.yaml")
    for key in ("optimizer", "scheduler", "model", "total_bs", "max_epoch", "step_per_update", "grad_norm_clip"):
        assert getattr(ours, key) == getattr(config, key), key
    assert ours.dataset.svm == config.dataset.svm


def test_gm3d_names_of_the_svm_sets(load):
    entry = {"_base_": "clouds.yaml", "others": {"subset": "test"}}
    dataset = {
        "train": {"NAME": "Clouds"},
        "extra_train": entry,
        "extra_train_svm": {"NAME": "Clouds"},
        "extra_test_svm": entry,
    }
    config = load({**SMALL, "dataset": dataset})
    assert config.dataset.svm.train.subset == "train" and config.dataset.svm.test.subset == "test"
    assert config.ignored == [
        "dataset.extra_train"
    ]  # published files name a second training set; no program reads it here


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT / "cfgs").as_posix())
def test_recipes_of_this_version(path, tmp_path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    if path.is_relative_to(ROOT / "cfgs" / "ablation"):  # A folder of these is one command, that of its base.
        folder = path.parent.relative_to(ROOT).as_posix()
        assert first.startswith("# ") and (path.stem != "base" or first.startswith(f"# python -m tools.sweep {folder} "))
    else:
        assert first.startswith("# python main.py --config ") and path.relative_to(ROOT).as_posix() in first
    config = load_config(path, models=MODELS, datasets=DATASETS)
    assert not config.ignored
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", models=MODELS, datasets=DATASETS) == config


def test_defaults_are_the_published_protocol(load):
    config = load({"model": {"NAME": "Net"}})
    assert config.max_epoch_inclusive and config.augmentation == "scale_translate"
    assert config.step_per_update == 1 and config.legacy_names() == frozenset()
    assert (config.keep_from, config.keep_every, config.log_every) == (250, 25, 20)
    config = load()
    assert config.scheduler.lag == 1 and config.optimizer.token_rule
    assert load(SMALL, "legacy=true").legacy_names() == frozenset(RUNNER_LEGACY)
    assert load(SMALL, "legacy=[double_step]").legacy_names() == {"double_step"}


def test_base_and_others(load, tmp_path, monkeypatch):
    assert load().dataset.train == CloudsConfig(npoints=128)
    # The working directory comes before the folder of the recipe.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "clouds.yaml").write_text("{NAME: Clouds, subset: test}")
    monkeypatch.chdir(elsewhere)
    assert load().dataset.train == CloudsConfig(subset="test", npoints=128)
    assert load({**SMALL, "dataset": {"train": {"NAME": "Clouds", "npoints": 99}}}).dataset.train.npoints == 99
    in_memory = {"_base_": {"NAME": "Clouds", "npoints": 50}, "others": {"subset": "test"}}
    assert load({**SMALL, "dataset": {"train": in_memory}}).dataset.train == CloudsConfig(subset="test", npoints=50)


def test_bases_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_recipe("cfgs/debug/point-m2ae.yaml")
    assert config.dataset.train.NAME == "Synthetic" and config.dataset.train.clouds == 256


def test_data_root(load):
    train = load(SMALL, data_root="/disk/sets").dataset.train
    assert train.DATA_PATH == "/disk/sets/clouds" and train.note == "data/unchanged"
    assert (
        load(SMALL, "dataset.train.DATA_PATH=other/clouds", data_root="/disk").dataset.train.DATA_PATH == "other/clouds"
    )


def test_overrides(load):
    config = load(
        SMALL,
        "optimizer.kwargs.lr=1e-3",
        "model.num_groups=[8, 4]",
        "dataset.train.npoints=200",
        "dataset.train.others.subset=test",
        "svm.C=2",
        "grad_norm_clip=10",
        "augmentation=rotate",
        "total_bs=16",
        "total_bs=8",
    )
    assert config.optimizer.kwargs.lr == 0.001 and type(config.optimizer.kwargs.lr) is float
    assert config.model.num_groups == [8, 4] and config.dataset.train == CloudsConfig(subset="test", npoints=200)
    assert config.svm.C == 2.0 and config.grad_norm_clip == 10.0 and config.total_bs == 8
    assert config.augmentation == "rotate"


@dataclass
class OtherConfig:
    NAME: str = "Other"
    PLACE: str = "data/other"
    subset: str = "train"
    npoints: int = 64
    num_points: int = 0


@pytest.fixture
def other():
    sets = Registry("data set")
    for name, config in (("Clouds", CloudsConfig), ("Other", OtherConfig)):
        sets.register(name, config=config)(object)
    return sets


def test_another_set_by_flags(load, tmp_path, other):
    """Keys of the old set give way; how clouds are drawn stays, where the new set knows it."""
    tree = {**SMALL, "dataset": {"train": {"_base_": "clouds.yaml", "subset": "test", "npoints": 128, "note": "x"}}}
    load_other = lambda *sets: load(tree, *sets, datasets=other).dataset.train  # noqa: E731
    assert load_other("dataset.train.NAME=Other") == OtherConfig(subset="test", npoints=128)
    assert load_other("dataset.train.NAME=Other", "dataset.train.PLACE=here").PLACE == "here"
    assert load_other("dataset.train.PLACE=here", "dataset.train.NAME=Other").PLACE == "here"
    assert load_other("dataset.train.NAME=Clouds") == load(tree).dataset.train
    (tmp_path / "other.yaml").write_text("NAME: Other\nPLACE: there\nsubset: train\n")
    assert load_other("dataset.train._base_=other.yaml") == OtherConfig("Other", "there", "test", 128)
    svm = {"train": {"NAME": "Other", "num_points": 99}, "test": {"NAME": "Other", "num_points": 99}}
    config = load({**SMALL, "dataset": {"svm": svm}}, "dataset.svm.train.NAME=Clouds", datasets=other)
    assert config.dataset.svm.train == CloudsConfig(npoints=99) and config.dataset.svm.test.num_points == 99
    assert load({**SMALL, "dataset": {}}, "dataset.val.NAME=Other", datasets=other).dataset.val == OtherConfig(subset="test")


def test_base_of_a_recipe(load, tmp_path, other):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "base.yaml").write_text(yaml.safe_dump({**SMALL, "class_names": ["a", "b"]}))
    (tmp_path / "below" / "clouds.yaml").write_text("NAME: Clouds\nnpoints: 32\nnote: below\n")
    base = {"_base_": "below/base.yaml"}
    config = load({**base, "optimizer": {"kwargs": {"weight_decay": 0.1}}, "class_names": ["c"]})
    assert (config.optimizer.kwargs.lr, config.optimizer.kwargs.weight_decay) == (0.001, 0.1)
    assert config.class_names == ["c"] and config.dataset.train == CloudsConfig(npoints=128, note="below")
    assert load({**base, "dataset": {"train": {"subset": "test"}}}).dataset.train.npoints == 128
    # An entry with a base of its own, or with another NAME, replaces the whole.
    assert load({**base, "dataset": {"train": {"_base_": "clouds.yaml"}}}).dataset.train == CloudsConfig(npoints=32)
    assert load({**base, "dataset": {"train": {"NAME": "Other"}}}, datasets=other).dataset.train == OtherConfig()
    assert load({**base, "dataset": {"train": None}}).dataset.train is None
    (tmp_path / "more.yaml").write_text("total_bs: 7\nmax_epoch: 9\n")
    config = load({"_base_": ["below/base.yaml", "more.yaml"], "max_epoch": 3})
    assert (config.total_bs, config.max_epoch) == (7, 3)


def test_base_can_be_overridden(load, tmp_path):
    (tmp_path / "more.yaml").write_text("NAME: Clouds\nsubset: test\n")
    assert load(SMALL, "dataset.train._base_=more.yaml").dataset.train == CloudsConfig(subset="test", npoints=128)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("total_bs", r"--set total_bs: expected key.path=value"),
        ("=3", r"expected key.path=value"),
        ("a..b=3", r"expected key.path=value"),
        ("total_bs=[1", r"--set total_bs=\[1: value '\[1' is malformed"),
        ("total_bs=abc", r"with --set total_bs=abc\): total_bs: is 'abc'; expected a whole number"),
        ("total_bs=0", r"total_bs: is 0; it must be at least 1"),
        ("total_bs=true", r"total_bs: is True; expected a whole number"),
        ("max_epoch=-1", r"max_epoch: is -1; it must be at least 0"),
        ("totl_bs=3", r"unknown key 'totl_bs'; did you mean total_bs"),
        ("total_bs.x=3", r"total_bs is 4, which has no keys"),
        ("model.rte=3", r"model: unknown key 'rte'; did you mean rate"),
        ("model.NAME=Nett", r"model 'Nett' is unknown; did you mean Net"),
        ("model=Net", r"model: is 'Net'; expected keys"),
        ("optimizer.type=AdamX", r"optimizer.type: 'AdamX' is unknown; did you mean Adam"),
        ("optimizer.kwargs.lr=fast", r"optimizer.kwargs.lr: is 'fast'; expected a number"),
        ("optimizer.kwargs.lr=-1", r"kwargs.lr: is -1.0; it must not be negative"),
        ("optimizer.kwargs.betas=[0.9]", r"kwargs.betas: are \[0.9\]; expected two numbers"),
        ("scheduler.kwargs.epochs=0", r"kwargs.epochs: is 0; it must be above 0"),
        (
            "augmentation=spin",
            r"augmentation: 'spin' is unknown; choose one of: batch_rotate, cuboid, none, rotate, scale_rotate, scale_translate",
        ),
        ("legacy=[flat]", r"legacy: 'flat' is unknown; known to the runner: double_step, undivided"),
        ("svm.C=0", r"svm: C: is 0.0; it must be above 0"),
        ("dataset.train.npoint=3", r"dataset.train: unknown key 'npoint'; did you mean npoints"),
        ("dataset.train.NAME=Cloud", r"dataset.train: data set 'Cloud' is unknown; did you mean Clouds"),
        ("dataset.trian={}", r"dataset: unknown key 'trian'; did you mean train"),
        (
            "dataset.train._base_=none.yaml",
            r"dataset.train._base_: none.yaml does not exist, .* there are: .*ModelNet40_SVM.yaml",
        ),
        ("dataset.train._base_=3", r"_base_: is 3; expected the path"),
        (
            "dataset.train.npoints=16",
            r"dataset.train.npoints is 16, fewer points than the 32 groups of the model; raise it",
        ),
        ("npoints=31", r"npoints is 31, fewer points than the 32 groups"),
        ("ignored=[a]", r"unknown key 'ignored'"),
        ("seed=-3", r"seed: is -3; it must be at least 0"),
        ("max_epoch=1:00", r"max_epoch: is '1:00'; expected a whole number"),
        ("seed=1" + 30 * "0", r"seed: is 10+; it must not be above 9e\+18"),
        ("max_epoch=1e300", r"max_epoch: is 1e\+300; it must not be above 9e\+18"),
        ("grad_norm_clip=" + 500 * "9", r"grad_norm_clip: is 9+\.\.\.; it must not be above 1e\+38"),
        ("grad_norm_clip=" + 5000 * "9", r"--set grad_norm_clip=9+\.\.\.: value '9+' is malformed \(Exceeds the limit"),
        ("x=" + 3000 * "[", r"--set x=\[+\.\.\.: value '\[+' is malformed"),
        ("total_bs=2020-13-45", r"total_bs: is '2020-13-45'; expected a whole number"),
        ("x=\a", r"value '\\x07' is malformed \(special characters are not allowed\)"),
    ],
)
def test_bad_overrides(load, override, message):
    with pytest.raises(UserError, match=message):
        load(SMALL, override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: 1\nc: 2", r"recipe.yaml, line 2, column 2: is malformed YAML"),
        ("a:\n\t- b", r"recipe.yaml, line 2, .*malformed YAML"),
        ("", r"holds nothing; expected keys with values"),
        ("- 1\n- 2", r"holds a list; expected keys"),
        ("just text", r"holds a str; expected keys"),
        ("a: !!python/object/apply:os.system [echo]", r"malformed YAML: could not determine a constructor"),
        ("a: 1", r"has no model; add model.NAME, one of Net"),
        ("model: {rate: 1}", r"model: has no NAME; choose one of Net"),
        ("model: {NAME: Net}\ndataset: 3", r"dataset: is 3; expected the entries"),
        ("model: {NAME: Net}\ndataset: {svm: 3}", r"dataset.svm: is 3; expected the entries train and test"),
        ("model: {NAME: Net}\ndataset: {train: 3}", r"dataset.train: is 3; expected _base_ and others"),
        ("model: {NAME: Net}\noptimizer: {type: AdamW, kwargs: {}}", r"optimizer.kwargs: key 'lr' is missing"),
        ("model: {NAME: Net}\nmodel2: {}", r"unknown key 'model2'; did you mean model"),
        ("a: 1\nb: \a", r"recipe.yaml, line 2: holds the control character '\\x07'"),
        ("model: &a {NAME: Net, again: *a}", r"recipe.yaml: is nested more than 50 deep, or holds itself"),
        ("a: " + 3000 * "[", r"recipe.yaml: is nested more than 50 deep"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{'bcdefg'[i]}: &{'bcdefg'[i]} [{','.join(['*' + 'abcdef'[i]] * 10)}]\n" for i in range(6)),
            r"recipe.yaml: holds more than 100000 values",
        ),
        ("_base_: none.yaml\nmodel: {NAME: Net}", r"_base_: 'none.yaml' is no file; give the path of a recipe"),
        ("_base_: recipe.yaml\nmodel: {NAME: Net}", r"recipe.yaml: is its own _base_, through .*recipe.yaml"),
    ],
)
def test_bad_files(load, text, message):
    with pytest.raises(UserError, match=message):
        load(text)


def test_bytes_that_are_no_yaml(tmp_path):
    for data, message in ((b"\xff\xfe\x00", "not UTF-8"), (b"a\x00b", "binary data")):
        (tmp_path / "a.yaml").write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_yaml(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read_yaml(tmp_path)


def test_missing_file_names_close_ones():
    with pytest.raises(
        UserError, match=r"cfgs/pre-trainin/point-m2ae.yaml: .* does not exist; did you mean cfgs/pre-training"
    ):
        load_recipe("cfgs/pre-trainin/point-m2ae.yaml")
    with pytest.raises(
        UserError, match=r"xyz.yaml: .* does not exist; recipes: cfgs/ablation/.*, cfgs/debug/.*, cfgs/fine-tuning/.* in all"
    ):
        load_recipe("xyz.yaml")


def test_numbers_in_yaml(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "{a: 1e-3, b: 5E+2, c: .5e1, d: -2e4, e: 1, f: 1.5, g: 1e, h: e5, i: 0x10, j: '1e-3', k: -.inf, l: 010, m: -1_000, "
        "n: 1:00, o: 2020-01-02, p: 08}"
    )
    values = read_yaml(path)
    expected = {
        "a": 0.001,
        "b": 500.0,
        "c": 5.0,
        "d": -2e4,
        "e": 1,
        "f": 1.5,
        "g": "1e",
        "h": "e5",
        "i": 16,
        "j": "1e-3",
        "l": 10,
        "m": -1000,
        "n": "1:00",
        "o": "2020-01-02",
        "p": 8,
    }
    assert values.pop("k") == float("-inf")
    assert values == expected and type(values["b"]) is float


def test_key_that_stands_twice_is_reported(load, caplog):
    assert load("model: {NAME: Net}\ntotal_bs: 3\ntotal_bs: 5\n").total_bs == 5
    assert any("recipe.yaml, line 3: key 'total_bs' stands twice" in record.getMessage() for record in caplog.records)


def test_npoints_that_decide_nothing_are_reported(load, caplog):
    load(SMALL, "npoints=64")
    assert any(
        "npoints 64 has no effect; dataset.train.npoints 128" in record.getMessage() for record in caplog.records
    )


def test_saved_config(load, tmp_path):
    config = load(SMALL, "seed=3", "optimizer.kwargs.lr=1e-5")
    save_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "num_groups: [32, 16]\n" in text and "ignored" not in text
    assert load_config(tmp_path / "config.yaml", models=NETS, datasets=CLOUDS) == config
    assert to_dict(config)["seed"] == 3
    with pytest.raises(UserError, match="the folder does not exist"):
        save_config(config, tmp_path / "none" / "config.yaml")


def test_config_of_a_checkpoint(load):
    config = load(SMALL, "class_names=[chair, lamp]")
    tree = to_dict(config)
    assert saved_config(tree, "a.pth: config", models=NETS, datasets=CLOUDS) == config
    changed = saved_config(tree, "a.pth: config", overrides=["seed=7", "model.NAME=Net"], models=NETS, datasets=CLOUDS)
    assert changed.seed == 7 and changed.class_names == ["chair", "lamp"] and tree == to_dict(config)
    with pytest.raises(UserError, match=r"a.pth: config: unknown key 'seeed'; did you mean seed"):
        saved_config({**tree, "seeed": 1}, "a.pth: config", models=NETS, datasets=CLOUDS)


def test_find_recipe_prefers_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Path("cfgs/fine-tuning/modelnet40.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("model: {NAME: Net}")
    assert find_recipe(own).path == own and find_recipe(own).method is None
