"""The encoder: its weights, its tokenizer and how its texts are written."""

from __future__ import annotations

from dataclasses import dataclass, field

from angle.config.values import DTYPES, KBITS, check_fields, declared, expand_home
from angle.errors import ConfigError
from angle.kernels import KERNEL_NAMES
from angle.prompts import NAMED_PROMPTS, checked_prompts, template_fields

#: What transformers can compute attention with.
ATTENTION_NAMES = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass
class ModelConfig:
    """The encoder, and how texts are tokenised for it."""

    name_or_path: str = "tiny"
    """A hub name, a folder with weights, a run folder, a .gguf file (on the hub: repository/file.gguf), or `tiny`
    (built in: a small, randomly initialised BERT)."""
    tokenizer_name_or_path: str | None = None
    """Where to load the tokenizer from; null: from the model."""
    adapter: str | None = None
    """A saved LoRA adapter to start from: trained further with lora=none, otherwise frozen beneath a new adapter.
    An adapter given as name_or_path is merged into its base with lora=none, otherwise frozen too."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model's repository."""
    max_length: int | None = declared(None, at_least=2)
    """Maximum tokens per text, including the template and special tokens; null: the model's own limit, at most 512."""
    is_llm: bool | None = None
    """Whether the model is a decoder; null: detected. It is an error to contradict the architecture."""
    layers: int | None = declared(None, at_least=1)
    """Keep only the first `layers` layers; null: all."""
    dimensions: int | None = declared(None, at_least=1)
    """Keep only the first `dimensions` dimensions of an embedding; null: all."""
    dtype: str = declared("float32", choices=DTYPES)
    """Type of the weights: float32, bfloat16, float16 or auto (as stored)."""
    load_kbit: int | None = declared(None, choices=KBITS)
    """4 or 8: quantise the weights to 4 bits (NF4) or 8 bits (LLM.int8) and freeze them, to train with lora; null:
    model.dtype. In 8-bit, the other texts of a batch change a text's embedding slightly."""
    attn_implementation: str | None = declared(None, choices=ATTENTION_NAMES)
    """sdpa, eager or flash_attention_2; null: the choice of transformers."""
    kernels: list[str] | None = declared(None, choices=KERNEL_NAMES)
    """Faster implementations of torch's operations to use wherever they apply: packing, blocks, lora, dropout, linear,
    rms_norm; []: none; null: all but those that prove to be no faster on this machine."""
    padding_side: str | None = declared(None, choices=("left", "right"))
    """left or right; null: the tokenizer's own. It never changes an embedding."""
    prompt: str | None = None
    """Template applied to every text, with {text} and the names of any other columns; or A, B or C for one of
    angle_emb's templates; null: the model's own."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Templates by role, in place of `prompt`: {query: "query: ", document: "passage: "}. Columns: query is text,
    document is positive and negative; positive, negative, text1 and text2 may have their own. Words without braces
    stand before the text. The model's own stay for the roles that are not given; "" takes one away."""
    end_token: bool | None = None
    """true: every text ends with the tokenizer's end token; false: nothing is added to what the tokenizer writes; null:
    as false, except that last-token pooling needs an end, so null means true there if neither the tokenizer, the
    template nor the model's own description gives one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more time."""

    def __post_init__(self) -> None:
        self.name_or_path = expand_home("model.name_or_path", self.name_or_path)
        self.tokenizer_name_or_path = expand_home("model.tokenizer_name_or_path", self.tokenizer_name_or_path)
        self.adapter = expand_home("model.adapter", self.adapter)
        check_fields("model", self)
        self.prompt = NAMED_PROMPTS.get(self.prompt or "", self.prompt)
        if self.prompt is not None and "{text" not in self.prompt:
            raise ConfigError(
                f"model.prompt={self.prompt!r} has no {{text}}: write where the text goes, "
                f"for example 'model.prompt=\"Query: {{text}}\"', or choose one of {', '.join(NAMED_PROMPTS)}."
            )
        if self.prompt is not None:
            template_fields(self.prompt)
        self.prompts = checked_prompts(self.prompts)
