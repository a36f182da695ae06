"""`compress` of a whole language model on a GPU: time from the call to the report, and peak memory.

    python -m bench.sweep.bench_compress_gpu [--layers 32]

The model has the shape of Llama-3-8B and random bfloat16 weights; calibration is 128 sequences of
2048 tokens. llm-compressor publishes 745 s for GPTQ of that model on one A100.
"""

import argparse
import time

import torch
from torch import nn

import quadric.adapters.torch as adapters
from bench import common, gpu

SEQUENCES, TOKENS = 128, 2048
GOAL, MEMORY = 60.0, 40e9
PUBLISHED = 745.0


def llama(layers: int) -> nn.Module:
    """A model of that shape; its weights are drawn on the device, in place."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
        use_cache=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model = model.to_empty(device="cuda").eval()
    generator = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            # Norms of 1, and products that keep the size of their inputs.
            p.fill_(1) if p.ndim == 1 else p.normal_(0, p.shape[-1] ** -0.5, generator=generator)
    rotary = type(model.model.rotary_emb)  # its tables are no parameters
    model.model.rotary_emb = rotary(config, device="cuda")
    return model


def main(report: gpu.Report, ceilings: gpu.Ceilings) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    layers = parser.parse_known_args()[0].layers
    model = llama(layers)
    generator = torch.Generator("cuda").manual_seed(1)
    batches = [
        torch.randint(0, 128_256, (8, TOKENS), device="cuda", generator=generator)
        for _ in range(SEQUENCES // 8)
    ]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    recipe = adapters.LayerRecipe(bits=4, group_size=128)
    adapters.compress(model, batches, {"lm_head": "skip", "*": recipe})
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated()
    # Two forward passes of the layers, one Hessian for each of the four inputs of a block (half of
    # a product), and the sweeps.
    parameters = sum(p.numel() for p in model.model.layers.parameters())
    tokens = SEQUENCES * TOKENS
    hessians = layers * tokens * (3 * 4096**2 + 14336**2)
    floor = (2 * 2 * tokens * parameters + hessians) / ceilings.bfloat16
    header = ["model", "s", "floor s", "goal s", "met", "peak GB", "of it model", "goal", "met"]
    cells = [
        f"Llama-3-8B shape, {layers} blocks, {SEQUENCES} x {TOKENS} tokens",
        f"{seconds:.1f}",
        f"{floor:.1f}",
        f"{GOAL:g}",
        common.verdict(seconds <= GOAL),
        f"{peak / 1e9:.1f}",
        f"{before / 1e9:.1f}",
        f"{MEMORY / 1e9:g}",
        common.verdict(peak <= MEMORY),
    ]
    report.add(common.table(header, [cells]))


if __name__ == "__main__":
    gpu.run("compress", "Compressing a whole model on a GPU", main)
