"""The ``quadric`` command: compress a model folder, inspect a checkpoint, show the build."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import quadric

if TYPE_CHECKING:
    from quadric.adapters.torch import Recipe

_FORMATS = ("compressed-tensors", "gptq", "gptq_v2")  # known without importing torch
# Options of one LayerRecipe for all layers; a recipe file takes their place.
_LAYER_OPTIONS = (
    "bits", "group_size", "symmetric", "scale", "order", "damping", "sparsity", "pattern", "method",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, or 2 after an error.

    Examples
    --------
    >>> from quadric.cli import main
    >>> main(["info"])
    quadric ...
    0
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.cmakedir:
            print(quadric.get_cmake_dir())
        elif args.command is None:
            parser.print_help()
            return 2
        else:
            with warnings.catch_warnings():
                args.run(args)
    except KeyboardInterrupt:
        print("quadric: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.traceback:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"quadric: error: {lines[0]}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quadric", description="Quantize and prune with inverse-Hessian sweeps."
    )
    parser.add_argument("--version", action="version", version=f"quadric {quadric.__version__}")
    parser.add_argument(
        "--cmakedir", action="store_true", help="print the folder of quadricConfig.cmake"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_compress(commands.add_parser("compress", help="compress a Hugging Face model folder"))
    inspect = commands.add_parser("inspect", help="list the layers of a checkpoint, and sizes")
    inspect.add_argument("dir", metavar="DIR", type=Path)
    inspect.set_defaults(run=_inspect)
    info = commands.add_parser("info", help="versions, backends, instruction sets, threads, BLAS")
    info.set_defaults(run=lambda _: quadric.show_config())
    return parser


def _add_compress(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model_dir", metavar="MODEL_DIR", type=Path, help="config.json, weights, tokenizer")
    add(
        "--text",
        metavar="FILE",
        type=Path,
        required=True,
        action="append",
        help="calibration text (UTF-8); can be given more than once",
    )
    add("--out", metavar="DIR", type=Path, required=True, help="new folder for the result")

    layers = parser.add_argument_group("layers")
    add = layers.add_argument
    add("--bits", type=_bits, help="2, 3, 4, 8, ternary, or none to prune only; default 4")
    add("--group-size", type=_group_size, help="inputs per scale, row or tensor; default 128")
    add("--symmetric", action="store_true", default=None, help="zero in the middle of the grid")
    add("--scale", choices=("minmax", "mse"), help="how scales are found; default minmax")
    add("--order", choices=("natural", "activation"), help="order of the sweep; default natural")
    add("--damping", type=float, help="relative to the mean diagonal; default 0.01")
    add("--sparsity", type=float, help="fraction of the weights that becomes zero")
    add("--pattern", metavar="N:M", help="keep N of every M inputs, such as 2:4")
    add("--method", choices=("sweep", "round_to_nearest"), help="default sweep")
    add("--recipe", metavar="FILE", type=Path, help="JSON or TOML rules in place of the above")

    calibration = parser.add_argument_group("calibration")
    add = calibration.add_argument
    add("--samples", type=_positive, default=128, help="pieces of text; default 128")
    add(
        "--seq-length",
        type=_positive,
        default=512,
        help="tokens per piece, at most what the model takes; default 512",
    )
    add("--batch-size", type=_positive, default=8, help="pieces per run; default 8")
    add("--blocks", action="append", metavar="NAME", help="list of blocks, if not the largest")
    add("--true-sequential", action="store_true", help="recalibrate within a block")
    add("--asymmetric", action="store_true", help="aim at the uncompressed model's outputs")
    add(
        "--on-failure",
        choices=("raise", "skip", "round_to_nearest"),
        default="raise",
        help="for layers that no token reaches or whose Hessian is singular; default raise",
    )

    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--format", choices=_FORMATS, default=_FORMATS[0], help=f"default {_FORMATS[0]}")
    add("--overwrite", action="store_true", help="replace the checkpoint in --out")
    add("--work-dir", metavar="DIR", type=Path, help="finished layers; the same command resumes")
    add("--plot", metavar="FILE", type=Path, help="picture of the loss per layer")
    add("--report", metavar="FILE", type=Path, help="the table as JSON")
    add("--quiet", action="store_true", help="no bar and no table")
    add("--threads", type=_positive, help="threads of the kernels")
    add("--backend", help="native or numba")
    parser.set_defaults(run=_compress)


def _compress(args: argparse.Namespace) -> None:
    from quadric.adapters.torch import checkpoint, compress

    transformers = _transformers()
    recipe = _recipe(args)
    for file in (args.plot, args.report):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"{file}: no such folder")
    checkpoint.check_out_dir(args.out, args.overwrite)
    config = _config(args.model_dir)
    text = "\n\n".join(_read(path) for path in args.text)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model_dir, local_files_only=True)
    limit = config.get("max_position_embeddings") or config.get("n_positions") or args.seq_length
    length = min(args.seq_length, limit, tokenizer.model_max_length)
    batches = _tokenize(tokenizer, text, args.samples, length, args.batch_size)
    model = _model(transformers, args.model_dir, config)

    report = compress(
        model,
        batches,
        recipe,
        blocks=args.blocks,
        work_dir=args.work_dir,
        true_sequential=args.true_sequential,
        asymmetric=args.asymmetric,
        on_failure=args.on_failure,
        progress=not args.quiet,
        backend=args.backend,
        n_threads=args.threads,
    )
    info = checkpoint.save(
        model,
        report,
        args.out,
        args.format,
        source_dir=args.model_dir,
        overwrite=args.overwrite,
    )
    if args.plot is not None:
        report.plot(args.plot)
    if args.report is not None:
        report.save(args.report)
    if not args.quiet:
        print(report.summary())
        before, after = info.dense_bytes / 1e6, info.bytes / 1e6
        print(f"{args.out}: {after:.1f} MB, {before:.1f} MB before ({info.format})")


def _inspect(args: argparse.Namespace) -> None:
    from quadric.adapters.torch import checkpoint

    print(checkpoint.inspect(args.dir).summary())


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError('compress needs transformers: pip install "quadric[demo]"') from error
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Libraries warn about each other; what quadric has to say about the model is shown.
    warnings.filterwarnings("ignore", module=r"(?!quadric)")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return transformers


def _recipe(args: argparse.Namespace) -> "Recipe":
    from quadric.adapters.torch import LayerRecipe, Recipe

    options = {name: getattr(args, name) for name in _LAYER_OPTIONS}
    options = {name: value for name, value in options.items() if value is not None}
    if args.recipe is not None:
        if options:
            flags = ", ".join("--" + name.replace("_", "-") for name in options)
            raise ValueError(f"--recipe takes the place of {flags}; give one or the other")
        return Recipe.load(args.recipe)
    options.setdefault("group_size", 128)
    return Recipe.of(LayerRecipe.from_dict(options))


def _config(model_dir: Path) -> dict[str, Any]:
    from quadric.adapters.torch.files import read_json

    path = model_dir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{model_dir} is no model folder: it has no config.json")
    config = read_json(path)
    if "quantization_config" in config:
        raise ValueError(f"{model_dir} is quantized already")
    return config


def _model(transformers: Any, model_dir: Path, config: dict[str, Any]) -> Any:
    for name in config.get("architectures") or []:
        if hasattr(transformers, name):
            auto = getattr(transformers, name)
            break
    else:
        auto = transformers.AutoModel
    dtype = config.get("dtype") or config.get("torch_dtype") or "auto"
    return auto.from_pretrained(model_dir, local_files_only=True, torch_dtype=dtype)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text {path} is not UTF-8: {error}") from error
    except OSError as error:
        raise ValueError(f"--text {path} cannot be read: {error.strerror}") from error


def _tokenize(
    tokenizer: Any, text: str, samples: int, length: int, batch_size: int
) -> list[dict[str, Any]]:
    """Cut the text into pieces of `length` tokens, and take `samples` of them evenly spaced."""
    import torch

    pieces = tokenizer(
        text,
        max_length=length,
        truncation=True,
        return_overflowing_tokens=True,
        return_attention_mask=False,
    )["input_ids"]
    if pieces and not isinstance(pieces[0], list):  # a slow tokenizer gives the first piece alone
        raise ValueError("MODEL_DIR must have a fast tokenizer (tokenizer.json)")
    whole = [piece for piece in pieces if len(piece) == length] or [p for p in pieces if p]
    if not text.strip() or not whole:
        raise ValueError("--text holds no tokens")
    if len(whole) > samples:
        whole = [whole[i * len(whole) // samples] for i in range(samples)]
    starts = range(0, len(whole), batch_size)
    return [{"input_ids": torch.tensor(whole[i : i + batch_size])} for i in starts]


def _bits(text: str) -> int | str:
    return text if text in ("ternary", "none") else int(text)


def _group_size(text: str) -> int | str:
    if text == "row":
        return "none"
    return text if text == "tensor" else int(text)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
