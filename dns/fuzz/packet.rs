//! A packet that a client sends.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dns::fuzz::packet(bytes));
