"""Where the factors of `factorize_` start from."""

from rankwise.surgery.init import Init as Init
from rankwise.surgery.init import Random as Random
from rankwise.surgery.init import TruncatedSVD as TruncatedSVD

__all__ = ["Init", "Random", "TruncatedSVD"]
