"""Sample files of MXNet's nd.save, written from the format as MXNet's sources have it (src/ndarray/ndarray.cc).

usage: make.py            writes the files beside this one; needs numpy
       make.py --check    also has MXNet read them, and compares the bytes of its own files; needs mxnet 1.9.1, numpy 1.23

legacy: before MXNet 0.11 (the file of ResNet38d is of that time); v1: sizes of 64 bits; v2: a storage type as well,
what nd.save has written since 1.0; v3: the same of npx.save, where an array may be a scalar.
"""
import struct
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DTYPES = ["float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool"]
MAGIC = {"v1": 0xF993FAC8, "v2": 0xF993FAC9, "v3": 0xF993FACA}

ARRAYS = {
    "arg:res2a_branch2a_weight": (np.arange(24, dtype="float32") / 8 - 1).reshape(2, 3, 2, 2),
    "aux:bn2a_branch2a_moving_mean": np.array([0.1, -0.2], "float64"),
    "half": np.array([[1.5, -2]], "float16"),
    "u8": np.array([250, 6], "uint8"),
    "i32": np.array([-5, 6], "int32"),
    "i8": np.array([-5, 6], "int8"),
    "i64": np.array([2**40], "int64"),
}
NUMPY = {"scalar": np.array(7, "float32"), "bool": np.array([True, False, True]), "row": np.array([[1, 2]], "float32")}


def array(value, version):
    head = b"" if version == "legacy" else struct.pack("<I", MAGIC[version])
    if version in ("v2", "v3"):
        head += struct.pack("<i", 0)
    head += struct.pack("<I", value.ndim)
    head += struct.pack(f"<{value.ndim}{'I' if version == 'legacy' else 'q'}", *value.shape)
    device = struct.pack("<ii", 1, 0)
    return head + device + struct.pack("<i", DTYPES.index(str(value.dtype))) + value.tobytes()


def file(arrays, version):
    values = b"".join(array(value, version) for value in arrays.values())
    names = b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)
    return struct.pack("<QQQ", 0x112, 0, len(arrays)) + values + struct.pack("<Q", len(arrays)) + names


for version in ("legacy", "v1", "v2"):
    (HERE / f"{version}.params").write_bytes(file(ARRAYS, version))
(HERE / "v3.params").write_bytes(file(NUMPY, "v3"))

if "--check" in sys.argv:
    import mxnet as mx

    def compare(found, expected, what):
        assert sorted(found) == sorted(expected), what
        for name, value in expected.items():
            got = found[name].asnumpy()
            assert got.dtype == value.dtype and got.shape == value.shape and (got == value).all(), (what, name)

    for version in ("legacy", "v1", "v2"):
        compare(mx.nd.load(str(HERE / f"{version}.params")), ARRAYS, version)
    own = HERE / "own.params"
    mx.nd.save(str(own), {name: mx.nd.array(value, dtype=value.dtype) for name, value in ARRAYS.items()})
    assert own.read_bytes() == (HERE / "v2.params").read_bytes()
    mx.npx.set_np()
    compare(mx.npx.load(str(HERE / "v3.params")), NUMPY, "v3")
    mx.npx.save(str(own), {name: mx.np.array(value, dtype=value.dtype) for name, value in NUMPY.items()})
    assert own.read_bytes() == (HERE / "v3.params").read_bytes()
    own.unlink()
    print("MXNet", mx.__version__, "reads and writes the same")
