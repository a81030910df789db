"""`rankwise plan`: what fine-tuning would adapt, without doing it."""

from rankwise.recipes.builtin import minilm_folder
from rankwise.recipes.classifier import block_maps, pretrained_classifier
from rankwise.surgery.plan import plan


def run_plan(model: str | None = None, rank: int = 8, select: tuple[str, ...] = ()) -> None:
    """Show which layers of a model would be adapted, with which rank and size, and why not.

    Args:
        model: Folder or hub name of the encoder [built-in: all-MiniLM-L6-v2].
        rank: Rank of every layer.
        select: Layers to adapt, by name or pattern [every linear map of the encoder's blocks].
    """
    classifier = pretrained_classifier(model or minilm_folder(), classes=2, seed=0).model
    maps = [f"encoder.{name}" for name in block_maps(classifier.encoder)]
    chosen = list(select) or maps
    print(plan(classifier, rank=rank, select=chosen, exclude="head", train="head"))
