"""Certificates that a property holds: how its boxes were split, in a file that others can check.

`verification/check.py`, which `nnrepair certify` runs, follows the splits and bounds every part again with its own
arithmetic; it imports nothing from this package. The file only says where to split; every bound is computed anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnrepair.errors import InvalidInput
from nnrepair.files import read_arrays, write_arrays

FORMAT = "nnrepair-property-1"


@dataclass(frozen=True)
class PropertyCertificate:
    """A split tree for each box and each way to be unsafe there, in the property's order.

    Attributes:
        trees: how many.
        dim: (nodes,), each tree in preorder: the input that is split, or -1 for a leaf.
        cut: (inner nodes,), where.
        network_sha256: of the ONNX file; None for a model that came without one (see `for_network`).
        property_sha256: of the VNN-LIB file; for a property made in Python, of `vnnlib.dumps(property)`.
        versions: of what was used.
    """

    trees: int
    dim: NDArray[np.int16] = field(repr=False, compare=False)
    cut: NDArray[np.float64] = field(repr=False, compare=False)
    network_sha256: str | None
    property_sha256: str
    versions: dict[str, str]

    @property
    def leaves(self) -> int:
        """How many parts of the region have to be bounded."""
        return int((self.dim < 0).sum())

    def for_network(self, path: str | Path) -> PropertyCertificate:
        """Return the certificate for the ONNX file that the model was written to."""
        return dataclasses.replace(self, network_sha256=sha256(path))

    def save(self, path: str | Path) -> Path:
        """Write the certificate (.npz, no pickle), atomically."""
        if self.network_sha256 is None:
            raise InvalidInput(
                "This certificate is about a model in memory. Write the model with nnrepair.onnx.save(...) and use "
                "certificate.for_network(path)."
            )
        meta = {
            "network_sha256": self.network_sha256,
            "property_sha256": self.property_sha256,
            "arithmetic": "float64, every rounding error bounded; real-valued function of the stored weights",
            "versions": self.versions,
            "trees": self.trees,
            "nodes": len(self.dim),
        }
        return write_arrays(path, FORMAT, meta, {"dim": self.dim, "cut": self.cut})

    @classmethod
    def load(cls, path: str | Path) -> PropertyCertificate:
        """Read a certificate.

        Raises:
            InvalidInput: the file is truncated or no certificate.
        """

        def made(meta: dict[str, Any], arrays: dict[str, Any]) -> PropertyCertificate:
            kinds = {"trees": int, "network_sha256": str, "property_sha256": str, "versions": dict}
            wrong = [name for name, kind in kinds.items() if type(meta[name]) is not kind]
            dim, cut = arrays["dim"], arrays["cut"]
            if wrong or (dim.dtype, cut.dtype, dim.ndim, cut.ndim) != (np.int16, np.float64, 1, 1):
                raise ValueError(f"{', '.join(wrong) or 'dim or cut'} is of another kind")
            return cls(dim=dim, cut=cut, **{name: meta[name] for name in kinds})

        return read_arrays(path, FORMAT, "property certificate", made)


def sha256(path: str | Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
