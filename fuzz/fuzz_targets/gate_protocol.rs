//! See `fuzz::gate_protocol`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::gate_protocol(data));
