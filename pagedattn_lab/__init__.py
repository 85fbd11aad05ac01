"""PagedAttention, from first principles: the library behind the book.

Importing this package is cheap: it loads neither torch nor triton. Import the module you want to read,
for example ``from pagedattn_lab.block_pool import BlockPool``.
"""

__version__ = "0.1.0"
