"""`init=DIR`: a training that starts from a checkpoint's weights."""

from dataclasses import replace

import pytest
import torch

from nfs.config.train_stylenerf import TrainStylenerfConfig
from nfs.errors import ArtifactError, ConfigError
from nfs.stylenerf import Discriminator, DiscriminatorSpec, Generator, RenderOptions
from nfs.stylenerf.cameras import middle_camera
from nfs.stylenerf.export import export_generator
from nfs.stylenerf.initial import start_from
from nfs.stylenerf.settings import GanSettings
from nfs.stylenerf.task import StyleNerfTask
from tests.stylenerf_tiny import TINY

SPEC = replace(TINY, background_num_frequencies=3)
D_SPEC = DiscriminatorSpec(img_resolution=16, channel_base=0.004, channel_max=8, lowres_head=8)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(1)
    networks = Generator(SPEC), Generator(SPEC), Discriminator(D_SPEC)
    generator, averaged, discriminator = networks
    export_generator(tmp_path / "from", generator, ema=averaged, discriminator=discriminator)
    return tmp_path / "from", networks


def new_networks(**changes):
    torch.manual_seed(2)
    spec = replace(SPEC, **changes)
    return Generator(spec), Discriminator(replace(D_SPEC, img_resolution=spec.img_resolution))


def test_all_three_networks_start_from_the_checkpoint(checkpoint):
    directory, (generator, averaged, discriminator) = checkpoint
    G, D = new_networks(num_samples=6, background_num_frequencies=None)
    ema = start_from(directory, G, D)
    for ours, theirs in (
        (G.state_dict(), generator.state_dict()),
        (D.state_dict(), discriminator.state_dict()),
        (ema, averaged.state_dict()),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    class OneProcess:
        device = torch.device("cpu")

        def wrap(self, module):
            return module

    task = StyleNerfTask(G, D, GanSettings(batch_size=2), initial_ema=ema)
    task.setup(OneProcess())
    started = task.G_ema.module.state_dict()
    assert all(torch.equal(started[name], ema[name]) for name in ema)
    assert not torch.equal(
        started["foreground.sigma_head.weight"], task.G.state_dict()["foreground.sigma_head.weight"]
    )


def test_a_lower_resolution_is_continued_with_new_blocks(checkpoint):
    directory, (generator, averaged, discriminator) = checkpoint
    G, D = new_networks(img_resolution=32)
    random = {name: value.clone() for name, value in G.state_dict().items()}
    ema = start_from(directory, G, D)
    old = generator.state_dict()
    for name, value in G.state_dict().items():
        assert torch.equal(value, old.get(name, random[name]))
    assert {n for n in random if n not in old} == {
        n for n in random if n.startswith("upsampler.blocks.32.")
    }
    for name, value in averaged.state_dict().items():
        assert torch.equal(ema[name], value)
    for name, value in discriminator.state_dict().items():
        assert torch.equal(D.state_dict()[name], value)
    z, code = torch.randn(2, 8), torch.randn(2, 4)
    cameras = middle_camera(SPEC.cameras, z).expand(2, 4, 4)
    with torch.no_grad():
        before = generator.eval().synthesis(
            generator.mapping(z), cameras, background_code=code, options=RenderOptions(alpha=1)
        )
        # Alpha 1/2 of the larger network ends with the block the smaller one has.
        after = G.eval().synthesis(
            G.mapping(z), cameras, background_code=code, options=RenderOptions(alpha=0.4999)
        )
    assert torch.allclose(before.image, after.image, atol=1e-3 * float(before.image.abs().max()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"w_dim": 16}, r"generator\.w_dim: 8 in the checkpoint, 16 here"),
        ({"depth_range": (0.5, 1.5)}, r"generator\.depth_range: \(0\.88, 1\.12\)"),
        ({"fov_deg": 20.0, "z_dim": 4}, r"generator\.z_dim.*\n.*generator\.fov_deg"),
        ({"img_resolution": 8}, r"16 px in the checkpoint, 8 px here"),
        ({"resolution_vol": 4, "resolution_start": 4}, r"generator\.resolution_vol"),
    ],
)
def test_other_architectures_are_refused_setting_by_setting(checkpoint, changes, words):
    G, D = new_networks(**changes)
    with pytest.raises(ConfigError, match=words):
        start_from(checkpoint[0], G, D)


def test_only_blocks_above_may_be_new(tmp_path):
    spec = replace(SPEC, architecture="orig")
    export_generator(tmp_path / "x", Generator(spec), discriminator=Discriminator(D_SPEC))
    G, D = new_networks(architecture="orig", img_resolution=32)
    with pytest.raises(ConfigError, match=r"upsampler\.blocks\.16\.to_rgb.*do not fit"):
        start_from(tmp_path / "x", G, D)


def test_a_generator_alone_is_refused(tmp_path):
    export_generator(tmp_path / "x", Generator(SPEC))
    with pytest.raises(ArtifactError, match="holds no discriminator"):
        start_from(tmp_path / "x", *new_networks())
    with pytest.raises(ArtifactError, match=r"no model\.json"):
        start_from(tmp_path / "none", *new_networks())


def test_without_an_average_the_weights_start_it(tmp_path):
    torch.manual_seed(1)
    generator = Generator(SPEC)
    export_generator(tmp_path / "x", generator, discriminator=Discriminator(D_SPEC))
    ema = start_from(tmp_path / "x", *new_networks())
    assert all(torch.equal(ema[n], value) for n, value in generator.state_dict().items())


def test_init_and_warm_start_exclude_each_other():
    tree = {"clips": "c", "init": "d", "warm_start": {"kimg": 1}}
    with pytest.raises(ConfigError, match="init and warm_start exclude each other"):
        TrainStylenerfConfig.from_tree(tree)
