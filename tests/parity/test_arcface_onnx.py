"""The ONNX form of the networks against torch, at batches other than the exported one."""

import numpy as np
import pytest
import torch

from nfs.arcface import build_backbone
from nfs.arcface.backbones import BackboneOptions
from nfs.arcface.export import export_onnx


@pytest.mark.parametrize("name", ["mbf", "r18", "vit_t"])
def test_onnx_has_a_dynamic_batch(tmp_path, name):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = build_backbone(name, 16, BackboneOptions(image_size_px=36)).eval()
    file = tmp_path / "m.onnx"
    export_onnx(model, file, 36)
    (data,) = onnx.load(file).graph.input
    assert [d.dim_param or d.dim_value for d in data.type.tensor_type.shape.dim] == ["N", 3, 36, 36]
    session = runtime.InferenceSession(str(file))
    for count in (1, 3):
        images = torch.randn(count, 3, 36, 36)
        (found,) = session.run(None, {"data": images.numpy()})
        with torch.no_grad():
            expected = model(images).numpy()
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
