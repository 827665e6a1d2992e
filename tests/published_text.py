"""Text encoders of a few parameters, saved by transformers as published ones are, with tokenizers of their kinds."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    *("a seven moving up", "an eight moving down", "nothing moves at all, and that's that", "Ünïcode naïve cafés"),
    *("the quick brown fox jumps over the lazy dog", "don't, we'll, they're 42 and 1234567890!", "zwölf Boxkämpfer"),
]
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def save_t5_tokenizer(folder: Path) -> None:
    """Unigram, with the rules that T5's tokenizer.json has."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    about = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<pad>"}
    _save(tokenizer, folder, about | {"eos_token": "</s>", "unk_token": "<unk>"})


def save_clip_tokenizer(folder: Path, padding: str = END) -> None:
    """Byte-pair encoding of lower-case words, with the rules that CLIP's tokenizer.json has."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        special_tokens=[BEGIN, END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = ((END, tokenizer.token_to_id(END)), (BEGIN, tokenizer.token_to_id(BEGIN)))
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    about = {"tokenizer_class": "CLIPTokenizer", "pad_token": {"__type": "AddedToken", "content": padding}}
    _save(tokenizer, folder, about | {"bos_token": BEGIN, "eos_token": END, "unk_token": END})


def save_t5(folder: Path, *, hidden_size: int = 12, kind: str = "umt5", number: str = "") -> None:
    """Model and tokenizer, in the folders of a pipeline that have this number."""
    config, network = {
        "t5": (transformers.T5Config, transformers.T5EncoderModel),
        "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
    }[kind]
    sizes = {"d_model": hidden_size, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(0)
    network(config(vocab_size=100, feed_forward_proj="gated-gelu", **sizes)).save_pretrained(
        folder / f"text_encoder{number}"
    )
    save_t5_tokenizer(folder / f"tokenizer{number}")


def save_clip(folder: Path, *, hidden_size: int, projection_size: int, activation: str, padding: str, number: str = ""):
    """As `save_t5`."""
    save_clip_tokenizer(folder / f"tokenizer{number}", padding=padding)
    vocabulary = Tokenizer.from_file(str(folder / f"tokenizer{number}" / "tokenizer.json"))
    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary.get_vocab_size(),
        hidden_size=hidden_size,
        intermediate_size=16,
        projection_dim=projection_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act=activation,
        bos_token_id=vocabulary.token_to_id(BEGIN),
        eos_token_id=vocabulary.token_to_id(END),
    )
    torch.manual_seed(1)
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{number}")


def _save(tokenizer: Tokenizer, folder: Path, about: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"model_max_length": 77}))
