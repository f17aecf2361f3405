"""How fast one thread of a CPU decodes what each codec stores, beside the lossless unpack."""
