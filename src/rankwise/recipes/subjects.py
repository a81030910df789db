"""The subject that `rankwise compress` was asked for."""

from pathlib import Path

from rankwise.recipes.builtin import minilm_folder, movie_reviews
from rankwise.recipes.causal import is_causal
from rankwise.recipes.classifier import load_encoder, load_pretrained
from rankwise.recipes.compress_options import CompressOptions
from rankwise.recipes.encoder_subject import EncoderSubject, text_rows
from rankwise.recipes.examples import Dataset, Example, split
from rankwise.recipes.image_subject import ImageSubject, load_weights_
from rankwise.recipes.images import read_images
from rankwise.recipes.language_subject import LanguageSubject, passages_of
from rankwise.recipes.networks import BUILT_IN, network
from rankwise.recipes.subject import Subject

BUILTIN_LENGTH, LENGTH = 40, 128
HELD_OUT_TEXTS = 1000
HELD_OUT_PASSAGES = 64


def subject_for(options: CompressOptions) -> Subject:
    """Model and data, loaded.

    Raises ValueError, FileNotFoundError, ImportError or RuntimeError with what to do.
    """
    model = options.model
    if model is not None and (model in BUILT_IN or ":" in model):
        return _images(model, options)
    if options.weights is not None:
        raise ValueError("--weights are of an image classifier; a folder holds its own")
    if model is None:
        return _encoder("all-MiniLM-L6-v2", minilm_folder(), options)
    if _is_causal(model):
        return _language(model, options)
    return _encoder(model, model, options)


def _images(model: str, options: CompressOptions) -> Subject:
    if options.weights is None:
        raise ValueError(
            f"--model {model} has to be trained first: give its weights, such as --weights "
            "runs/train/dense/model.safetensors of `rankwise train`"
        )
    data = read_images(options.data or "fashion-mnist")
    channels, size = data.train.shape[1:3]
    facts = {"classes": len(data.classes), "channels": channels, "size": size}
    classifier = network(model, **facts, seed=options.seed)
    load_weights_(classifier, options.weights)
    return ImageSubject(model, classifier, data)


def _encoder(name: str, source: str | Path, options: CompressOptions) -> Subject:
    encoder, tokenizer = load_encoder(source)
    if options.data is None:
        data, length = movie_reviews(options.seed), BUILTIN_LENGTH
    else:
        examples = [Example(text, 0) for text in text_rows(Path(options.data))]
        held = min(HELD_OUT_TEXTS, max(1, len(examples) // 5))
        train, held_out = split(examples, held, options.seed)
        data, length = Dataset(train, held_out, ("text",)), LENGTH
    return EncoderSubject(name, encoder, tokenizer, data, options.max_length or length)


def _language(name: str, options: CompressOptions) -> Subject:
    if options.data is None:
        raise ValueError(
            "a language model needs --data: a .txt file of text like that which it is for"
        )
    texts = text_rows(Path(options.data))
    language_model, tokenizer = load_pretrained(name, "AutoModelForCausalLM")
    train, held_out = passages_of(
        tokenizer,
        texts,
        length=options.max_length or LENGTH,
        held_out=HELD_OUT_PASSAGES,
        seed=options.seed,
    )
    return LanguageSubject(name, language_model, tokenizer, train, held_out)


def _is_causal(source: str) -> bool:
    try:
        return is_causal(source)
    except ValueError as error:
        raise ValueError(
            f"neither a built-in classifier ({', '.join(BUILT_IN)}) nor package.module:factory, "
            f"and {error}"
        ) from error
