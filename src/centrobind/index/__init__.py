"""Index and search: what is near, in any modality, to anything in any other."""

from centrobind.index.asking import query
from centrobind.index.opening import Hits, Index, build_index, open_index

__all__ = ["Hits", "Index", "build_index", "open_index", "query"]
