"""The ONNX form of the networks against torch, at batches other than the exported one."""

import pytest
import torch
from typer.testing import CliRunner

from nfs.arcface import build_backbone
from nfs.arcface.backbones import BackboneOptions
from nfs.arcface.export import export_backbone, export_onnx, onnx_error
from nfs.cli import app

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", ["r18", "vit_t"])
def test_onnx_has_a_dynamic_batch(tmp_path, name):
    torch.manual_seed(0)
    model = build_backbone(name, 16, BackboneOptions(image_size_px=36)).eval()
    file = tmp_path / "m.onnx"
    export_onnx(model, file, 36)
    (data,) = onnx.load(file).graph.input
    assert [d.dim_param or d.dim_value for d in data.type.tensor_type.shape.dim] == ["N", 3, 36, 36]
    assert onnx_error(model, file, 36) <= 1e-5
    other = build_backbone(name, 16, BackboneOptions(image_size_px=36))
    assert onnx_error(other, file, 36) > 1e-2


def test_command_line_exports_a_checkpoint(tmp_path):
    options = BackboneOptions(image_size_px=32)
    backbone = build_backbone("mbf", 16, options)
    export_backbone(tmp_path / "c", backbone, name="mbf", embedding_size=16, options=options)
    result = CliRunner().invoke(
        app, ["checkpoint", "onnx", str(tmp_path / "c"), str(tmp_path / "m.onnx")]
    )
    assert result.exit_code == 0, result.output
    assert "differs from torch by" in result.stdout
