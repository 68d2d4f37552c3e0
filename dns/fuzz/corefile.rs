//! A Corefile.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| dns::fuzz::corefile(text));
