"""Data: video index, decoding, encoded shards, TA pairs, the demo's crops; sources that draw from them."""
