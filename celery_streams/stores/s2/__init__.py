"""S2 as the data plane: one S2 stream a slot, one S2 record a batch, every append conditional.

:mod:`.state` says what a stream's records tell of it, :mod:`.planning` what an append does to
that (both without I/O), :mod:`.client` speaks to the server, :mod:`.asynchronous` is the store
for event loops, :mod:`.store` the same for threads, :mod:`.authority` mints access tokens.
"""
