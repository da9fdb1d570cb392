"""The ground floor: tensor in, tensor out; no state, no files, no logging, no device choice."""
