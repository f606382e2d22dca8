"""open_clip's training pipeline as a worker for loader.py; it runs in the peer's environment.

Reads one JSON request per line on standard input and answers each with one JSON line on standard
output. It builds what `open_clip_train` builds for `--dataset-type webdataset`: get_wds_dataset
with the train transform and the Hugging Face tokenizer wrapper, and iterates one epoch.
"""

import hashlib
import json
import os
import sys
import time
from argparse import Namespace
from typing import Any

import open_clip
import PIL
import torch
import webdataset
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import AugmentationCfg, image_transform
from open_clip_train.data import get_wds_dataset


def epoch(request: dict[str, Any]) -> dict[str, Any]:
    """One pass over the shards.

    Args:
        request: shards (brace pattern), samples, batch, size, crop_scale, tokenizer, context.

    Returns:
        wall and cpu (seconds), samples, captions (digest of all token ids, in no order).
    """
    tokenizer = HFTokenizer(request["tokenizer"], context_length=request["context"])
    transform = image_transform(
        request["size"], is_train=True, aug_cfg=AugmentationCfg(scale=tuple(request["crop_scale"]))
    )
    args = Namespace(
        train_data=request["shards"],
        train_num_samples=request["samples"],
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=request["batch"],
        workers=0,
        world_size=1,
        seed=request["seed"],
    )
    data = get_wds_dataset(args, transform, is_train=True, floor=True, tokenizer=tokenizer)
    kept, samples = [], 0
    wall, cpu = time.perf_counter(), time.process_time()
    for images, texts in data.dataloader:
        samples += len(images)
        kept.append(texts)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rows = sorted(row[row != 0].tolist() for texts in kept for row in texts)
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {"wall": wall, "cpu": cpu, "samples": samples, "captions": digest}


def main() -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(1)
    # Only answers may go to the pipe: libraries print, too.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr
    versions = {
        "open_clip_torch": open_clip.__version__,
        "webdataset": webdataset.__version__,
        "torch": torch.__version__,
        "Pillow": PIL.__version__,
    }
    print(json.dumps({"versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(epoch(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
