"""A progress bar, or none."""

from typing import Any

from quadric.adapters.torch.report import LayerReport


class Progress:
    """Bar over the weights of a model, or over batches; prints nothing unless `show` is true."""

    def __init__(self, total: int | None, *, show: bool) -> None:
        self._bar: Any = None
        if show:
            try:
                from tqdm.auto import tqdm
            except ImportError as error:
                raise ImportError(
                    'progress=True needs tqdm: pip install "quadric[torch]"'
                ) from error
            layout = "{percentage:3.0f}%|{bar:20}| {elapsed} < {remaining} | {desc}{postfix}"
            self._bar = tqdm(total=total, bar_format=layout)

    def describe(self, what: str) -> None:
        """Say what is being worked on."""
        if self._bar is not None:
            self._bar.set_description_str(what)

    def advance(self, count: int, what: str) -> None:
        """Count `count` more as finished, and say what they were."""
        if self._bar is not None:
            self._bar.set_description_str(what, refresh=False)
            self._bar.update(count)

    def done(self, weights: int, row: LayerReport) -> None:
        """Count a layer as finished."""
        if self._bar is None:
            return
        self._bar.set_description_str(row.name, refresh=False)
        if row.loss is not None and row.rtn_loss is not None:
            against = f"loss {row.loss:.3g} against {row.rtn_loss:.3g} to nearest"
            self._bar.set_postfix_str(against, refresh=False)
        self._bar.update(weights)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
