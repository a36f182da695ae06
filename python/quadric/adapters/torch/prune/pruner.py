"""Prune the layers of a model with second-order information."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quadric import checks
from quadric.adapters.torch.capture import to_cpu
from quadric.adapters.torch.fisher import STORAGE, FisherCollector
from quadric.adapters.torch.progress import Progress
from quadric.adapters.torch.prune import criteria
from quadric.adapters.torch.prune.masks import Masks
from quadric.adapters.torch.prune.report import PrunedLayer, PruningReport, PruningStep
from quadric.adapters.torch.prune.schedule import SHAPES, between, fraction
from quadric.adapters.torch.prune.select import count_of, select
from quadric.adapters.torch.prune.targets import Target, find_targets
from quadric.adapters.torch.state import calibration_mode

Loss = Callable[[nn.Module, Any], Tensor]
UPDATES = ("joint", "independent")


class Pruner:
    """Zeroes the weights that matter least to a loss, and lets the others make up for it.

    Optimal BERT surgeon: the Hessian of the loss is taken as the Fisher matrix ``F = lambda I +
    G^T G / m`` of gradients, in blocks of consecutive weights. A weight's score is the predicted
    increase of the loss from zeroing it alone, ``w^2 / (2 [F^-1]_ii)``; for a group Q of weights it
    is ``w_Q^T ([F^-1]_QQ)^-1 w_Q / 2``. Those with the smallest scores go, and the weights that
    stay in a block move to the minimum of its quadratic model.

    Parameters
    ----------
    model : torch.nn.Module
    loss : callable, optional
        ``loss(model, batch)`` returns a scalar tensor. Only "magnitude" does without.
    batches : iterable, optional
        Of whatever `loss` takes; each batch is one gradient. It is read once for each
        recomputation (and for each part of the layers, see `fisher_memory`), so it is a list or a
        loader rather than a generator.
    method : {"obert", "diagonal", "magnitude"}, optional
        "diagonal" scores by ``w^2 F_ii / 2``, "magnitude" by ``w^2``; both leave the other
        weights as they are. They are the baselines.
    scope : {"global", "layer"}, optional
        Whether a sparsity is that of all layers together or of each.
    group_size : int, optional
        Consecutive inputs that go together, as in 4-blocks.
    layers, skip : str or sequence of str, optional
        Patterns of layer names, as in :mod:`fnmatch`: what is pruned, and what is not in spite of
        that. Linear, Conv2d and Hugging Face's Conv1D layers are found, and the projections
        within nn.MultiheadAttention; embedding tables only by a pattern that matches no other.
    n_gradients : int, optional
        Batches read for one recomputation; all by default.
    block_size : int, optional
        Of the Fisher matrices; a multiple of `group_size`, 50 or a little less by default.
    damping : float, optional
        The lambda above, absolute.
    update : {"joint", "independent"}, optional
        "independent" adds up the updates for single weights, as the original implementation does.
    dtype : {"float16", "bfloat16", "float32", "float64"}, optional
        Storage type of the gradients; by default that of the weights.
    fisher_memory : int, optional
        Bytes for Fisher matrices, which take about ``4 (block_size + 1)`` per weight. Where that is
        not enough, layers take turns, with a pass over `batches` for each part, and with global
        sparsity a second one for all parts but one.
    masks : Masks, optional
        Of exactly the layers found, for a model that is pruned already.
    validation : iterable, optional
        Batches on which the loss is measured after each step; by default those of the gradients, ()
        for none.
    progress : bool, optional
        Show a bar.
    backend, n_threads : optional
        For :class:`~quadric.woodbury.BlockFisher`.

    Attributes
    ----------
    masks : Masks
        Which weights are kept. ``masks.hold(optimizer)`` keeps the others at zero in training.
    report : PruningReport

    Raises
    ------
    ValueError, TypeError
        If a pattern matches no layer, or an option is out of range.

    Notes
    -----
    Fisher matrices are where the weights are, see :class:`FisherCollector`; which weights go is
    decided on the CPU. Gradients are taken in evaluation mode, without touching ``.grad``, and the
    model's mode is put back. On any exception, Ctrl-C included, weights and masks are as before the
    call.

    References
    ----------
    Kurtic et al., The Optimal BERT Surgeon (EMNLP 2022), equations 3 to 7.

    Examples
    --------
    >>> import torch
    >>> from quadric.adapters.torch.prune import Pruner
    >>> _ = torch.manual_seed(0)
    >>> layers = [torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4)]
    >>> model = torch.nn.Sequential(*layers)
    >>> batches = [(x, x[:, :4].square()) for x in torch.randn(100, 8, 32)]
    >>> def loss(model, batch):
    ...     return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
    >>> pruner = Pruner(model, loss, batches, progress=False)
    >>> report = pruner.prune(0.5, recomputations=2)
    >>> [(step.target, step.sparsity) for step in report]
    [(0.25, 0.25), (0.5, 0.5)]
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None = None,
        batches: Iterable[Any] | None = None,
        *,
        method: str = "obert",
        scope: str = "global",
        group_size: int = 1,
        layers: str | Sequence[str] = "*",
        skip: str | Sequence[str] = (),
        n_gradients: int | None = None,
        block_size: int | None = None,
        damping: float = 1e-7,
        update: str = "joint",
        dtype: str | None = None,
        fisher_memory: int = 8 << 30,
        masks: Masks | None = None,
        validation: Iterable[Any] | None = None,
        progress: bool = True,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        checks.choice(method, "method", criteria.METHODS)
        checks.choice(scope, "scope", ("global", "layer"))
        checks.integer(group_size, "group_size", low=1, high=32)
        if n_gradients is not None:
            checks.integer(n_gradients, "n_gradients", low=1)
        if block_size is not None:
            checks.integer(block_size, "block_size", low=1)
        checks.choice(update, "update", UPDATES)
        checks.choice(dtype, "dtype", (*STORAGE, None))
        checks.integer(fisher_memory, "fisher_memory", low=1)
        self.criterion = criteria.criterion(method, block_size, group_size, update)
        if self.criterion.block_size is not None:
            if loss is None or batches is None:
                raise ValueError(f"loss and batches must be given for method {method!r}")
            if damping <= 0:
                raise ValueError(f"damping must be above 0, got {damping}")
        self.model, self.loss, self.batches, self.validation = model, loss, batches, validation
        self.targets, skipped = find_targets(model, layers, skip, group_size)
        parameters = {target.name: target.parameter for target in self.targets}
        self.masks = Masks(parameters) if masks is None else masks
        if set(self.masks) != set(parameters):
            odd = sorted(set(self.masks) ^ set(parameters))
            raise ValueError(f"masks must be of the layers to prune, {odd[0]!r} is only in one")
        if any(self.masks.parameters[name] is not p for name, p in parameters.items()):
            raise ValueError("masks must be of the weights of this model, got those of another")
        self.group_size = group_size
        self.n_gradients = n_gradients
        self.fisher_memory = fisher_memory
        self.together = scope == "global"
        self._fisher: dict[str, Any] = {
            "block_size": self.criterion.block_size,
            "damping": damping,
            "dtype": dtype,
            "backend": backend,
            "n_threads": n_threads,
        }
        self._progress = progress
        options: dict[str, Any] = {"method": method, "scope": scope, "group_size": group_size}
        if self.criterion.block_size is not None:
            options |= {"block_size": self.criterion.block_size, "damping": damping}
        if method == "obert":
            options["update"] = update
        self.report = PruningReport(options, skipped=skipped)

    def prune(
        self, sparsity: float, *, recomputations: int = 1, path: str = "linear"
    ) -> PruningReport:
        """Prune up to a sparsity, in steps with gradients of their own.

        Parameters
        ----------
        sparsity : float
            Share of the weights that is zero at the end, in [0, 1).
        recomputations : int, optional
            Steps; each computes the Fisher matrices again at the weights that it finds.
        path : {"linear", "cubic", "geometric"}, optional
            Sparsities in between, from the present one on; see :class:`Schedule`.

        Returns
        -------
        PruningReport
            Of all steps so far.

        Raises
        ------
        ValueError
            If `sparsity` is outside [0, 1) or below the present one, no batch is left, a gradient
            is not finite, or none reaches a layer.
        LinAlgError
            If a block's Fisher matrix cannot be factored.
        """
        final = fraction(sparsity, "sparsity")
        checks.integer(recomputations, "recomputations", low=1)
        checks.choice(path, "path", SHAPES)
        self._check_reachable(final)
        start = self.masks.sparsity()
        weights = {target.name: target.parameter.detach().clone() for target in self.targets}
        masks = self.masks.state_dict()
        done = len(self.report)
        bar = self._bar(recomputations)
        with calibration_mode(self.model), bar:
            try:
                if self.report.dense_loss is None and not self.report.steps:
                    self.report.dense_loss = self._measure(bar)
                for i in range(recomputations):
                    target = between(start, final, (i + 1) / recomputations, path)
                    self.report.steps.append(self._step(target, bar))
            except BaseException:
                self._write(weights, masks)
                del self.report.steps[done:]
                raise
        self.masks.apply()  # what held optimizers remember goes only now that all went well
        return self.report

    def _check_reachable(self, final: float) -> None:
        pruned = {target.name: self._pruned_groups(target) for target in self.targets}
        if self.together:
            pruned = {"": np.concatenate(list(pruned.values()))}
        for name, gone in pruned.items():
            if count_of(final, len(gone)) < gone.sum():
                of = f" of layer {name!r}" if name else ""
                raise ValueError(
                    f"sparsity must be at least the present {gone.mean():g}{of}, got {final:g}"
                )

    def _step(self, sparsity: float, bar: Progress) -> PruningStep:
        begun = time.perf_counter()
        kept: dict[str, Tensor] = {}
        new: dict[str, criteria.Pruned] = {}
        fisher: FisherCollector | None = None
        parts = self._parts()
        # For a global sparsity all scores come before the first weight changes.
        for stage in [parts] if self.together else [[part] for part in parts]:
            scores: list[Tensor] = []
            for part in stage:
                fisher = None  # frees its memory before the next one grows
                fisher = self._collect(part, bar)
                scores += self.criterion.scores(part, fisher, self.group_size)
            kept |= self._select([target for part in stage for target in part], scores, sparsity)
            for part in reversed(stage):
                if part is not stage[-1]:  # of which the matrices are still there
                    fisher = None
                    fisher = self._collect(part, bar)
                results = self.criterion.prune(part, fisher, kept)
                new |= {target.name: result for target, result in zip(part, results, strict=True)}
        gradients = fisher.count if fisher is not None else 0
        fisher = None
        self._write({t.name: _cast(t, new[t.name][0]) for t in self.targets}, kept)
        seconds = time.perf_counter() - begun
        return PruningStep(
            target=sparsity,
            gradients=gradients,
            loss=self._measure(bar),
            seconds=seconds,
            layers=tuple(
                PrunedLayer(
                    name=target.name,
                    shape=tuple(target.parameter.shape),
                    weights=target.size,
                    pruned=target.size - int(kept[target.name].sum()),
                    predicted=new[target.name][1],
                )
                for target in self.targets
            ),
        )

    def _parts(self) -> list[list[Target]]:
        """Split the layers so that the Fisher matrices of each part fit into memory."""
        if self.criterion.block_size is None:
            return [self.targets]
        parts: list[list[Target]] = []
        room = 0
        for target in self.targets:
            need = target.size * 4 * (self.criterion.block_size + 1)
            if need > room:
                parts.append([])
                room = self.fisher_memory
            parts[-1].append(target)
            room -= need
        return parts

    def _collect(self, part: Sequence[Target], bar: Progress) -> FisherCollector | None:
        if self.criterion.block_size is None:
            return None
        assert self.loss is not None
        for target in part:
            if not target.parameter.requires_grad:
                raise ValueError(f"layer {target.name!r}: its weight must require a gradient")
        weights = [target.parameter for target in part]
        fisher = FisherCollector(
            {target.name: target.parameter for target in part},
            masks={target.name: self.masks[target.name] for target in part},
            orders={target.name: target.order for target in part},
            **self._fisher,
        )
        for i, batch in enumerate(self._read(self.batches)):
            with torch.enable_grad():
                value = self.loss(self.model, batch)
                _check_scalar(value, i)
                gradients = torch.autograd.grad(value, weights, allow_unused=True)
            if all(g is None for g in gradients):
                raise ValueError(_unreached(part[0].name, f"batch {i}"))
            try:
                fisher.collect(gradients)
            except ValueError as error:
                raise ValueError(f"batch {i}: {error}") from error
            bar.advance(1, f"gradient {i + 1}")
        if not fisher.count:
            raise ValueError("batches must hold one each time they are read: is it a generator?")
        for name, missing in fisher.missing.items():
            if missing == fisher.count:
                raise ValueError(_unreached(name, f"any of the {missing} batches"))
        return fisher

    def _select(
        self, targets: Sequence[Target], scores: Sequence[Tensor], sparsity: float
    ) -> dict[str, Tensor]:
        """Return the new masks, which keep nothing that was pruned before."""
        chosen = select(
            [to_cpu(score).numpy() for score in scores],
            [self._pruned_groups(target) for target in targets],
            sparsity,
            together=self.together,
        )
        masks = {}
        for target, gone in zip(targets, chosen, strict=True):
            stays = torch.from_numpy(np.repeat(~gone, self.group_size))
            before = self.masks[target.name]
            masks[target.name] = target.shaped(stays).to(before.device) & before
        return masks

    def _pruned_groups(self, target: Target) -> NDArray[np.bool_]:
        kept = target.flat(self.masks[target.name]).reshape(-1, self.group_size)
        gone: NDArray[np.bool_] = (~kept.any(1)).cpu().numpy()
        return gone

    def _write(self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for target in self.targets:
                target.parameter.copy_(weights[target.name])
        self.masks.update(masks)

    def _measure(self, bar: Progress) -> float | None:
        """Return the mean loss over the validation batches; None if there are none."""
        if self.loss is None:
            return None
        total, count = 0.0, 0
        with torch.no_grad():
            batches = self.batches if self.validation is None else self.validation
            for count, batch in enumerate(self._read(batches, self.validation is None), 1):
                total += float(self.loss(self.model, batch))
                bar.advance(1, f"loss {count}")
        return total / count if count else None

    def _read(self, batches: Iterable[Any] | None, limited: bool = True) -> Iterator[Any]:
        return islice(batches or (), self.n_gradients if limited else None)

    def _bar(self, recomputations: int) -> Progress:
        """Count batches: those of the gradients, of all parts, and of the measurements."""

        def length(batches: Any) -> float:
            try:
                return len(batches)
            except TypeError:
                return math.inf

        gradients = min(length(self.batches or ()), self.n_gradients or math.inf)
        measured = gradients if self.validation is None else length(self.validation)
        passes = 0
        if self.criterion.block_size is not None:
            parts = len(self._parts())
            passes = 2 * parts - 1 if self.together else parts
        total = recomputations * passes * gradients
        total += (recomputations + (not self.report.steps)) * measured * (self.loss is not None)
        return Progress(int(total) if total < math.inf else None, show=self._progress)


def _cast(target: Target, weights: Tensor) -> Tensor:
    """Return new weights as the model has them; those of half precision may overflow."""
    cast = weights.to(target.parameter.device, target.parameter.dtype)
    if not cast.isfinite().all():
        raise ValueError(f"layer {target.name!r}: its new weights are not finite; raise damping")
    return cast


def _check_scalar(value: Any, batch: int) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss must return a scalar tensor, got {got} for batch {batch}")
    if not value.requires_grad:
        raise ValueError(f"loss must depend on the weights, that of batch {batch} does not")
    if not value.isfinite():
        raise ValueError(f"loss must be finite, got {value.item():g} for batch {batch}")


def _unreached(name: str, where: str) -> str:
    return f"layer {name!r}: no gradient reaches its weight in {where}; leave it out with skip"
