"""Networks of .tflite files as torch modules: batches, any device, no TensorFlow."""

from __future__ import annotations

from collections import Counter
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nfs.errors import InputError
from nfs.face.tflite_file import Operator, TfliteGraph

_NONE, _RELU, _RELU6 = 0, 1, 3
_SAME = 0


class TfliteNet(nn.Module):
    """Runs the graph of a .tflite file on batches.

    Args:
        graph: From `read_tflite`.
        where: Its name, for messages.

    Raises:
        InputError: If the graph needs something that is not implemented.
    """

    def __init__(self, graph: TfliteGraph, where: str):
        super().__init__()
        self.where = where
        (self.input_id,), self.output_ids = graph.inputs, graph.outputs
        self.shapes = graph.shapes
        known = dict(graph.constants)
        self.steps: list[Operator] = []
        for step in graph.operators:
            if step.name == "DEQUANTIZE" and step.inputs[0] in known:
                known[step.outputs[0]] = known[step.inputs[0]].astype("float32")
            else:
                self.steps.append(step)
        used = {number for step in self.steps for number in step.inputs}
        for number in used & known.keys():
            value = torch.from_numpy(known[number].copy())
            self.register_buffer(f"constant_{number}", value)
        self.constant_ids = sorted(used & known.keys())
        self._lay_out_weights()
        self._uses = Counter(number for step in self.steps for number in step.inputs)
        self._uses.update(self.output_ids)

    @property
    def input_size(self) -> tuple[int, int]:
        """Return height and width of the input."""
        return self.shapes[self.input_id][1], self.shapes[self.input_id][2]

    @torch.inference_mode()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the outputs with the batch first.

        Args:
            images: [B, 3, H, W] float32 in the range that the network expects.
        """
        values = {number: self._constant(number) for number in self.constant_ids}
        values[self.input_id] = images
        left = Counter(self._uses)
        for step in self.steps:
            inputs = [values[number] for number in step.inputs if number >= 0]
            values[step.outputs[0]] = self._run(step, inputs)
            for number in step.inputs:
                left[number] -= 1
                if left[number] == 0 and number not in self.constant_ids:
                    del values[number]
        return [values[number] for number in self.output_ids]

    def _lay_out_weights(self) -> None:
        """Bring weights ([O, h, w, I], depthwise [1, h, w, C]) and slopes to torch's layout."""
        done: set[int] = set()
        for step in self.steps:
            if step.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "PRELU") or step.inputs[1] in done:
                continue
            weight = self._constant(step.inputs[1])
            order = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "PRELU": (2, 0, 1)}
            changed = weight.permute(order[step.name]).contiguous()
            self.register_buffer(f"constant_{step.inputs[1]}", changed)
            done.add(step.inputs[1])

    def _constant(self, number: int) -> Tensor:
        return cast(Tensor, getattr(self, f"constant_{number}"))

    def _run(self, step: Operator, inputs: list[Tensor]) -> Tensor:
        first, out_shape = inputs[0], self.shapes[step.outputs[0]]
        if step.name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            result = self._convolve(step, inputs)
        elif step.name == "PRELU":
            result = torch.where(first > 0, first, first * inputs[1])
        elif step.name == "RELU":
            result = first.relu()
        elif step.name == "ADD":
            result = first + inputs[1]
        elif step.name == "MAX_POOL_2D":
            size = (step.options["size_y"], step.options["size_x"])
            padded = _padded(first, step.options, size, value=-torch.inf)
            result = functional.max_pool2d(padded, size, _stride(step.options))
        elif step.name == "RESIZE_BILINEAR":
            corners = bool(step.options["align_corners"])
            if not corners and not step.options["half_pixel_centers"]:
                raise InputError(f"{self.where}: this kind of RESIZE_BILINEAR is not supported")
            size = (out_shape[1], out_shape[2])
            result = functional.interpolate(first, size, mode="bilinear", align_corners=corners)
        elif step.name == "PAD":
            _, rows, columns, channels = inputs[1].tolist()
            result = functional.pad(first, (*columns, *rows, *channels))
        elif step.name == "RESHAPE":
            nhwc = first.permute(0, 2, 3, 1) if first.dim() == 4 else first
            result = nhwc.reshape(len(first), *out_shape[1:])
        elif step.name == "CONCATENATION":
            axis = step.options["axis"]
            is_image = first.dim() == 4
            result = torch.cat(inputs, {1: 2, 2: 3, 3: 1, -1: 1}[axis] if is_image else axis)
        else:
            raise InputError(f"{self.where}: operator {step.name} is not supported")
        return self._activated(result, step.options.get("activation", _NONE))

    def _convolve(self, step: Operator, inputs: list[Tensor]) -> Tensor:
        weight, options = inputs[1], step.options
        if (options["dilation_x"], options["dilation_y"]) != (1, 1):
            raise InputError(f"{self.where}: dilated convolutions are not supported")
        groups = 1 if step.name == "CONV_2D" else inputs[0].shape[1]
        padded = _padded(inputs[0], options, (weight.shape[2], weight.shape[3]))
        bias = inputs[2] if len(inputs) > 2 else None
        return functional.conv2d(padded, weight, bias, _stride(options), groups=groups)

    def _activated(self, values: Tensor, kind: int) -> Tensor:
        if kind == _NONE:
            return values
        if kind == _RELU:
            return values.relu()
        if kind == _RELU6:
            return values.clamp(0, 6)
        raise InputError(f"{self.where}: activation {kind} is not supported")


def _stride(options: dict[str, int]) -> tuple[int, int]:
    return options["stride_y"], options["stride_x"]


def _padded(
    images: Tensor, options: dict[str, int], size: tuple[int, int], value: float = 0.0
) -> Tensor:
    """Pad as TensorFlow's SAME: an odd pixel goes to the bottom and right."""
    if options["padding"] != _SAME:
        return images
    pads: list[int] = []
    for axis in (1, 0):
        length, stride = images.shape[2 + axis], _stride(options)[axis]
        missing = max((-(-length // stride) - 1) * stride + size[axis] - length, 0)
        pads += [missing // 2, missing - missing // 2]
    return functional.pad(images, pads, value=value) if any(pads) else images
