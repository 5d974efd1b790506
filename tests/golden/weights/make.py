"""Small checkpoints of every kind that `Weights` meets, written by PyTorch itself.

usage: make.py [OUT]

Needs torch (2.13.0 wrote the files here) and numpy. The values of `tensors` are repeated in the tests of
src/model/weights/mod.rs.
"""
import argparse
import pathlib
import sys
import warnings
from collections import OrderedDict

import numpy as np
import torch

warnings.simplefilter("ignore")
out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)


def tensors():
    f32 = torch.arange(12, dtype=torch.float32).view(3, 4) / 2 - 1
    state = OrderedDict(
        f32=f32,
        transposed=f32.t(),  # strides (1, 4), and the storage of f32
        middle=f32[1:, 1:3],  # an offset of 5
        expanded=torch.tensor([7.0]).expand(2, 3),  # strides 0
        half=torch.tensor([1.5, -2.0], dtype=torch.float16),
        bf16=torch.tensor([1.5, -3.0], dtype=torch.bfloat16),
        f64=torch.tensor([0.1], dtype=torch.float64),
        i64=torch.tensor(2**40),  # no dimensions
        i32=torch.tensor([-5, 6], dtype=torch.int32),
        i16=torch.tensor([-5, 6], dtype=torch.int16),
        i8=torch.tensor([-5, 6], dtype=torch.int8),
        u8=torch.tensor([250, 6], dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.tensor([3.0, 4.0])),
    )
    state._metadata = OrderedDict({"": {"version": 2}})  # as Module.state_dict() has it
    state["_extra_state"] = (torch.Size([2]), torch.device("cpu"), torch.float32, np.float64(0.5))
    return state


class Reduced:
    """Is pickled as the call of a function."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class Tagged(torch.Tensor):
    pass


legacy = {"_use_new_zipfile_serialization": False}
small = {"module.a.weight": torch.tensor([[1.0, 2.0]]), "module.a.bias": torch.tensor([3.0])}
args = argparse.Namespace(lr=0.1)
# As PyTorch 0.3 wrote a parameter, and Python 2 an ordered dict.
old = Reduced(torch.nn.Parameter, (torch.tensor([1.0, 2.0]),), (True, False, OrderedDict()))
old = Reduced(OrderedDict, ([["a", old]],))

torch.save(tensors(), out / "zip.pth")
torch.save(tensors(), out / "legacy.pth", **legacy)
torch.save(tensors(), out / "legacy4.pth", pickle_protocol=4, **legacy)
torch.save(tensors(), out / "zip4.pth", pickle_protocol=4)
torch.save({"epoch": 3, "args": args, "model": small, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, out / "model.pth")
torch.save({"state_dict": small, "best": np.float32(0.5)}, out / "state_dict.pth", **legacy)
torch.save(old, out / "old.pth", **legacy)
torch.save(torch.nn.Linear(2, 1), out / "whole_model.pth")
torch.save({"a": torch.zeros(1), "b": torch.zeros(2).as_subclass(Tagged)}, out / "subclass.pth")
torch.save({"teacher": small, "student": small}, out / "other_keys.pth")
torch.save({"a": torch.zeros(2, dtype=torch.complex64)}, out / "complex.pth")
torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), str(out / "torchscript.pt"))

# The same file from a big-endian machine.
torch.serialization.set_default_load_endianness(None)
import zipfile  # noqa: E402

with zipfile.ZipFile(out / "model.pth") as src, zipfile.ZipFile(out / "big_endian.pth", "w") as to:
    for name in src.namelist():
        to.writestr(name, b"big" if name.endswith("/byteorder") else src.read(name))
