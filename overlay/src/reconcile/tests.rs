//! Plans against a kernel in memory.
