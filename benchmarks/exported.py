"""What a smaller file costs: the shipped networks as exported files, on images that none of them has seen.

python benchmarks/exported.py --root UTKFace [--images 2000] [--networks agr small]
"""

import argparse
import tempfile
from pathlib import Path

from measure import quietly, silence
from score import score, unseen

from agr_lightning.checkpoints import SHIPPED
from agr_lightning.inference.predictor import Predictor

FILES = {"ONNX": (), "ONNX, `--half`": ("--half",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--images", type=int)
    parser.add_argument("--networks", nargs="+", choices=SHIPPED, default=list(SHIPPED))
    chosen = parser.parse_args()
    silence()
    samples, images = unseen(chosen.root, chosen.networks, chosen.images)
    print(f"\n{len(images):,} images that no network here has seen\n")
    print("| network | file | MB | age MAE (years) | gender | race |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.networks:
            files = {"safetensors, with torch": SHIPPED[name]}
            for kind, options in FILES.items():
                files[kind] = Path(folder) / f"{name}{len(files)}.onnx"
                quietly("export", "--ckpt_path", name, "--output", str(files[kind]), *options)
            for kind, file in files.items():
                found = score(Predictor.load(file), samples, images)
                print(f"| `{name}` | {kind} | {file.stat().st_size / 1e6:.1f} | {found.cells()} |", flush=True)


if __name__ == "__main__":
    main()
