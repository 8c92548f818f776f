"""The mean of several networks' weights, as initial weights: `fit --model.weights MEAN.safetensors`.

It is better than each where all were trained from the same weights, and useless where they were not (Wortsman et al.,
"Model soups", 2022). The file knows which images any of them has seen.

python benchmarks/average_weights.py FILE FILE... --output MEAN.safetensors
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from agr_lightning.checkpoints import KEY, describe, join_seen, load_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="checkpoints, run folders, or exported files, of one network")
    parser.add_argument("--output", required=True, help="the .safetensors file to write, in 32 bits")
    chosen = parser.parse_args()
    networks = [load_trained(file) for file in chosen.files]
    first = networks[0]
    for network in networks[1:]:
        if network.config != first.config:
            parser.error(f"{first.name} and {network.name} are different networks: they have no mean")
    state = {
        name: torch.stack([network.state[name].float() for network in networks]).mean(0).to(value.dtype)
        for name, value in first.state.items()
    }
    seen = join_seen(*(network.seen for network in networks))
    if seen is None:
        parser.error("one of the files does not say which images it has seen")
    facts = {KEY: json.dumps(describe(first.config, first.data, None))}
    tensors = state | {name: torch.from_numpy(images) for name, images in seen.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, chosen.output, facts)
    size = Path(chosen.output).stat().st_size / 1e6
    print(f"| file | MB | mean of |\n|---|---|---|\n| {chosen.output} | {size:.1f} | {len(networks)} networks |")


if __name__ == "__main__":
    main()
