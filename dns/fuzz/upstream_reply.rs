//! A packet that an upstream sends.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dns::fuzz::upstream_reply(bytes));
