"""A trained backbone as distance and identity of an inversion."""

from functools import partial

import numpy as np
import pytest
import torch

from jobs.train_recon import load_arcface
from nfs.arcface import ArcfaceDistance, ArcfaceIdentity, build_backbone
from nfs.arcface.backbones import BackboneOptions
from nfs.arcface.export import export_backbone, load_backbone
from nfs.config.invert import InvertConfig
from nfs.config.train_recon import ArcfaceIdentity as ArcfaceConfig
from nfs.errors import ConfigError
from nfs.face.align import arcface_crop_transform
from nfs.morphable.recon.identity import warp
from nfs.perceptual import build_distance, find_identity
from tests.unit.face_fakes import face_points


def write_backbone(directory, name, size_px=36):
    torch.manual_seed(0)
    options = BackboneOptions(image_size_px=size_px)
    backbone = build_backbone(name, 16, options)
    export_backbone(directory, backbone, name=name, embedding_size=16, options=options)
    return directory


@pytest.mark.parametrize("name", ["r18", "mbf", "vit_t"])
def test_distance_is_zero_for_equal_faces_and_differentiable(tmp_path, name):
    distance = ArcfaceDistance.from_checkpoint(write_backbone(tmp_path, name))
    first, second = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    features = distance.features(first)
    assert len(features) == distance.num_features == 4
    assert distance.distance(features, features).tolist() == [0, 0]
    second.requires_grad_()
    value = distance.distance(features, distance.features(second))
    assert value.shape == (2,)
    assert (value > 0).all()
    value.sum().backward()
    assert second.grad.abs().sum() > 0
    # The template's square is seen, the rest of the crop is not.
    assert second.grad[..., 0, :].abs().sum() == 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_inversion_builds_its_backends_with_arcface(tmp_path):
    maker = partial(ArcfaceDistance.from_checkpoint, write_backbone(tmp_path, "mbf"))
    combined = build_distance("arcface+0.5*pixel", {"arcface": maker})
    identity = find_identity(combined)
    assert identity is not None
    assert identity.name == "arcface_mbf"
    images = torch.rand(2, 3, 48, 48)
    expected = ArcfaceIdentity.from_checkpoint(tmp_path).embed(images)
    torch.testing.assert_close(identity.embed(images), expected)
    with pytest.raises(ConfigError, match="known: dlib, pixel"):
        build_distance("arcface")


@pytest.mark.parametrize("size_px", [36, 112, 128])
def test_recon_gives_each_network_the_template_at_its_own_size(tmp_path, size_px):
    identity = load_arcface(ArcfaceConfig(path=str(write_backbone(tmp_path, "r18", size_px))))
    assert identity.name == "arcface_r18"
    points = np.stack([face_points((100.0, 110.0), 120.0), face_points((90.0, 100.0), 100.0)])
    images = torch.rand(2, 3, 224, 224, requires_grad=True)
    found = identity(images, torch.from_numpy(points))
    crops = warp(images, torch.from_numpy(arcface_crop_transform(points, 112)), 112) * 2 - 1
    wanted = torch.nn.functional.interpolate(
        crops, size=(size_px, size_px), mode="bilinear", antialias=True
    )
    backbone = load_backbone(tmp_path)
    torch.testing.assert_close(found, torch.nn.functional.normalize(backbone(wanted)))
    found.sum().backward()
    assert images.grad.abs().sum() > 0


def test_recon_reads_original_weights_at_112_px(tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone("r18")
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    config = ArcfaceConfig(path=str(tmp_path / "backbone.pth"), name="r18")
    points = torch.from_numpy(face_points((100.0, 110.0), 120.0))[None]
    found = load_arcface(config)(torch.rand(1, 3, 224, 224), points)
    assert found.shape == (1, 512)


@pytest.mark.parametrize(
    "change", [{"perceptual": "arcface+pixel"}, {"arcface": "runs/a/checkpoint"}]
)
def test_invert_needs_both_the_name_and_the_checkpoint(change):
    tree = {"checkpoint": "c", "portrait": "p.png", **change}
    with pytest.raises(ConfigError, match="checkpoint directory in arcface"):
        InvertConfig.from_tree(tree, source="test")


def test_invert_accepts_arcface_as_identity():
    tree = {
        "checkpoint": "c",
        "portrait": "p.png",
        "perceptual": "arcface+pixel",
        "arcface": "runs/a/checkpoint",
        "tune": {"identity_weight": 0.1},
    }
    assert InvertConfig.from_tree(tree, source="test").arcface == "runs/a/checkpoint"
