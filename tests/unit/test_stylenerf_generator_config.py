"""Settings of the generator: the names of its specification, and what is refused."""

from dataclasses import fields, replace

import pytest
import yaml

from nfs.config.stylenerf_generator import FieldConfig, GeneratorConfig, InputConfig
from nfs.config.stylenerf_generator import UpsampleMode as ConfiguredMode
from nfs.config.train_stylenerf import TrainStylenerfConfig
from nfs.errors import ConfigError
from nfs.stylenerf import GeneratorSpec
from nfs.stylenerf.field_options import FieldOptions, InputSpec
from nfs.stylenerf.spec import CameraPrior
from nfs.stylenerf.upsampling import UPSAMPLE_MODES
from tests.stylenerf_tiny import SPEC


def test_configuration_and_specification_have_the_same_names():
    def names(spec):
        return {f.name for f in fields(spec)}

    assert set(FieldConfig.model_fields) == names(FieldOptions)
    assert set(InputConfig.model_fields) == names(InputSpec)
    not_configured = {
        "c_dim", "cameras", "progressive",
        "camera_head", "flip_up_kernel", "samples_without_curriculum",  # original checkpoints
    }  # fmt: skip
    assert set(GeneratorConfig.model_fields) == names(GeneratorSpec) - not_configured
    assert ConfiguredMode.__args__ == UPSAMPLE_MODES
    tree = {**GeneratorConfig().tree(), "cameras": SPEC.to_dict()["cameras"]}
    published = GeneratorSpec.from_dict(tree)
    assert replace(published, cameras=CameraPrior()) == GeneratorSpec()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("img_resolution: 96", "96 is not a power of two"),
        ("{resolution_start: 64, resolution_vol: 32}", "need resolution_start <= resolution_vol"),
        ("emptiness: white", "emptiness: has an effect only with background: null"),
        ("{background: null, background_dim: 8}", "background_dim: has an effect only with a"),
        ("{background: {styled: true}, background_dim: 8}", "a background without styles"),
        ("{inputs: {kind: volume, num_planes: 8}}", "num_planes: has an effect only with kind"),
        ("{inputs: {resolution: 4}}", "greater than or equal to 8"),
        ("{inputs: {kind: multiscale_volume, channels: 30}}", "30 is not a multiple of num_levels"),
        ("{inputs: {}, foreground: {encoding: none}}", "encoding: has an effect only with"),
        ("{foreground: {skip: true}, field_num_layers: 1}", "skip needs field_num_layers of 2"),
        ("rectangle: [300, 256]", "at most img_resolution=256"),
        ("{img_resolution: 32, kernel_size: 3}", "kernel_size: has an effect only with"),
        ("upsample_mode: lanczos", "upsample_mode"),
    ],
)
def test_impossible_configurations_are_explained(text, message):
    with pytest.raises(ConfigError, match=message):
        GeneratorConfig.from_tree(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["generator.grow_field=true"], "discriminator.progressive=false"),
        (["generator.resolution_vol=256"], "no 2-D blocks to regularise"),
        (["generator.foreground.normalization=rows"], "needs whole images"),
        (["generator.architecture=resnet"], "resnet: only the last block has a colour"),
    ],
)
def test_networks_and_losses_that_do_not_fit_are_explained(repository, overrides, message):
    file = repository / "jobs/configs/train_stylenerf/base.yaml"
    with pytest.raises(ConfigError, match=message):
        TrainStylenerfConfig.load(file, overrides)
