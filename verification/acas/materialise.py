"""Rebuild the repaired ACAS Xu networks from the public files and the committed patches.

    python verification/acas/materialise.py --out DIR [--set full|specified] [--networks 5_3,2_3]

"full" (the default) is 45 networks on which all 186 instances hold, unchanged files among them; "specified" the
networks whose specified properties were repaired. Every file must have the hash that its certificates name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from units import PATCH, RESULTS, Unit, arguments, is_specified, read_rows, sha256, units

from nnrepair.cli.model_file import ModelFile
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.files import replacing, write_atomically
from nnrepair.results.patch import Patch


def materialised(network: Path, patch: Path | None, out: Path) -> Path:
    """Write the repaired network: the public file with other numbers in it, the same bytes each time; return `out`."""
    if patch is None:
        return write_atomically(out, network.read_bytes())
    file = ModelFile.load(network)
    if not file.write(Patch.load(patch).apply(file.model), out):
        raise InvalidInput(f"{network.name} cannot take {patch} without a change of its structure.")
    return out


def rebuilt(unit: Unit, folder: Path, out: Path) -> Path:
    """Write the repaired network of a unit, and compare its hash with the one that was certified.

    Raises:
        InvalidInput: another file came out, or the patch is missing.
        PatchError: the patch is damaged or belongs to another network.
    """
    row = read_rows(folder)[0]
    patch = folder / PATCH if row["patch_sha256"] else None
    if patch is not None and not patch.is_file():
        raise InvalidInput(f"{patch} is missing.")
    with replacing(out, ending=out.suffix) as part:
        materialised(unit.network, patch, part)
        if sha256(part) != row["network_sha256"]:
            raise InvalidInput(f"{unit.name}: the file that comes out is not the one that was certified.")
    return out


def members(which: str, results: Path, networks: str | None = None) -> list[Unit]:
    """Return the units of one of the two sets."""
    found = units(networks)
    if which == "full":
        return [unit for unit in found if unit.chosen is None]
    return [
        unit
        for unit in found
        if any(is_specified(row) and row["role"] == "repair" for row in read_rows(results / unit.name))
    ]


def main(given: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the networks")
    parser.add_argument("--set", choices=["full", "specified"], default="full")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the patches are")
    args = parser.parse_args(given)
    try:
        for unit in (chosen := members(args.set, args.results, args.networks)):
            rebuilt(unit, args.results / unit.name, args.out / unit.network.name)
    except (NNRepairError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(chosen)} networks in {args.out}, with the hashes that the certificates name")
    return 0


if __name__ == "__main__":
    sys.exit(main())
