"""The AEAD engines, and the contract that they fulfil. :mod:`safemem.tls.aead` chooses one of them."""
