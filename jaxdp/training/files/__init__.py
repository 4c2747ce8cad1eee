"""What a run keeps on disk: whole or not at all, sealed, with checksums; and what decides its bits.

May import: `config`.
"""
