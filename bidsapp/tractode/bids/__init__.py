"""BIDS: finding data, naming derivatives, sidecars, templates, the ledger and the lock of an output folder."""
