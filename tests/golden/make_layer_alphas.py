"""Remake layer_alphas.json: the layer alphas of the two real models, every estimator, by this release.

python tests/golden/make_layer_alphas.py MINILM.safetensors SMOLLM2.gguf
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import alphalloc
from alphalloc.fits import FITS

MODELS = {"minilm": sys.argv[1], "smollm2": sys.argv[2]}

golden = {
    model: {name: list(alphalloc.analyze(path, estimator=name).per_layer) for name in FITS}
    for model, path in MODELS.items()
}
Path(__file__).with_name("layer_alphas.json").write_text(json.dumps(golden, indent=1) + "\n")
