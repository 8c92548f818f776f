"""What a smaller file costs: both networks that come along, as exported files, on images that neither has seen.

python benchmarks/exported.py --root UTKFace [--images 2000]
"""

import argparse
import tempfile
from pathlib import Path

from measure import quietly, silence
from score import score, unseen

from agr_lightning.checkpoints import BOX
from agr_lightning.data.images import read_rgb
from agr_lightning.inference.predictor import Predictor

FILES = {"ONNX": (), "ONNX, `--half`": ("--half",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--images", type=int)
    chosen = parser.parse_args()
    silence()
    members = unseen(chosen.root, list(BOX), chosen.images)
    images = [read_rgb(sample.path) for sample in members]
    print(f"\n{len(images):,} images that neither network has seen\n")
    print("| network | file | MB | age MAE (years) | gender | race |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for named, packed in BOX.items():
            network = "default" if named is None else f"`{named}`"
            _show(network, "safetensors, with torch", packed, Predictor.load(named), members, images)
            for kind, options in FILES.items():
                file = Path(folder) / "faces.onnx"
                role = () if named is None else ("--ckpt_path", named)
                quietly("export", *role, "--output", str(file), *options)
                _show(network, kind, file, Predictor.load(file), members, images)


def _show(network: str, kind: str, file: Path, predictor: Predictor, members: list, images: list) -> None:  # type: ignore[type-arg]
    found = score(predictor, members, images)
    print(f"| {network} | {kind} | {file.stat().st_size / 1e6:.1f} | {found.cells()} |", flush=True)


if __name__ == "__main__":
    main()
