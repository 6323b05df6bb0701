"""Checkpoints of improved- and guided-diffusion: plain state dicts, read without pickled code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fastsample as fs
from tests.helpers.openai_oracle import TinyNet

openai = fs.integrations.openai
SHAPE = (3, 4, 4)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model500000.pt"


def changed():
    net = TinyNet()
    with torch.no_grad():
        net.mix.mul_(2.0)
    return net


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_loaded(path, prefix):
    source, net = changed(), TinyNet()
    torch.save({prefix + k: v for k, v in source.state_dict().items()}, path)
    assert openai.load_weights(net, path) is net
    assert torch.equal(net.mix, source.mix)
    model = openai.denoiser(TinyNet(), SHAPE, project="guided", checkpoint=str(path))
    assert torch.equal(model.model.mix, source.mix)


def test_weights_take_the_dtype_of_the_module(path):
    torch.save(changed().state_dict(), path)
    net = openai.load_weights(TinyNet().half(), path)
    assert net.mix.dtype == torch.float16
    assert torch.equal(net.mix, changed().mix.half())


class Code:
    """An object whose pickle runs code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_code_in_a_file_is_not_run(path, tmp_path):
    torch.save({"mix": Code(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match=r"path must be a checkpoint of tensors alone"):
        openai.load_weights(TinyNet(), path)
    assert not (tmp_path / "ran").exists()


STATE = TinyNet().state_dict()
WRONG = {
    "optimizer": ({"state": {}, "param_groups": []}, r"state of an optimizer \(opt\*\.pt\)"),
    "wrapped": ({"epoch": 3, "model": STATE}, r"got .* with \['epoch', 'model'\]; if one"),
    "a tensor": (torch.zeros(3), "with a Tensor"),
    "empty": ({}, r"with \[\]"),
    "fewer and other": (
        {"mix": STATE["mix"], "out.weight": torch.zeros(1)},
        r"without 1 of its 2 names \['scale'\] and with 1 others \['out.weight'\]",
    ),
    "another size": (
        {**STATE, "mix": torch.zeros(4, 4)},
        r"whose mix has shape \(3, 3\), got .* with \(4, 4\); make the network",
    ),
    "not finite": ({**STATE, "scale": torch.tensor([torch.nan])}, "NaN or infinity in scale"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_files(path, case):
    content, match = WRONG[case]
    torch.save(content, path)
    net = TinyNet()
    with pytest.raises(ValueError, match=match):
        openai.load_weights(net, path)
    assert torch.equal(net.mix, STATE["mix"])


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut"])
def test_damaged_files(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path must be a checkpoint .* got .*model500000"):
        openai.load_weights(TinyNet(), path)


def told(path):
    """The message about a file, without its name; the whole error is ours."""
    with pytest.raises(ValueError, match="path must be a checkpoint of tensors alone") as caught:
        openai.load_weights(TinyNet(), path)
    assert caught.value.__suppress_context__
    message = str(caught.value)
    assert message.isprintable()
    return message.split(f"got {str(path)!r}, ")[1]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_network(path, zipped):
    torch.save(changed(), path, _use_new_zipfile_serialization=zipped)
    assert told(path) == (
        f"which needs the code of {TinyNet.__module__}.TinyNet; save network.state_dict() alone"
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"hello\nworld", "which is no file of torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "which is no file of torch.save"),
        (b"<html>", "which is no file of torch.save"),
        (b"", "which is empty"),
        (b"PK\x03\x04 cut", "which is damaged, or no file of torch.save"),
        (b"\x80\x02}q\x00", "which is damaged, or no file of torch.save"),
    ],
)
def test_what_is_wrong_with_a_file(path, content, fault):
    path.write_bytes(content)
    assert told(path) == f"{fault}; save network.state_dict() alone"


def test_a_cut_file(path):
    torch.save(changed().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="path must be a checkpoint"):
        openai.load_weights(TinyNet(), path)


def test_wrong_arguments(path):
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got function"):
        openai.load_weights(lambda x, t: x, path)
    with pytest.raises(TypeError, match="path must be a path, got OrderedDict"):
        openai.load_weights(nn.Linear(2, 2), STATE)
    with pytest.raises(FileNotFoundError, match="path must be a file, got "):
        openai.load_weights(TinyNet(), path)
