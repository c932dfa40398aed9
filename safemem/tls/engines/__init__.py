"""The AEAD engines, and the contract that they fulfil. :func:`safemem.tls.engine` chooses one of them."""
