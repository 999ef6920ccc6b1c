"""A model of this library as a model of transformers, for its `generate` and for evaluation harnesses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ternary.errors import ContextLengthError
from ternary.llm._cache import Cache, Row
from ternary.llm._model import Model
from ternary.llm._sequence import shared_beginning

__all__ = ["TernaryForCausalLM"]


class TernaryConfig(PretrainedConfig):  # type: ignore[misc] # transformers is untyped here
    """The shape of a model of this library, as transformers asks for it."""

    model_type = "pentad_ternary"


class TernaryForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc] # the same
    """An open language model behind the interface of transformers' causal models; it computes on the CPU.

    Every sequence of a batch keeps the keys and values of the tokens it shares with the call before, so `generate`
    computes each new token once, and so does a harness that scores many endings of one beginning.

    Args:
        model: A model that `ternary.llm.load` opened.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from ternary import llm
        >>> config = llm.ModelConfig(64, hidden=32, inner=64, layers=1, heads=2, kv_heads=1, head_size=16, context=32)
        >>> llm.save(llm.Decoder(config, ternary=True), path := tempfile.mkdtemp() + "/m.ternary")
        >>> wrapped = llm.TernaryForCausalLM(llm.load(path))
        >>> wrapped.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).shape
        torch.Size([1, 7])
    """

    config_class: Any = TernaryConfig
    main_input_name = "input_ids"
    _is_stateful = True

    def __init__(self, model: Model):
        own = model.config
        config = TernaryConfig(
            vocab_size=own.vocabulary,
            hidden_size=own.hidden,
            num_hidden_layers=own.layers,
            num_attention_heads=own.heads,
            max_position_embeddings=model.context,
            bos_token_id=own.bos,
            eos_token_id=sorted(model.ends) or None,
            use_cache=False,
        )
        super().__init__(config)
        self._model = model
        self._kept: list[tuple[Cache, list[int]]] = []
        self._anchor = torch.nn.Parameter(torch.zeros(0), requires_grad=False)
        self.generation_config: Any = GenerationConfig(
            bos_token_id=own.bos, eos_token_id=sorted(model.ends) or None, pad_token_id=0, use_cache=False
        )

    @property
    def device(self) -> torch.device:
        """Where inputs belong."""
        return torch.device("cpu")

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Pass all tokens on; what is known of them is in this object's caches."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutput:
        """Return logits (batch, positions, vocabulary), zero where the attention mask is.

        Args:
            input_ids: Tokens, padded on either side.
            attention_mask: 1 for tokens, 0 for padding.
            labels: Not supported; there is no loss.
            logits_to_keep: Only the logits of so many last positions, 0 for all.
        """
        if labels is not None:
            raise ValueError("got labels; a packed model is not trained. Compute the loss from the logits")
        batch, length = input_ids.shape
        keep = logits_to_keep or length
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        out = torch.zeros(batch, keep, self.config.vocab_size)
        rows: list[Row] = []
        places: list[tuple[int, int]] = []
        for i in range(batch):
            at = mask[i].nonzero().flatten().tolist()
            ids = [int(t) for t in input_ids[i][at]]
            if len(ids) > self._model.context:
                raise ContextLengthError(f"got {len(ids)} tokens for a context of {self._model.context}")
            first = next((n for n, place in enumerate(at) if place >= length - keep), len(at))
            cache, known = self._cache(i)
            # Logits are wanted from `first` on: those positions run again.
            begin = min(shared_beginning(known, ids), first)
            self._kept[i] = (cache, ids)
            rows += [Row(ids[n], n, cache, n >= first) for n in range(begin, len(ids))]
            places += [(i, at[n] - (length - keep)) for n in range(max(begin, first), len(ids))]
        try:
            for start in range(0, len(rows), 256):
                part = rows[start : start + 256]
                logits = torch.from_numpy(np.asarray(self._model.engine.run(part)))
                count = len(logits)
                for (i, position), line in zip(places[:count], logits, strict=True):
                    out[i, position] = line
                places = places[count:]
        except BaseException:
            self._kept.clear()
            raise
        return CausalLMOutput(logits=out)

    def _cache(self, i: int) -> tuple[Cache, list[int]]:
        while len(self._kept) <= i:
            self._kept.append((self._model.engine.new_cache(self._model.context), []))
        return self._kept[i]
