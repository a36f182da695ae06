"""Compress a model, block by block."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

import quadric
from quadric import checks, sweep
from quadric.adapters.torch.blocks import Batch, Call, Chain, follow, run_model
from quadric.adapters.torch.capture import (
    Capture,
    References,
    SharedInput,
    UnequalInputs,
    call_order,
    record,
    runs_on_gpu,
)
from quadric.adapters.torch.layers import Layer
from quadric.adapters.torch.methods import dense, nearest, swept
from quadric.adapters.torch.plan import Plan
from quadric.adapters.torch.progress import Progress
from quadric.adapters.torch.recipe import LayerRecipe, Recipe
from quadric.adapters.torch.report import CompressionReport, LayerReport, Result
from quadric.adapters.torch.state import Weights, calibration_mode
from quadric.adapters.torch.workdir import WorkDir, digest_of, model_digest
from quadric.arrays import Array
from quadric.errors import LinAlgError
from quadric.sweep.results import to_host

_Done: TypeAlias = tuple[LayerReport, Result | None]


def compress(
    model: nn.Module,
    batches: Iterable[Batch],
    recipe: Recipe | LayerRecipe | Mapping[str, Any] | str | os.PathLike[str],
    *,
    blocks: str | Sequence[str] | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    true_sequential: bool = False,
    asymmetric: bool = False,
    on_failure: str = "raise",
    progress: bool = True,
    backend: str | None = None,
    n_threads: int | None = None,
) -> CompressionReport:
    """Quantize and prune the layers of a model, each against the inputs that it sees.

    The repeated blocks of the model are done in order. In each, the inputs of all layers are
    gathered in one pass over the batches, the layers are compressed, and the block runs again, so
    that the next one is calibrated on what the compressed ones put out. Layers that are given the
    same tensor (query, key and value) share one Hessian and one factorization.

    Parameters
    ----------
    model : torch.nn.Module
        Its Linear, Hugging Face Conv1D and (ungrouped) Conv2d layers can be compressed. The
        weights are replaced; they keep their dtype, while the arithmetic is in float32.
    batches : iterable
        Calibration data; each batch is what the model is called with: a mapping of keywords, a
        tuple or list of arguments, or one tensor. All batches are kept in memory. Tokens with a
        zero in the batch's ``attention_mask`` (batch, time) do not count.
    recipe : Recipe, LayerRecipe, mapping or path
        Which layers, and how: see :class:`Recipe`. A :class:`LayerRecipe` alone is for all.
    blocks : str or sequence of str, optional
        Names of the lists of blocks (nn.ModuleList or nn.Sequential), in the order in which the
        model calls them. By default the list of modules of one class that holds most weights; a
        model without one is taken as a single block.
    work_dir : path, optional
        Folder for finished layers. The same call after an interruption goes on from there, to the
        same result (on the same machine, with the same number of threads). It can be deleted
        afterwards.
    true_sequential : bool, optional
        Within a block, gather the inputs of each layer after those that come before it have been
        compressed. One more pass for each group of layers that share an input.
    asymmetric : bool, optional
        Aim at the outputs of the uncompressed model, not at those on the compressed inputs
        (GPTAQ). Twice the memory for block inputs and Hessians, and twice the passes of
        `true_sequential`, which it implies: layers calibrated together would each make up for the
        same error that came before them.
    on_failure : {"raise", "skip", "round_to_nearest"}, optional
        What to do with a layer that no token reached, or whose Hessian cannot be factored. The
        last two say so in the layer's row.
    progress : bool, optional
        Show a bar with the layer, its loss against round-to-nearest's, and the time left.
    backend, n_threads : optional
        For the functions of :mod:`quadric.sweep`.

    Returns
    -------
    CompressionReport
        A row per layer, and the compressed matrices, for
        :func:`~quadric.adapters.torch.checkpoint.save`.

    Raises
    ------
    ValueError
        If a rule matches no layer or does not fit one, `batches` is empty, an input holds NaN or
        Inf, no token reaches a layer, or `work_dir` belongs to another job.
    LinAlgError
        If a Hessian cannot be factored.

    Notes
    -----
    On any exception, Ctrl-C included, the model gets its weights back. For that the original
    weights of finished layers stay in memory until the end. Beyond them and the weights of the
    result, memory holds the inputs of one block and the Hessians of its layers.

    What reaches a layer in another layout than (batch, time, features), such as the tokens of an
    expert, counts in full, padding included. Layers inside nn.MultiheadAttention are left alone:
    it reads their weights without calling them.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch import LayerRecipe, compress
    >>> _ = torch.manual_seed(0)
    >>> layers = [torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)]
    >>> model = torch.nn.Sequential(*layers)
    >>> batches = [torch.randn(100, 32) for _ in range(4)]
    >>> report = compress(model, batches, LayerRecipe(bits=4, group_size=16), progress=False)
    >>> [row.name for row in report.rows], report.rows[0].ratio < 1
    (['0', '2'], True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    checks.choice(on_failure, "on_failure", ("raise", "skip", "round_to_nearest"))
    options: dict[str, Any] = {"backend": backend, "n_threads": n_threads}
    sweep.HessianAccumulator(1, **options)  # checks them
    recipe = Recipe.of(recipe)
    batches = _batches(batches)
    with calibration_mode(model):
        plan = Plan(model, recipe, batches, blocks)
        store = None
        if work_dir is not None:
            fingerprint = {
                "version": quadric.__version__,
                "recipe": digest_of(recipe.to_dict()),
                "model": model_digest(model),
                "calibration batches": digest_of(batches),
                "options": digest_of([blocks, true_sequential or asymmetric, asymmetric, backend]),
            }
            store = WorkDir(work_dir, fingerprint)
        bar = Progress(sum(layer.weight.numel() for layer in plan.rules), show=progress)
        job = _Job(
            model=model,
            batches=batches,
            plan=plan,
            store=store,
            progress=bar,
            true_sequential=true_sequential or asymmetric,
            asymmetric=asymmetric,
            on_failure=on_failure,
            options=options,
        )
        with bar, job.weights:
            job.run()
    return CompressionReport(
        rows=job.rows,
        layers=job.results,
        recipe=recipe.to_dict(),
        blocks=tuple(chain.name for chain in plan.chains),
        skipped=plan.skipped,
    )


@dataclass(eq=False)
class _Job:
    """One call of :func:`compress` under way."""

    model: nn.Module
    batches: Sequence[Batch]
    plan: Plan
    store: WorkDir | None
    progress: Progress
    true_sequential: bool
    asymmetric: bool
    on_failure: str
    options: dict[str, Any]  # for quadric.sweep
    weights: Weights = field(default_factory=Weights)
    rows: list[LayerReport] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)

    def run(self) -> None:
        if not self.plan.chains:
            self._model_stage(list(self.plan.rules))
        self._model_stage(self.plan.before)
        for chain in self.plan.chains:
            self._chain(chain)
        self._model_stage(self.plan.after)

    def _model_stage(self, layers: Sequence[Layer]) -> None:
        def run(b: int) -> Any:
            return run_model(self.model, self.batches[b])

        self._stage(layers, run, run)

    def _chain(self, chain: Chain) -> None:
        stream = follow(chain, self.batches, lambda batch: run_model(self.model, batch))
        reference = stream.copy()
        if self.asymmetric and self.rows:  # something before this chain is compressed by now
            with self.weights.original():
                reference = follow(chain, self.batches, lambda b: run_model(self.model, b))
        for i, (name, block) in enumerate(chain.blocks):
            self.progress.describe(f"block {i + 1} of {len(chain.blocks)}")
            layers = [layer for layer in self.plan.rules if self.plan.inside(layer, name)]

            def run(b: int, name: str = name, block: nn.Module = block) -> Any:
                return stream.calls[b].run(name, block)

            def run_reference(b: int, name: str = name, block: nn.Module = block) -> Any:
                return reference.calls[b].run(name, block)

            def advance(b: int, call: Call, name: str = name, block: nn.Module = block) -> Any:
                return call.run(name, block)

            self._stage(layers, run, run_reference)
            stream.advance(advance)
            if self.asymmetric:
                with self.weights.original():
                    reference.advance(advance)

    def _stage(
        self, layers: Sequence[Layer], run: Callable[[int], Any], reference: Callable[[int], Any]
    ) -> None:
        """Compress `layers`, all of which run when ``run(batch)`` does."""
        groups = [tuple(layers)]
        if self.true_sequential and layers:
            groups = call_order(layers, lambda: run(0))
            called = {layer for group in groups for layer in group}
            groups.append(tuple(layer for layer in layers if layer not in called))
        for group in groups:
            stored = {layer: self._stored(layer) for layer in group}
            done: dict[Layer, _Done] = {k: found for k, found in stored.items() if found}
            if todo := [layer for layer in group if layer not in done]:
                done.update(self._compress(todo, self._capture(todo, run, reference)))
            for layer in group:
                self._finish(layer, done[layer])

    def _stored(self, layer: Layer) -> _Done | None:
        found = self.store.load(layer.name) if self.store is not None else None
        if found is None:
            return None
        # What was a fallback then is one now only if that is still what the caller wants.
        fallback = found[0].method != self.plan.rules[layer].method
        return None if fallback and self.on_failure != "round_to_nearest" else found

    def _finish(self, layer: Layer, done: _Done) -> None:
        row, result = done
        self.rows.append(row)
        if result is not None:
            self.weights.replace(layer, layer.weight_from(dense(result)))
            self.results[layer.name] = to_host(result)  # a GPU holds one layer's at a time
        self.progress.done(layer.weight.numel(), row)

    def _capture(
        self, layers: Sequence[Layer], run: Callable[[int], Any], reference: Callable[[int], Any]
    ) -> list[SharedInput]:
        capture = self._captured(layers, run, reference, share=True)
        try:
            return capture.shared()
        except UnequalInputs:
            return self._captured(layers, run, reference, share=False).shared()

    def _captured(
        self,
        layers: Sequence[Layer],
        run: Callable[[int], Any],
        reference: Callable[[int], Any],
        share: bool,
    ) -> Capture:
        capture = Capture(layers, share=share, **self.options)
        for b, batch in enumerate(self.batches):
            references: References | None = None
            if self.asymmetric:
                with self.weights.original():
                    references = record(layers, partial(reference, b))
            where = f"calibration batch {b}"
            capture.run(partial(run, b), mask=_mask(batch), references=references, where=where)
        return capture

    def _compress(self, layers: Sequence[Layer], inputs: list[SharedInput]) -> dict[Layer, _Done]:
        done: dict[Layer, _Done] = {}
        while inputs:
            shared = inputs.pop(0)  # its Hessian goes when the layers are done
            if shared.accumulator.tokens:
                done.update(self._compress_shared(shared))
        for layer in layers:
            if layer not in done:
                why = "no token reached it"
                if self.on_failure == "raise":
                    raise ValueError(f"layer {layer.name!r}: {why}; see on_failure")
                done[layer] = self._keep(self._without_hessian(layer, 0, why))
        return done

    def _compress_shared(self, shared: SharedInput) -> dict[Layer, _Done]:
        sums = shared.accumulator
        cross = _kernel_array(sums.cross()) if self.asymmetric else None
        settings: dict[tuple[str, float], list[Layer]] = {}
        for layer in shared.layers:
            rule = self.plan.rules[layer]
            settings.setdefault((rule.order, rule.damping), []).append(layer)
        done: dict[Layer, _Done] = {}
        for (order, damping), layers in settings.items():
            start = time.perf_counter()
            try:
                factor = sweep.factorize(
                    _kernel_array(sums.value()),
                    damping=damping,
                    order=order,
                    overwrite_h=True,
                    on_failure="raise" if self.on_failure == "skip" else self.on_failure,
                    **self.options,
                )
            except (LinAlgError, ValueError) as error:
                names = ", ".join(repr(layer.name) for layer in layers)
                message = f"layer {names}: {error}"
                if self.on_failure == "raise":
                    if isinstance(error, LinAlgError):
                        raise LinAlgError(message, error.pivot) from error
                    raise ValueError(message) from error
                for layer in layers:
                    failed = self._without_hessian(layer, sums.tokens, str(error))
                    done[layer] = self._keep(failed)
                continue
            seconds = (time.perf_counter() - start) / len(layers)
            for layer in layers:
                self.progress.describe(layer.name)
                result = self._with_factor(layer, factor, cross, sums.tokens, seconds)
                done[layer] = self._keep(result)
        return done

    def _keep(self, done: _Done) -> _Done:
        row, result = done
        if self.store is not None and result is not None:
            self.store.save(row, to_host(result))
        return done

    def _with_factor(
        self,
        layer: Layer,
        factor: sweep.Factor,
        cross: Array | None,
        tokens: int,
        seconds: float,
    ) -> tuple[LayerReport, Result]:
        rule = self.plan.rules[layer]
        W = self._matrix(layer)
        start = time.perf_counter()
        try:
            if rule.method == "sweep":
                result = swept(W, factor, rule, cross, self.options)
                seconds += time.perf_counter() - start
                baseline = nearest(W, factor, rule, self.options)
            else:
                result = baseline = nearest(W, factor, rule, self.options)
                seconds += time.perf_counter() - start
        except ValueError as error:
            raise ValueError(f"layer {layer.name!r}: {error}") from error
        attempts = factor.report.attempts
        notes = []
        if factor.report.fallback:
            notes.append("not positive definite: rounded to nearest")
        elif len(attempts) > 1:
            notes.append(f"damping {factor.damping:g} after {len(attempts)} attempts")
        if factor.report.dead:
            notes.append(f"{factor.report.dead} dead inputs")
        if tokens < layer.shape[1]:
            notes.append("fewer tokens than inputs")
        row = _row(
            layer,
            rule,
            result,
            method="round_to_nearest" if factor.report.fallback else rule.method,
            tokens=tokens,
            rtn_loss=_loss(baseline),
            damping=factor.damping,
            attempts=len(attempts),
            seconds=seconds,
            note="; ".join(notes),
        )
        return row, result

    def _matrix(self, layer: Layer) -> Array:
        return layer.matrix(on_gpu=runs_on_gpu(layer.weight, self.options["backend"]))

    def _without_hessian(self, layer: Layer, tokens: int, why: str) -> _Done:
        rule = self.plan.rules[layer]
        if self.on_failure == "skip":
            note = f"skipped: {why}"
            return _row(layer, rule, None, method="none", tokens=tokens, note=note), None
        result = nearest(self._matrix(layer), None, rule, self.options)
        note = f"rounded to nearest: {why}"
        row = _row(layer, rule, result, method="round_to_nearest", tokens=tokens, note=note)
        return row, result


def _row(layer: Layer, rule: LayerRecipe, result: Result | None, **measured: Any) -> LayerReport:
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        dtype=str(layer.weight.dtype).removeprefix("torch."),
        bits=rule.bits,
        group_size=rule.group_size if rule.bits is not None else None,
        symmetric=rule.symmetric,
        sparsity=0.0 if result is None else result.sparsity,
        loss=None if result is None else _loss(result),
        **measured,
    )


def _loss(result: Result) -> float | None:
    return None if result.loss is None else float(result.loss.sum())


def _kernel_array(x: Tensor) -> Array:
    """Return a tensor as the kernels give back NumPy arrays for it, unless it is on a GPU."""
    return x if x.is_cuda else x.numpy()


def _batches(batches: Iterable[Batch]) -> list[Batch]:
    if isinstance(batches, Tensor | Mapping | str):
        raise TypeError(
            f"batches must be an iterable of batches, got one {type(batches).__name__}; "
            "put it into a list"
        )
    listed = list(batches)
    if not listed:
        raise ValueError("batches must hold at least one batch, got none")
    return listed


def _mask(batch: Batch) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or bool((mask != 0).all()):
        return None
    return mask != 0
