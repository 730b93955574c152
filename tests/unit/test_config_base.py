from typing import Annotated, Literal, Self

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from nfs.config.base import Config, JobConfig, read_yaml, tree_hash
from nfs.errors import ConfigError


class Optimizer(Config):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


class Fast(Config):
    kind: Literal["fast"] = "fast"
    speed: int


class Slow(Config):
    kind: Literal["slow"] = "slow"


class Example(JobConfig):
    clips: str
    optimizer: Optimizer = Optimizer()
    mode: Annotated[Fast | Slow, Field(discriminator="kind")] = Slow()

    @model_validator(mode="after")
    def _rule(self) -> Self:
        if self.clips == "forbidden":
            raise ValueError("clips=forbidden is not allowed; use another")
        return self


def write(tmp_path, tree):
    file = tmp_path / "example.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def test_yaml_and_overrides(tmp_path):
    config = Example.load(write(tmp_path, {"clips": "a"}), ["optimizer.lr=1e-4", "seed=3"])
    assert config.optimizer.lr == 1e-4
    assert config.seed == 3


def test_unknown_key_names_file_key_and_neighbour(tmp_path):
    with pytest.raises(ConfigError, match=r"example\.yaml: unknown key 'optimizer\.lrr'.*'lr'"):
        Example.load(write(tmp_path, {"clips": "a", "optimizer": {"lrr": 1}}))


def test_missing_key_says_how_to_set_it(tmp_path):
    with pytest.raises(ConfigError, match=r"clips: required.*clips=VALUE"):
        Example.load(write(tmp_path, {}))


def test_the_null_tracker_survives_yaml(tmp_path):
    config = Example.load(write(tmp_path, {"clips": "a"}), ["tracking.kind=null"])
    assert config.tracking.kind == "null"


def test_missing_file_lists_the_neighbours(tmp_path):
    write(tmp_path, {})
    with pytest.raises(ConfigError, match=r"no such configuration file.*example\.yaml"):
        Example.load(tmp_path / "exmaple.yaml")


@pytest.mark.parametrize("item", ["noequals", "=3", "clips.deep=1", "clips=[1"])
def test_bad_override(tmp_path, item):
    with pytest.raises(ConfigError, match="override"):
        Example.load(write(tmp_path, {"clips": "a"}), [item])


def test_out_of_range_shows_the_value(tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer\.lr.*-1"):
        Example.load(write(tmp_path, {"clips": "a"}), ["optimizer.lr=-1"])


@given(st.floats(1e-9, 1e3), st.integers(0, 2**31), st.text(min_size=1, max_size=20))
def test_override_of_a_dump_is_the_same(lr, seed, clips):
    config = Example(clips=clips, seed=seed, optimizer=Optimizer(lr=lr))
    again = Example.from_tree(config.tree())
    assert again == config
    assert config.override({"optimizer.lr": lr}) == config
    assert tree_hash(again.tree()) == tree_hash(config.tree())


def test_import_of_config_is_light(repository):
    import subprocess
    import sys

    heavy = ("torch", "ray", "mlflow")
    code = f"import nfs.config.base, sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_union_keys_are_written_as_the_user_writes_them(tmp_path):
    with pytest.raises(ConfigError, match=r": mode\.speed: required.*mode\.speed=VALUE"):
        Example.load(write(tmp_path, {"clips": "a", "mode": {"kind": "fast"}}))
    with pytest.raises(ConfigError, match=r"unknown key 'mode\.sped'; did you mean 'speed'"):
        Example.load(
            write(tmp_path, {"clips": "a", "mode": {"kind": "fast", "speed": 1, "sped": 2}})
        )


def test_a_rule_over_several_keys_does_not_print_the_whole_tree(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Example.load(write(tmp_path, {"clips": "forbidden"}))
    assert str(caught.value).endswith("<root>: clips=forbidden is not allowed; use another")


def test_files_extend_others(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.yaml").write_text(
        "size: 1\ndata: {kind: a, x: 1}\nnet: {w: 1, d: 2}\n"
    )
    (tmp_path / "parts" / "b.yaml").write_text("extends: a.yaml\nnet: {d: 3}\n")
    (tmp_path / "c.yaml").write_text("net: {d: 4, e: [1]}\nlast: null\n")
    top = tmp_path / "top.yaml"
    top.write_text("extends: [parts/b.yaml, c.yaml]\ndata: {kind: b, y: 2}\nsize: 5\n")
    assert read_yaml(top) == {
        "size": 5,
        "data": {"kind": "b", "y": 2},
        "net": {"w": 1, "d": 4, "e": [1]},
        "last": None,
    }
    top.write_text("extends: [parts/b.yaml]\ndata: {x: 7}\n")
    assert read_yaml(top)["data"] == {"kind": "a", "x": 7}
    top.write_text("extends: [missing.yaml]\n")
    with pytest.raises(ConfigError, match=r"top\.yaml: extends missing\.yaml: no such .*c\.yaml"):
        read_yaml(top)
    top.write_text("extends: [c.yaml]\n")
    (tmp_path / "c.yaml").write_text("extends: [top.yaml]\n")
    with pytest.raises(ConfigError, match=r"extends itself through top\.yaml -> c\.yaml"):
        read_yaml(top)
    top.write_text("extends: {a: 1}\n")
    with pytest.raises(ConfigError, match="extends must be a list"):
        read_yaml(top)
